"""Rows whose share of positives is drawn."""

import numpy as np
import polars as pl

from batch_platform.features.history import TrainingData
from batch_platform.features.training_data import Sample


def rows(count: int, classes: int, seed: int) -> pl.DataFrame:
    """Rows whose class is the rarer the higher its number: 2% of them have another class than 0."""
    random = np.random.default_rng(seed)
    x, z = random.normal(size=count), random.normal(size=count)
    odds = np.column_stack([np.full(count, 5.5), *(x * (1 + at) + z - at / 2 for at in range(1, classes))])
    shares = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    label = (shares.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return pl.DataFrame({"x": x, "z": z, "label": label if classes > 2 else label.astype(bool)})


def drawn(classes: int, most: int | None = 3_000, *, balanced: bool = True) -> TrainingData:
    sample, seen = Sample(most, "label", balanced=balanced), rows(20_000, classes, 1)
    sample.add(seen)
    return TrainingData(
        fit=pl.concat(sample.frames()),
        evaluate=rows(20_000, classes, 2),
        label="label",
        rows_before_cap=sample.seen,
        balanced=balanced,
        classes_before_cap=sample.counts,
    )
