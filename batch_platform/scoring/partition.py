"""A partition on its way to the warehouse: what each batch becomes, the files it is written to, and the counts.

An engine may stage a partition in several parts; `merged` makes one partition of them. Starts no thread and opens no database.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WarehouseError, counted, listed, memory_explained
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import RecordedFile, open_recorded, parquet_writer
from batch_platform.kernels.native_threads import hold_loaded_libraries
from batch_platform.models.contract import UNSEEN_NULL
from batch_platform.monitoring.profiles import Profile, RowSketch, merged_profiles
from batch_platform.monitoring.segments import SegmentCounts
from batch_platform.scoring.batch import (
    REJECTED,
    SAMPLES,
    ignored_columns,
    reasons_of,
    rejected_rows,
    repeated_text,
    repeated_time,
    samples_of,
    score_batch,
)
from batch_platform.scoring.challengers import ChallengerScores, score_beside
from batch_platform.scoring.orders import OpenOrder, ScoringOrder, Watch
from batch_platform.warehouse.tables_in_files import file_xxh3

Summand = TypeVar("Summand", "Counts", "Spent", ChallengerScores, SegmentCounts, RowSketch)
Numbered = tuple[int, pl.DataFrame]  # a batch, after the number in the file of its first row
Spread = Callable[[Callable[[Numbered], "ScoredBatch"], Iterator[Numbered]], Iterator["ScoredBatch"]]


def unwatched(*_: object) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Counts:
    """Counts of some rows of a partition: scored, rejected, and why."""

    rows_in: int = 0
    rows_scored: int = 0
    rows_rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])  # rejected rows by column and reason
    unseen: dict[str, int] = field(default_factory=dict[str, int])  # rows with an unknown category, by column
    samples: tuple[str, ...] = ()  # the first rejected rows, each by its key and the value that is the reason
    ignored: tuple[str, ...] = ()  # feature columns that nothing uses

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
        )


@dataclass(frozen=True)
class Spent:
    """Seconds of work; threads that work at the same time add up to more than the clock shows."""

    read: float = 0.0
    score: float = 0.0
    write: float = 0.0  # into staged files
    commit: float = 0.0  # into the warehouse
    clock: float = 0.0  # time from beginning to end, commit included

    def __add__(self, further: "Spent") -> "Spent":
        """The time for both, one after the other."""
        return Spent(*(getattr(self, part) + getattr(further, part) for part in vars(self)))

    @property
    def shares(self) -> dict[str, float]:
        """Shares of reading, scoring and committing in the work; writing staged files is a part of committing."""
        parts = {"read": self.read, "score": self.score, "commit": self.write + self.commit}
        total = sum(parts.values())
        return {name: seconds / total for name, seconds in parts.items()} if total else {}


@dataclass(frozen=True)
class Staged:
    """A scored partition in Parquet files, not yet committed; or a part of one."""

    partition: Partition
    predictions: tuple[Path, ...]  # files in the order of the rows; one file without rows if there are none
    rejected: tuple[Path, ...]  # likewise
    counts: Counts
    started_at: datetime
    challengers: tuple[ChallengerScores, ...] = ()
    spent: Spent = field(default_factory=Spent)
    remarks: tuple[str, ...] = ()  # what the ledger should say of the engine beside its name
    profiles: tuple[Profile, ...] = ()  # features and prediction; empty if the version has no reference profile
    by_segment: SegmentCounts = field(default_factory=SegmentCounts)  # counts of the same rows
    sketch: RowSketch = field(default_factory=RowSketch)
    hashes: tuple[str, ...] = ()  # XXH3 (128 bits) of each file of `predictions`, if they are published as they are
    link: str = ""  # page on which the engine shows its work as long as it lasts
    # The SQL condition that decides on a row, by file whose column `decision` is still null, those of challengers included.
    decided: Mapping[Path, str] = field(default_factory=dict[Path, str])

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, those of challengers included."""
        return (*self.predictions, *self.rejected, *(file for scores in self.challengers for file in scores.files))


def merged(parts: Sequence[Staged]) -> Staged:
    """A whole partition from its parts, which are at least one and come in the order of their rows."""
    return replace(
        parts[0],
        predictions=tuple(file for part in parts for file in part.predictions),
        rejected=tuple(file for part in parts for file in part.rejected),
        counts=_summed([part.counts for part in parts]),
        started_at=min(part.started_at for part in parts),
        challengers=tuple(_summed(scores) for scores in zip(*(part.challengers for part in parts), strict=True)),
        spent=_summed([part.spent for part in parts]),
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        profiles=merged_profiles(part.profiles for part in parts),
        by_segment=_summed([part.by_segment for part in parts]),
        sketch=_summed([part.sketch for part in parts]),
        hashes=tuple(value for part in parts for value in part.hashes),
    )


def _summed(parts: Sequence[Summand]) -> Summand:
    """The sum of parts in their order, neighbours first: of what holds all that was added, that takes n log n steps, not n²."""
    middle = len(parts) // 2
    return _summed(parts[:middle]) + _summed(parts[middle:]) if middle else parts[0]


