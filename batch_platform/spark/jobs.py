"""Jobs of Spark: run on threads of their own, watched, and given up if the cluster leaves them without executors.

The cluster behind a session is Spark in this process's Java, or a server of Spark Connect; a job has a group, which is a job group there
and a tag here.
"""

import logging
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from batch_platform.declaration.engine import Spark
from batch_platform.declaration.errors import EngineError
from batch_platform.spark.session import (
    executors_of,
    is_connect,
    is_remote,
    is_stopped,
    shortest,
    spark_session,
    without_secrets,
)
from batch_platform.spark.staging import FULL_DISK, SAME_ENVIRONMENT
from batch_platform.warehouse.home import Home

if TYPE_CHECKING:
    from pyspark.core.status import SparkStageInfo
    from pyspark.sql import SparkSession

SECONDS_BETWEEN_LOOKS = 1.0  # reading the progress of jobs takes processor time of the driver, in Python and Java
POLL = 0.25  # seconds, until cancelled jobs have ended
MORE_MEMORY = "give the executors more memory, as spark.executor.memory in engine.spark.conf, and run again."
SECONDS_BETWEEN_LINES = 10  # progress lines in the log
Result = TypeVar("Result")
_FAILED_TASK = re.compile(r"Task (\d+) in stage \S+ failed (\d+) times?, most recent failure: [^:]*: ?(.*)", re.DOTALL)
_EXCLUDED = re.compile(  # each machine was excluded, as spark.excludeOnFailure lets Spark do
    r"because task (\d+) \(partition \d+\)\s+cannot run anywhere .*?Lost task \d+\.(\d+) in stage [^:]*: ?(.*)",
    re.DOTALL,
)
_EXECUTOR = re.compile(r"\(TID \d+\) \((\S+) executor ")
_NO_ROOM = re.compile(r"[^\n]*\b(?:No space left on device|File too large|Disk quota exceeded)")
_OURS = re.compile(r"batch_platform\.declaration\.errors\.\w+: (.+?)(?: Hint: (.+))?$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The tasks of a job."""

    done: int = 0
    tasks: int = 0
    is_left_alone: bool = False  # the cluster gives it nothing to run on


class OwnJava:
    """Spark in the Java of this process."""

    def __init__(self, session: "SparkSession") -> None:
        """Take a session that runs."""
        context = session.sparkContext
        self.session, self.master, self.page = session, context.master or "", context.uiWebUrl or ""
        self.application = context.applicationId

    def cores(self) -> int:
        """Number of tasks that run at a time."""
        return self.session.sparkContext.defaultParallelism

    @contextmanager
    def marked(self, group: str, shown: str) -> Generator[None]:
        """Let the jobs of this thread be a job group."""
        self.session.sparkContext.setJobGroup(group, shown, interruptOnCancel=True)
        yield

    def cancel(self, groups: Iterable[str]) -> None:
        """End groups of jobs, unless Spark has ended."""
        from py4j.protocol import Py4JError

        with suppress(Py4JError, OSError):
            if not is_stopped(self.session):
                for group in groups:
                    self.session.sparkContext.cancelJobGroup(group)

    def progress(self, group: str) -> Progress:
        """The tasks of a job group; without executors it is left alone."""
        jobs = self.session.sparkContext.statusTracker().getJobIdsForGroup(group)
        stages = [stage for number in jobs for stage in self._stages(number)]
        done, tasks = sum(stage.numCompletedTasks for stage in stages), sum(stage.numTasks for stage in stages)
        left_alone = not self.master.startswith("local") and not executors_of(self.session)
        return Progress(done, tasks, is_left_alone=left_alone)

    def give_up(self, group: str) -> None:
        """Stop Spark: jobs without executors are not cancelled."""
        del group
        self.session.stop()

    def _stages(self, number: int) -> list["SparkStageInfo"]:
        tracker = self.session.sparkContext.statusTracker()
        info = tracker.getJobInfo(number)
        stages = [tracker.getStageInfo(stage) for stage in (info.stageIds if info else ())]
        return [stage for stage in stages if stage is not None]


class ConnectServer:
    """A server of Spark Connect, which tells of its work only what it streams to a waiting thread."""

    def __init__(self, session: "SparkSession", master: str) -> None:
        """Take a session that is connected to an address."""
        remote: Any = session  # its methods have the types of a session in Java
        self.session, self.master, self.page = session, master, ""
        self.application = session.conf.get("spark.app.id", None) or remote.session_id
        self._groups, self._progress = dict[int, str](), dict[str, Progress]()  # key of the first: thread that waits
        remote.registerProgressHandler(self._told)

    def cores(self) -> int:
        """Number of parts that Spark makes of a range, which is the number of tasks that run at a time."""
        parts = self.session.range(1_000_000).selectExpr("spark_partition_id() AS part").groupBy().max("part").collect()
        return int(parts[0][0]) + 1

    @contextmanager
    def marked(self, group: str, shown: str) -> Generator[None]:
        """Let what this thread executes have a tag."""
        del shown
        self._groups[get_ident()] = group
        self.session.addTag(group)
        try:
            yield
        finally:
            self.session.removeTag(group)
            del self._groups[get_ident()]
            self._progress.pop(group, None)

    def cancel(self, groups: Iterable[str]) -> None:
        """End what has one of these tags, unless Spark has ended."""
        from pyspark.errors import PySparkException

        with suppress(PySparkException, OSError):
            if not is_stopped(self.session):
                for group in groups:
                    self.session.interruptTag(group)

    def progress(self, group: str) -> Progress:
        """The tasks of a tag; while none of them runs it is left alone."""
        return self._progress.get(group, Progress())

    def give_up(self, group: str) -> None:
        """End what has the tag; the server goes on, and others use it."""
        self.cancel([group])

    def _told(self, *, stages: Iterable[Any], inflight_tasks: int, done: bool, **_: object) -> None:
        """Keep what Spark tells on the thread that waits for it."""
        if group := self._groups.get(get_ident()):
            finished, tasks = sum(it.num_completed_tasks for it in stages), sum(it.num_tasks for it in stages)
            left_alone = not (done or inflight_tasks or finished == tasks)
            self._progress[group] = Progress(finished, tasks, is_left_alone=left_alone)


Cluster = OwnJava | ConnectServer  # both offer the same


def cluster_of(session: "SparkSession", declared: str) -> Cluster:
    """The cluster of a session; one of Spark Connect that is lent does not tell its address, so it has the declared one."""
    if not is_remote(session):
        return OwnJava(session)
    return ConnectServer(session, without_secrets(declared) if is_connect(declared) else "Spark Connect")


def spark_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a call of Spark raises."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError, OSError, EOFError


@dataclass
class SparkJob:
    """A job that Spark runs."""

    group: str  # Spark's job group, or tag
    shown: str  # pipeline and partitions
    watch: Callable[[int, int], None] | None = None  # called with the number of finished tasks, and of all
    waiting_since: float | None = None  # time from which there was no executor; None while there are some


class SparkJobs:
    """The jobs that one user of a session has running."""

    def __init__(self, cluster: Cluster, spark: Spark) -> None:
        """Run nothing yet; `spark` says how long jobs wait for executors."""
        self.cluster, self._spark = cluster, spark
        self._running, self._next_line = dict[str, SparkJob](), 0.0

    @property
    def session(self) -> "SparkSession":
        """The session in which the jobs run."""
        return self.cluster.session

    @property
    def page(self) -> str:
        """The address at which Spark shows its jobs while it runs; empty without one."""
        return self.cluster.page

    def apart(self) -> "SparkJobs":
        """Jobs in a session of their own, whose settings and views nobody else sees."""
        return SparkJobs(cluster_of(self.session.newSession(), self.cluster.master), self._spark)

    def run(self, job: SparkJob, action: Callable[[], Result]) -> Result:
        """Call Spark as a job, on the thread that waits for it; raises one of `spark_errors`."""
        self._running[job.group] = job
        try:
            with self.cluster.marked(job.group, job.shown):
                return action()
        except AttributeError as error:
            # PySpark cleans up after an error with what the end of its session has set to None
            if is_stopped(self.session) and isinstance(error.__context__, spark_errors()):
                raise error.__context__ from None
            raise
        finally:
            del self._running[job.group]

    def awaited(self, future: "Future[Result]") -> Result:
        """Wait for what another thread runs, and report the progress of all jobs."""
        while not wait([future], timeout=SECONDS_BETWEEN_LOOKS).done:
            with suppress(*spark_errors()):  # the job itself reports that Spark's process has died
                for job in list(self._running.values()):
                    self._look_after(job)
        return future.result()

    def cancel(self) -> None:
        """Cancel all jobs that have begun."""
        self.cluster.cancel([*self._running])

    def end(self, future: "Future[Result]") -> None:
        """Cancel all jobs until what another thread runs has ended: it may just be about to begin a job."""
        while not wait([future], timeout=POLL).done:
            self.cancel()

    def is_abandoned(self, job: SparkJob) -> bool:
        """Return whether a job ended because the cluster gave it no executor for as long as a run waits."""
        since = job.waiting_since
        return since is not None and monotonic() - since > self._spark.patience

    def failure(
        self,
        where: str,
        error: Exception,
        again: str,
        job: SparkJob | None = None,
        task: Callable[[int], str] | None = None,
    ) -> EngineError:
        """Explain in one sentence why Spark gave up; `again` is what to do, and `task` names the task of a number."""
        if job is not None and self.is_abandoned(job):
            msg = f"{where}: the cluster {self.cluster.master} had no executor for {self._spark.wait_for_executors}."
            return EngineError(msg, hint=f"{again} engine.spark.wait_for_executors is how long a run waits.")
        failed = FailedTask.of(error)
        if failed is None:
            message, hint = raised_by_us(str(error).strip().rpartition("\n")[2])
            if hint is not None:  # Spark Connect names no task, but what it raised
                return EngineError(message, hint=hint)
            return EngineError(f"{where}: Spark on {self.cluster.master} ended: {shortest(error)}", hint=again)
        where = where if task is None else task(failed.number)
        msg = f"{where}: Spark gave up after {failed.attempts} attempts: {failed.why.removeprefix(f'{where}: ')}."
        return EngineError(msg, hint=failed.hint or again)

    def _look_after(self, job: SparkJob) -> None:
        """Report the progress of a job's tasks, and end all if the cluster has left them alone for too long."""
        if is_stopped(self.session):
            return
        at = self.cluster.progress(job.group)
        if job.watch is not None:
            job.watch(at.done, at.tasks)
        if at.tasks and (now := monotonic()) >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            _log.info("%s: %d of %d tasks done.", job.shown, at.done, at.tasks)
        if not at.is_left_alone:
            job.waiting_since = None
        elif job.waiting_since is None:
            job.waiting_since = monotonic()
        elif self.is_abandoned(job):
            self.cluster.give_up(job.group)  # it would wait for ever


@contextmanager
def spark_jobs(spark: Spark, pipeline: str, folder: Path, *, runs_sql: bool = False) -> Generator[SparkJobs]:
    """Jobs on the session of `spark_session`, which see for `runs_sql` and for what it raises; `folder` is staged in the home."""
    home = Home.of_staged(folder)
    with spark_session(spark, pipeline, home and home.spark_logs, runs_sql=runs_sql) as session:
        try:
            cluster = cluster_of(session, spark.master)
        except spark_errors() as error:
            msg = f"{pipeline}: Spark on {without_secrets(spark.master)} ended: {shortest(error)}"
            raise EngineError(msg, hint="run again once it is well: what is committed is skipped.") from error
        jobs = SparkJobs(cluster, spark)
        place = f", shown at {jobs.page} while it runs" if jobs.page else ""
        _log.info("%s: Spark application %s on %s%s.", pipeline, cluster.application, cluster.master, place)
        yield jobs


@dataclass(frozen=True)
class FailedTask:
    """The task for which Spark gave up a job."""

    number: int
    attempts: int
    why: str  # the last error, as one line
    hint: str | None  # what to do, where the error says it

    @classmethod
    def of(cls, error: Exception) -> "FailedTask | None":
        """The task that an error of Spark names; None if it names none."""
        if failed := _FAILED_TASK.search(str(error)):
            attempts = int(failed[2])
        elif failed := _EXCLUDED.search(str(error)):
            attempts = int(failed[2]) + 1
        else:
            return None
        reason = failed[3]
        causes = [
            line.strip() for line in reason.splitlines() if re.match(r"\s*[\w.]*(Error|Exception|lost|exited)\b", line)
        ]
        why, hint = raised_by_us(causes[-1] if causes else reason.strip().partition("\n")[0])
        if "ModuleNotFoundError" in reason:
            hint = SAME_ENVIRONMENT
        elif "OutOfMemoryError" in why:
            hint = MORE_MEMORY
        # A full disk of Spark's own files: errors about ours name the file and have a hint.
        elif hint is None and (no_room := _NO_ROOM.search(reason)):
            executor = _EXECUTOR.search(failed[0])
            cause = no_room[0].strip().removeprefix("Caused by: ")
            why, hint = f"{cause}{f', on {executor[1]}' if executor else ''}", FULL_DISK
        return cls(int(failed[1]), attempts, why.rstrip("."), hint)


def raised_by_us(line: str) -> tuple[str, str | None]:
    """Message and hint of an error of this package, as the last line of its traceback has them; any other line as it is."""
    ours = _OURS.search(line)
    return (ours[1], ours[2]) if ours else (line, None)
