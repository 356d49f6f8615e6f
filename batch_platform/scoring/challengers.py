"""Challengers in the stream: they score the rows that the champion scores, in the same pass over the features.

Each row that the champion scored is scored by each challenger, or rejected by the challenger's own contract and counted.
Whatever a challenger raises ends its own part in the partition, with the reason, and never that of the champion.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import parquet_writer
from batch_platform.models.bundle import Bundle, Predictor
from batch_platform.models.registry import Version
from batch_platform.monitoring.agreement import Agreed, Agreement, columns_of
from batch_platform.scoring.batch import Scored, prediction_columns, reasons_of, score_batch
from batch_platform.scoring.repeated import repeated_text, repeated_time

DECIDING = ("binary", "multiclass", "outliers")  # tasks whose prediction is a decision that another model may flip
_ROW = "__place_in_batch"


@dataclass(frozen=True)
class Contender:
    """A challenger that is ready to score a partition.

    Args:
        name: As declared.
        bundle: Its version.
        predictor: What evaluates it; give the one for all rows of a run that it scores.
    """

    name: str
    bundle: Bundle
    predictor: Predictor


@dataclass(frozen=True)
class ShadowPart:
    """What one batch becomes of by a challenger."""

    name: str
    rows_in: int
    rows: pa.Table | None = None  # as they are stored; None where it failed
    reasons: dict[str, int] = field(default_factory=dict[str, int])  # of rows that break its own contract
    scores: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None  # the champion's, and its own [n, columns]
    flipped: NDArray[np.bool_] | None = None
    failure: str = ""


@dataclass(frozen=True)
class Shadowed:
    """What a challenger gave for a partition, on disk and not yet committed."""

    name: str
    version: str
    file: Path | None  # None where it failed
    rows_in: int
    rows_scored: int
    rows_rejected: int
    reasons: dict[str, int]
    agreed: Agreed
    failure: str


def compared_columns(task: str, one: Sequence[object], other: Sequence[object]) -> list[str]:
    """The columns by which two models of a task, of such classes, put rows in order; none of a clustering."""
    if task == "regression":
        return ["prediction"]
    others = prediction_columns(task, other)
    return [name for name in prediction_columns(task, one) if name in others and name != "prediction"]


def failure_of(error: Exception) -> str:
    """Why a challenger could not do its part, in one line without a secret."""
    if isinstance(error, BatchPlatformError):
        return str(error)
    return redact(f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))


def score_beside(  # noqa: PLR0913 - what is scored, by whom, and what is written with it
    rows: pl.DataFrame,
    bundle: Bundle,
    predictor: Predictor,
    contenders: Sequence[Contender],
    spec: PipelineSpec,
    *,
    partition: Partition,
    stamp: Stamp,
    started: datetime,
) -> tuple[Scored, tuple[ShadowPart, ...]]:
    """Score some rows by the champion, and those that it scored by the challengers.

    Args:
        rows: Feature columns, in any order.
        bundle: The champion's.
        predictor: Of the champion.
        contenders: The challengers.
        spec: The pipeline.
        partition: Whose rows they are.
        stamp: Of the run.
        started: When the scoring of the partition began.

    Returns:
        What `score_batch` gives of the champion, and the part of each challenger.

    Raises:
        DataError: As `score_batch`, of the champion only.
    """
    numbered = rows.with_row_index(_ROW)
    scored = score_batch(numbered, bundle, _carrying(spec, [*spec.predictions.keep, _ROW]), predictor)
    served = scored.predictions
    given = numbered if served.height == numbered.height else numbered[served[_ROW]]
    parts: list[ShadowPart] = []
    for one in contenders:
        try:
            part = _part(given, served, bundle, one, spec)
            marked = _marked(part, one, spec, partition=partition, stamp=stamp, started=started)
        except Exception as error:  # noqa: BLE001 - whatever users' models raise: it is recorded, and production goes on
            parts.append(ShadowPart(one.name, served.height, failure=failure_of(error)))
        else:
            parts.append(marked)
    return Scored(served.drop(_ROW), scored.rejected.drop(_ROW), scored.unseen), tuple(parts)


@dataclass(frozen=True)
class _Compared:
    scored: Scored
    scores: tuple[NDArray[np.float64], NDArray[np.float64]]
    flipped: NDArray[np.bool_] | None
    rows_in: int


def _part(given: pl.DataFrame, served: pl.DataFrame, champion: Bundle, one: Contender, spec: PipelineSpec) -> _Compared:
    task, classes = one.bundle.manifest.task, one.bundle.manifest.classes
    if task != champion.manifest.task:
        msg = (
            f"{one.bundle.version} is a {task} model, and the champion {champion.version} is {champion.manifest.task}."
        )
        raise DataError(msg, hint="only models of one task can be compared.")
    scored = score_batch(given, one.bundle, _carrying(spec, [_ROW]), one.predictor)
    own = scored.predictions
    theirs = served if own.height == served.height else served.filter(pl.col(_ROW).is_in(own[_ROW].implode()))
    columns = compared_columns(task, champion.manifest.classes, classes)
    flipped = (theirs["prediction"] != own["prediction"]).to_numpy() if task in DECIDING else None
    return _Compared(scored, (columns_of(theirs, columns), columns_of(own, columns)), flipped, given.height)


def _marked(  # noqa: PLR0913 - what is written with every row
    found: _Compared, one: Contender, spec: PipelineSpec, *, partition: Partition, stamp: Stamp, started: datetime
) -> ShadowPart:
    """The rows of a challenger with what is the same for each of them."""
    rows = found.scored.predictions.drop(_ROW).to_arrow()
    carried = len(spec.features.key) + (spec.features.time is not None)
    for at, (name, text) in enumerate({"challenger": one.name, "model_version": one.bundle.version}.items()):
        rows = rows.add_column(carried + at, name, repeated_text(text, len(rows)))
    rows = rows.append_column("partition_key", repeated_text(partition.key, len(rows)))
    rows = rows.append_column("scored_at", repeated_time(started, len(rows)))
    rows = rows.append_column("run_id", repeated_text(stamp.run_id, len(rows)))
    reasons = reasons_of(found.scored.rejected) if found.scored.rejected.height else {}
    return ShadowPart(one.name, found.rows_in, rows, reasons, found.scores, found.flipped)


def _carrying(spec: PipelineSpec, columns: list[str]) -> PipelineSpec:
    """The pipeline with other columns carried along with its key and time."""
    return spec.model_copy(update={"predictions": spec.predictions.model_copy(update={"keep": columns})})


class ShadowFiles:
    """Writes what the challengers of a partition give, a file for each, and adds up how far they agree with the champion."""

    def __init__(self, contenders: Sequence[Contender], folder: Path, partition_key: str) -> None:
        """Write nothing yet."""
        self._files = {
            one.name: _ShadowFile(one, folder / f"{partition_key}.{one.name}.challenger.parquet") for one in contenders
        }

    def __enter__(self) -> Self:
        """Give the writer."""
        return self

    def write(self, parts: Sequence[ShadowPart]) -> None:
        """Write what one batch became."""
        for part in parts:
            self._files[part.name].write(part)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Complete the files; after an error there are none."""
        for file in self._files.values():
            file.close(keep=error is None)

    def results(self) -> tuple[Shadowed, ...]:
        """What each challenger gave, once the files are complete."""
        return tuple(file.result() for file in self._files.values())


