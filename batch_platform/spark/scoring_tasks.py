"""The work of an executor of Spark: one task scores a part of a partition into files of its own, and returns a summary.

Imports nothing of Spark but its account of the running attempt, and knows nothing but the work that the driver sent. No two attempts of a
task share a file, and only what an attempt returned counts, so speculative, retried and lost attempts change nothing.

Of a file that several tasks read in parts, what is hashed is what is read: each task hashes the bytes of the footer and of its row groups,
and decodes its rows from these very bytes. A further task reads the whole file once, compares it with the recorded hash, and hashes the same
stretches of bytes on the way. The parts are what was recorded if the hashes of their stretches are among its own.
"""

import io
import pickle
import platform
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128

import batch_platform
from batch_platform.declaration.errors import (
    BatchPlatformError,
    DataError,
    EngineError,
    IntegrityError,
    WarehouseError,
    WrongUseError,
)
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import BATCH_ROWS, RecordedFile
from batch_platform.kernels.native_threads import one_thread
from batch_platform.monitoring.comparison import Agreement
from batch_platform.scoring.partition import BundleFolder, OpenModels, ScoringOrder, Staged, opened_features, write_part
from batch_platform.spark.staging import FULL_DISK, ObjectStaging, require_fit, running_task

Stretches = Mapping[tuple[int, int], str]  # XXH3 (128 bits) of the bytes from a first position to before a last one
_TAIL = 8  # bytes: the length of the footer, and the magic number
_MAGIC = b"PAR1"
SUMMARY = "task long, summary binary"  # the columns that a task returns, as Spark writes a schema
MEMORY_OF_PYTHON = (
    "give the executors more memory for Python, as spark.executor.memoryOverhead in engine.spark.conf, and run again."
)
_LASTING = (DataError, IntegrityError, WrongUseError)  # errors that another attempt would meet again


@dataclass(frozen=True)
class FilePart:
    """Some successive row groups of a feature file."""

    groups: tuple[int, int]  # first, and one after the last
    first_row: int


def parts_of(path: Path, rows: int) -> tuple[FilePart, ...]:
    """Divide a feature file into parts of at least so many rows, the last one excepted; raises OSError and ArrowInvalid."""
    metadata = pq.read_metadata(path)
    starts = [0, *accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))]
    first, cuts = 0, [0]
    for group, start in enumerate(starts):
        if start - first >= rows:
            first = start
            cuts.append(group)
    if cuts[-1] < metadata.num_row_groups:
        cuts.append(metadata.num_row_groups)
    return tuple(FilePart(groups, starts[groups[0]]) for groups in pairwise(cuts))


@dataclass
class ReadPart:
    """Reads a part of an open feature file, and hashes what it reads."""

    file: RecordedFile
    part: FilePart
    # By stretch, complete after the last batch.
    hashes: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])

    def batches(self, rows: int) -> Generator[pa.RecordBatch]:
        """Read at most so many rows at a time; holds the bytes of one row group."""
        metadata = _metadata(self._read(_footer(self.file)))
        for group in range(*self.part.groups):
            stretch = _stretch(metadata, group)
            held = _Held(self._read(stretch), stretch[0], self.file.opened[0])
            with pq.ParquetFile(held, metadata=metadata, pre_buffer=False) as opened:
                yield from opened.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)

    def _read(self, stretch: tuple[int, int]) -> bytes:
        content = _bytes(self.file, *stretch)
        self.hashes[stretch] = xxh3_128(content).hexdigest()
        return content


def stretches_of(file: RecordedFile) -> Stretches:
    """The hash of every stretch that a part of a file may read.

    Raises:
        DamagedFeaturesError: The bytes of the file are not those that were recorded.
    """
    try:
        metadata = _metadata(_bytes(file, *_footer(file)))
        stretches = [*(_stretch(metadata, group) for group in range(metadata.num_row_groups)), _footer(file)]
    except (pa.ArrowException, OSError, ValueError):
        file.require_unchanged()
        raise
    digests, ahead = {stretch: xxh3_128() for stretch in stretches}, deque(sorted(stretches))

    def seen(at: int, block: bytes) -> None:
        while ahead and ahead[0][0] < at + len(block):
            start, end = ahead[0]
            digests[start, end].update(memoryview(block)[max(start - at, 0) : end - at])
            if end > at + len(block):
                return
            ahead.popleft()

    file.require_unchanged(seen=seen)
    return {stretch: digest.hexdigest() for stretch, digest in digests.items()}


def _footer(file: RecordedFile) -> tuple[int, int]:
    size = file.opened[0]
    length = int.from_bytes(_bytes(file, size - _TAIL, size)[:4], "little")
    return max(size - _TAIL - length, 0), size


def _metadata(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer))


