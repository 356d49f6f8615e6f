"""The Spark engine: scores on the executors of a cluster, which read and write the home on a file system that they share.

Each partition is one task, or several where it is large. The tasks of some partitions are one job of Spark, without a shuffle:
`spark_task.py` is all that an executor runs. The driver takes the summary that Spark returned for each task, once all are there,
and merges them; it never sees a row.
"""

import logging
import pickle
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.engine import SPARK
from batch_platform.declaration.errors import EngineError, IntegrityError, listed
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import open_recorded
from batch_platform.features.parts import parts_of
from batch_platform.models.bundle import Bundle
from batch_platform.scoring.engines.local import in_order
from batch_platform.scoring.engines.spark_session import cancel, executors_of, is_stopped, shortest, spark_session
from batch_platform.scoring.engines.spark_task import SUMMARY, Job, Summary, Task, run_tasks
from batch_platform.scoring.orders import ScoringOrder, Watch
from batch_platform.scoring.partition import Staged, merged, unwatched

if TYPE_CHECKING:
    from pyspark.core.status import SparkStageInfo
    from pyspark.sql import SparkSession

JOBS_AT_ONCE = 2  # so that no core waits for the last task of a job
TASKS_PER_SLOT = 4  # of a job of small partitions
POLL = 0.25  # seconds
SECONDS_BETWEEN_LINES = 10  # in the log
_FAILED_TASK = re.compile(r"Task (\d+) in stage \S+ failed (\d+) times?, most recent failure: [^:]*: ?(.*)", re.DOTALL)
_log = logging.getLogger(__name__)


@dataclass
class _Running:
    """A job that Spark runs."""

    job: Job
    group: str  # by which Spark knows its tasks
    shown: str  # pipeline and partitions
    waiting_since: float | None = None  # without any executor; None while there are some


