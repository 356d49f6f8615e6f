"""Objects in a store such as S3: their addresses, how they are looked up, listed and written, and how DuckDB and Arrow read them.

fsspec's file system of the store does the work, and finds address and credentials of the store by itself: in the environment,
a profile, or the role of the machine. It remembers no listing, so that a replaced object is seen.
"""

import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EBUSY
from functools import cache
from glob import has_magic
from hashlib import sha256
from os import stat_result
from pathlib import Path, PurePosixPath
from threading import Thread, local
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.importing import needed, require_installed
from batch_platform.declaration.inputs import STORES, scheme_of
from batch_platform.declaration.redaction import redact
from batch_platform.warehouse.lock import seconds_in

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow.fs import FileSystem

_LIBRARIES = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}  # key: extra
_TAGS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
)  # names that stores have for what changes with the content; the best first
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # variables with the address of another store than Amazon's
TIMEOUT_VARIABLE = "BATCH_PLATFORM_STORE_TIMEOUT"
_TIMEOUT_SECONDS = 90.0  # for which a store may be silent, all attempts taken together
_SLOWEST = 100_000  # bytes per second that a store takes at least
_S3_ATTEMPTS = 3  # of botocore at one request, unless the environment says otherwise
_S3_READINGS = 2  # of s3fs at one object whose transfer breaks off, each with the attempts of botocore
_GCS_ATTEMPTS = 6  # of gcsfs at one request, with pauses of half a minute in all
_VARIABLE = re.compile(r"[*?\[{]")  # start of what differs between the objects of a source
_LONGEST_REASON = 300  # characters of a message
_RAISED = re.compile(r"\bStoreError: ([^\n]*)")

Answer = TypeVar("Answer")


class ObjectPath(PurePosixPath):
    """The address of an object, such as s3://lake/orders/a.parquet."""

    def __str__(self) -> str:
        """Write the address with both slashes, of which a path keeps one."""
        return super().__str__().replace(":/", "://", 1)

    def is_dir(self) -> bool:
        """Tell whether it stands for all objects below it."""
        return False


class ObjectFolder(ObjectPath):
    """The start of the addresses of many objects, up to a slash."""

    def is_dir(self) -> bool:
        """Tell whether it stands for all objects below it."""
        return True


FilePath = Path | ObjectPath  # a file on this machine, or an object


@dataclass(frozen=True)
class FileState:
    """A file or an object as it is now."""

    size: int  # bytes
    mark: str  # changes with the content: time of the last change, or entity tag


class StoreError(Exception):
    """A store cannot be reached, or does not give what it is asked for; has one line. DuckDB passes on only its text."""


def file_path(location: str) -> FilePath:
    """A declared path: of a file, or the address of an object."""
    return Path(location).expanduser() if scheme_of(location) is None else ObjectPath(location)


def file_state(stat: stat_result) -> FileState:
    """The state of a file on this machine."""
    return FileState(stat.st_size, str(stat.st_mtime_ns))


def store_failure_in(error: Exception) -> str | None:
    """The text of a StoreError that DuckDB or Arrow passed on; None for other errors."""
    raised = _RAISED.search(str(error))
    return raised[1].strip() if raised else None


def hint_for(problem: str) -> str:
    """The way out of a StoreError, as far as its text tells."""
    if "replaced" in problem:
        return "run it again, which reads the new object."
    return (
        "check the name of the bucket, the network, and the credentials in the environment, the profile or the role. "
        f"{TIMEOUT_VARIABLE} is the number of seconds to wait for a store that does not answer."
    )


def absence(error: Exception) -> str:
    """Say what an error for a source means for what was read from it before."""
    return "cannot be looked up now" if isinstance(error.__cause__, StoreError) else "is gone"


_listings: ContextVar[dict[str, "dict[ObjectPath, FileState] | StoreError"] | None] = ContextVar(
    "_listings", default=None
)


