"""Rows to fit models to."""

import numpy as np
import polars as pl

from batch_platform.declaration.spec import Features
from batch_platform.features.history import TrainingData

HGB = "sklearn.ensemble.HistGradientBoostingClassifier"
FEATURES = Features(sql="features.sql", key=["id"], time="ts")


def data(n: int = 200, label=None, **columns) -> TrainingData:
    """Rows whose label follows `x`; the last quarter is for evaluation."""
    random = np.random.default_rng(0)
    x = random.normal(size=n)
    frame = pl.DataFrame(
        {
            "x": pl.Series(np.where(random.random(n) < 0.1, np.nan, x)).fill_nan(None),
            "shop": random.choice(["a", "b", "c"], n),
            "flag": random.random(n) < 0.5,
            "late": pl.Series(values=(x + random.normal(size=n) > 0).tolist() if label is None else label),
            **columns,
        }
    )
    return TrainingData(fit=frame.head(n * 3 // 4), evaluate=frame.tail(n - n * 3 // 4), label="late")
