"""The exported model, as each peer reads it in its own environment: the estimator, its columns, and its matrix of a frame.

Imports nothing of batch_platform, which peers do not have installed. It does what a good engineer would do: one cast per
text column, one conversion of the whole frame, and all cores for estimators that use one by default.
"""

from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import polars as pl

CARRIED = ["id", "ts"]  # columns copied into the scores


@dataclass(frozen=True)
class Served:
    """A fitted classifier of two classes."""

    estimator: Any
    names: list[str]  # feature columns, in order
    categories: dict[str, list[str]]  # known categories, by column

    def matrix(self, rows: pl.DataFrame) -> np.ndarray:
        """The features as float64 [rows, features]; categories as codes, missing and unknown ones as NaN."""
        codes = [
            pl.col(name).cast(pl.Enum(categories), strict=False).to_physical().cast(pl.Float64)
            for name, categories in self.categories.items()
        ]
        return rows.select(self.names).with_columns(codes).cast(pl.Float64).fill_null(np.nan).to_numpy()

    def scored(self, rows: pl.DataFrame, day: str) -> pl.DataFrame:
        """The scores of the rows of one day, as they are stored: the probability of the positive class, and the decision."""
        score = self.estimator.predict_proba(self.matrix(rows))[:, 1]
        return rows.select(CARRIED).with_columns(score=score, prediction=score > 0.5, day=pl.lit(day))

    @property
    def columns(self) -> list[str]:
        """All columns to read."""
        return [*CARRIED, *self.names]


def load(path: str) -> Served:
    """Read an exported model."""
    served = Served(**joblib.load(path))
    if "n_jobs" in served.estimator.get_params():  # a random forest
        served.estimator.set_params(n_jobs=-1)
    return served