@dataclass(frozen=True)
class ScoredBatch:
    """A scored batch, as it is stored."""

    predictions: pa.Table
    rejected: pa.Table
    counts: Counts
    challengers: Sequence[tuple[ChallengerScores, pa.Table | None]]  # no scores where a challenger failed
    seconds: float  # duration of the scoring
    profiles: tuple[Profile, ...] = ()
    by_segment: SegmentCounts = field(default_factory=SegmentCounts)
    sketch: RowSketch = field(default_factory=RowSketch)


def scored_batch(
    rows: pl.DataFrame, first_row: int, *, models: OpenOrder, spec: PipelineSpec, stamp: Stamp
) -> ScoredBatch:
    """Score a batch, on any thread; `first_row` is the number of its first row in the feature file.

    The stamp is stored with every row; its time is when the scoring of the partition began.

    Raises:
        DataError: A column is missing.
    """
    began = perf_counter()
    hold_loaded_libraries()
    partition, bundle = models.order.partition, models.model.bundle
    if models.challengers:
        scored, challengers = score_beside(rows, first_row, models, spec, stamp)
    else:
        scored, challengers = score_batch(rows, bundle, spec, models.model.predictor, profile=True), []
    if scored.rejected.height:
        rejected = rejected_rows(scored.rejected, spec, partition, stamp).to_arrow()
        reasons, samples = reasons_of(scored.rejected), tuple(samples_of(scored.rejected, spec))
    else:  # made by polars, and only now: Arrow would import pandas for it, and polars would start its threads
        rejected = pl.DataFrame(schema=dict.fromkeys(REJECTED, pl.String)).to_arrow()
        reasons, samples = {}, ()
    predictions = scored.predictions.to_arrow()
    repeated = {
        "partition_key": repeated_text(partition.key, len(predictions)),
        "model_version": repeated_text(bundle.version, len(predictions)),
        "scored_at": repeated_time(stamp.at, len(predictions)),
        "run_id": repeated_text(stamp.run_id, len(predictions)),
    }
    for name, values in repeated.items():
        predictions = predictions.append_column(pa.field(name, values.type, nullable=False), values)
    counts = Counts(
        rows_in=rows.height,
        rows_scored=len(predictions),
        rows_rejected=len(rejected),
        reasons=reasons,
        unseen=scored.unseen,
        samples=samples,
        ignored=ignored_columns(rows.columns, bundle, spec),
    )
    seconds = perf_counter() - began
    counted = scored.profiles, scored.by_segment, scored.sketch
    return ScoredBatch(predictions, rejected, counts, challengers, seconds, *counted)


@contextmanager
def opened_features(order: ScoringOrder, spec: PipelineSpec, folder: Path, name: str = "") -> Generator[RecordedFile]:
    """Open the feature file of an order; any error names the partition and leaves none of its files in the staging folder.

    Of a part of the partition, `name` is how the names of the part's files begin.

    Raises:
        IntegrityError: The file is gone.
        DataError: As raised within, with the partition named.
        WarehouseError: A file could not be read or written.
    """
    key = order.partition.key
    where = f"{spec.name}, partition {key}"
    try:
        with (
            memory_explained(spec.name, key),
            open_recorded(order.features, order.sha256, order.xxh3, pipeline=spec.name, partition_key=key) as recorded,
        ):
            yield recorded
    except BaseException as error:
        for file in folder.glob(f"{name or key}.*"):
            file.unlink(missing_ok=True)
        if isinstance(error, DataError) and not error.message.startswith(where):
            msg = f"{where}: {error.message.removeprefix(f'{spec.name}: ')}"
            raise DataError(msg, hint=error.hint) from error
        if isinstance(error, OSError):
            msg = f"{where}: its features cannot be read, or its scores cannot be written: {error}."
            hint = "make room on the disk and run again; committed partitions are skipped."
            raise WarehouseError(msg, hint=hint) from error
        raise


def require_within_budget(spec: PipelineSpec, staged: Staged) -> None:
    """Raise a DataError with the reasons and samples if more rows are rejected than is declared."""
    counts, budget = staged.counts, spec.features.rejected_budget
    if not budget.is_exceeded(counts.rows_rejected, counts.rows_in):
        return
    top = "; ".join(f"{reason} ({counted(count, 'row')})" for reason, count in Counter(counts.reasons).most_common(3))
    msg = (
        f"{spec.name}, partition {staged.partition.key}: {counts.rows_rejected} of {counts.rows_in} rows break the "
        f"contract, more than max_rejected ({budget}) allows; nothing is published. Broken rules: {top}. "
        f"For example {'; '.join(counts.samples)}."
    )
    seen = f"batch-platform rejected {spec.name} --partition {staged.partition.key} shows the rows"
    nulls = [reason.removesuffix(f": {UNSEEN_NULL}") for reason in counts.reasons if reason.endswith(UNSEEN_NULL)]
    allowing = listed(f"features.columns.{column}: {{nullable: true}}" for column in nulls)
    allow_nulls = f"allow nulls with {allowing}, " if nulls else ""
    raise DataError(msg, hint=f"{seen}; correct the features, {allow_nulls}or raise features.max_rejected.")


