"""Checkpoints of the warehouse that a killed process cannot leave half done.

DuckDB writes a checkpoint into free blocks and then flips a header, but for one kind of block: up to 64 parts of its
metadata, of several checkpoints, share a block under one checksum, so a block that the standing header needs is written
over where it lies (`MetadataManager::Flush`, seen in 2.0). A process that is killed half-way through that write leaves
a file that nobody can open. So those blocks are saved beside the file first, as a rollback journal, and whoever opens
the file next puts them back if the header was not flipped: what had been committed is still in the log then. Knows
nothing of what the tables hold.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.warehouse.home import Home

_HEADERS = 3 * 4096  # bytes before the first block: the file's header, and two of the database that take turns
_BLOCKS = "SELECT block_id FROM pragma_metadata_info() ORDER BY ALL"
_BLOCK_SIZE = "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()"


@dataclass(frozen=True)
class WarehouseFile:
    """The file of the warehouse, open beside DuckDB's own connection to it.

    The descriptor must be closed after the connection: the process loses its lock on the file with the first of them.
    """

    home: Home
    descriptor: int

    @classmethod
    def of(cls, home: Home) -> "WarehouseFile":
        """Open it; it exists.

        Raises:
            OSError: It cannot be opened.
        """
        return cls(home, os.open(home.warehouse, os.O_RDWR))

    def close(self) -> None:
        """Close the descriptor, and with it what is left of this process's lock."""
        os.close(self.descriptor)

    def roll_back(self) -> None:
        """Undo a checkpoint that did not come to its end, if there is one; to be called before DuckDB opens the file.

        Raises:
            BlockingIOError: Another process has the file open.
            OSError: It cannot be read or written.
            ValueError: What was saved is damaged.
        """
        if not self.home.warehouse_rollback.exists():
            return
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        saved = _Saved.read(self.home.warehouse_rollback)
        if saved.headers == os.pread(self.descriptor, _HEADERS, 0):
            with open(self.descriptor, "r+b", closefd=False) as file:
                for place, block in saved.blocks.items():
                    file.seek(place)
                    file.write(block)
            os.fsync(self.descriptor)
        self.home.warehouse_rollback.unlink()

    def checkpoint(self, con: duckdb.DuckDBPyConnection) -> None:
        """Bring the log of a connection to this file into the file; nothing where there is none.

        Raises:
            duckdb.Error: The checkpoint cannot be written; what was committed is in the log.
            OSError: There is no room to save what it would write over; what was committed is in the log.
        """
        if self.home.warehouse_log.exists():
            self._save(con)
            con.execute("CHECKPOINT")
            self.home.warehouse_rollback.unlink()

    def _save(self, con: duckdb.DuckDBPyConnection) -> None:
        """Save the headers and every block of metadata but those that lie beyond the end of the file, being new."""
        ((size,),) = con.execute(_BLOCK_SIZE).fetchall()
        places = [_HEADERS + block * size for (block,) in con.execute(_BLOCKS).fetchall()]
        blocks = {place: os.pread(self.descriptor, size, place) for place in places}
        standing = {place: block for place, block in blocks.items() if len(block) == size}
        _Saved(os.pread(self.descriptor, _HEADERS, 0), standing).write(self.home.warehouse_rollback)


@dataclass(frozen=True)
class _Saved:
    """The rollback journal: a digest, where the blocks begin, the headers, the blocks."""

    headers: bytes
    blocks: dict[int, bytes]  # by where they begin in the file; all of one size

    def write(self, to: Path) -> None:
        """Write it under another name first: one that has its own is complete."""
        aside = to.with_name(f".{to.name}")
        content = b"".join([json.dumps(list(self.blocks)).encode(), b"\n", self.headers, *self.blocks.values()])
        aside.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        sync(aside)
        aside.rename(to)
        sync(to.parent)

    @classmethod
    def read(cls, source: Path) -> "_Saved":
        digest, _, content = source.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            msg = f"{source} is not what was saved"
            raise ValueError(msg)
        listed, _, parts = content.partition(b"\n")
        places, headers, blocks = json.loads(listed), parts[:_HEADERS], parts[_HEADERS:]
        size = len(blocks) // max(len(places), 1)
        return cls(headers, {place: blocks[n * size : (n + 1) * size] for n, place in enumerate(places)})


def sync(path: Path) -> None:
    """Wait until what a file, or the names in a folder, have become is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
