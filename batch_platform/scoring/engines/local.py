"""The stream of partitions: recorded features in, predictions and rejected rows out, into staged Parquet files.

Reading, scoring and writing overlap on threads that live as long as the stream; a large partition is spread over
them batch by batch, small ones go to them whole. Memory is bounded by the few batches on their way, whatever the
partition's size, and rows stay in the order of the features. No database is open meanwhile: committing what was
staged is the warehouse's work.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Self

import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WarehouseError, memory_explained
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import BATCH_ROWS, RecordedFile, open_recorded
from batch_platform.models.native_threads import one_thread, one_thread_here
from batch_platform.scoring.batch import SAMPLES
from batch_platform.scoring.challengers import ShadowFiles
from batch_platform.scoring.engines.threads import cores, in_order, read_ahead
from batch_platform.scoring.partition import Order, Part, Spent, Staged, TableWriter, require_within_budget, scored_part

READ_AHEAD = 2  # batches
AHEAD = 2  # batches or small partitions on their way, beyond those that a thread is busy with
Watch = Callable[[Partition, int, int], None]  # a partition, how many of its rows are staged, of how many


class Stream:
    """Scores the partitions of one pipeline into files below a folder; to be used in a `with` statement."""

    def __init__(
        self, spec: PipelineSpec, folder: Path, stamp: Stamp, *, threads: int | None = None, watch: Watch | None = None
    ) -> None:
        """Start no thread yet.

        Args:
            spec: The pipeline.
            folder: Where to stage; exists.
            stamp: Written with every row.
            threads: That score at once; left out: one for each core.
            watch: Is told, on the thread that takes the results, how far a partition has come.
        """
        self._spec, self._folder, self._stamp = spec, folder, stamp
        self._threads = threads or cores()
        self._watch: Watch = watch or (lambda *_: None)
        self._scorers = ThreadPoolExecutor(self._threads, "score", initializer=one_thread_here)
        self._reader, self._hasher = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "hash")

    def __enter__(self) -> Self:
        """Give the stream."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the threads to end."""
        for pool in (self._scorers, self._reader, self._hasher):
            pool.shutdown(cancel_futures=True)

    def staged(self, orders: Iterable[Order]) -> Generator[Staged]:
        """Score partitions into files, in the order in which they come; what fails is raised in its turn.

        Raises:
            IntegrityError: A feature file is not what was recorded.
            DataError: Columns are missing, or more rows are rejected than the budget allows.
        """
        with ExitStack() as limit:
            for number, (large, some) in enumerate(groupby(orders, key=lambda order: order.rows > BATCH_ROWS)):
                if not number:  # a model is loaded by now, and its libraries with it
                    limit.enter_context(one_thread())
                results = self._one_by_one if large else self._side_by_side
                yield from results(some)

    def _one_by_one(self, orders: Iterable[Order]) -> Generator[Staged]:
        """Large partitions: each is spread over all threads."""
        for order in orders:
            started = self._stamp.now()
            with self._opened(order) as recorded, self._checked_meanwhile(recorded):
                staged = self._write(order, recorded, started, self._spread, self._watch)
            yield staged

    def _side_by_side(self, orders: Iterable[Order]) -> Generator[Staged]:
        """Small partitions: each goes to one thread, which checks and reads it, scores it and writes."""

        def alone(timed: tuple[Order, datetime]) -> Staged:
            order, started = timed
            with self._opened(order) as recorded:
                recorded.require_unchanged()
                return self._write(order, recorded, started, map, _unwatched)

        timed = ((order, self._stamp.now()) for order in orders)
        with closing(in_order(self._scorers, alone, timed, at_once=self._threads + AHEAD)) as done:
            for staged in done:
                self._watch(staged.partition, staged.rows_in, staged.rows_in)
                yield staged

    @contextmanager
    def _opened(self, order: Order) -> Generator[RecordedFile]:
        """The feature file; what fails names the partition, and leaves nothing staged."""
        where = f"{self._spec.name}, partition {order.partition.key}"
        try:
            key = order.partition.key
            with (
                memory_explained(self._spec.name, key),
                open_recorded(
                    order.features, order.sha256, order.xxh3, pipeline=self._spec.name, partition_key=key
                ) as recorded,
            ):
                yield recorded
        except BaseException as error:
            for file in self._files(order.partition):
                file.unlink(missing_ok=True)
            if isinstance(error, DataError) and not error.message.startswith(where):
                msg = f"{where}: {error.message.removeprefix(f'{self._spec.name}: ')}"
                raise DataError(msg, hint=error.hint) from error
            if isinstance(error, OSError):
                msg = f"{where}: its features or its scores cannot be read or written: {error}."
                hint = "make room on the disk and run again; what is done is skipped."
                raise WarehouseError(msg, hint=hint) from error
            raise

    @contextmanager
    def _checked_meanwhile(self, recorded: RecordedFile) -> Generator[None]:
        """Hash the file while it is read; what is made from damaged bytes, be it an error, is refused as such."""
        stop = Event()
        checking = self._hasher.submit(recorded.require_unchanged, stop)
        try:
            yield
        except Exception:
            checking.result()
            raise
        except BaseException:
            stop.set()
            wait([checking])
            raise
        checking.result()
        recorded.require_untouched()

    def _spread(self, score: Callable[[pl.DataFrame], Part], batches: Iterator[pl.DataFrame]) -> Generator[Part]:
        """Score batches on all threads while further ones are read; in their order."""
        with (
            closing(read_ahead(self._reader, batches, at_once=READ_AHEAD)) as read,
            closing(in_order(self._scorers, score, read, at_once=self._threads + AHEAD)) as parts,
        ):
            yield from parts

    def _files(self, partition: Partition) -> tuple[Path, Path]:
        return self._folder / f"{partition.key}.predictions.parquet", self._folder / f"{partition.key}.rejected.parquet"

    def _write(
        self,
        order: Order,
        recorded: RecordedFile,
        started: datetime,
        spread: Callable[[Callable[[pl.DataFrame], Part], Iterator[pl.DataFrame]], Iterator[Part]],
        watch: Watch,
    ) -> Staged:
        began, spent = perf_counter(), _Stopwatch()
        good, bad = self._files(order.partition)
        score = partial(scored_part, order=order, spec=self._spec, stamp=self._stamp, started=started)
        rows_in, reasons, unseen, samples = 0, Counter[str](), Counter[str](), list[str]()
        ignored: tuple[str, ...] = ()
        with (
            TableWriter(good) as predictions,
            TableWriter(bad) as rejects,
            ShadowFiles(order.contenders, self._folder, order.partition.key) as shadows,
            closing(_frames(recorded, spent)) as frames,
        ):
            for part in spread(score, frames):
                written = perf_counter()
                rows_in += part.rows
                predictions.write(part.predictions)
                rejects.write(part.rejected)
                shadows.write(part.shadows)
                reasons.update(part.reasons)
                unseen.update(part.unseen)
                samples += part.samples[: SAMPLES - len(samples)]
                ignored = part.ignored
                spent.score += part.seconds
                spent.write += perf_counter() - written
                watch(order.partition, rows_in, order.rows)
        staged = Staged(
            partition=order.partition,
            predictions=good,
            rejected=bad,
            rows_in=rows_in,
            rows_scored=predictions.rows,
            rows_rejected=rejects.rows,
            started_at=started,
            reasons=dict(reasons),
            unseen=dict(unseen),
            ignored=ignored,
            spent=Spent(read=spent.read, score=spent.score, write=spent.write, clock=perf_counter() - began),
            shadowed=shadows.results(),
        )
        require_within_budget(self._spec, staged, samples)
        return staged


def stage(order: Order, spec: PipelineSpec, folder: Path, stamp: Stamp) -> Staged:
    """Score one partition into files below `folder`; raises what `Stream.staged` raises."""
    with Stream(spec, folder, stamp) as stream:
        (staged,) = stream.staged([order])
        return staged


@dataclass
class _Stopwatch:
    """Seconds as they add up; each is written to by one thread."""

    read: float = 0.0
    score: float = 0.0
    write: float = 0.0


def _unwatched(*_: object) -> None:
    """Nobody is told."""


def _frames(recorded: RecordedFile, spent: _Stopwatch) -> Generator[pl.DataFrame]:
    """The batches of a file, and how long reading takes."""
    began = perf_counter()
    for batch in recorded.batches(BATCH_ROWS):
        frame = pl.DataFrame(pa.Table.from_batches([batch]))
        spent.read += perf_counter() - began
        yield frame
        began = perf_counter()