class PartWriter:
    """Writes scored batches to the files of a partition, or of a part of it, and counts the rows. Use it in a `with` statement."""

    def __init__(self, folder: Path, name: str, challengers: Iterable[str], *, lasting: bool = False) -> None:
        """Write nothing yet; the names of all files begin with `name`. `lasting` scores are published as they are written."""
        self.counts, self.seconds = Counts(), 0.0
        self._profiles, self._by_segment, self._sketch = tuple[Profile, ...](), SegmentCounts(), RowSketch()
        self._lasting = lasting
        self._predictions = _TableWriter(folder / f"{name}.predictions.parquet", lasting=lasting)
        self._rejected = _TableWriter(folder / f"{name}.rejected.parquet")
        self._scores = {challenger: ChallengerScores(challenger) for challenger in challengers}
        self._writers = {
            challenger: _TableWriter(folder / f"{name}.{challenger}.challenger.parquet", lasting=lasting)
            for challenger in self._scores
        }

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def write(self, batch: ScoredBatch) -> None:
        """Write a batch; the first one defines the columns, even if it has no rows."""
        self.counts += batch.counts
        self.seconds += batch.seconds
        self._profiles = merged_profiles([self._profiles, batch.profiles])
        self._by_segment += batch.by_segment
        self._sketch += batch.sketch
        self._predictions.write(batch.predictions)
        self._rejected.write(batch.rejected)
        for scores, table in batch.challengers:
            self._scores[scores.name] += scores
            if table is not None and not self._scores[scores.name].failure:
                self._writers[scores.name].write(table)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Complete the files; those of a challenger that failed are removed, and after an error those of all challengers."""
        self._predictions.close()
        self._rejected.close()
        for challenger, writer in self._writers.items():
            writer.close()
            if error is not None or self._scores[challenger].failure:
                writer.path.unlink(missing_ok=True)

    def staged(self, models: OpenOrder, started_at: datetime, spent: Spent) -> Staged:
        """The written part, once the files are complete."""
        challengers = (
            scores
            if scores.failure
            else replace(scores, files=(self._writers[name].path,), hashes=self._hashes(self._writers[name].path))
            for name, scores in self._scores.items()
        )
        return Staged(
            partition=models.order.partition,
            predictions=(self._predictions.path,),
            rejected=(self._rejected.path,),
            counts=self.counts,
            started_at=started_at,
            challengers=tuple(challengers),
            spent=spent,
            remarks=models.model.remarks,
            profiles=self._profiles,
            by_segment=self._by_segment,
            sketch=self._sketch,
            hashes=self._hashes(self._predictions.path),
        )

    def _hashes(self, path: Path) -> tuple[str, ...]:
        """The hash of a complete file, if it is published as it is."""
        return (file_xxh3(path),) if self._lasting else ()


def write_part(  # noqa: PLR0913 - what is scored, and how
    writer: PartWriter,
    models: OpenOrder,
    batches: Generator[pa.RecordBatch],
    first_row: int = 0,
    *,
    spec: PipelineSpec,
    stamp: Stamp,
    spread: Spread = map,
    watch: Watch = unwatched,
) -> Staged:
    """Score batches of a partition, the first of which begins with the row of that number, and write them to files.

    The stamp is stored with every row; its time is when the scoring of the partition began. `spread` calls a function on each
    batch, on any threads, and keeps their order. `watch` is called after each batch that was written.
    """
    began, writing, reading = perf_counter(), 0.0, _Stopwatch()

    def score(batch: Numbered) -> ScoredBatch:
        row, rows = batch
        return scored_batch(rows, row, models=models, spec=spec, stamp=stamp)

    with writer, closing(_numbered(batches, first_row, reading)) as numbered:
        for scored in spread(score, numbered):
            written = perf_counter()
            writer.write(scored)
            writing += perf_counter() - written
            watch(models.order.partition, writer.counts.rows_in, models.order.rows)
    spent = Spent(read=reading.seconds, score=writer.seconds, write=writing, clock=perf_counter() - began)
    return writer.staged(models, stamp.at, spent)


class _Stopwatch:
    """Seconds that one thread adds up."""

    seconds = 0.0


def _numbered(batches: Generator[pa.RecordBatch], first_row: int, reading: _Stopwatch) -> Generator[Numbered]:
    """Number the batches by their rows; measures how long reading takes."""
    with closing(batches):
        began = perf_counter()
        for batch in batches:
            rows = pl.DataFrame(pa.Table.from_batches([batch]))
            reading.seconds += perf_counter() - began
            yield first_row, rows
            first_row += rows.height
            began = perf_counter()


class _TableWriter:
    """Writes tables of one schema to a Parquet file, a row group for each."""

    def __init__(self, path: Path, *, lasting: bool = False) -> None:
        self.path, self._lasting = path, lasting
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = parquet_writer(self.path, table.schema, lasting=self._lasting)
        elif not len(table):
            return
        self._writer.write_table(table.cast(self._writer.schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