def _stretch(metadata: pq.FileMetaData, group: int) -> tuple[int, int]:
    columns = [metadata.row_group(group).column(at) for at in range(metadata.num_columns)]
    starts = [
        column.data_page_offset
        if column.dictionary_page_offset is None
        else min(column.dictionary_page_offset, column.data_page_offset)
        for column in columns
    ]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _bytes(file: RecordedFile, start: int, end: int) -> bytes:
    """The bytes of a stretch; fewer if the file ends before."""
    blocks, at = list[bytes](), max(start, 0)
    while at < end and (block := file.content.read(end - at, at)):
        blocks.append(block)
        at += len(block)
    return b"".join(blocks)


class _Held(io.RawIOBase):
    """A file of which one stretch is held in memory; any other byte reads as the end of the file."""

    def __init__(self, content: bytes, start: int, size: int) -> None:
        super().__init__()
        self._content, self._start, self._size, self._at = memoryview(content), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - Python's own type is private
        first = self._at - self._start
        block = self._content[first : first + len(buffer)] if first >= 0 else self._content[:0]
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)


@dataclass(frozen=True)
class _Models:
    """The models of the run that this process works for; Spark gives it one task after another."""

    job: Path
    opened: OpenModels
    folder: TemporaryDirectory[str] | None  # holds bundles that were fetched from a store


_models = list[_Models]()  # at most one


@dataclass(frozen=True)
class Task:
    """A part of an order; without `part` the whole file, which is compared with its recorded hash before it is read."""

    order: int  # position in the job's orders
    part: FilePart | None = None
    scores: bool = True  # False: only hashes the file, part of which other tasks score


@dataclass(frozen=True)
class Job:
    """The tasks that Spark runs together, as plain data."""

    spec: PipelineSpec
    folder: Path
    run_id: str
    started_at: datetime
    orders: tuple[ScoringOrder, ...]
    tasks: tuple[Task, ...]  # sorted by order, and by row within an order
    mark: Path  # file that every machine of the cluster must see, unless there is a `staging`
    attempts: int  # after which Spark gives up a task
    staging: ObjectStaging | None = None  # object store that replaces a shared file system
    version: str = field(default=batch_platform.__version__)

    def where(self, task: Task) -> str:
        """Pipeline and partition of a task."""
        return f"{self.spec.name}, partition {self.orders[task.order].partition.key}"


@dataclass(frozen=True)
class Summary:
    """The work of one attempt at a task; the driver takes the attempt that Spark returned.

    Its size does not depend on the number of rows: the rows that challengers rank are in a file of the staging folder.
    """

    staged: Staged | None = None  # without the agreement of challengers
    agreements: Path | None = None  # file with the pickled agreement of each challenger; None without challengers
    stretches: Stretches = field(default_factory=dict[tuple[int, int], str])  # hashes of the bytes that were read
    sizes: tuple[int, ...] = ()  # bytes of each file
    failure: BatchPlatformError | None = None
    traceback: str = ""  # traceback of the failure

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the driver reads or commits."""
        return (*(self.staged.files if self.staged else ()), *([self.agreements] if self.agreements else []))

    def taken_to(self, folder: Path) -> "Summary":
        """The same, with the files in another folder."""

        def there(paths: Iterable[Path]) -> tuple[Path, ...]:
            return tuple(folder / path.name for path in paths)

        staged = self.staged
        if staged is not None:
            challengers = tuple(replace(scores, files=there(scores.files)) for scores in staged.challengers)
            predictions, rejected = there(staged.predictions), there(staged.rejected)
            staged = replace(staged, predictions=predictions, rejected=rejected, challengers=challengers)
        return replace(self, staged=staged, agreements=self.agreements and folder / self.agreements.name)

    def whole(self) -> Staged | None:
        """Return what was staged, with the agreement of challengers."""
        if self.staged is None or self.agreements is None:
            return self.staged
        agreements: list[Agreement] = pickle.loads(self.agreements.read_bytes())  # noqa: S301 - written by our own tasks
        pairs = zip(self.staged.challengers, agreements, strict=True)
        return replace(
            self.staged, challengers=tuple(replace(scores, agreement=agreement) for scores, agreement in pairs)
        )


@dataclass(frozen=True)
class Attempt:
    """One attempt of a task, as Spark counts it."""

    task: int
    unique: str  # no other attempt has it, whatever the application
    number: int  # counts from 0


def run_tasks(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run the tasks whose numbers the batches hold; Spark's `mapInArrow` calls this, and runs a task again if it raises."""
    context = running_task()
    for batch in batches:
        for number in batch.column(0).to_pylist():
            attempt = Attempt(number, uuid4().hex, context.attemptNumber())
            summary = pickle.dumps(run_attempt(job, attempt))
            yield pa.RecordBatch.from_arrays(
                [pa.array([number], pa.int64()), pa.array([summary], pa.binary())], ["task", "summary"]
            )


