"""A bundle whose scores are known, and rows to score."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle, Native
from batch_platform.models.contract import Contract, ContractColumn
from batch_platform.models.reference import reference_of
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.models.bundles import manifest

SPEC = small_spec(features={"max_rejected": "10%"})
DAY = SPEC.partitions.calendar.named("2024-02-03")
STAMP = Stamp("run", datetime(2024, 3, 1, tzinfo=UTC))
CONTRACT = Contract(
    (
        ContractColumn("amount", "float", nullable=True, max=1000),
        ContractColumn("items", "integer", nullable=False),
        ContractColumn("shop", "category", nullable=True, categories=("a", "b")),
    )
)
LEARNED = pl.DataFrame({"amount": [1.0, 2.0], "items": [1, 2], "shop": ["a", "b"]})
REFERENCE = reference_of(CONTRACT, (LEARNED, CONTRACT.encode(LEARNED)), None)


class Sum:
    """A model that anybody can compute by hand; NaN where the amount is 13."""

    def __init__(self, task: str, classes: int = 2) -> None:
        self.task, self.classes = task, classes

    def predict(self, matrix):
        amount = np.nan_to_num(matrix[:, 0])
        score = np.where(amount == 13, np.nan, amount / 1000)
        if self.task == "regression":
            return score
        if self.task == "clustering":
            return (np.nan_to_num(score) > 0.5).astype(np.int32)
        if self.task == "binary":
            return np.column_stack([1 - score, score])
        return np.column_stack([score, *[(1 - score) / (self.classes - 1)] * (self.classes - 1)])


def bundle(task: str = "binary", classes=(False, True)) -> Bundle:
    described = manifest(task, classes=list(classes))
    return Bundle(
        Path("2024-02-01-0a0a0a0a"), "ab", described, CONTRACT, Native(partial(Sum, task, len(classes))), REFERENCE
    )


def rows(amount, items=None, shop=None) -> pl.DataFrame:
    n = len(amount)
    return pl.DataFrame(
        {
            "id": pl.Series(range(n), dtype=pl.Int64),
            "ts": pl.Series([DAY.start] * n, dtype=pl.Datetime("us", "UTC")),
            "amount": pl.Series(amount, dtype=pl.Float64),
            "items": pl.Series(items or [1] * n, dtype=pl.Int64),
            "shop": pl.Series(shop or ["a"] * n, dtype=pl.String),
        }
    )
