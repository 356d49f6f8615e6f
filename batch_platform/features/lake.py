"""The feature files of a pipeline: written aside, named after their content, read only if their bytes are those recorded.

A build never changes the file of an earlier build. The bytes that are hashed are those that are read, even if a file is
replaced meanwhile.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128

from batch_platform.declaration.errors import DamagedFeaturesError, threads_explained
from batch_platform.declaration.threads import threads
from batch_platform.sources.objects import FilePath, ObjectPath, opened_store
from batch_platform.warehouse.lock import if_free

_ASIDE = re.compile(r"\.[0-9a-f]{32}\.parquet")
BATCH_ROWS = 122_880  # a row group of DuckDB: a commit stores batches of this size unchanged, which is fastest


@contextmanager
def written_aside(folder: Path) -> Generator[Path]:
    """An empty file beside the feature files, to be filled and moved to its name; removed at the end if it was not moved.

    The file is locked, so that no process on any machine takes it for the remains of a killed process.
    """
    while True:
        path = folder / f".{uuid4().hex}.parquet"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            break
        os.close(descriptor)  # another process removed it before it was locked
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def left_aside(folder: Path) -> list[Path]:
    """The files that killed processes were writing in a folder of feature files."""
    paths = sorted(path for path in folder.glob(".*.parquet") if _ASIDE.fullmatch(path.name))
    return [path for path in paths if if_free(path, lambda _: None, flags=os.O_RDWR)]


def remove_unlocked(path: Path) -> None:
    """Remove a file of the lake, unless a process is writing it."""
    if_free(path, lambda free: free.unlink(missing_ok=True), flags=os.O_RDWR)


def feature_file_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every feature file of a folder, by file name; links are left out."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    with entries:
        return {
            entry.name: entry.stat().st_size
            for entry in entries
            if entry.name.endswith(".parquet") and not entry.name.startswith(".") and not entry.is_symlink()
        }


def parquet_writer(path: Path, schema: pa.Schema, *, lasting: bool = True) -> pq.ParquetWriter:
    """Open a writer for a Parquet file; one that is not `lasting` is read once, and so written quickly, without Arrow's types.

    Only text is dictionary-encoded: numbers are mostly distinct, so that a dictionary of them is larger.
    """
    repeating = [field.name for field in schema if not pa.types.is_primitive(field.type)]
    compression = {field.name: "lz4" if lasting or field.name in repeating else "none" for field in schema}
    by_column: dict[str, Any] = {"compression": compression, "use_dictionary": repeating}  # the stubs allow neither
    at_once = 1024 if lasting else BATCH_ROWS  # values encoded together: more is quicker, but pages end elsewhere
    return pq.ParquetWriter(
        path, schema, **by_column, store_schema=lasting, write_statistics=lasting, write_batch_size=at_once
    )


def of_full_size(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut and join batches so that each has BATCH_ROWS rows, but for the last."""
    held = list[pa.RecordBatch]()
    for batch in batches:
        held.append(batch)
        while sum(part.num_rows for part in held) >= BATCH_ROWS:
            rows = pa.Table.from_batches(held)
            yield from rows.slice(0, BATCH_ROWS).combine_chunks().to_batches()
            held = rows.slice(BATCH_ROWS).to_batches()
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


class Digests:
    """The SHA-256 and the XXH3 (128 bits) of a file to which bytes are only appended, as far as it has grown."""

    def __init__(self, path: Path) -> None:
        """Open an existing file and hash nothing yet; closed at the end of a `with` block."""
        self._file = path.open("rb", buffering=0)
        self._digests = hashlib.sha256(), xxh3_128()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def catch_up(self) -> tuple[str, str]:
        """Hash the bytes that were appended since the last call; returns both digests of all bytes, in hexadecimal."""
        while block := self._file.read(_HASH_BLOCK):
            for digest in self._digests:
                digest.update(block)
        sha256, xxh3 = (digest.hexdigest() for digest in self._digests)
        return sha256, xxh3


class FileWriter:
    """Writes batches of rows to a Parquet file, and hashes it as it grows. Use it in a `with` statement.

    If there may be more threads, a full batch is written and hashed on others while the caller makes the next one.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin a file of some columns."""
        self.rows = 0
        self._going_on = list[Future[Any]]()
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(parquet_writer(path, schema))
        self._digests = self._stack.enter_context(Digests(path))
        self._others = self._stack.enter_context(ThreadPoolExecutor(2, "write"))

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which is complete only after `complete`."""
        self._stack.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch, behind all others."""
        self._finish()
        if batch.num_rows == BATCH_ROWS and threads() > 1:
            with threads_explained():
                self._going_on.append(self._others.submit(self._writer.write_batch, batch))
                self._going_on.append(self._others.submit(self._digests.catch_up))
        else:
            self._writer.write_batch(batch)
            self._digests.catch_up()
        self.rows += batch.num_rows

    def complete(self) -> tuple[str, str]:
        """Write the end of the file; returns its SHA-256 and XXH3 (128 bits) in hexadecimal."""
        self._finish()
        self._writer.close()
        return self._digests.catch_up()

    def _finish(self) -> None:
        """Wait for what the other threads do; raises what they raise."""
        while self._going_on:
            self._going_on.pop().result()


