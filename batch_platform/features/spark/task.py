"""The work of Spark's executors for features: each task writes the rows that Spark gives it into a file of its own.

Imports nothing of Spark but its account of the running attempt. No two attempts of a task share a file, and only what an attempt
returned counts, so speculative, retried and lost attempts change nothing.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

import batch_platform
from batch_platform.declaration.errors import EngineError
from batch_platform.features.spark.staging import ObjectStaging
from batch_platform.sources.objects import StoreError

if TYPE_CHECKING:
    from pyspark import TaskContext

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
