"""One batch of features: every row gets a prediction, or is rejected with a reason.

What any engine calls for each batch; it fits nothing, and a row's score does not depend on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, listed, shortened
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle, Predictor
from batch_platform.models.contract import OFFENDER, REASON
from batch_platform.scoring.rejected_rows import rows_as_json

NOT_FINITE = "the score is NaN or infinite"
SAMPLES = 3
REJECTED = ("partition_key", "key", "reason", "column_name", "row", "run_id")  # columns of rejected rows, all text


@dataclass(frozen=True)
class Scored:
    """The outcome for some rows: every row is in exactly one of the two frames."""

    predictions: pl.DataFrame
    rejected: pl.DataFrame  # all feature columns as they came, then REASON and OFFENDER
    unseen: dict[str, int]


def score_batch(rows: pl.DataFrame, bundle: Bundle, spec: PipelineSpec, predictor: Predictor | None = None) -> Scored:
    """Score some rows; what any engine calls for each batch, on any thread.

    Args:
        rows: Feature columns, in any order.
        bundle: The model.
        spec: The pipeline.
        predictor: Of the bundle, for all rows that are scored in one go; left out: the library's own code.

    Raises:
        DataError: A column of the contract, the key or the kept ones is missing.
    """
    split = bundle.contract.split(rows)
    predictor = predictor or bundle.predictor
    matrix = bundle.contract.encode(split.kept)
    unseen = bundle.contract.unseen(split.kept, matrix)
    with np.errstate(over="ignore", invalid="ignore"):  # a row whose score is none is rejected, not warned of
        raw = predictor.predict(matrix) if len(matrix) else None
    predictions = _predictions(split.kept, raw, bundle, spec)
    if raw is None or np.isfinite(raw).all():
        return Scored(predictions=predictions, rejected=split.rejected, unseen=unseen)
    finite = pl.Series(values=np.asarray(np.isfinite(raw).reshape(len(raw), -1).all(axis=1)), dtype=pl.Boolean)
    broken = split.kept.filter(~finite).select(pl.col(name).cast(dtype) for name, dtype in rows.schema.items())
    broken = broken.with_columns(pl.lit(NOT_FINITE).alias(REASON), pl.lit(None, dtype=pl.String).alias(OFFENDER))
    rejected = pl.concat([split.rejected, broken])
    return Scored(predictions=predictions.filter(finite), rejected=rejected, unseen=unseen)


def prediction_columns(task: str, classes: Sequence[object]) -> list[str]:
    """The columns that a model adds to a row."""
    match task:
        case "binary" | "outliers":
            return ["prediction", "score"]
        case "multiclass":
            return ["prediction", *(f"score_{label}" for label in classes)]
        case _:
            return ["prediction"]


def _predictions(kept: pl.DataFrame, raw: NDArray[Any] | None, bundle: Bundle, spec: PipelineSpec) -> pl.DataFrame:
    carried = _carried(kept, bundle, spec)
    classes = bundle.manifest.classes
    frame = kept.select(carried)
    match bundle.manifest.task:
        case "binary" | "multiclass":
            scores = np.empty((0, len(classes))) if raw is None else raw
            best = pl.Series(np.array(classes)).gather(scores.argmax(axis=1))
            names = prediction_columns(bundle.manifest.task, classes)[1:]
            shown = scores.T[-len(names) :]  # of two classes, the positive one
            columns = [pl.Series(name, values) for name, values in zip(names, shown, strict=True)]
            return frame.with_columns(best.alias("prediction"), *columns)
        case "regression":
            return frame.with_columns(pl.Series("prediction", [] if raw is None else raw, dtype=pl.Float64))
        case "outliers":  # as scikit-learn tells them: -1, and 1 for all others
            scores = pl.Series("score", [] if raw is None else raw, dtype=pl.Float64)
            flags = pl.select(pl.when(scores > 0).then(-1).otherwise(1).cast(pl.Int32)).to_series()
            return frame.with_columns(flags.alias("prediction"), scores)
        case "clustering":
            return frame.with_columns(pl.Series("prediction", [] if raw is None else raw, dtype=pl.Int32))


def _carried(kept: pl.DataFrame, bundle: Bundle, spec: PipelineSpec) -> list[str]:
    """The feature columns that go into the predictions: key, time and the kept ones."""
    carried = _carried_by(spec)
    if missing := [name for name in carried if name not in kept.columns]:
        msg = f"{spec.name}: the features lack {listed(missing)}; there are {listed(kept.columns)}."
        raise DataError(msg, hint="correct features.key, features.time or predictions.keep.")
    ours = {name.lower() for name in prediction_columns(bundle.manifest.task, bundle.manifest.classes)}
    if taken := [name for name in carried if name.lower() in ours]:
        msg = f"{spec.name}: the columns {listed(taken)} cannot be carried along: predictions have their own of that name."
        raise DataError(msg, hint="give the column another name in the features.")
    return carried


def ignored_columns(present: Sequence[str], bundle: Bundle, spec: PipelineSpec) -> tuple[str, ...]:
    """The feature columns that nobody asked for: unknown to the model, not carried along, not declared to be none."""
    asked = {*bundle.contract.names, *_carried_by(spec), *spec.features.columns}
    return tuple(name for name in present if name not in asked)


def _carried_by(spec: PipelineSpec) -> list[str]:
    time = [] if spec.features.time is None else [spec.features.time]
    return list(dict.fromkeys([*spec.features.key, *time, *spec.predictions.keep]))


def rejected_rows(rejected: pl.DataFrame, spec: PipelineSpec, partition: Partition, stamp: Stamp) -> pl.DataFrame:
    """Rejected rows as the warehouse keeps them: the columns of REJECTED."""
    return rejected.select(
        pl.lit(partition.key).alias("partition_key"),
        rows_as_json(rejected.select(spec.features.key)).alias("key"),
        pl.col(REASON).alias("reason"),
        pl.col(OFFENDER).alias("column_name"),
        rows_as_json(rejected.drop(REASON, OFFENDER)).alias("row"),
        pl.lit(stamp.run_id).alias("run_id"),
    )


def reasons_of(rejected: pl.DataFrame) -> dict[str, int]:
    """How many rows each column and reason made to be rejected."""
    pairs = rejected.group_by(OFFENDER, REASON).len().sort("len", OFFENDER, REASON, descending=[True, False, False])
    return {f"{column}: {reason}" if column else reason: count for column, reason, count in pairs.iter_rows()}


def samples_of(rejected: pl.DataFrame, spec: PipelineSpec) -> list[str]:
    """The first rejected rows by their key, with the value that was the reason."""
    key = spec.features.key
    shown = rejected.head(SAMPLES).select(*key, OFFENDER)
    found: list[str] = []
    for at, row in enumerate(shown.iter_rows()):
        named = " ".join(f"{name}={shortened(value)}" for name, value in zip(key, row, strict=False))
        column = row[-1]
        found.append(f"{named} ({column}={shortened(rejected[column][at])})" if column else named)
    return found
