"""The rows of a training window: the columns that a model is given, with the labels beside them."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from batch_platform.declaration.spec import Features


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training window.

    Args:
        fit: Feature columns and, with labels, the label; the beginning of the window.
        evaluate: The same columns for the end of the window.
        label: Name of the label column; None for a clustering.
        rows_before_cap: Number of rows to fit on before `model.train.max_rows` took a sample.
    """

    fit: pl.DataFrame
    evaluate: pl.DataFrame
    label: str | None
    rows_before_cap: int = 0


def feature_columns(features: Features, present: Mapping[str, pl.DataType]) -> list[str]:
    """Select the columns that a model is given: all but key, time and those declared `feature: false`."""
    left_out = {*features.key, features.time, *(name for name, rule in features.columns.items() if not rule.feature)}
    return [name for name in present if name not in left_out]
