"""Feature files that several processes read in parts: what is hashed is what is read.

Each process hashes the bytes of the footer and of its row groups, and decodes its rows from these very bytes. A further
process reads the whole file once, compares it with the recorded hash, and hashes the same stretches of bytes on the way. The
parts are what was recorded if the hashes of their stretches are among its own.
"""

import io
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128

from batch_platform.features.lake import RecordedFile

Stretches = Mapping[tuple[int, int], str]  # XXH3 (128 bits) of the bytes from a first position to before a last one
_TAIL = 8  # bytes: the length of the footer, and the magic number
_MAGIC = b"PAR1"


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