@contextmanager
def listed_once() -> Generator[None]:
    """List each folder once in this block, whichever partitions are asked for; a failure is not tried again either."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def object_states(head: ObjectPath, rest: str, declared: str) -> dict[ObjectPath, FileState]:
    """The objects whose addresses match, sorted; a single one is looked up, several are listed. Raises StoreError.

    Args:
        head: The folder.
        rest: The path or glob from there.
        declared: The same with the placeholders of a partition.
    """
    if has_magic(rest):
        from fsspec.utils import glob_translate

        matches = re.compile(glob_translate(rest)).match
        listed = _listing(head, _VARIABLE.split(declared, maxsplit=1)[0])
        return {path: state for path, state in listed.items() if matches(path.relative_to(head).as_posix())}
    path = head / rest
    if _listings.get() is None or rest == declared:
        state = _looked_up(path)
    else:
        state = _listing(head, _VARIABLE.split(declared, maxsplit=1)[0]).get(path)
    return {} if state is None else {path: state}


def _looked_up(path: ObjectPath) -> FileState | None:
    with _explained(path):
        system, name = _store_of(path)
        try:
            details = system.info(name)
        except FileNotFoundError:
            _require_bucket(path)
            return None
        return _state(details) if details["type"] == "file" else None


def _listing(head: ObjectPath, start: str) -> Mapping[ObjectPath, FileState]:
    """All objects below a folder whose paths from there have a start, sorted; raises StoreError."""
    remembered = _listings.get()
    remembered = {} if remembered is None else remembered
    key = f"{head}/{start}"
    if key not in remembered:
        try:
            remembered[key] = _listed(head, start)
        except StoreError as error:
            remembered[key] = error
    listed = remembered[key]
    if isinstance(listed, StoreError):
        raise listed
    return listed


def _listed(head: ObjectPath, start: str) -> dict[ObjectPath, FileState]:
    with _explained(head):
        system, name = _store_of(head)
        folder, _, beginning = start.rpartition("/")
        below = f"{name}/{folder}".rstrip("/")
        try:
            listed: dict[str, dict[str, Any]] = system.find(below, prefix=beginning, detail=True)
        except FileNotFoundError:
            listed = {}
        if not listed:
            _require_bucket(head)
        objects = {head / path.removeprefix(f"{name}/"): details for path, details in sorted(listed.items())}
        return {path: _state(details) for path, details in objects.items() if details["type"] == "file"}


def _require_bucket(path: ObjectPath) -> None:
    """Raise StoreError if there is no bucket of the name; whoever may read an object need not be allowed to look at its bucket."""
    bucket = ObjectPath(*path.parts[:2])
    system, name = _store_of(bucket)
    try:
        system.info(name)
    except FileNotFoundError as error:
        msg = f"there is no bucket {bucket}"
        raise StoreError(msg) from error
    except OSError:
        return


def objects_below(folder: ObjectPath) -> Mapping[ObjectPath, FileState]:
    """All objects in a folder and in those within it, sorted; raises StoreError."""
    return _listing(folder, "")


def names_below(folder: ObjectPath) -> list[str]:
    """The names of the objects in a folder, and of the folders in it; none if there is no such folder. Raises StoreError."""
    with _explained(folder):
        system, name = _store_of(folder)
        try:
            return [str(path).rpartition("/")[2] for path in system.ls(name, detail=False)]
        except FileNotFoundError:
            return []


def read_whole(paths: Sequence[ObjectPath]) -> list[bytes]:
    """The contents of objects of one store, each read at once; raises StoreError."""
    with _explained(paths[0]):
        (system, _), whole = _store_of(paths[0]), [None] * len(paths)
        return system.cat_ranges([_store_of(path)[1] for path in paths], whole, whole, on_error="raise")


def put_object(path: ObjectPath, file: Path) -> None:
    """Make the content of a file that of an object; readers see the former object until it is complete. Raises StoreError."""
    with _explained(path, "written"):
        system, name = _store_of(path)
        # s3fs waits for ever for the leave to send a file, so all of it has a limit.
        system.put_file(str(file), name, timeout=store_timeout() + file.stat().st_size / _SLOWEST)


def delta_options(root: FilePath) -> dict[str, str] | None:
    """The options by which deltalake reaches a table, which finds address and credentials of a store by itself."""
    if not isinstance(root, ObjectPath):
        return None
    plain_http = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    limit = f"{max(1, round(store_timeout()))}s"
    return {"timeout": limit, "retry_timeout": limit, **({"allow_http": "true"} if plain_http else {})}


def admit_objects(con: duckdb.DuckDBPyConnection, path: ObjectPath) -> None:
    """Let DuckDB read objects of the store in which an object lies, as far as the connection allows it."""
    if not con.filesystem_is_registered(scheme := str(scheme_of(str(path)))):
        con.register_filesystem(_objects_for_reading(scheme))


@cache
def _objects_for_reading(scheme: str) -> "AbstractFileSystem":
    """The objects of a kind of store, as DuckDB and Arrow ask for them, by whole addresses; nothing can be written."""
    from fsspec import AbstractFileSystem  # imported late: it takes its time

    class Objects(AbstractFileSystem):
        protocol = scheme
        cachable = False
        opened: dict[str, FileState] = {}  # noqa: RUF012 - the states at the last opening, by address

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

        def info(self, path: str, **_: object) -> dict[str, object]:
            state = self.opened.get(path) or _looked_up(ObjectPath(path))
            if state is None:
                raise FileNotFoundError(path)
            return {"name": path, "size": state.size, "type": "file"}

        def modified(self, path: str) -> datetime:
            """A time that stands for the mark: DuckDB keeps what it read of an object as long as the time stays the same."""
            mark = sha256(self.opened[path].mark.encode()).digest()
            return datetime.fromtimestamp(int.from_bytes(mark[:8]) % 1_000_000_000, UTC)

        def glob(self, path: str, maxdepth: int | None = None, **_: object) -> list[str]:  # noqa: ARG002 - its signature
            return [path]

        def _open(  # pyright: ignore[reportIncompatibleMethodOverride] - any file of bytes will do
            self, path: str, mode: str = "rb", **_: object
        ) -> _OpenedObject:
            if mode != "rb":
                msg = f"{path} is only read"
                raise StoreError(msg)
            with _explained(ObjectPath(path)):
                system, name = _store_of(ObjectPath(path))
                file = system.open(name, "rb", cache_type="none")
                self.opened[path] = _state(file.details)
            return _OpenedObject(ObjectPath(path), file)

    return Objects()


def arrow_file_system(location: str) -> "FileSystem":
    """The file system by which Arrow reads a path or an address."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem  # imported late: it takes its time

    scheme = scheme_of(location)
    return LocalFileSystem() if scheme is None else PyFileSystem(FSSpecHandler(_objects_for_reading(scheme)))