def file_digests(path: Path) -> tuple[str, str]:
    """The SHA-256 and the XXH3 (128 bits) of a file's bytes, in hexadecimal."""
    with Digests(path) as digests:
        return digests.catch_up()


_HASH_BLOCK = 1 << 20
_OBJECT_BLOCK = 1 << 25  # each is a request


@dataclass(frozen=True)
class _OnDisk:
    """The bytes of an open file, and its size with the time of its last change; others offer the same of other bytes."""

    descriptor: int

    def read(self, size: int, at: int) -> bytes:
        return os.pread(self.descriptor, min(size, 1 << 30), at)

    def state(self) -> tuple[int, int]:
        stat = os.fstat(self.descriptor)
        return stat.st_size, stat.st_mtime_ns

    def opened(self) -> pa.NativeFile:
        return pa.OSFile(f"/dev/fd/{self.descriptor}")


@dataclass(frozen=True)
class _InStore:
    """The bytes of an object, of which each reading is a request for a range; its name holds its hash, so it stays as it is."""

    path: ObjectPath
    size: int

    def read(self, size: int, at: int) -> bytes:
        end = min(at + size, self.size)
        if at >= end:
            return b""
        with opened_store(self.path) as (store, name):
            return store.cat_file(name, start=at, end=end)

    def state(self) -> tuple[int, int]:
        return self.size, 0

    def opened(self) -> pa.NativeFile:
        return pa.BufferReader(self.read(self.size, 0))


@dataclass(frozen=True)
class _Held:
    """The bytes of an object, all of them in memory."""

    content: bytes

    def read(self, size: int, at: int) -> bytes:
        return self.content[at : at + size]

    def state(self) -> tuple[int, int]:
        return len(self.content), 0

    def opened(self) -> pa.NativeFile:
        return pa.BufferReader(self.content)


@dataclass(frozen=True)
class RecordedFile:
    """An open feature file and the recorded hashes of its bytes."""

    where: str  # name of the pipeline and the partition for messages
    path: FilePath
    sha256: str
    xxh3: str  # checked instead of the SHA-256, since that costs next to nothing; empty if it is not known
    content: _OnDisk | _InStore | _Held
    opened: tuple[int, int]  # size and modification time when the file was opened
    hint: str  # hint of the error for other bytes

    def require_unchanged(self, stop: Event | None = None, seen: Callable[[int, bytes], None] | None = None) -> None:
        """Raise DamagedFeaturesError if a byte differs from what was recorded; may run on any thread, also while the file is read.

        `stop` ends the check early, without a result; `seen` is called with the position of each block that is hashed, and the block.
        """
        digest, at = xxh3_128() if self.xxh3 else hashlib.sha256(), 0
        size = _OBJECT_BLOCK if isinstance(self.content, _InStore) else _HASH_BLOCK
        while block := self.content.read(size, at):
            if stop is not None and stop.is_set():
                return
            digest.update(block)
            if seen is not None:
                seen(at, block)
            at += len(block)
        if digest.hexdigest() != (self.xxh3 or self.sha256):
            self.refuse()

    def require_untouched(self) -> None:
        """Raise DamagedFeaturesError if the size or the modification time has changed since the file was opened."""
        if self.content.state() != self.opened:
            self.refuse()

    def held(self) -> "RecordedFile":
        """The same file; of an object the bytes are read at once, so that those that are hashed are those that are decoded."""
        if not isinstance(self.content, _InStore):
            return self
        return replace(self, content=_Held(self.content.read(self.content.size, 0)))

    def batches(self, rows: int) -> Generator[pa.RecordBatch]:
        """Read at most so many rows at a time; a file without rows gives one empty batch, which has the columns."""
        with self.content.opened() as source, pq.ParquetFile(source, pre_buffer=False) as file:
            if not file.metadata.num_rows:
                yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
            yield from file.iter_batches(batch_size=rows, use_threads=False)

    def refuse(self) -> NoReturn:
        """Raise DamagedFeaturesError."""
        msg = f"{self.where}: the bytes of {self.path} are not those that were recorded."
        raise DamagedFeaturesError(msg, hint=self.hint)


@contextmanager
def open_recorded(
    path: FilePath, sha256: str, xxh3: str = "", *, pipeline: str, partition_key: str
) -> Generator[RecordedFile]:
    """Open a feature file, or its copy in a store; raises DamagedFeaturesError if it is missing, and StoreError."""
    where = f"{pipeline}, partition {partition_key}"
    hint = f"batch-platform run {pipeline} --partition {partition_key} --force builds it again."
    if isinstance(path, ObjectPath):
        with opened_store(path) as (store, name):
            content = _InStore(path, int(store.info(name)["size"]))
        yield RecordedFile(where, path, sha256, xxh3, content, content.state(), hint)
        return
    if not path.is_file():
        msg = f"{where}: its feature file {path} is gone."
        raise DamagedFeaturesError(msg, hint=hint)
    with path.open("rb") as file:
        content = _OnDisk(file.fileno())
        yield RecordedFile(where, path, sha256, xxh3, content, content.state(), hint)
