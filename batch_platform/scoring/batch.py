"""One batch of features: every row gets a prediction, or is rejected with a reason.

Any engine calls this for each batch. It fits nothing, and a row's score does not depend on the other rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, listed, shortened
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import Bundle, Predictor
from batch_platform.models.contract import BINARY, OFFENDER, REASON
from batch_platform.models.reference import profiled
from batch_platform.models.refinements.refinement import (
    Batch,
    added_columns,
    decision_column,
    empty_output,
    may_be_selected,
    model_of,
)
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.monitoring.profiles import Profile, RowSketch
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.scoring.rejected_rows import rows_as_json

NOT_FINITE = "the score is NaN or infinite"
SAMPLES = 3
REJECTED = ("partition_key", "key", "reason", "column_name", "row", "run_id")  # columns of rejected rows, all text
_NOT_PROFILED: tuple[tuple[Profile, ...], SegmentCounts, RowSketch] = (), SegmentCounts(), RowSketch()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Scored:
    """The outcome for a batch: every row is in exactly one of the two frames."""

    predictions: pl.DataFrame
    rejected: pl.DataFrame  # all feature columns unchanged, then REASON and OFFENDER
    unseen: dict[str, int]  # rows with a category that the model does not know, by column
    profiles: tuple[Profile, ...] = ()  # profiles of the scored rows; empty unless asked for, and without a reference
    by_segment: SegmentCounts = field(default_factory=SegmentCounts)  # counts of the same rows
    sketch: RowSketch = field(default_factory=RowSketch)  # sketch of the same rows; empty if `monitoring.rows` is off


def score_batch(  # noqa: PLR0913 - a batch, a model, and what is wanted of them
    rows: pl.DataFrame,
    bundle: Bundle,
    spec: PipelineSpec,
    predictor: Predictor | None = None,
    *,
    keep: Sequence[str] | None = None,
    profile: bool = False,
) -> Scored:
    """Score a batch, whose columns may come in any order, on any thread.

    The model's own library evaluates it unless a predictor does. `keep` are the columns to copy into the predictions
    beside key and time, by default those that the pipeline declares. With `profile` the rows are profiled in the bins of the
    bundle's reference profile, if it has one.

    Raises:
        DataError: A column of the contract, a key column or a kept column is missing.
    """
    try:
        split = bundle.contract.split(rows)
    except DataError as error:
        again = f"batch-platform train {spec.name} --all"
        hint = f"{error.hint} If it was removed, {again} trains the models of all serving periods without it."
        raise DataError(error.message, hint=hint) from error
    predictor = predictor or bundle.predictor
    matrix = bundle.contract.encode(split.kept)
    unseen = bundle.contract.unseen(split.kept, matrix)
    with np.errstate(over="ignore", invalid="ignore"):  # rows without a finite score are rejected below
        raw = predictor.predict(matrix) if len(matrix) else None
    carried = _carried(split.kept, bundle, spec, spec.predictions.keep if keep is None else keep)
    predictions = _predictions(split.kept.select(carried), raw, bundle)
    kept, rejected = split.kept, split.rejected
    if raw is not None and not np.isfinite(raw).all():
        finite = np.asarray(np.isfinite(raw).reshape(len(raw), -1).all(axis=1))
        scored = pl.Series(values=finite, dtype=pl.Boolean)
        broken = kept.filter(~scored).select(pl.col(name).cast(dtype) for name, dtype in rows.schema.items())
        broken = broken.with_columns(pl.lit(NOT_FINITE).alias(REASON), pl.lit(None, dtype=pl.String).alias(OFFENDER))
        rejected = pl.concat([rejected, broken])
        predictions, kept, matrix, raw = predictions.filter(scored), kept.filter(scored), matrix[finite], raw[finite]
    output = empty_output(bundle.signature) if raw is None else raw
    decide, selected = spec.predictions.decide, None
    if decide is not None and spec.predictions.explains_decisions:
        selected = may_be_selected(decide, output, bundle.manifest.task, bundle.manifest.classes).to_numpy()
    model, reasons = model_of(predictor), spec.predictions.reasons
    batch = Batch(kept, matrix, output, bundle.signature, model, selected, reasons)
    added = added_columns(predictor, batch)
    if decide is not None:
        added.append(decision_column(decide, output, bundle.manifest.task, bundle.manifest.classes))
    predictions = _with_added(predictions, added, spec)
    counted = _profiled(bundle, spec, (kept, matrix), raw, rejected) if profile else _NOT_PROFILED
    return Scored(predictions, rejected, unseen, *counted)


def _with_added(predictions: pl.DataFrame, added: Sequence[pl.Series], spec: PipelineSpec) -> pl.DataFrame:
    """Predictions with the columns of refinements."""
    taken = {name.lower() for name in predictions.columns}
    if wrong := [column.name for column in added if column.name.lower() in taken or len(column) != predictions.height]:
        msg = f"{spec.name}: a refinement adds the columns {listed(wrong)}, which exist already or have too many or too few values."
        raise DataError(
            msg,
            hint="a refinement adds one value per row, in columns of new names: rename the kept column, or correct the refinement.",
        )
    return predictions.with_columns(added)


def _profiled(
    bundle: Bundle,
    spec: PipelineSpec,
    rows: tuple[pl.DataFrame, NDArray[np.float64]],
    raw: NDArray[Any] | None,
    rejected: pl.DataFrame,
) -> tuple[tuple[Profile, ...], SegmentCounts, RowSketch]:
    by_column = dict(rejected[OFFENDER].value_counts().iter_rows()) if rejected.height else {}
    declared = spec.monitoring
    return profiled(
        bundle.reference, rows, raw, bundle.signature, by_column, declared.segments, as_wholes=declared.rows
    )


def _predictions(frame: pl.DataFrame, raw: NDArray[Any] | None, bundle: Bundle) -> pl.DataFrame:
    classes = bundle.manifest.classes
    match bundle.manifest.task:
        case "binary" | "multiclass":
            scores = np.empty((0, len(classes))) if raw is None else raw
            # Of two classes the first unless the second is more probable; finding the largest of a row takes twice as long.
            best = scores[:, 1] > scores[:, 0] if len(classes) == BINARY else scores.argmax(axis=1)
            best = pl.Series(np.array(classes)).gather(best.astype(np.uint32))
            names = prediction_columns(bundle.manifest.task, classes)[1:]
            shown = scores.T[-len(names) :]  # only the positive one of two classes is shown
            columns = [pl.Series(name, values) for name, values in zip(names, shown, strict=True)]
            return frame.with_columns(best.alias("prediction"), *columns)
        case "regression":
            return frame.with_columns(pl.Series("prediction", [] if raw is None else raw, dtype=pl.Float64))
        case "outliers":  # -1 for an outlier, 1 for any other row, as scikit-learn has it
            scores = pl.Series("score", [] if raw is None else raw, dtype=pl.Float64)
            flags = pl.select(pl.when(scores > 0).then(-1).otherwise(1).cast(pl.Int32)).to_series()
            return frame.with_columns(flags.alias("prediction"), scores)
        case "clustering":
            return frame.with_columns(pl.Series("prediction", [] if raw is None else raw, dtype=pl.Int32))


def _carried(kept: pl.DataFrame, bundle: Bundle, spec: PipelineSpec, keep: Sequence[str]) -> list[str]:
    carried = _carried_by(spec, keep)
    if missing := [name for name in carried if name not in kept.columns]:
        own = [name for name in kept.columns if not name.startswith("__")]  # the others are of the platform
        msg = f"{spec.name}: the features lack the columns {listed(missing)}; they have {listed(own)}."
        raise DataError(msg, hint="correct features.key, features.time or predictions.keep.")
    added = {name.lower() for name in prediction_columns(bundle.manifest.task, bundle.manifest.classes)}
    if taken := [name for name in carried if name.lower() in added]:
        msg = (
            f"{spec.name}: the columns {listed(taken)} cannot be kept: predictions have their own columns of that name."
        )
        raise DataError(msg, hint="rename the columns in the features.")
    return carried


def ignored_columns(present: Sequence[str], bundle: Bundle, spec: PipelineSpec) -> tuple[str, ...]:
    """The feature columns that are neither inputs of the model, nor kept, nor declared."""
    used = {*bundle.contract.names, *_carried_by(spec, spec.predictions.keep), *spec.features.columns}
    return tuple(name for name in present if name not in used)


def _carried_by(spec: PipelineSpec, keep: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*spec.features.key_and_time, *keep]))


def rejected_rows(rejected: pl.DataFrame, spec: PipelineSpec, partition: Partition, stamp: Stamp) -> pl.DataFrame:
    """Rejected rows as the warehouse stores them, with the columns of REJECTED."""
    return rejected.select(
        pl.lit(partition.key).alias("partition_key"),
        rows_as_json(rejected.select(spec.features.key)).alias("key"),
        pl.col(REASON).alias("reason"),
        pl.col(OFFENDER).alias("column_name"),
        rows_as_json(rejected.drop(REASON, OFFENDER)).alias("row"),
        pl.lit(stamp.run_id).alias("run_id"),
    )


def reasons_of(rejected: pl.DataFrame) -> dict[str, int]:
    """Number of rejected rows by column and reason, the most frequent first."""
    pairs = rejected.group_by(OFFENDER, REASON).len().sort("len", OFFENDER, REASON, descending=[True, False, False])
    return {f"{column}: {reason}" if column else reason: count for column, reason, count in pairs.iter_rows()}


def samples_of(rejected: pl.DataFrame, spec: PipelineSpec) -> list[str]:
    """Keys of the first rejected rows, each with the value that is the reason."""
    key = spec.features.key
    samples: list[str] = []
    for at, row in enumerate(rejected.head(SAMPLES).select(*key, OFFENDER).iter_rows()):
        named = " ".join(f"{name}={shortened(value)}" for name, value in zip(key, row, strict=False))
        column = row[-1]
        value = rejected[column][at] if column else None
        shown = f"no {column}" if value is None else f"{column}={shortened(value)}"
        samples.append(f"{named} ({shown})" if column else named)
    return samples


def repeated_text(text: str, rows: int) -> pa.DictionaryArray:
    """A column with the same text in every row, stored once.

    Made of plain buffers: Arrow's own conversions from Python values first import pandas, wherever it is installed.
    """
    encoded = text.encode()
    bounds = np.array([0, len(encoded)], np.int32)
    once = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(encoded)])
    places = pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(np.zeros(rows, np.int32))])
    return pa.DictionaryArray.from_arrays(places, once)


def repeated_time(moment: datetime, rows: int) -> pa.Array:
    """A column with the same time in every row, as microseconds in UTC; see `repeated_text`."""
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return pa.Array.from_buffers(
        pa.timestamp("us", "UTC"), rows, [None, pa.py_buffer(np.full(rows, microseconds, np.int64))]
    )
