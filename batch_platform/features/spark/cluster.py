"""The cluster behind a session of Spark: Spark in this process's Java, or a server that is reached by Spark Connect.

`cluster_of` gives the one of a session. A job has a group, which is a job group there and a tag here.
"""

import hashlib
import zipfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import TYPE_CHECKING, Any

from batch_platform.features.spark.internals import java_context

if TYPE_CHECKING:
    from pyspark.core.status import SparkStageInfo
    from pyspark.sql import SparkSession

_INSTALLED = "batch_platform"  # executors have it, as they have its libraries


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


def is_remote(session: object) -> bool:
    """Return whether a session is one of Spark Connect."""
    return any(of.__module__.startswith("pyspark.sql.connect.") for of in type(session).__mro__)


def is_stopped(session: "SparkSession") -> bool:
    """Return whether a session was stopped, or has ended with its Java; the end of a server shows only when it is asked."""
    remote: Any = session
    return remote.is_stopped if is_remote(session) else java_context(session) is None


def executors_of(session: "SparkSession") -> int:
    """Number of executors that a session in this process's Java has now."""
    java = java_context(session)
    return 0 if java is None else int(java.getExecutorMemoryStatus().size()) - 1  # the driver is counted as one


def cluster_of(session: "SparkSession", declared: str) -> Cluster:
    """The cluster of a session; one of Spark Connect that is lent does not tell its address, so it has the declared one."""
    if not is_remote(session):
        return OwnJava(session)
    return ConnectServer(session, without_secrets(declared) if is_connect(declared) else "Spark Connect")


def is_connect(master: str) -> bool:
    """Return whether a master is the address of a server of Spark Connect."""
    return master.startswith("sc://")


def without_secrets(master: str) -> str:
    """An address without its parameters, which may hold a token."""
    return master.partition("/;")[0]


def send_modules(session: "SparkSession", folders: Iterable[Path]) -> None:
    """Send the modules of folders to a server of Spark Connect, whose executors import them from there on."""
    content = zipped_modules(folders)
    with TemporaryDirectory(prefix="modules-") as folder:
        file = Path(folder, f"modules-{hashlib.sha256(content).hexdigest()[:12]}.zip")
        file.write_bytes(content)
        session.addArtifacts(str(file), pyfile=True)


def zipped_modules(folders: Iterable[Path]) -> bytes:
    """A zip file of the modules right in some folders, and of their packages; equal modules give equal bytes."""
    written, content = set[str](), BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in folders:
            for file in _modules(folder):
                name = file.relative_to(folder).as_posix()
                if name not in written:  # of two modules of a name, the first is imported
                    written.add(name)
                    archive.writestr(zipfile.ZipInfo(name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _modules(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.is_file():
            yield path
        elif path.name != _INSTALLED and (path / "__init__.py").is_file():
            yield from sorted(path.rglob("*.py"))
