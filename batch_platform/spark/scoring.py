"""The Spark engine: scores on the executors of a cluster, which read and write the home on a file system that they share.

Each partition is one task, or several where it is large. The tasks of some partitions are one job of Spark, without a shuffle:
`scoring_tasks.py` is all that an executor runs. The driver takes the summary that Spark returned for each task, once all are there,
and merges them; of the rows it reads only the scores that challengers rank, from files of one partition at a time.
"""

import logging
import pickle
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.engine import SPARK
from batch_platform.declaration.errors import EngineError, IntegrityError, listed
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import open_recorded
from batch_platform.models.bundle import Bundle
from batch_platform.scoring.engines.known import Engine
from batch_platform.scoring.engines.local import in_order
from batch_platform.scoring.partition import BundleFolder, ScoringOrder, Staged, Watch, merged
from batch_platform.spark.jobs import SparkJob, SparkJobs, spark_errors, spark_jobs
from batch_platform.spark.scoring_tasks import SUMMARY, Job, Summary, Task, parts_of, run_tasks
from batch_platform.spark.staging import ObjectStaging, object_staging, require_here, store_errors

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

JOBS_AT_ONCE = 2  # a single job would leave cores waiting for its last task
TASKS_PER_SLOT = 4  # tasks in a job of small partitions
_log = logging.getLogger(__name__)