def run_attempt(job: Job, attempt: Attempt) -> Summary:
    """Run one attempt. An error that would come again, or that comes in the last attempt, is returned; any other is raised."""
    task = job.tasks[attempt.task]
    try:
        require_fit(job.where(task), job.version, job.mark if job.staging is None else job.staging)
        return _scored(job, task, attempt) if task.scores else _hashed(job, task)
    except Exception as error:
        if not isinstance(error, _LASTING) and attempt.number + 1 < job.attempts:
            raise
        return Summary(failure=_explained(error, job.where(task)), traceback=redact(traceback.format_exc()))


def _scored(job: Job, task: Task, attempt: Attempt) -> Summary:
    order = job.orders[task.order]
    name = f"{order.partition.key}.{attempt.task}.{attempt.unique}"
    stamp = Stamp(job.run_id, job.started_at)
    order, models = _opened(job, order)
    stretches: Stretches = {}
    with ExitStack() as stack:
        folder = job.folder if job.staging is None else Path(stack.enter_context(TemporaryDirectory(prefix="task-")))
        stack.enter_context(one_thread())
        file = stack.enter_context(opened_features(order, job.spec, folder, name))
        if task.part is None:
            file = file.held()
            file.require_unchanged()
            staged = write_part(folder, name, order, models, file.batches(BATCH_ROWS), spec=job.spec, stamp=stamp)
            file.require_untouched()
        else:
            reader = ReadPart(file, task.part)
            batches, first_row = reader.batches(BATCH_ROWS), task.part.first_row
            try:
                staged = write_part(folder, name, order, models, batches, first_row, spec=job.spec, stamp=stamp)
            except Exception:
                file.require_unchanged()  # damage is no reason for another attempt
                raise
            stretches = reader.hashes
        summary = Summary(staged, stretches=stretches)
        if staged.challengers:
            agreements = [scores.agreement for scores in staged.challengers]
            kept = folder / f"{name}.agreements"
            kept.write_bytes(pickle.dumps(agreements))
            scores = tuple(replace(scores, agreement=Agreement()) for scores in staged.challengers)
            summary = replace(summary, staged=replace(staged, challengers=scores), agreements=kept)
        summary = replace(summary, sizes=tuple(path.stat().st_size for path in summary.files))
        if job.staging is None:
            return summary
        job.staging.put({path.name: path for path in summary.files})
        return summary.taken_to(job.folder)


def _opened(job: Job, order: ScoringOrder) -> tuple[ScoringOrder, OpenModels]:
    """The order and its models, of which each is fetched and opened once in this process."""
    if not _models or _models[0].job != job.folder:
        folder = None if job.staging is None else TemporaryDirectory(prefix="bundles-")
        _models[:] = [_Models(job.folder, OpenModels(job.spec), folder)]
    (models,) = _models
    if job.staging is not None and models.folder is not None:
        order = _fetched(order, job.staging, Path(models.folder.name))
    return models.opened.opened(order), models.opened


def _fetched(order: ScoringOrder, staging: ObjectStaging, folder: Path) -> ScoringOrder:
    """The same order, with its bundles in a folder of this machine."""

    def here(bundle: BundleFolder) -> BundleFolder:
        there = folder / bundle.version
        if not there.exists():
            with TemporaryDirectory(dir=folder) as aside:
                staging.fetch_folder(bundle.folder.name, Path(aside, bundle.version))
                Path(aside, bundle.version).rename(there)
        return replace(bundle, folder=there)

    challengers = {name: model if isinstance(model, str) else here(model) for name, model in order.challengers.items()}
    return replace(order, model=here(order.model), challengers=challengers)


def _hashed(job: Job, task: Task) -> Summary:
    with opened_features(job.orders[task.order], job.spec, job.folder, job.mark.name) as file:
        return Summary(stretches=_of_whole(file))


def _of_whole(file: RecordedFile) -> Stretches:
    stretches = stretches_of(file)
    file.require_untouched()
    return stretches


def _explained(error: Exception, where: str) -> BatchPlatformError:
    host = platform.node()
    if isinstance(error, WarehouseError):  # a file could not be read or written on this machine
        return WarehouseError(f"{error.message} This happened on {host}.", hint=FULL_DISK)
    if isinstance(error.__cause__, MemoryError) and isinstance(error, BatchPlatformError):
        return EngineError(f"{error.message} This happened on {host}.", hint=MEMORY_OF_PYTHON)
    if isinstance(error, BatchPlatformError):
        return error
    msg = f"{where}: a task on {host} failed: {type(error).__name__}: {' '.join(str(error).split())}"
    return EngineError(
        msg.rstrip(": ") + ".", hint="the log of the run has the traceback; nothing of the partition is published."
    )
