"""A run's folder in an object store, for clusters that share no file system with the machine of the run.

The driver puts there what tasks read, each under its hash, and tasks put there what they have written, under names of their own.
The driver takes what belongs to the attempts that Spark returned, and removes the folder at the end. A killed run leaves a note in
the home, by which the next run removes its folder. Without a store, tasks write into the home: `write_rows` does for features.
"""

import platform
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

import batch_platform
from batch_platform.declaration.errors import EngineError
from batch_platform.sources.objects import ObjectPath, StoreError, hint_for, opened_store
from batch_platform.warehouse.home import Home

if TYPE_CHECKING:
    from pyspark import TaskContext

MARK = "driver"  # object by which a task sees that it reaches the store
_NOTES = "staged-"  # start of the names of notes
WRITTEN = "path string, rows long, bytes long"  # the columns that a task returns, as Spark writes a schema
SHARED_HOME = "put the home on a file system that all machines of the cluster mount under the same path"
SAME_ENVIRONMENT = (
    "install the same environment on every machine of the cluster, or send it along; see the guide, scaling_out."
)
FULL_DISK = (
    "make room on the disk and run again. With spark.excludeOnFailure.enabled: true in engine.spark.conf, Spark tries such "
    "a task on another machine."
)


@dataclass(frozen=True)
class ObjectStaging:
    """The folder; plain data, which tasks get too. Its methods raise StoreError."""

    folder: ObjectPath

    def put(self, files: Mapping[str, Path]) -> None:
        """Make objects of files, by name."""
        with opened_store(self.folder) as (store, at):
            store.put([str(file) for file in files.values()], [f"{at}/{name}" for name in files])

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Make files of objects, by name."""
        with opened_store(self.folder) as (store, at):
            store.get([f"{at}/{name}" for name in files], [str(file) for file in files.values()])

    def put_folder(self, folder: Path, name: str) -> ObjectPath:
        """Put all files of a folder below a name."""
        files = [file for file in folder.rglob("*") if file.is_file()]
        self.put({f"{name}/{file.relative_to(folder).as_posix()}": file for file in files})
        return self.folder / name

    def fetch_folder(self, name: str, folder: Path) -> None:
        """Fetch all objects below a name into a folder that is not there yet."""
        with opened_store(self.folder / name) as (store, at):
            names = [str(path).removeprefix(f"{at}/") for path in store.find(at)]
        for parent in {(folder / below).parent for below in names}:
            parent.mkdir(parents=True, exist_ok=True)
        self.fetch({f"{name}/{below}": folder / below for below in names})

    def require_reached(self) -> None:
        """Look for what the driver has put there first."""
        with opened_store(self.folder / MARK) as (store, at):
            store.info(at)

    def remove(self) -> None:
        """Remove all objects of the folder."""
        with opened_store(self.folder) as (store, at), suppress(FileNotFoundError):
            store.rm(at, recursive=True)


@contextmanager
def object_staging(address: str, pipeline: str, folder: Path) -> Generator[ObjectStaging]:
    """The folder for a run that stages at an address, named after the run's folder on this machine; removed at the end.

    Removes those of killed runs first. Raises EngineError if the store cannot be written to.
    """
    staging, home = ObjectStaging(ObjectPath(address) / pipeline / folder.name), Home.of_staged(folder)
    note, mark = folder / f"{_NOTES}{folder.name}", folder / MARK
    with store_errors(pipeline):
        if home is not None:
            home.spark_logs.mkdir(exist_ok=True)
            note = home.spark_logs / note.name
            _remove(note for note in home.spark_logs.glob(f"{_NOTES}*") if not _is_alive(note, home))
        note.write_text(str(staging.folder), encoding="utf-8")
        mark.touch()
        staging.put({MARK: mark})
        mark.unlink()
    try:
        yield staging
    finally:
        _remove([note])


@contextmanager
def store_errors(where: str) -> Generator[None]:
    """Turn the failure of a store into an error that says where and what to do."""
    try:
        yield
    except StoreError as error:
        msg = f"{where}: {error}, where engine.spark.staging is; nothing of the unfinished partitions is published."
        raise EngineError(msg, hint=hint_for(str(error))) from error


def _is_alive(note: Path, home: Home) -> bool:
    return (home.staging / note.name.removeprefix(_NOTES)).exists()


def _remove(notes: Iterable[Path]) -> None:
    """Remove the folders that notes name; where the store does not answer, the next run tries again."""
    for note in notes:
        with suppress(StoreError, FileNotFoundError):  # another run was quicker
            ObjectStaging(ObjectPath(note.read_text(encoding="utf-8"))).remove()
            note.unlink()


@dataclass(frozen=True)
class WrittenRows:
    """The work of all tasks of a query, as plain data."""

    where: str  # pipeline and partition, for messages
    folder: Path  # destination of the files
    mark: Path  # file that every machine of the cluster must see
    version: str = field(default=batch_platform.__version__)


def write_rows(work: WrittenRows, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Write the rows of a task and say where; Spark's `mapInArrow` calls this, and runs a task again if it raises."""
    context = running_task()
    require_fit(work.where, work.version, work.mark)
    path, rows = work.folder / f"{context.partitionId():06}.{uuid4().hex}.parquet", 0
    first = next(batches, None)
    if first is None:
        return
    try:
        with pq.ParquetWriter(path, first.schema, compression="lz4") as writer:
            while first is not None:
                writer.write_batch(first)
                rows, first = rows + first.num_rows, next(batches, None)
    except OSError as error:
        msg = f"{work.where}: the executor on {platform.node()} cannot write {path}: {error}."
        raise EngineError(msg, hint=FULL_DISK) from error
    arrays = [pa.array([str(path)]), pa.array([rows]), pa.array([path.stat().st_size])]
    yield pa.RecordBatch.from_arrays(arrays, ["path", "rows", "bytes"])


def running_task() -> "TaskContext":
    """Spark's account of the attempt that runs here; raises RuntimeError outside of a task of Spark."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        msg = "this runs within a task of Spark only"
        raise RuntimeError(msg)
    return context


def require_fit(where: str, version: str, mark: Path | ObjectStaging) -> None:
    """Raise EngineError if this machine has another version of this package than the driver, or does not see the driver's files."""
    host = platform.node()
    if version != batch_platform.__version__:
        msg = f"{where}: the executor on {host} runs batch_platform {batch_platform.__version__}, the driver {version}."
        raise EngineError(msg, hint=SAME_ENVIRONMENT)
    if isinstance(mark, ObjectStaging):
        try:
            mark.require_reached()
        except StoreError as error:
            msg = f"{where}: the executor on {host} does not reach {mark.folder}, where the driver stages the run: {error}."
            hint = "give the executors the address and credentials of the store, in their environment or by their role."
            raise EngineError(msg, hint=hint) from error
    elif not mark.is_file():
        msg = f"{where}: the executor on {host} does not see {mark.parent}, where the driver stages the run."
        raise EngineError(msg, hint=f"{SHARED_HOME}, and run the executors as a user who may read and write it.")


def require_here(where: str, path: Path, size: int) -> None:
    """Raise EngineError unless a file that an executor wrote is one that the driver sees."""
    if not path.is_file() or path.stat().st_size != size:
        msg = f"{where}: the driver does not see the file {path} as an executor wrote it ({size:,} bytes)."
        raise EngineError(msg, hint=f"{SHARED_HOME}.")
