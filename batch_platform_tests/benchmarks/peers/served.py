"""The exported model, as each peer reads it in its own environment: the estimator, its columns, and a matrix from a frame.

Imports nothing of batch_platform, for a peer has none. It does what a good engineer would: one cast for each text
column, one conversion for the whole frame, all cores for what scikit-learn runs on one unless told.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl


@dataclass(frozen=True)
class Served:
    """A fitted classifier of two classes."""

    estimator: Any
    names: list[str]  # its features, in order
    categories: dict[str, list[str]]  # the texts that it knows, by column
    carried: list[str]  # columns that go into the scores besides

    def matrix(self, rows: pl.DataFrame) -> np.ndarray:
        """The features as float64 [n, features]; texts as codes, missing and unknown as NaN."""
        codes = [
            pl.col(name).cast(pl.Enum(known), strict=False).to_physical().cast(pl.Float64)
            for name, known in self.categories.items()
        ]
        return rows.select(self.names).with_columns(codes).cast(pl.Float64).fill_null(np.nan).to_numpy()

    def score(self, rows: pl.DataFrame) -> np.ndarray:
        """The probability of the positive class of each row."""
        return self.estimator.predict_proba(self.matrix(rows))[:, 1]

    def scored(self, rows: pl.DataFrame, day: str) -> pl.DataFrame:
        """What is stored of rows that belong to one day."""
        return self.with_score(rows, self.score(rows)).with_columns(day=pl.lit(day))

    def with_score(self, rows: pl.DataFrame, score: np.ndarray) -> pl.DataFrame:
        """The carried columns of rows with their scores."""
        return rows.select(self.carried).with_columns(score=score, prediction=score > 0.5)

    @property
    def columns(self) -> list[str]:
        """All columns that have to be read."""
        return list(dict.fromkeys([*self.carried, *self.names]))


def load(path: str, *, all_cores: bool = True) -> Served:
    """Read an exported model."""
    served = Served(**joblib.load(path))
    if "n_jobs" in served.estimator.get_params():  # a forest
        served.estimator.set_params(n_jobs=-1 if all_cores else 1)
    return served


@cache
def loaded(path: str) -> Served:
    """The same for one core, read once in each worker process."""
    return load(path, all_cores=False)


def day_of(file: str) -> str:
    """The day whose features a file holds."""
    return Path(file).name.partition(".")[0]
