"""The risk score of the Mayo Clinic as a model made elsewhere: a formula that was published, and that nothing here trains."""

import polars as pl

SURVIVAL, USUAL = 0.970, 5.07  # of a year, of a patient with the usual score


class MayoModel:
    """The model of Dickson and others (Hepatology 1989; 10: 1-7)."""

    def predict(self, batch: pl.DataFrame) -> pl.Series:
        """Return the probability of death within a year of each visit."""
        score = (
            0.871 * pl.col("log_bilirubin")
            - 2.53 * pl.col("albumin").log()
            + 0.039 * pl.col("age")
            + 2.38 * pl.col("log_prothrombin")
            + 0.859 * pl.col("edema")
        )
        return batch.select(1 - SURVIVAL ** (score - USUAL).exp()).to_series()
