"""One batch of features: every row gets a prediction, or is rejected with a reason.

Any engine calls this for each batch. It fits nothing, and a row's score does not depend on the other rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import DataError, listed
from batch_platform.declaration.spec import PipelineSpec
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
from batch_platform.monitoring.profiles import Profile, RowSketch, merged_profiles
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.scoring.rejected_rows import SAMPLES, reasons_of, samples_of

NOT_FINITE = "the score is NaN or infinite"


@dataclass(frozen=True)
class Counts:
    """Counts of some rows of a partition: scored, rejected and why, and the profiles of the scored rows."""

    rows_in: int = 0
    rows_scored: int = 0
    rows_rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])  # rejected rows by column and reason
    unseen: dict[str, int] = field(
        default_factory=dict[str, int]
    )  # rows with a category that the model does not know, by column
    samples: tuple[str, ...] = ()  # the first rejected rows, each by its key and the value that is the reason
    ignored: tuple[str, ...] = ()  # feature columns that are neither inputs of the model, nor kept, nor declared
    # Features and prediction of the scored rows; empty unless asked for, and if the version has no reference profile.
    profiles: tuple[Profile, ...] = field(default=(), compare=False)
    by_segment: SegmentCounts = field(default_factory=SegmentCounts, compare=False)
    sketch: RowSketch = field(default_factory=RowSketch, compare=False)  # empty if `monitoring.rows` is off

    def __add__(self, further: "Counts") -> "Counts":
        """The counts of these rows and of the rows after them."""
        return Counts(
            rows_in=self.rows_in + further.rows_in,
            rows_scored=self.rows_scored + further.rows_scored,
            rows_rejected=self.rows_rejected + further.rows_rejected,
            reasons=dict(Counter(self.reasons) + Counter(further.reasons)),
            unseen=dict(Counter(self.unseen) + Counter(further.unseen)),
            samples=(self.samples + further.samples)[:SAMPLES],
            ignored=tuple(dict.fromkeys(self.ignored + further.ignored)),
            profiles=merged_profiles([self.profiles, further.profiles]),
            by_segment=self.by_segment + further.by_segment,
            sketch=self.sketch + further.sketch,
        )


@dataclass(frozen=True)
class Scored:
    """The outcome for a batch: every row is in exactly one of the two frames."""

    predictions: pl.DataFrame
    rejected: pl.DataFrame  # all feature columns unchanged, then REASON and OFFENDER
    counts: Counts


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
    used = {*bundle.contract.names, *carried, *spec.features.columns}
    counts = Counts(
        rows_in=rows.height,
        rows_scored=predictions.height,
        rows_rejected=rejected.height,
        reasons=reasons_of(rejected),
        unseen=unseen,
        samples=samples_of(rejected, spec),
        ignored=tuple(name for name in rows.columns if name not in used),
    )
    if profile:
        by_column = dict(rejected[OFFENDER].value_counts().iter_rows()) if rejected.height else {}
        segments, as_wholes = spec.monitoring.segments, spec.monitoring.rows
        scored_rows, signature = (kept, matrix), bundle.signature
        profiles, by_segment, sketch = profiled(
            bundle.reference, scored_rows, raw, signature, by_column, segments, as_wholes=as_wholes
        )
        counts = replace(counts, profiles=profiles, by_segment=by_segment, sketch=sketch)
    return Scored(predictions, rejected, counts)


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
    carried = list(dict.fromkeys([*spec.features.key_and_time, *keep]))
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
