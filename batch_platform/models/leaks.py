"""What looks like a leak in what a model has learned from, and in how well it does."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.features.history import ENTITY, GROUP, PARTITION_START, TrainingData
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import Signature, Task
from batch_platform.monitoring.leakage import (
    SuspectedLeak,
    nearly_perfect,
    null_with_the_label,
    of_known_entities,
    on_both_sides,
    suspected_leaks,
)


def leaks_of(
    signature: Signature,
    learned: tuple[pl.DataFrame, NDArray[np.float64], NDArray[Any] | None],
    data: TrainingData,
    metrics: dict[str, float],
    evaluated: pl.DataFrame,
) -> list[SuspectedLeak]:
    """The suspected leaks of a model that `learned` from rows, also encoded, and from their labels."""
    (kept, matrix, truth), contract, task = learned, signature.contract, signature.task
    if truth is None or data.label is None or task in ("clustering", "outliers"):
        return []
    categorical = [column.type == "category" for column in contract.columns]
    filled = [name for name in contract.names if not data.fit[name].null_count() + data.evaluate[name].null_count()]
    apart = [kept[name].rank("dense").cast(pl.Int64).to_numpy() for name in (GROUP, PARTITION_START) if name in kept]
    entities = [kept[ENTITY].to_numpy()] if ENTITY in kept else []
    with one_thread():
        leaks = suspected_leaks(
            matrix,
            contract.names,
            categorical,
            truth,
            classes=task != "regression",
            blocks=next(iter(apart), None),
            entities=entities,
        )
    named = {name for leak in leaks for name in leak.columns}
    by_nulls = null_with_the_label(data.nulls_unlabelled, data.rows_unlabelled, filled)
    leaks += [leak for leak in by_nulls if not named & {*leak.columns}]
    leaks = leaks or suspiciously_good(metrics, evaluated, data.label, task)
    leaks += on_both_sides(kept, evaluated, contract.names, data.label)
    if PARTITION_START in kept and pl.concat([kept[PARTITION_START], evaluated[PARTITION_START]]).n_unique() == 1:
        leaks += of_known_entities(kept, evaluated, contract.names, data.label)  # a snapshot is divided by row
    return leaks


def suspiciously_good(
    metrics: dict[str, float], evaluated: pl.DataFrame, label: str | None, task: Task
) -> list[SuspectedLeak]:
    """The model itself as a suspected leak, if it is nearly perfect on its evaluation rows."""
    if label is None or not evaluated.height:
        return []
    rows = evaluated.height if task == "regression" else min(evaluated[label].unique_counts().to_list())
    return nearly_perfect(metrics, rows)