class SparkEngine:
    """Scores the partitions of one pipeline on a cluster of Spark. Use it in a `with` statement."""

    name = SPARK

    def __init__(
        self,
        spec: PipelineSpec,
        folder: Path,
        stamp: Stamp,
        *,
        watch: Watch | None = None,
        bundles: dict[str, Bundle] | None = None,
    ) -> None:
        """Start nothing yet: Spark starts when the first order is taken. The executors open the bundles."""
        del bundles
        self._spec, self._folder, self._stamp, self._spark = spec, folder, stamp, spec.engine.on_spark
        self._watch: Watch = watch or unwatched
        self._mark = folder / f"driver-{uuid4().hex}"
        self._open = ExitStack()
        self._started: SparkSession | None = None
        self._running, self._numbers, self._next_line = dict[str, _Running](), count(), 0.0

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the session, which ends with its last engine."""
        self._open.close()

    def staged(self, orders: Iterable[ScoringOrder]) -> Generator[Staged]:
        """Score partitions into files; see `Engine.staged`."""
        with (
            ThreadPoolExecutor(JOBS_AT_ONCE, "spark") as pool,
            closing(
                in_order(pool, self._ran, self._jobs(orders), at_once=JOBS_AT_ONCE, result=self._awaited)
            ) as results,
        ):
            try:
                for job, summaries in results:
                    yield from self._partitions(job, summaries)
            except BaseException:
                if self._started is not None:
                    cancel(self._started, [running.group for running in list(self._running.values())])
                raise

    @property
    def _session(self) -> "SparkSession":
        if self._started is None:
            self._mark.touch()
            session = self._open.enter_context(spark_session(self._spark, self._spec.name))
            self._started = session
            context = session.sparkContext
            place = f", shown at {context.uiWebUrl}" if context.uiWebUrl else ""
            _log.info(
                "%s: Spark application %s on %s%s.", self._spec.name, context.applicationId, context.master, place
            )
        return self._started

    def _jobs(self, orders: Iterable[ScoringOrder]) -> Iterator[Job]:
        """Put orders together until there is enough for all cores."""
        members, tasks = list[ScoringOrder](), list[Task]()
        try:
            for order in orders:
                tasks += self._tasks(order, len(members))
                members.append(order)
                if len(tasks) >= TASKS_PER_SLOT * self._session.sparkContext.defaultParallelism:
                    yield self._job(members, tasks)
                    members, tasks = [], []
        except Exception:
            if members:
                yield self._job(members, tasks)
            raise
        if members:
            yield self._job(members, tasks)

    def _tasks(self, order: ScoringOrder, position: int) -> list[Task]:
        if order.rows <= self._spark.rows_per_task:
            return [Task(position)]
        try:
            with open_recorded(
                order.features, order.sha256, pipeline=self._spec.name, partition_key=order.partition.key
            ):
                parts = parts_of(order.features, self._spark.rows_per_task)
        except (OSError, pa.ArrowException, IntegrityError):
            return [Task(position)]  # which says what is wrong with the file
        if len(parts) == 1:
            return [Task(position)]
        return [Task(position, scores=False), *(Task(position, part) for part in parts)]

    def _job(self, orders: Sequence[ScoringOrder], tasks: Sequence[Task]) -> Job:
        context = self._session.sparkContext
        local = re.fullmatch(r"local(?:\[[^,\]]+(?:,\s*(\d+))?\])?", self._spark.master)
        allowed = int(local[1] or 1) if local else int(context.getConf().get("spark.task.maxFailures") or 4)
        return Job(
            spec=self._spec,
            folder=self._folder,
            run_id=self._stamp.run_id,
            started_at=self._stamp.now(),
            orders=tuple(orders),
            tasks=tuple(tasks),
            mark=self._mark,
            attempts=allowed,
        )

    def _ran(self, job: Job) -> tuple[Job, list[Summary]]:
        """Let Spark run a job and wait for all summaries, on a thread of its own."""
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        session = self._session
        first, last = job.orders[0].partition.key, job.orders[-1].partition.key
        shown = f"{self._spec.name}, {first if first == last else f'{first} to {last}'}"
        running = _Running(job, f"{self._folder.name}-{next(self._numbers)}", shown)
        self._running[running.group] = running
        try:
            session.sparkContext.setJobGroup(running.group, shown, interruptOnCancel=True)
            numbers = session.range(0, len(job.tasks), 1, len(job.tasks))
            rows = numbers.mapInArrow(partial(run_tasks, job), SUMMARY).collect()
        except (PySparkException, Py4JError, OSError, EOFError) as error:
            raise self._given_up(running, error) from error
        finally:
            del self._running[running.group]
        summaries = {row.task: pickle.loads(row.summary) for row in rows}  # noqa: S301 - made by our own tasks, and brought by Spark
        return job, [summaries[number] for number in range(len(job.tasks))]

    def _awaited(self, future: "Future[tuple[Job, list[Summary]]]") -> tuple[Job, list[Summary]]:
        """Wait for a job, and report the progress of all that run."""
        from py4j.protocol import Py4JError

        while not wait([future], timeout=POLL).done:
            with suppress(Py4JError, OSError):  # if Spark's own process has died, the job says so
                for running in list(self._running.values()):
                    self._look_after(running)
        return future.result()

    def _look_after(self, running: _Running) -> None:
        """Report the progress of a job's tasks, and end all if the cluster has left them alone for too long."""
        context = self._session.sparkContext
        if is_stopped(self._session):
            return
        tracker, job = context.statusTracker(), running.job
        stages = [stage for number in tracker.getJobIdsForGroup(running.group) for stage in self._stages(number)]
        done = sum(stage.numCompletedTasks for stage in stages)
        if len(job.orders) == 1 and len(job.tasks) > 1:
            (order,) = job.orders
            self._watch(order.partition, order.rows * done // len(job.tasks), order.rows)
        if (now := monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            active = sum(stage.numActiveTasks for stage in stages)
            msg = "%s: %d of %d tasks done, %d running."
            _log.info(msg, running.shown, done, len(job.tasks), active)
        if self._spark.master.startswith("local") or executors_of(self._session):
            running.waiting_since = None
        elif running.waiting_since is None:
            running.waiting_since = monotonic()
        elif monotonic() - running.waiting_since > self._spark.patience:
            self._session.stop()  # it would wait for ever

    def _stages(self, number: int) -> list["SparkStageInfo"]:
        tracker = self._session.sparkContext.statusTracker()
        job = tracker.getJobInfo(number)
        stages = [tracker.getStageInfo(stage) for stage in (job.stageIds if job else ())]
        return [stage for stage in stages if stage is not None]

    def _given_up(self, running: _Running, error: Exception) -> EngineError:
        """Why Spark ended a job, as one sentence, and what to do."""
        job, spec, master = running.job, self._spec, self._spark.master
        keys = listed({order.partition.key for order in job.orders})
        hint = "nothing of these partitions was published; run again once the cluster is well: what is committed is skipped."
        since = running.waiting_since
        if since is not None and monotonic() - since > self._spark.patience:
            msg = f"{spec.name}, partition {keys}: the cluster {master} had no executor for {self._spark.wait_for_executors}."
            return EngineError(msg, hint=f"{hint} engine.spark.wait_for_executors is how long a run waits.")
        failed = _FAILED_TASK.search(str(error))
        if failed is None:
            return EngineError(f"{spec.name}, partition {keys}: Spark on {master} ended: {shortest(error)}", hint=hint)
        where, reason = job.where(job.tasks[int(failed[1])]), failed[3]
        if "ModuleNotFoundError" in reason:
            hint = "install the same environment on every machine of the cluster, or send it along; see the guide, scaling_out."
        causes = [
            line.strip() for line in reason.splitlines() if re.match(r"\s*[\w.]*(Error|Exception|lost|exited)\b", line)
        ]
        why = causes[-1] if causes else reason.strip().partition("\n")[0]
        msg = f"{where}: Spark gave up after {failed[2]} attempts: {why.rstrip('.')}."
        return EngineError(msg, hint=hint)

    def _partitions(self, job: Job, summaries: Sequence[Summary]) -> Generator[Staged]:
        """The partitions of a finished job, in order; after a failure none of the later files is left."""
        by_order: dict[int, list[Summary]] = {}
        for task, summary in zip(job.tasks, summaries, strict=True):
            by_order.setdefault(task.order, []).append(summary)
        page = self._session.sparkContext.uiWebUrl or ""
        for position, order in enumerate(job.orders):
            try:
                staged = self.whole(job, order, by_order.pop(position))
            except BaseException:
                for later in job.orders[position:]:
                    self._clear(later.partition, ())
                raise
            self._clear(order.partition, staged.files)
            if len(job.orders) > 1 or len(job.tasks) == 1:
                self._watch(order.partition, staged.counts.rows_in, order.rows)
            yield replace(staged, link=page)

    def whole(self, job: Job, order: ScoringOrder, summaries: Sequence[Summary]) -> Staged:
        """Merge what the tasks of a partition have done, once it is certain that it belongs together."""
        damage = [summary for summary in summaries if isinstance(summary.failure, IntegrityError)]
        for summary in (*damage, *summaries):
            if summary.failure is not None:
                failure = summary.failure
                failure.message = redact(failure.message)  # executors do not know this process's secrets
                if isinstance(failure, EngineError):
                    _log.error("%s\n%s", failure.message, redact(summary.traceback))
                raise failure
        self._require_recorded(order, summaries)
        staged = merged([summary.staged for summary in summaries if summary.staged is not None])
        for summary in summaries:
            self._require_here(order, summary)
        if staged.counts.rows_in != order.rows:
            where = f"{self._spec.name}, partition {order.partition.key}"
            msg = f"{where}: the tasks read {staged.counts.rows_in:,} rows of {order.rows:,}; nothing is published."
            raise EngineError(msg, hint="this is a defect of the engine; please report it.")
        seconds = (self._stamp.now() - job.started_at).total_seconds()
        spent = replace(staged.spent, clock=seconds / len(job.orders))
        return replace(staged, spent=spent)

    def _require_recorded(self, order: ScoringOrder, summaries: Sequence[Summary]) -> None:
        """Raise DamagedFeaturesError unless the bytes that each part read are bytes of the file that was recorded."""
        hashed = {
            stretch: value
            for summary in summaries
            if not summary.staged
            for stretch, value in summary.stretches.items()
        }
        read = [pair for summary in summaries if summary.staged for pair in summary.stretches.items()]
        if any(hashed.get(stretch) != value for stretch, value in read):
            key, name = order.partition.key, self._spec.name
            with open_recorded(order.features, order.sha256, order.xxh3, pipeline=name, partition_key=key) as file:
                file.refuse()

    def _require_here(self, order: ScoringOrder, summary: Summary) -> None:
        """Raise EngineError unless the files that an executor wrote are those that the driver sees."""
        if summary.staged is None:
            return
        for path, size in zip(summary.staged.files, summary.sizes, strict=True):
            if not path.is_file() or path.stat().st_size != size:
                where = f"{self._spec.name}, partition {order.partition.key}"
                msg = f"{where}: the driver does not see the file {path} as an executor wrote it ({size:,} bytes)."
                raise EngineError(
                    msg,
                    hint="put the home on a file system that all machines of the cluster mount under the same path.",
                )

    def _clear(self, partition: Partition, kept: Iterable[Path]) -> None:
        """Remove what attempts that do not count have left of a partition."""
        wanted = set(kept)
        for path in self._folder.glob(f"{partition.key}.*"):
            if path not in wanted:
                path.unlink(missing_ok=True)
