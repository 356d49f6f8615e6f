"""The rows of a training window: which columns a model is given, and the labels beside them."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from batch_platform.declaration.spec import Features


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training window.

    Args:
        fit: Feature columns and, with labels, `label`; the beginning of the window.
        evaluate: The same for its end.
        label: The label's column; None for a clustering.
        rows_before_cap: Of `fit`, before `model.train.max_rows` took a sample of them.
    """

    fit: pl.DataFrame
    evaluate: pl.DataFrame
    label: str | None
    rows_before_cap: int = 0


def feature_columns(features: Features, present: Mapping[str, pl.DataType]) -> list[str]:
    """The columns that a model is given: all but key, time and those declared to be none."""
    apart = {*features.key, features.time}
    declared_out = {name for name, rule in features.columns.items() if not rule.feature}
    return [name for name in present if name not in apart | declared_out]
