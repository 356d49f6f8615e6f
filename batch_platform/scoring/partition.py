"""A partition on its way to the warehouse: the order to score it, its rows batch by batch, its files and its counts.

An order is plain data, so that an engine may send it to other processes and machines and open there what it names. An engine may
stage a partition in several parts; `merged` makes one partition of them. Starts no thread and opens no database.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WarehouseError, failure_of, memory_explained
from batch_platform.declaration.predictions import DECISION
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import RecordedFile, open_recorded, parquet_writer
from batch_platform.kernels.native_threads import hold_loaded_libraries
from batch_platform.models.bundle import Bundle, Predictor, open_bundle
from batch_platform.monitoring.comparison import Agreement, columns_of
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.scoring.batch import Counts, score_batch
from batch_platform.scoring.rejected_rows import stored_rows
from batch_platform.sources.objects import FilePath
from batch_platform.warehouse.tables_in_files import file_xxh3

Watch = Callable[[Partition, int, int], None]  # a partition, how many of its rows are staged, and how many it has
Summand = TypeVar("Summand", "Counts", "Spent", "ChallengerScores")
Numbered = tuple[int, pl.DataFrame]  # a batch, after the number in the file of its first row
Spread = Callable[[Callable[[Numbered], "ScoredBatch"], Iterator[Numbered]], Iterator["ScoredBatch"]]
_DECIDING = ("binary", "multiclass", "outliers")  # tasks whose prediction is a decision that another model may flip
_ROW = "__place_in_batch"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unwatched(*_: object) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class BundleFolder:
    """A bundle on disk."""

    version: str
    folder: FilePath  # while it is in a store, it cannot be opened
    sha256: str  # registered hash
    rows: int  # rows that it scores in the whole run, which decides whether compiling its trees is worthwhile
    allow_pickle: bool = False  # whether its files may run code when they are loaded

    def open(self, spec: PipelineSpec) -> Bundle:
        """Load the bundle, with the rules on its columns as they are declared now.

        Raises:
            IntegrityError: A byte differs from what was registered.
            WrongUseError: It needs other libraries, is of an unknown flavour, or may run code without permission.
        """
        bundle = open_bundle(Path(self.folder), self.sha256, allow_pickle=self.allow_pickle)
        return replace(bundle, contract=bundle.contract.under(spec.features.columns))


@dataclass(frozen=True)
class ScoringOrder:
    """A partition to score: its feature file, the model whose scores are published, and the challengers by name."""

    partition: Partition
    features: FilePath
    sha256: str  # hash of the bytes of the file
    rows: int  # rows in the file
    model: BundleFolder
    xxh3: str = ""  # XXH3 of the same bytes; checked instead because it is faster, unless it was not recorded
    # For each challenger its model, or why it cannot score.
    challengers: Mapping[str, BundleFolder | str] = field(default_factory=dict[str, BundleFolder | str])


class OpenModels:
    """The models of a run in one process, each opened once; what is open may be used on several threads."""

    def __init__(self, spec: PipelineSpec, bundles: dict[str, Bundle] | None = None) -> None:
        """Open nothing yet; `bundles` are open already, by version, and those that are opened here are added to them."""
        self._spec = spec
        self._bundles = {} if bundles is None else bundles
        self._failures: dict[str, str] = {}  # failures of challengers, by version

    def opened(self, order: ScoringOrder) -> ScoringOrder:
        """The same order, once its models are open; see `BundleFolder.open` for what is raised if the published one cannot be."""
        self.published(order.model)
        for model in order.challengers.values():
            self.challenger(model)
        return order

    def published(self, folder: BundleFolder) -> tuple[Bundle, Predictor]:
        """The bundle, and what evaluates it fastest for the rows of the run."""
        bundle = self._bundles.get(folder.version)
        if bundle is None:
            bundle = self._bundles[folder.version] = folder.open(self._spec)
        return bundle, bundle.for_rows(folder.rows)

    def challenger(self, folder: BundleFolder | str) -> tuple[Bundle, Predictor] | str:
        """The same of a challenger, or why it cannot be opened."""
        if isinstance(folder, str):
            return folder
        if folder.version not in self._failures:
            try:
                return self.published(folder)
            except Exception as error:  # noqa: BLE001 - loading runs users' code: it is recorded, and production goes on
                self._failures[folder.version] = failure_of(error)
        return self._failures[folder.version]


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
class ChallengerScores:
    """The result of a challenger for some rows; after a failure nothing but the number of rows and the reason."""

    name: str
    rows_in: int = 0  # rows that the champion scored
    rows_scored: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])  # rows that its own contract rejects, by reason
    agreement: Agreement = field(default_factory=Agreement)  # agreement with the champion
    failure: str = ""  # why it could not score; empty if it could
    files: tuple[Path, ...] = ()  # Parquet files of its scores, in the order of the rows
    hashes: tuple[str, ...] = ()  # XXH3 (128 bits) of each file, if they are published as they are

    def __add__(self, further: "ChallengerScores") -> "ChallengerScores":
        """The result for these rows and the rows after them."""
        rows_in, failure = self.rows_in + further.rows_in, self.failure or further.failure
        if failure:
            return ChallengerScores(self.name, rows_in, failure=failure)
        return ChallengerScores(
            name=self.name,
            rows_in=rows_in,
            rows_scored=self.rows_scored + further.rows_scored,
            reasons=dict(Counter(self.reasons) + Counter(further.reasons)),
            agreement=self.agreement + further.agreement,
            files=self.files + further.files,
            hashes=self.hashes + further.hashes,
        )


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


def scored_batch(
    batch: Numbered, *, order: ScoringOrder, models: OpenModels, spec: PipelineSpec, stamp: Stamp
) -> ScoredBatch:
    """Score a batch, on any thread: with the champion, and the rows that it scored with the challengers.

    A challenger scores each of these rows, or its own contract rejects the row, which is counted. The stamp is stored with every
    row; its time is when the scoring of the partition began.

    Raises:
        DataError: A column is missing. Whatever a challenger raises is recorded instead.
    """
    began = perf_counter()
    hold_loaded_libraries()
    first_row, rows = batch
    bundle, predictor = models.published(order.model)
    keep = spec.predictions.keep
    if order.challengers:
        rows, keep = rows.with_row_index(_ROW), [*keep, _ROW]
    scored = score_batch(rows, bundle, spec, predictor, keep=keep, profile=True)
    served, rejected = scored.predictions, scored.rejected
    challengers: list[tuple[ChallengerScores, pa.Table | None]] = []
    if order.challengers:
        scored_rows = rows if served.height == rows.height else rows[served[_ROW]]

        def beside(name: str, model: tuple[Bundle, Predictor] | str) -> tuple[ChallengerScores, pa.Table | None]:
            if isinstance(model, str):
                return ChallengerScores(name, served.height, failure=model), None
            challenger, own = model
            try:
                made = score_batch(scored_rows, challenger, spec, own, keep=[_ROW])
                agreement = _agreement(made.predictions, served, (bundle, challenger), order.rows, first_row)
                table = made.predictions.drop(_ROW).to_arrow()
                at, origin = len(spec.features.key_and_time), {"challenger": name, "model_version": challenger.version}
                table = _with_repeated(table, origin, at=at)
                marks = {"partition_key": order.partition.key, "scored_at": stamp.at, "run_id": stamp.run_id}
                table = _with_repeated(table, marks)
            except Exception as error:  # noqa: BLE001 - whatever users' models raise: it is recorded, and production goes on
                return ChallengerScores(name, served.height, failure=failure_of(error)), None
            return ChallengerScores(name, served.height, len(table), made.counts.reasons, agreement), table

        challengers = [beside(name, models.challenger(folder)) for name, folder in order.challengers.items()]
        served, rejected = served.drop(_ROW), rejected.drop(_ROW)
    marks = {
        "partition_key": order.partition.key,
        "model_version": bundle.version,
        "scored_at": stamp.at,
        "run_id": stamp.run_id,
    }
    predictions = _with_repeated(served.to_arrow(), marks, nullable=False)
    stored = stored_rows(rejected, spec, order.partition.key, stamp.run_id)
    return ScoredBatch(predictions, stored, scored.counts, challengers, perf_counter() - began)


def _agreement(
    scored: pl.DataFrame, served: pl.DataFrame, bundles: tuple[Bundle, Bundle], rows: int, first_row: int
) -> Agreement:
    """The agreement of a challenger with the champion, the first of the `bundles`, on rows of a partition of so many `rows`."""
    champion, challenger = bundles
    task = challenger.manifest.task
    if task != champion.manifest.task:
        msg = (
            f"{challenger.version} is a {task} model, and the champion {champion.version} is {champion.manifest.task}."
        )
        raise DataError(msg, hint="only models of the same task can be compared.")
    if scored.height != served.height:
        served = served.filter(pl.col(_ROW).is_in(scored[_ROW].implode()))
    if task == "binary" and challenger.manifest.positive != champion.manifest.positive:
        scored = scored.with_columns(1 - pl.col("score"))
    present = prediction_columns(task, challenger.manifest.classes)
    shared = [name for name in prediction_columns(task, champion.manifest.classes) if name in present]
    decision = DECISION if DECISION in {*served.columns} & {*scored.columns} else "prediction"
    columns = shared if task == "regression" else shared[1:]  # none for a clustering, whose clusters have no order
    return Agreement.of(
        scored[_ROW].to_numpy().astype("int64") + first_row,
        columns_of(served, columns),
        columns_of(scored, columns),
        served[decision].ne_missing(scored[decision]).to_numpy() if task in _DECIDING else None,
        rows,
    )


def _with_repeated(
    table: pa.Table, values: Mapping[str, str | datetime], *, at: int | None = None, nullable: bool = True
) -> pa.Table:
    """The table with columns of one value in every row, at the end or at a place; a text is stored once, a time as microseconds in UTC.

    Made of plain buffers: Arrow's own conversions from Python values first import pandas, wherever it is installed.
    """
    rows, place = len(table), table.num_columns if at is None else at
    for name, value in values.items():
        if isinstance(value, str):
            encoded = value.encode()
            bounds = pa.py_buffer(np.array([0, len(encoded)], np.int32))
            once = pa.Array.from_buffers(pa.string(), 1, [None, bounds, pa.py_buffer(encoded)])
            places = pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(np.zeros(rows, np.int32))])
            column = pa.DictionaryArray.from_arrays(places, once)
        else:
            moments = np.full(rows, (value - _EPOCH) // timedelta(microseconds=1), np.int64)
            column = pa.Array.from_buffers(pa.timestamp("us", "UTC"), rows, [None, pa.py_buffer(moments)])
        table = table.add_column(place, pa.field(name, column.type, nullable=nullable), column)
        place += 1
    return table


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


def write_part(  # noqa: PLR0913 - what is scored, and how
    folder: Path,
    name: str,
    order: ScoringOrder,
    models: OpenModels,
    batches: Generator[pa.RecordBatch],
    first_row: int = 0,
    *,
    spec: PipelineSpec,
    stamp: Stamp,
    spread: Spread = map,
    watch: Watch = unwatched,
) -> Staged:
    """Score batches of a partition, the first of which begins with the row of that number, and write them to files.

    The names of the files begin with `name`. The stamp is stored with every row; its time is when the scoring of the partition began.
    `spread` calls a function on each batch, on any threads, and keeps their order. `watch` is called after each batch that was written.
    """
    lasting = spec.predictions.in_files  # the files are published as they are written
    began, writing, scoring, reading = perf_counter(), 0.0, 0.0, _Stopwatch()
    counts, beside = Counts(), {challenger: ChallengerScores(challenger) for challenger in order.challengers}

    def score(batch: Numbered) -> ScoredBatch:
        return scored_batch(batch, order=order, models=models, spec=spec, stamp=stamp)

    with ExitStack() as files:
        predictions = files.enter_context(_TableWriter(folder / f"{name}.predictions.parquet", lasting=lasting))
        rejected = files.enter_context(_TableWriter(folder / f"{name}.rejected.parquet"))
        writers = {
            challenger: files.enter_context(
                _TableWriter(folder / f"{name}.{challenger}.challenger.parquet", lasting=lasting)
            )
            for challenger in beside
        }
        numbered = files.enter_context(closing(_numbered(batches, first_row, reading)))
        for batch in spread(score, numbered):
            written = perf_counter()
            counts += batch.counts
            scoring += batch.seconds
            predictions.write(batch.predictions)
            rejected.write(batch.rejected)
            for scores, table in batch.challengers:
                beside[scores.name] += scores
                if table is not None and not beside[scores.name].failure:
                    writers[scores.name].write(table)
            writing += perf_counter() - written
            watch(order.partition, counts.rows_in, order.rows)
    spent = Spent(read=reading.seconds, score=scoring, write=writing, clock=perf_counter() - began)
    for challenger, scores in beside.items():
        if scores.failure:
            writers[challenger].path.unlink(missing_ok=True)
        else:
            beside[challenger] = replace(scores, files=(writers[challenger].path,), hashes=writers[challenger].hashes())
    bundle, _ = models.published(order.model)
    libraries, reason = bundle.other_libraries, bundle.not_compiled
    remarks = [f"allowed other libraries than in training: {libraries}"] if libraries else []
    remarks += [f"not compiled, since on this machine {reason}"] if reason else []
    return Staged(
        partition=order.partition,
        predictions=(predictions.path,),
        rejected=(rejected.path,),
        counts=counts,
        started_at=stamp.at,
        challengers=tuple(beside.values()),
        spent=spent,
        remarks=tuple(remarks),
        hashes=predictions.hashes(),
    )


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
    """Writes tables of one schema to a Parquet file, a row group for each. Use it in a `with` statement."""

    def __init__(self, path: Path, *, lasting: bool = False) -> None:
        self.path, self._lasting = path, lasting
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, table: pa.Table) -> None:
        """Write a table; the first one defines the columns, even if it has no rows."""
        if self._writer is None:
            self._writer = parquet_writer(self.path, table.schema, lasting=self._lasting)
        elif not len(table):
            return
        self._writer.write_table(table.cast(self._writer.schema))

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def hashes(self) -> tuple[str, ...]:
        """The hash of the complete file, if it is published as it is."""
        return (file_xxh3(self.path),) if self._lasting else ()
