"""A real standalone cluster of Spark on this machine: a master and workers, each a process of its own."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyspark

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring.partition import ScoringOrder
from batch_platform.scoring.run import Due, orders_of
from batch_platform.spark.session import QUICK_JAVA

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPARK_HOME = Path(pyspark.__file__).parent
LITTLE_JAVA = "-XX:+UseSerialGC"  # without threads for garbage alone; that it compiles quickly is up to the sessions
WORKERS = 2
CONF: dict[str, Any] = {
    "spark.cores.max": 2,  # of four, so that there is room for another application
    "spark.executor.cores": 1,
    "spark.executor.memory": "512m",
    "spark.driver.maxResultSize": "1m",  # the least that Spark allows; by default so many tasks return a thousand times as much
    "spark.driver.extraJavaOptions": LITTLE_JAVA,
    "spark.executor.extraJavaOptions": LITTLE_JAVA,
    "spark.log.level": "ERROR",
    "spark.ui.liveUpdate.period": "0ms",  # so that the number of running tasks is that of now, not of the last heartbeat
    "spark.speculation": True,
    "spark.speculation.interval": "200ms",
    "spark.speculation.quantile": 0.5,
    "spark.speculation.minTaskRuntime": "2s",
}


class SparkCluster:
    """A cluster below a folder, at the same address each time that it is started."""

    def __init__(self, folder: Path, *, cores: int = 2, memory: str = "2g") -> None:
        """Start nothing yet; cores and memory are those of each worker."""
        self._folder, self._cores, self._memory = folder, cores, memory
        self._port, self._page = free_ports(2)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def master(self) -> str:
        return f"spark://127.0.0.1:{self._port}"

    def declared(self, **options: Any) -> dict[str, Any]:
        """The block `engine` of a pipeline that is scored here."""
        return {"spark": {"master": self.master, "conf": CONF, "wait_for_executors": "5 minutes", **options}}

    def start(self) -> None:
        """Start the master and the workers, and wait until they know each other."""
        daemon = "org.apache.spark.deploy"
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--webui-port", str(self._page)]
        self._processes = [self._process(f"{daemon}.master.Master", *address)]
        self._processes += [self._worker(number) for number in range(WORKERS)]
        self._wait_for_workers()

    def workers(self) -> int:
        """Number of workers that the master knows to live."""
        page = f"http://127.0.0.1:{self._page}/json/"
        with suppress(OSError, ValueError), urllib.request.urlopen(page) as answer:
            return json.load(answer)["aliveworkers"]
        return 0  # a master that is starting answers nothing yet, or with a page that is no JSON

    def add_worker(self) -> None:
        """Start a worker in the place of a killed one."""
        self._processes.append(self._worker(len(self._processes)))
        self._wait_for_workers()

    def kill_worker(self, session: "SparkSession") -> None:
        """Kill a worker that runs an executor of the session, and its executors, with SIGKILL, as the loss of a machine would."""
        *_, (victim, _) = self._executors(session)
        self._processes.remove(victim)
        kill([*descendants(victim.pid), victim.pid])
        victim.wait()

    def kill_executor(self, session: "SparkSession") -> None:
        """Kill one executor of the session with SIGKILL; its worker starts another one."""
        (_, executor), *_ = self._executors(session)
        kill([executor])

    @contextmanager
    def full_disks(self, workers: int = WORKERS) -> Iterator[None]:
        """Let the executors of the first workers write no byte to any file, as on a machine whose disk is full.

        The same holds for those that a worker starts meanwhile in the place of others, which take seconds to begin.
        """
        limited, over = set[int](), threading.Event()

        def limit() -> None:
            for worker in self._processes[1:][:workers]:
                for pid in {*descendants(worker.pid)} - limited:
                    with suppress(ProcessLookupError):
                        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                    limited.add(pid)

        def limit_again() -> None:
            while not over.wait(0.1):
                limit()

        limit()
        limiting = threading.Thread(target=limit_again)
        limiting.start()
        try:
            yield
        finally:
            over.set()
            limiting.join()
            for pid in {child for parent in limited for child in (parent, *descendants(parent))}:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def kill(self) -> None:
        """Kill everything with SIGKILL."""
        for process in self._processes:
            kill([*descendants(process.pid), process.pid])
            process.wait()
        self._processes = []

    def _wait_for_workers(self) -> None:
        while self.workers() < WORKERS:
            assert all(process.poll() is None for process in self._processes), "see the log of the cluster"
            time.sleep(0.1)

    def _executors(self, session: "SparkSession") -> list[tuple[subprocess.Popen[bytes], int]]:
        """The worker and the id of each executor of a session; those of an application that has just ended may still run."""
        application = session.sparkContext.applicationId.encode()
        return [
            (worker, pid)
            for worker in self._processes[1:]
            for pid in children(worker.pid)
            if application in command_of(pid)
        ]

    def _worker(self, number: int) -> subprocess.Popen[bytes]:
        host = f"127.0.0.{number + 2}"  # Spark repeats a slow task on another host only
        options = ["--host", host, "--cores", str(self._cores), "--memory", self._memory, "--webui-port", "0"]
        folder = ["--work-dir", str(self._folder / f"worker-{number}")]
        return self._process("org.apache.spark.deploy.worker.Worker", self.master, *options, *folder, host=host)

    def _process(self, *command: str, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        own = {
            "SPARK_LOCAL_IP": host,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": f"{LITTLE_JAVA} {QUICK_JAVA}",
        }
        environment = {**os.environ, **own, "SPARK_HOME": str(SPARK_HOME)}
        with (self._folder / "cluster.log").open("ab") as log:
            return subprocess.Popen(
                [str(SPARK_HOME / "bin" / "spark-class"), *command], env=environment, stdout=log, stderr=log
            )


@contextmanager
def spark_cluster(folder: Path, *, cores: int = 2, memory: str = "2g") -> Iterator[SparkCluster]:
    """A cluster that runs, below an empty folder; cores and memory are those of each worker."""
    cluster = SparkCluster(folder, cores=cores, memory=memory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


@contextmanager
def connect_server(folder: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of Spark Connect in a folder, which runs two tasks at a time with these variables: its address, and its process."""
    port, _ = free_ports(2)
    options = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": port,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.driver.extraJavaOptions": f"{LITTLE_JAVA} {QUICK_JAVA}",
        "spark.connect.progress.reportInterval": "200ms",
    }
    command = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", "local[2,4]"]  # a task has four attempts
    command += [word for name, value in options.items() for word in ("--conf", f"{name}={value}")]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
    own = {"SPARK_HOME": str(SPARK_HOME), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not _listens(port):
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield f"sc://127.0.0.1:{port}", process
    finally:
        kill([*descendants(process.pid), process.pid])
        process.wait()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens to."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def command_of(pid: int) -> list[bytes]:
    """The words of a process's command; none if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def descendants(pid: int) -> list[int]:
    """The child processes of a process, and theirs."""
    return [inner for child in children(pid) for inner in (child, *descendants(child))]


def kill(pids: Sequence[int]) -> None:
    """Kill processes with SIGKILL."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def orders_for(pipeline: Pipeline, keys: Sequence[str]) -> list[ScoringOrder]:
    """Order the partitions to be scored by the only version."""
    state = pipeline.state()
    (version,) = state.registry.of_model
    calendar = pipeline.spec.partitions.calendar
    due = [Due(calendar.named(key), version, state.features[key], None) for key in keys]
    return list(orders_of(due, pipeline.history, pipeline.bundle_folder))
