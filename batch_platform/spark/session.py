"""Sessions of Spark: started for the first user that needs one, shared by all that declare the same, stopped with the last.

Users are the engine that scores and the SQL of features.
"""

import atexit
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from batch_platform.declaration.engine import ADDRESS, DEFAULT_PORTS, Spark
from batch_platform.declaration.errors import EngineError, WrongUseError
from batch_platform.declaration.importing import needed
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.threads import SHORT_WAITS
from batch_platform.spark.internals import (
    forget_java,
    give_up_after_a_minute,
    has_java,
    java_context,
    launch_java,
    with_defaults,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_VERSIONS = (17, 21)
LOOPBACK = "127.0.0.1"
ANSWERS_WITHIN = 10  # seconds
# Variable that each `java` reads; an option that it is given otherwise comes after these, and holds.
JAVA_OPTIONS = "JDK_JAVA_OPTIONS"
_EXECUTORS_JAVA = "spark.executor.defaultJavaOptions"  # come before spark.executor.extraJavaOptions, which hold
# For Java that only passes work on: to compile its best code takes longer than that code saves.
QUICK_JAVA = "-XX:TieredStopAtLevel=1"
_DECIDE_BITS = ("OPENBLAS_CORETYPE",)  # variables by which an algebra library does not choose by the processor it finds
_JAVA_HINT = (
    "install openjdk-17-jdk-headless or openjdk-21-jdk-headless (Debian, Ubuntu), java-17-openjdk-devel (Fedora, RHEL), or set "
    "JAVA_HOME to such a JDK."
)
_INSTALLED = "batch_platform"  # executors have it, as they have its libraries
MOST_LOGS = 10  # the newest logs of failed starts that are kept
_SAYS_NOTHING = re.compile(
    r"NOTE:|WARNING:|Picked up |Usage:|\s*at |Using Spark's default|Setting default log level|To adjust logging"
    r"|\S+ \S+ (?:TRACE|DEBUG|INFO|WARN) |Error: (?:Could not create the Java|A (?:JNI error|fatal exception))|.* VM warning:"
)
_PREFIX = re.compile(  # the beginning of a line of a log, or of a Java exception
    r'^(?:# |\S+ \S+ ERROR \w+: |Error: |: |Exception in thread "\w+" |Caused by: )?(?:(?:[a-z_]\w*\.)+([A-Z][\w$]*))?'
)
_log = logging.getLogger(__name__)


@dataclass
class _Shared:
    """The session that its users in this process share."""

    session: "SparkSession"
    spark: Spark
    is_borrowed: bool  # started by the user, who stops it
    users: int = 0

    def serves(self, spark: Spark) -> bool:
        declared = (self.spark.master, None if self.is_borrowed else self.spark.conf)
        return declared == (spark.master, None if self.is_borrowed else spark.conf)

    def stop(self) -> None:
        from py4j.protocol import Py4JError

        if self.is_borrowed:
            return
        try:
            self.session.stop()
        except (Py4JError, OSError) as error:  # Spark's own process has died
            _log.warning("Spark had already ended: %s", shortest(error))


_lock, _shared = threading.Lock(), list[_Shared]()  # holds at most one session: Spark allows one per process
_lenders = list["Callable[[], SparkSession]"]()


@contextmanager
def spark_session(
    spark: Spark, pipeline: str, logs: Path | None = None, *, runs_sql: bool = False
) -> Generator["SparkSession"]:
    """A session on the declared master. One that is lent, or that the user has started on the same master, is used and left running.

    With `runs_sql`, Java does the work: a session that is started then compiles to its best code, as Java does by itself.
    If it does not start, its log is kept in the folder `logs`.

    Raises:
        EngineError: Java is missing or does not fit, no master answers, or Spark does not start.
        WrongUseError: pyspark is not installed, or this process has another session.
    """
    with _lock:
        if _shared and is_stopped(_shared[0].session):
            _shared.pop().stop()
        if not _shared:
            borrowed = _borrowed(_lenders[-1](), spark) if _lenders else _running(spark, pipeline)
            _shared.append(borrowed or _started(spark, pipeline, logs, runs_sql=runs_sql))
        shared = _shared[0]
        if not shared.serves(spark):
            master = without_secrets(shared.spark.master)
            msg = f"{pipeline}: this process runs another Spark session, on {master}; a process can have one."
            raise WrongUseError(
                msg, hint="run the pipelines in processes of their own, as Dagster's default executor does."
            )
        shared.users += 1
    try:
        yield shared.session
    finally:
        with _lock:
            shared.users -= 1
            if not shared.users and shared in _shared:
                _shared.remove(shared)
                shared.stop()


@contextmanager
def lent(session: "Callable[[], SparkSession]") -> Generator[None]:
    """Let `spark_session` use a session of the user's, on whichever master. It is called for when a session is needed."""
    _lenders.append(session)
    try:
        yield
    finally:
        _lenders.remove(session)


def _borrowed(session: "SparkSession", spark: Spark) -> _Shared:
    if is_remote(session):
        send_modules(session, import_folders())
    return _Shared(session, spark, is_borrowed=True)


def _running(spark: Spark, pipeline: str) -> _Shared | None:
    """The session that the user has started in this process."""
    if is_connect(spark.master):
        remote = sys.modules.get("pyspark.sql.connect.session")  # nobody has started a session without it
        begun: Any = remote and remote.SparkSession.getActiveSession()
        is_there = begun and not is_stopped(begun) and begun.client.host == _addresses(spark.master)[0][0]
        return _borrowed(begun, spark) if is_there else None
    session = _session_class().getActiveSession()
    if session is None or is_stopped(session):
        return None
    master = "Spark Connect" if is_remote(session) else session.sparkContext.master
    if master != spark.master:
        msg = f"{pipeline}: this process has a Spark session on {master}, and engine.spark.master is {spark.master}."
        raise WrongUseError(msg, hint="declare the master of that session, or stop the session.")
    return _borrowed(session, spark)


def _connected(spark: Spark, pipeline: str) -> _Shared:
    """Open a session on a server of Spark Connect, which has its own Java and its own configuration."""
    require_master(spark.master, pipeline)
    with needed("pyspark with Spark Connect", extra="spark"):
        from pyspark.sql.connect.session import SparkSession as RemoteSession
    from pyspark.errors import PySparkException

    name, session = "", None
    try:
        session: Any = RemoteSession.builder.remote(spark.master).create()
        give_up_after_a_minute(session)
        for name, value in as_text(spark.conf).items():
            session.conf.set(name, value)
        name = ""
        send_modules(session, import_folders())
    except (PySparkException, OSError, ValueError) as error:
        if session is not None:
            session.stop()
        at = without_secrets(spark.master)
        refused = f"{at} refuses engine.spark.conf, {name}" if name else f"no session begins on {at}"
        msg = f"{pipeline}: {refused}: {redact(shortest(error))}"
        hint = "leave to the server what it is started with; engine.spark.conf sets what a session may set."
        raise EngineError(msg, hint=hint if name else "check engine.spark.master and the server's log.") from error
    return _Shared(session, spark, is_borrowed=False)


def _started(spark: Spark, pipeline: str, logs: Path | None, *, runs_sql: bool) -> _Shared:
    if is_connect(spark.master):
        return _connected(spark, pipeline)
    if remote := os.environ.get("SPARK_REMOTE"):
        msg = f"{pipeline}: SPARK_REMOTE is set, and engine.spark.master is {spark.master}."
        raise WrongUseError(msg, hint=f"declare master: {without_secrets(remote)}, or unset SPARK_REMOTE.")
    require_java(os.environ, pipeline)
    require_master(spark.master, pipeline)
    session_class, former = _session_class(), signal.getsignal(signal.SIGINT)
    begun = _log_file().stat().st_size
    try:
        with _environment(spark, runs_sql=runs_sql):
            session = _launched(session_class, configuration(spark, pipeline), runs_sql=runs_sql)
    except Exception as error:
        written = redact(_log_file().read_bytes()[begun:].decode(errors="replace"))
        msg = f"{pipeline}: Spark did not start on {spark.master}: {redact(_cause(error, written))}"
        kept = _kept_log(written, logs)
        raise EngineError(
            msg, hint=f"check engine.spark.master and engine.spark.conf; Spark's log is {kept}."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, former)  # Spark replaces it
    _log.info("%s: Spark writes its log to %s.", pipeline, _log_file())
    return _Shared(session, spark, is_borrowed=False)


def _launched(session_class: "type[SparkSession]", options: Mapping[str, str], *, runs_sql: bool) -> "SparkSession":
    """Start Spark, and first its Java, whose output goes to a file."""
    from pyspark import SparkConf, SparkContext

    conf = SparkConf().setAll(list(options.items()))
    if has_java():
        SparkContext(conf=conf)
        return session_class.builder.getOrCreate()
    if (home := os.environ.get("SPARK_HOME")) and not Path(home, "bin", "spark-submit").exists():
        msg = f"there is no Spark at SPARK_HOME ({home})."
        raise FileNotFoundError(msg)
    with _log_file().open("ab") as log:
        gateway = launch_java(conf, log)
    conf = with_defaults(conf, gateway)
    if not runs_sql:
        conf.set(_EXECUTORS_JAVA, f"{QUICK_JAVA} {conf.get(_EXECUTORS_JAVA, '')}".rstrip())
    try:
        SparkContext(conf=conf, gateway=gateway)
    except Exception as error:
        if _has_ended(error):
            forget_java()
        raise
    return session_class.builder.getOrCreate()


def _cause(error: Exception, written: str) -> str:
    """Say why Spark did not start, by its error, or by its log if Java has ended."""
    reason = shortest(error)
    is_known = not _has_ended(error) and "stopped SparkContext" not in reason
    return reason if is_known else telling_line(written.splitlines()) or reason


def _has_ended(error: Exception) -> bool:
    """Return whether an error comes from a Java that has ended, and not from one that tells what is wrong."""
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkRuntimeError

    return isinstance(error, PySparkRuntimeError | OSError | Py4JError) and not isinstance(error, Py4JJavaError)


def _kept_log(written: str, logs: Path | None) -> Path:
    """Write what Spark has written to a file that stays, in place of the oldest one; without a folder, in that for temporary files."""
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        for former in sorted(logs.glob("did-not-start-*.log"), key=lambda path: path.stat().st_mtime)[: -MOST_LOGS + 1]:
            former.unlink(missing_ok=True)
    descriptor, path = tempfile.mkstemp(prefix="did-not-start-", suffix=".log", dir=logs)
    os.close(descriptor)
    Path(path).write_text(written, encoding="utf-8")
    return Path(path)


@cache
def _log_file() -> Path:
    """The file for the output of this process's Java, which is removed when the process ends."""
    descriptor, path = tempfile.mkstemp(prefix="spark-driver-", suffix=".log")
    os.close(descriptor)
    atexit.register(Path(path).unlink, missing_ok=True)
    return Path(path)


def _session_class() -> "type[SparkSession]":
    with needed("pyspark", extra="spark"):
        from pyspark.sql import SparkSession
    return SparkSession


def configuration(spark: Spark, pipeline: str) -> dict[str, str]:
    """The configuration of a session: what is declared, over what this package needs."""
    path = os.pathsep.join(map(str, import_folders()))
    pinned = {name: os.environ[name] for name in _DECIDE_BITS if name in os.environ}
    environment = {"PYTHONPATH": path, "POLARS_MAX_THREADS": "1", **SHORT_WAITS, **pinned}
    ours = {
        "spark.master": spark.master,
        "spark.app.name": f"batch-platform {pipeline}",
        "spark.ui.showConsoleProgress": "false",
        **{f"spark.executorEnv.{name}": value for name, value in environment.items()},
    }
    if is_on_this_machine(spark.master):
        ours |= {"spark.driver.host": LOOPBACK, "spark.driver.bindAddress": LOOPBACK}
    return ours | as_text(spark.conf)


def as_text(conf: Mapping[str, str | float | bool]) -> dict[str, str]:
    """Write options as Spark reads them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in conf.items()}


def import_folders() -> list[Path]:
    """Folders from which this process imports modules that are not installed; executors find the modules there too."""
    installed = {Path(sys.prefix), Path(sys.base_prefix)}
    folders = [Path(entry).absolute() for entry in sys.path if Path(entry).is_dir()]  # '' is the current folder
    return [folder for folder in dict.fromkeys(folders) if not installed & {folder, *folder.parents}]


def is_on_this_machine(master: str) -> bool:
    """Return whether the cluster is on this machine, so that no port has to be open to others."""
    hosts = [host for host, _ in _addresses(master)]
    return master.startswith("local") or (bool(hosts) and all(host in ("localhost", LOOPBACK) for host in hosts))


def require_master(master: str, pipeline: str) -> None:
    """Raise EngineError if no master of a standalone cluster, or no server of Spark Connect, answers: Spark itself would try for minutes."""
    addresses, failures = _addresses(master), list[str]()
    for address in addresses:
        try:
            socket.create_connection(address, timeout=ANSWERS_WITHIN).close()
        except OSError as error:
            failures.append(f"{address[0]}:{address[1]}: {error.strerror or error}")
        else:
            return
    if addresses:
        asked = "server of Spark Connect" if is_connect(master) else "Spark master"
        msg = f"{pipeline}: no {asked} answers at {without_secrets(master)} ({'; '.join(failures)})."
        raise EngineError(
            msg, hint="start the cluster, or correct engine.spark.master. Nothing was changed; run again."
        )


def _addresses(master: str) -> list[tuple[str, int]]:
    """Host and port of each master of a standalone cluster, or of a server of Spark Connect; none for other kinds of clusters."""
    scheme, _, rest = without_secrets(master).partition("://")
    if scheme not in DEFAULT_PORTS:
        return []
    pairs = [ADDRESS.fullmatch(part) for part in rest.rstrip("/").split(",")]
    return [(pair[1], int(pair[2] or DEFAULT_PORTS[scheme] or 0)) for pair in pairs if pair]


def require_java(environment: Mapping[str, str], pipeline: str) -> None:
    """Raise EngineError unless the Java that Spark will start fits; the message names the package to install."""
    home = environment.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java", path=environment.get("PATH"))
    wanted = f"{pipeline}: Spark needs a JDK of version {' or '.join(map(str, JAVA_VERSIONS))}"
    if java is None or not Path(java).exists():
        place = f"at JAVA_HOME ({home})" if home else "on the path"
        msg = f"{wanted}, and there is no `java` {place}."
        raise EngineError(msg, hint=_JAVA_HINT)
    command = [java, "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - as Spark itself will start it
    output = done.stderr + done.stdout
    version = re.search(r'version "(\d+)', output)
    if version is not None and int(version[1]) not in JAVA_VERSIONS:
        msg = f"{wanted}, and {java} is of version {version[1]}."
        raise EngineError(msg, hint=_JAVA_HINT)
    if done.returncode:
        first = telling_line(output.splitlines()) or f"it ended with {done.returncode}."
        msg = f"{wanted} with all modules, and {java} does not start: {redact(first)}"
        raise EngineError(msg, hint=_JAVA_HINT)


@contextmanager
def _environment(spark: Spark, *, runs_sql: bool) -> Generator[None]:
    """The variables that Spark reads when it starts: executors run the interpreter that runs this, unless another one is declared."""
    python = spark.conf.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON") or sys.executable
    ours = {"PYSPARK_PYTHON": str(python)}
    if is_on_this_machine(spark.master):
        ours["SPARK_LOCAL_IP"] = LOOPBACK
    if not runs_sql:
        ours[JAVA_OPTIONS] = f"{QUICK_JAVA} {os.environ.get(JAVA_OPTIONS, '')}".rstrip()
    former = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shortest(error: BaseException) -> str:
    """The first line of an error of Spark that says something, without the Java names before it."""
    lines = (line for line in str(error).splitlines() if not line.startswith(("An error occurred", "Traceback")))
    return telling_line(lines) or f"{type(error).__name__}."


def telling_line(lines: Iterable[str]) -> str:
    """The first line, of an error or of a log of Java, that says something; the name of a Java exception only if nothing else does."""
    for line in lines:
        if _SAYS_NOTHING.match(line) or (match := _PREFIX.match(line)) is None:
            continue
        name, text = match[1], line[match.end() :].removeprefix(": ").strip()
        if name is not None and " " not in text:  # such as the name of a class that was not found
            text = f"{name}: {text}" if text else name
        if text.strip("# "):
            return text.rstrip(".") + "."
    return ""


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