class SparkEngine(Engine):
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
        super().__init__(spec, folder, stamp, watch=watch, bundles=bundles)
        self._spark = spec.engine.on_spark
        self._mark = folder / f"driver-{uuid4().hex}"
        self._open = ExitStack()
        self._started: SparkJobs | None = None
        self._numbers = count()
        self._staging: ObjectStaging | None = None
        self._sent = set[str]()  # names of what is in the store

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
                    self._started.cancel()
                raise

    @property
    def _spark_jobs(self) -> SparkJobs:
        if self._started is None:
            self._mark.touch()
            if self._spark.staging is not None:
                self._staging = self._open.enter_context(
                    object_staging(self._spark.staging, self.spec.name, self.folder)
                )
            self._started = self._open.enter_context(spark_jobs(self._spark, self.spec.name, self.folder))
        return self._started

    @property
    def _session(self) -> "SparkSession":
        return self._spark_jobs.session

    @cached_property
    def _slots(self) -> int:
        return self._spark_jobs.cluster.cores()

    def _jobs(self, orders: Iterable[ScoringOrder]) -> Iterator[Job]:
        """Put orders together until there is enough for all cores."""
        members, tasks = list[ScoringOrder](), list[Task]()
        try:
            for order in orders:
                tasks += self._tasks(order, len(members))
                members.append(order)
                if len(tasks) >= TASKS_PER_SLOT * self._slots:
                    yield self._job(members, tasks)
                    members, tasks = [], []
        except Exception:
            if members and self._started is not None:  # it would start a second time
                yield self._job(members, tasks)
            raise
        if members:
            yield self._job(members, tasks)

    def _tasks(self, order: ScoringOrder, position: int) -> list[Task]:
        if order.rows <= self._spark.rows_per_task:
            return [Task(position)]
        try:
            with open_recorded(
                order.features, order.sha256, pipeline=self.spec.name, partition_key=order.partition.key
            ):
                parts = parts_of(Path(order.features), self._spark.rows_per_task)
        except (OSError, pa.ArrowException, IntegrityError):
            return [Task(position)]  # the task says what is wrong with the file
        if len(parts) == 1:
            return [Task(position)]
        return [Task(position, scores=False), *(Task(position, part) for part in parts)]

    def _job(self, orders: Sequence[ScoringOrder], tasks: Sequence[Task]) -> Job:
        conf = self._session.conf
        local = re.fullmatch(r"local(?:\[[^,\]]+(?:,\s*(\d+))?\])?", conf.get("spark.master", None) or "")
        allowed = int(local[1] or 1) if local else int(conf.get("spark.task.maxFailures", None) or 4)
        return Job(
            spec=self.spec,
            folder=self.folder,
            run_id=self.stamp.run_id,
            started_at=self.stamp.now(),
            orders=tuple(orders if self._staging is None else [self._to_the_store(it, self._staging) for it in orders]),
            tasks=tuple(tasks),
            mark=self._mark,
            attempts=allowed,
            staging=self._staging,
        )

    def _to_the_store(self, order: ScoringOrder, staging: ObjectStaging) -> ScoringOrder:
        """The same order of what is in the store, after what is not there yet was put there."""

        def there(bundle: BundleFolder) -> BundleFolder:
            if bundle.sha256 not in self._sent:
                staging.put_folder(Path(bundle.folder), bundle.sha256)
                self._sent.add(bundle.sha256)
            return replace(bundle, folder=staging.folder / bundle.sha256)

        with store_errors(f"{self.spec.name}, partition {order.partition.key}"):
            name = f"{order.sha256}.parquet"
            if name not in self._sent:
                staging.put({name: Path(order.features)})
                self._sent.add(name)
            challengers = {
                challenger: model if isinstance(model, str) else there(model)
                for challenger, model in order.challengers.items()
            }
            return replace(order, features=staging.folder / name, model=there(order.model), challengers=challengers)

    def _ran(self, job: Job) -> tuple[Job, list[Summary]]:
        """Let Spark run a job and wait for all summaries, on a thread of its own."""
        first, last = job.orders[0].partition.key, job.orders[-1].partition.key
        shown = f"{self.spec.name}, {first if first == last else f'{first} to {last}'}"
        running = SparkJob(f"{self.folder.name}-{next(self._numbers)}", shown, partial(self._watched, job))

        def collected() -> "list[Row]":
            numbers = self._session.range(0, len(job.tasks), 1, len(job.tasks))
            return numbers.mapInArrow(partial(run_tasks, job), SUMMARY).collect()

        try:
            rows = self._spark_jobs.run(running, collected)
        except spark_errors() as error:
            raise self._given_up(job, running, error) from error
        summaries = {row.task: pickle.loads(row.summary) for row in rows}  # noqa: S301 - made by our own tasks, and brought by Spark
        return job, [summaries[number] for number in range(len(job.tasks))]

    def _awaited(self, future: "Future[tuple[Job, list[Summary]]]") -> tuple[Job, list[Summary]]:
        return self._spark_jobs.awaited(future)

    def _watched(self, job: Job, done: int, _tasks: int) -> None:
        """Report how far a large partition is."""
        if len(job.orders) == 1 and len(job.tasks) > 1:
            (order,) = job.orders
            self.watch(order.partition, order.rows * done // len(job.tasks), order.rows)

    def _given_up(self, job: Job, running: SparkJob, error: Exception) -> EngineError:
        """Explain in one sentence why Spark ended a job, and what to do."""
        where = f"{self.spec.name}, partition {listed({order.partition.key for order in job.orders})}"
        again = "nothing of these partitions was published; run again once the cluster is well: what is committed is skipped."
        return self._spark_jobs.failure(where, error, again, running, lambda number: job.where(job.tasks[number]))

    def _partitions(self, job: Job, summaries: Sequence[Summary]) -> Generator[Staged]:
        """The partitions of a finished job, in order; after a failure none of the later files is left."""
        by_order: dict[int, list[Summary]] = {}
        for task, summary in zip(job.tasks, summaries, strict=True):
            by_order.setdefault(task.order, []).append(summary)
        for position, order in enumerate(job.orders):
            try:
                staged = self.whole(job, order, by_order.pop(position))
            except BaseException:
                for later in job.orders[position:]:
                    self._clear(later.partition, ())
                raise
            self._clear(order.partition, staged.files)
            if len(job.orders) > 1 or len(job.tasks) == 1:
                self.watch(order.partition, staged.counts.rows_in, order.rows)
            yield replace(staged, link=self._spark_jobs.page)

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
        if self._staging is not None:
            with store_errors(f"{self.spec.name}, partition {order.partition.key}"):
                self._staging.fetch({path.name: path for summary in summaries for path in summary.files})
        for summary in summaries:
            for path, size in zip(summary.files, summary.sizes, strict=True):
                require_here(f"{self.spec.name}, partition {order.partition.key}", path, size)
        staged = merged([part for summary in summaries if (part := summary.whole()) is not None])
        if staged.counts.rows_in != order.rows:
            where = f"{self.spec.name}, partition {order.partition.key}"
            msg = f"{where}: the tasks read {staged.counts.rows_in:,} rows of {order.rows:,}; nothing is published."
            raise EngineError(msg, hint="this is a defect of the engine; please report it.")
        seconds = (self.stamp.now() - job.started_at).total_seconds()
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
            key, name = order.partition.key, self.spec.name
            with open_recorded(order.features, order.sha256, order.xxh3, pipeline=name, partition_key=key) as file:
                file.refuse()

    def _clear(self, partition: Partition, kept: Iterable[Path]) -> None:
        """Remove what attempts that do not count have left of a partition."""
        wanted = set(kept)
        for path in self.folder.glob(f"{partition.key}.*"):
            if path not in wanted:
                path.unlink(missing_ok=True)