class _ShadowFile:
    def __init__(self, one: Contender, path: Path) -> None:
        self._name, self._version, self._path = one.name, one.bundle.version, path
        self._writer: pq.ParquetWriter | None = None
        self._in = self._scored = 0
        self._reasons, self._agreement, self._failure = Counter[str](), Agreement(), ""

    def write(self, part: ShadowPart) -> None:
        self._in += part.rows_in
        self._failure = self._failure or part.failure
        if self._failure or part.rows is None or part.scores is None:
            return
        if self._writer is None:
            self._writer = parquet_writer(self._path, part.rows.schema, lasting=False)
        if not self._scored or len(part.rows):
            self._writer.write_table(part.rows.cast(self._writer.schema))
        self._scored += len(part.rows)
        self._reasons.update(part.reasons)
        self._agreement.add(*part.scores, part.flipped)

    def close(self, *, keep: bool) -> None:
        if self._writer is not None:
            self._writer.close()
        if not keep or self._failure:
            self._path.unlink(missing_ok=True)

    def result(self) -> Shadowed:
        failed = bool(self._failure)
        return Shadowed(
            name=self._name,
            version=self._version,
            file=None if failed else self._path,
            rows_in=self._in,
            rows_scored=0 if failed else self._scored,
            rows_rejected=0 if failed else self._in - self._scored,
            reasons={} if failed else dict(self._reasons),
            agreed=Agreed() if failed else self._agreement.result(),
            failure=self._failure,
        )


OpenVersion = Callable[[Version], Bundle]
