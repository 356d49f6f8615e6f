"""Checkpoints of the warehouse that a killed process cannot leave half done.

DuckDB writes a checkpoint into free blocks and then flips a header, with one exception: up to 64 parts of its metadata,
of several checkpoints, share a block under one checksum, so a block that the current header needs is overwritten in
place (`MetadataManager::Flush`, seen in 2.0). A process that is killed during that write leaves a file that cannot be
opened. So those blocks are first saved beside the file, as a rollback journal, and the next process to open the file puts
them back if the header was not flipped; everything committed is then still in the log.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.warehouse.home import Home

HEADERS = 3 * 4096  # bytes before the first block: one header of the file, and two of the database that take turns
_BLOCKS = (
    "SELECT block_id, block_size FROM pragma_metadata_info(), pragma_database_size() "
    "WHERE database_name = current_database() ORDER BY ALL"
)


@dataclass(frozen=True)
class WarehouseFile:
    """The file of the warehouse, open beside DuckDB's own connection to it.

    The descriptor must be closed after the connection: closing the first of the two releases the process's lock.
    """

    home: Home
    descriptor: int

    def close(self) -> None:
        """Close the descriptor, which releases this process's lock on the file."""
        os.close(self.descriptor)

    def roll_back(self) -> None:
        """Undo an unfinished checkpoint, if there is one. Must be called before DuckDB opens the file.

        Raises:
            BlockingIOError: Another process has the file open.
            ValueError: The rollback journal is damaged.
        """
        if not self.home.warehouse_rollback.exists():
            return
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        saved = _Saved.read(self.home.warehouse_rollback)
        if saved.headers == os.pread(self.descriptor, HEADERS, 0):
            with open(self.descriptor, "r+b", closefd=False) as file:
                for place, block in saved.blocks.items():
                    file.seek(place)
                    file.write(block)
            os.fsync(self.descriptor)
        self.home.remove(self.home.warehouse_rollback)

    def checkpoint(self, con: duckdb.DuckDBPyConnection) -> None:
        """Move what was committed from DuckDB's log into the file; after a duckdb.Error or OSError it is still in the log."""
        if self.home.warehouse_log.exists():
            self._save(con)
            con.execute("CHECKPOINT")
            self.home.remove(self.home.warehouse_rollback)

    def _save(self, con: duckdb.DuckDBPyConnection) -> None:
        """Save the headers and every block of metadata that lies within the file; blocks beyond its end are new."""
        standing = dict[int, bytes]()
        for block, size in con.execute(_BLOCKS).fetchall():
            place = HEADERS + block * size
            if len(content := os.pread(self.descriptor, size, place)) == size:
                standing[place] = content
        _Saved(os.pread(self.descriptor, HEADERS, 0), standing).write(self.home.warehouse_rollback)


@dataclass(frozen=True)
class _Saved:
    """The rollback journal: a digest, the offsets of the blocks, the headers, the blocks."""

    headers: bytes
    blocks: dict[int, bytes]  # blocks of one size by offset in the file

    def write(self, to: Path) -> None:
        """Write the journal, wholly or not at all."""
        content = b"".join([json.dumps(list(self.blocks)).encode(), b"\n", self.headers, *self.blocks.values()])
        write_whole(to, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        sync(to.parent)

    @classmethod
    def read(cls, source: Path) -> "_Saved":
        digest, _, content = source.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            msg = f"{source} is damaged: its digest does not match"
            raise ValueError(msg)
        listed, _, parts = content.partition(b"\n")
        places, headers, blocks = json.loads(listed), parts[:HEADERS], parts[HEADERS:]
        size = len(blocks) // max(len(places), 1)
        return cls(headers, {place: blocks[n * size : (n + 1) * size] for n, place in enumerate(places)})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and then give it its own, so that it is complete at every moment."""
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(content)
    sync(aside)
    aside.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
