"""The local engine: scores on the threads of this process.

Reading, scoring and writing overlap on threads that live as long as the engine. A large partition is spread over them
batch by batch, small ones go to one thread each. Threads suffice, because the slow work runs outside Python's lock:
decoding, arithmetic, compression, hashing. Memory is bounded by the few batches on their way, whatever the size of the
partition, and rows keep the order of the features.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from itertools import chain, groupby, islice, repeat, takewhile
from pathlib import Path
from threading import Event
from typing import TypeVar

from batch_platform.declaration.engine import LOCAL
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.threads import threads as available_threads
from batch_platform.features.lake import BATCH_ROWS, RecordedFile
from batch_platform.kernels.native_threads import one_thread, one_thread_here
from batch_platform.models.bundle import Bundle
from batch_platform.scoring.engines.known import Engine
from batch_platform.scoring.partition import (
    Numbered,
    OpenModels,
    ScoredBatch,
    ScoringOrder,
    Spread,
    Staged,
    Watch,
    opened_features,
    unwatched,
    write_part,
)

READ_AHEAD = 2  # batches
AHEAD = 2  # batches or small partitions on their way, beyond those that a thread is busy with
Item = TypeVar("Item")
Result = TypeVar("Result")


class LocalEngine(Engine):
    """Scores the partitions of one pipeline on the threads of this process. Use it in a `with` statement."""

    name = LOCAL

    def __init__(  # noqa: PLR0913 - the arguments of every engine, and the number of threads
        self,
        spec: PipelineSpec,
        folder: Path,
        stamp: Stamp,
        *,
        watch: Watch | None = None,
        bundles: dict[str, Bundle] | None = None,
        threads: int | None = None,
    ) -> None:
        """Start no thread and open no model yet; `threads` is how many score at once, by default as many as may work."""
        super().__init__(spec, folder, stamp, watch=watch, bundles=bundles)
        self._threads = threads or available_threads()
        self._models = OpenModels(spec, bundles)
        self._scorers = ThreadPoolExecutor(self._threads, "score", initializer=one_thread_here)
        self._reader, self._hasher = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "hash")

    def __exit__(self, *_: object) -> None:
        """Wait for the threads to end."""
        for pool in (self._scorers, self._reader, self._hasher):
            pool.shutdown(cancel_futures=True)

    def staged(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        """Score partitions into files; see `Engine.staged`."""
        opened = map(self._models.opened, orders)
        with ExitStack() as limit:
            for number, (large, members) in enumerate(groupby(opened, key=lambda order: order.rows > BATCH_ROWS)):
                if not number:  # a model and its libraries are loaded by now
                    limit.enter_context(one_thread())
                yield from self._one_by_one(members) if large else self._side_by_side(members)

    def _one_by_one(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        """Score large partitions, each spread over all threads."""
        for order in orders:
            started = self.stamp.now()
            with opened_features(order, self.spec, self.folder) as recorded, self._checked_meanwhile(recorded):
                staged = self._write(order, recorded, started, self._spread, self.watch)
            yield staged

    def _side_by_side(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        """Score small partitions, each on one thread, which checks and reads it, scores it and writes."""

        def alone(timed: tuple[ScoringOrder, datetime]) -> Staged:
            order, started = timed
            with opened_features(order, self.spec, self.folder) as recorded:
                recorded.require_unchanged()
                return self._write(order, recorded, started, map, unwatched)

        timed = ((order, self.stamp.now()) for order in orders)
        with closing(in_order(self._scorers, alone, timed, at_once=self._threads + AHEAD)) as results:
            for staged in results:
                self.watch(staged.partition, staged.counts.rows_in, staged.counts.rows_in)
                yield staged

    @contextmanager
    def _checked_meanwhile(self, recorded: RecordedFile) -> Generator[None]:
        """Hash the file while it is read; an error that comes from damaged bytes is raised as damage."""
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

    def _spread(self, score: Callable[[Numbered], ScoredBatch], batches: Iterator[Numbered]) -> Generator[ScoredBatch]:
        """Score batches on all threads while further ones are read; the results keep the order of the batches.

        Reasons take far longer to compute than to read and to write, and much memory: then none wait.
        """
        read_before, ahead = (1, 0) if self.spec.predictions.reasons else (READ_AHEAD, AHEAD)
        with (
            closing(read_ahead(self._reader, batches, at_once=read_before)) as read,
            closing(in_order(self._scorers, score, read, at_once=self._threads + ahead)) as scored,
        ):
            yield from scored

    def _write(
        self, order: ScoringOrder, recorded: RecordedFile, started: datetime, spread: Spread, watch: Watch
    ) -> Staged:
        return write_part(
            self.folder,
            order.partition.key,
            order,
            self._models,
            recorded.batches(BATCH_ROWS),
            spec=self.spec,
            stamp=Stamp(self.stamp.run_id, started),
            spread=spread,
            watch=watch,
        )


def in_order(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_once: int,
    result: Callable[[Future[Result]], Result] = Future.result,
) -> Generator[Result]:
    """Call `work` on each item, on the threads of a pool; yields the results in the order of the items.

    `result` waits for the next result on the thread that takes it. Items are taken one by one, at most `at_once` ahead of the
    last result that was taken. An error in an item or in the work on it is raised when its result is due. However this ends,
    no work goes on afterwards.
    """
    pending, failure = deque[Future[Result]](), None
    coming = iter(items)
    try:
        while True:
            try:
                item = next(coming)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised below, after the results before it
                failure = error
                break
            pending.append(pool.submit(work, item))
            del item
            if len(pending) >= at_once:
                yield result(pending.popleft())
        while pending:
            yield result(pending.popleft())
        if failure is not None:
            raise failure
    finally:
        for future in pending:
            future.cancel()
        wait(pending)


def read_ahead(reader: Executor, items: Iterator[Item], *, at_once: int) -> Generator[Item]:
    """Yield the same items, read ahead on the single thread of a pool."""
    with closing(in_order(reader, lambda _: list(islice(items, 1)), repeat(None), at_once=at_once)) as coming:
        yield from chain.from_iterable(takewhile(len, coming))