class _OpenedObject:
    """An object, opened for reading by several threads: each reads where it sought itself, as DuckDB shares one file among them."""

    def __init__(self, path: ObjectPath, file: Any) -> None:  # noqa: ANN401 - a buffered file of fsspec
        self.closed, self._path, self._file = False, path, file
        self._next, self._sought = 0, local()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._sought.position = (0, self.tell(), self._file.size)[whence] + offset
        return self._sought.position

    def tell(self) -> int:
        return getattr(self._sought, "position", self._next)

    def read(self, size: int = -1) -> bytes:
        start = self._sought.__dict__.pop("position", self._next)
        end = self._file.size if size < 0 else min(start + size, self._file.size)
        self._next = end
        if start >= end:
            return b""
        with _explained(self._path):
            return self._file._fetch_range(start, end)  # noqa: SLF001 - where a store's library reads; has no position

    def close(self) -> None:
        self.closed = True


def require_store(location: str) -> None:
    """Raise WrongUseError if the library of the store that an address names is not installed; a path needs none."""
    if (scheme := scheme_of(location)) is not None:
        require_installed(_LIBRARIES[STORES[scheme]], extra=STORES[scheme])


def _store_of(path: ObjectPath) -> tuple[Any, str]:
    """The file system of fsspec for the store, and the name of the object there; raises WrongUseError if its library is missing."""
    extra = STORES[str(scheme_of(str(path)))]
    with needed(_LIBRARIES[extra], extra=extra):
        from fsspec.core import url_to_fs

        system, name = url_to_fs(str(path), use_listings_cache=False, **_limits(extra))
    if extra == "s3":
        system.retries = _S3_READINGS
    return system, name


def store_timeout() -> float:
    """Seconds to wait for a store that does not answer: BATCH_PLATFORM_STORE_TIMEOUT, or 90 if it is not set."""
    return seconds_in(TIMEOUT_VARIABLE, _TIMEOUT_SECONDS)


def answer_in_time(ask: Callable[[], Answer]) -> Answer:
    """Return or raise what a library without a time limit of its own does; raise TimeoutError once a store may be silent no longer.

    A thread asks, which is left behind if no answer comes: for requests that change nothing.
    """
    answer = Future[Answer]()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            answer.set_exception(error)

    Thread(target=wait, daemon=True).start()
    return answer.result(store_timeout())


def _limits(extra: str) -> dict[str, Any]:
    """The options by which a store's library waits no longer for an answer than it may; adlfs has no such option."""
    if extra == "gcs":
        from aiohttp import ClientTimeout  # a requirement of gcsfs

        silent = store_timeout() / _GCS_ATTEMPTS
        return {"requests_timeout": ClientTimeout(sock_connect=silent, sock_read=silent)}
    if extra == "s3":
        attempts = int(os.environ.get("AWS_MAX_ATTEMPTS") or _S3_ATTEMPTS)
        silent = store_timeout() / attempts / _S3_READINGS
        retries = {"total_max_attempts": attempts}
        return {"config_kwargs": {"connect_timeout": silent, "read_timeout": silent, "retries": retries}}
    return {}


def _state(details: Mapping[str, Any]) -> FileState:
    """The state of an object by what its store says of it."""
    return FileState(int(details["size"]), next((str(details[tag]) for tag in _TAGS if details.get(tag)), ""))


@contextmanager
def opened_store(path: FilePath) -> Generator[tuple[Any, str]]:
    """A file system of fsspec, and the name of a file or object there; what either raises becomes a StoreError."""
    with _explained(path, "used"):
        if isinstance(path, ObjectPath):
            yield _store_of(path)
        else:
            from fsspec.implementations.local import LocalFileSystem

            yield LocalFileSystem(auto_mkdir=True), str(path)


@contextmanager
def _explained(path: FilePath, done: str = "read") -> Generator[None]:
    """Turn whatever a store's library raises into a StoreError that names the object."""
    try:
        yield
    except (StoreError, BatchPlatformError):
        raise
    except Exception as error:  # each library raises classes of its own, and of those that it calls
        reason = " ".join(redact(str(error)).split())[:_LONGEST_REASON].rstrip(". ") or type(error).__name__
        if isinstance(error, OSError) and error.errno == EBUSY:
            reason = "it was replaced while it was read"
        if isinstance(error, TimeoutError):
            reason = "the store did not answer in time"
        msg = f"{path} cannot be {done} ({reason})"
        raise StoreError(msg) from error
