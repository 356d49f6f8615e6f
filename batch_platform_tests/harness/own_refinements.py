"""Refinements of a pipeline's own: one changes the output, one adds columns, and both learn from rows held out."""

import numpy as np
import polars as pl

from batch_platform.models.refinements.refinement import Batch, Learned, Refinement, Unseen
from batch_platform_tests.harness.small_pipeline import SHOPS


def last(raw: np.ndarray) -> np.ndarray:
    """The probability of the last class, or the value."""
    return raw[:, -1] if raw.ndim > 1 else raw


def learned_bounds(_: object, unseen: Unseen) -> Learned:
    """The range of the last column of the output, and its quartiles."""
    values = last(unseen.raw)
    return {"bounds": np.array([values.min(), values.max()]), "edges": np.quantile(values, [0.25, 0.5, 0.75])}


def within(learned: Learned, predictor, matrix: np.ndarray) -> np.ndarray:
    """The output, of which values and the last of two probabilities stay within the range that was seen."""
    raw = predictor.predict(matrix)
    values = np.clip(last(raw), *learned["bounds"])
    return (
        np.column_stack([1 - values, values])
        if raw.ndim > 1 and raw.shape[1] == 2
        else values
        if raw.ndim == 1
        else raw
    )


def described(learned: Learned, batch: Batch) -> list[pl.Series]:
    """A whole number, a number and a text for each row."""
    band = 1 + np.searchsorted(learned["edges"], last(batch.raw), side="right")
    texts = (
        batch.rows["shop"].fill_null("") if "shop" in batch.rows.columns else pl.repeat(SHOPS[0], len(band), eager=True)
    )
    return [
        pl.Series("band", band, dtype=pl.Int64),
        pl.Series("first_feature", np.nan_to_num(batch.matrix[:, 0]), dtype=pl.Float64),
        texts.cast(pl.String).alias("text_of_band"),
    ]


BOUNDED = Refinement("bounded", fit=learned_bounds, refine=within, holds_out=True)
BANDED = Refinement("banded", fit=learned_bounds, columns=described, holds_out=True)
