"""The stream of a partition: feature batches in, predictions and rejected rows out, into staged Parquet files.

Memory is bounded by the batch, whatever the partition's size. It fits nothing, and no database is open meanwhile:
committing what was staged is the warehouse's work.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_platform.contract import OFFENDER, REASON
from batch_platform.errors import DataError, IntegrityError, listed, shortened
from batch_platform.features import BATCH_ROWS
from batch_platform.models.bundle import Bundle
from batch_platform.partitions import Partition
from batch_platform.rejections import rows_as_json
from batch_platform.spec import PipelineSpec

NOT_FINITE = "the score is NaN or infinite"
SAMPLES = 3


@dataclass(frozen=True)
class Stamp:
    """Who writes, and when: given by the edge, so that nothing below reads a clock.

    Args:
        run_id: Of the run.
        at: When the run began; with a time zone.
        clock: The edge's clock, for the moments in which things happen; left out, all happens at the beginning.
    """

    run_id: str
    at: datetime
    clock: Callable[[], datetime] | None = None

    def now(self) -> datetime:
        """The time to record for what happens now; nothing is decided by it."""
        return self.at if self.clock is None else self.clock()


@dataclass(frozen=True)
class Scored:
    """The outcome for some rows: every row is in exactly one of the two frames."""

    predictions: pl.DataFrame
    rejected: pl.DataFrame  # all feature columns as they came, then REASON and OFFENDER
    unseen: dict[str, int]


@dataclass(frozen=True)
class Staged:
    """A scored partition on disk, not yet committed."""

    partition: Partition
    predictions: Path
    rejected: Path
    rows_in: int
    rows_scored: int
    rows_rejected: int
    started_at: datetime
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    unseen: dict[str, int] = field(default_factory=dict[str, int])
    ignored: tuple[str, ...] = ()  # columns that nobody asked for


def score_batch(rows: pl.DataFrame, bundle: Bundle, spec: PipelineSpec) -> Scored:
    """Score some rows; what any engine calls for each batch.

    Raises:
        DataError: A column of the contract, the key or the kept ones is missing.
    """
    split = bundle.contract.split(rows)
    raw = bundle.predictor.predict(bundle.contract.encode(split.kept)) if split.kept.height else None
    predictions = _predictions(split.kept, raw, bundle, spec)
    if raw is None or np.isfinite(raw).all():
        return Scored(predictions=predictions, rejected=split.rejected, unseen=split.unseen)
    finite = pl.Series(values=np.asarray(np.isfinite(raw).reshape(len(raw), -1).all(axis=1)), dtype=pl.Boolean)
    broken = split.kept.filter(~finite).select(pl.col(name).cast(dtype) for name, dtype in rows.schema.items())
    broken = broken.with_columns(pl.lit(NOT_FINITE).alias(REASON), pl.lit(None, dtype=pl.String).alias(OFFENDER))
    rejected = pl.concat([split.rejected, broken])
    return Scored(predictions=predictions.filter(finite), rejected=rejected, unseen=split.unseen)


def stage(  # noqa: PLR0913 - each is one fact of the partition
    *,
    spec: PipelineSpec,
    partition: Partition,
    features: Path,
    sha256: str,
    bundle: Bundle,
    folder: Path,
    stamp: Stamp,
) -> Staged:
    """Score one partition into files below `folder`.

    Args:
        spec: The pipeline.
        partition: The partition.
        features: Its feature file.
        sha256: What the file's bytes must be.
        bundle: The model.
        folder: Where to stage; exists.
        stamp: Written with every row.

    Raises:
        IntegrityError: The feature file is not what was recorded.
        DataError: Columns are missing, or more rows are rejected than the budget allows.
    """
    started = stamp.now()
    marks = [
        pl.lit(partition.key).alias("partition_key"),
        pl.lit(bundle.version).alias("model_version"),
        pl.lit(started).cast(pl.Datetime("us", "UTC")).alias("scored_at"),
        pl.lit(stamp.run_id).alias("run_id"),
    ]
    good, bad = folder / f"{partition.key}.predictions.parquet", folder / f"{partition.key}.rejected.parquet"
    rows_in, reasons, unseen = 0, Counter[str](), Counter[str]()
    samples: list[str] = []
    ignored: tuple[str, ...] = ()
    with (
        _unchanged(spec, partition, features, sha256) as file,
        _FrameWriter(good) as predictions,
        _FrameWriter(bad) as rejects,
    ):
        for rows in _read(file):
            try:
                scored = score_batch(rows, bundle, spec)
            except DataError as error:
                msg = f"{spec.name}, partition {partition.key}: {error.message.removeprefix(f'{spec.name}: ')}"
                raise DataError(msg, hint=error.hint) from error
            ignored = ignored or _ignored(rows.columns, bundle, spec)
            rows_in += rows.height
            predictions.write(scored.predictions.with_columns(marks))
            unseen.update(scored.unseen)
            if scored.rejected.height or not rejects.begun:
                rejects.write(_rejected(scored.rejected, spec, partition, stamp))
            if scored.rejected.height:
                reasons.update(_reasons(scored.rejected))
                samples += _samples(scored.rejected, spec)[: SAMPLES - len(samples)]
    staged = Staged(
        partition=partition,
        predictions=good,
        rejected=bad,
        rows_in=rows_in,
        rows_scored=predictions.rows,
        rows_rejected=rejects.rows,
        started_at=started,
        reasons=dict(reasons),
        unseen=dict(unseen),
        ignored=ignored,
    )
    _require_within_budget(spec, staged, samples)
    return staged


def prediction_columns(task: str, classes: Sequence[object]) -> list[str]:
    """The columns that a model adds to a row."""
    match task:
        case "binary":
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


def _ignored(present: Sequence[str], bundle: Bundle, spec: PipelineSpec) -> tuple[str, ...]:
    """The feature columns that nobody asked for: unknown to the model, not carried along, not declared to be none."""
    asked = {*bundle.contract.names, *_carried_by(spec), *spec.features.columns}
    return tuple(name for name in present if name not in asked)


def _carried_by(spec: PipelineSpec) -> list[str]:
    time = [] if spec.features.time is None else [spec.features.time]
    return list(dict.fromkeys([*spec.features.key, *time, *spec.predictions.keep]))


def _read(features: BinaryIO) -> Iterator[pl.DataFrame]:
    """The batches of a feature file; an empty file gives one empty batch, so that its columns are known."""
    with pq.ParquetFile(features) as file:
        if not file.metadata.num_rows:
            yield pl.DataFrame(file.schema_arrow.empty_table())
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield pl.DataFrame(pa.Table.from_batches([batch]))


def _rejected(rejected: pl.DataFrame, spec: PipelineSpec, partition: Partition, stamp: Stamp) -> pl.DataFrame:
    """Rejected rows as the warehouse keeps them."""
    return rejected.select(
        pl.lit(partition.key).alias("partition_key"),
        rows_as_json(rejected.select(spec.features.key)).alias("key"),
        pl.col(REASON).alias("reason"),
        pl.col(OFFENDER).alias("column_name"),
        rows_as_json(rejected.drop(REASON, OFFENDER)).alias("row"),
        pl.lit(stamp.run_id).alias("run_id"),
    )


def _reasons(rejected: pl.DataFrame) -> dict[str, int]:
    pairs = rejected.group_by(OFFENDER, REASON).len().sort("len", OFFENDER, REASON, descending=[True, False, False])
    return {f"{column}: {reason}" if column else reason: count for column, reason, count in pairs.iter_rows()}


def _samples(rejected: pl.DataFrame, spec: PipelineSpec) -> list[str]:
    key = spec.features.key
    shown = rejected.head(SAMPLES).select(*key, OFFENDER)
    found: list[str] = []
    for at, row in enumerate(shown.iter_rows()):
        named = " ".join(f"{name}={shortened(value)}" for name, value in zip(key, row, strict=False))
        column = row[-1]
        found.append(f"{named} ({column}={shortened(rejected[column][at])})" if column else named)
    return found


@contextmanager
def _unchanged(spec: PipelineSpec, partition: Partition, features: Path, sha256: str) -> Generator[BinaryIO]:
    """Open a feature file whose bytes are those recorded; what was hashed is what is read, whoever replaces it."""
    hint = f"batch-platform run {spec.name} --partition {partition.key} --force builds it again."
    if not features.is_file():
        msg = f"{spec.name}, partition {partition.key}: its feature file {features} is gone."
        raise IntegrityError(msg, hint=hint)
    with features.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            msg = f"{spec.name}, partition {partition.key}: the bytes of {features} are not those that were recorded."
            raise IntegrityError(msg, hint=hint)
        file.seek(0)
        yield file


def _require_within_budget(spec: PipelineSpec, staged: Staged, samples: list[str]) -> None:
    budget = spec.features.max_rejected
    if not staged.rows_rejected or staged.rows_rejected / staged.rows_in <= budget:  # 29 of 100 are 29%: no product is
        return
    top = ", ".join(f"{count} times {reason}" for reason, count in Counter(staged.reasons).most_common(3))
    msg = (
        f"{spec.name}, partition {staged.partition.key}: {staged.rows_rejected} of {staged.rows_in} rows break the "
        f"contract, more than max_rejected ({budget:.2%}) allows; nothing is published. Reasons: {top}. "
        f"For example {'; '.join(samples)}."
    )
    raise DataError(msg, hint="mend the features, or raise features.max_rejected.")


class _FrameWriter:
    """Writes frames of one schema to a Parquet file."""

    def __init__(self, path: Path) -> None:
        self._path, self._writer = path, None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    @property
    def begun(self) -> bool:
        """Whether the file is there, with its columns."""
        return self._writer is not None

    def write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="lz4")
        self._writer.write_table(table.cast(self._writer.schema))
        self.rows += frame.height

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
