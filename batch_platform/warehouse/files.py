"""Files beside DuckDB: written wholly or not at all, checkpoints that a kill cannot leave half done, and the marks of published copies.

DuckDB writes a checkpoint into free blocks and then flips a header, with one exception: up to 64 parts of its metadata,
of several checkpoints, share a block under one checksum, so a block that the current header needs is overwritten in
place (`MetadataManager::Flush`, seen in 2.0). A process that is killed during that write leaves a file that cannot be
opened. So those blocks are first saved beside the file, as a rollback journal, and the next process to open the file puts
them back if the header was not flipped; everything committed is then still in the log.

A published copy is named after the newest change that it holds. `duckdb.connect("published.duckdb")` opens a file for writing unless told
otherwise. So copies are made read-only, and a digest of the size and the headers of each is kept beside them, by which a publish
notices that another program wrote into one: DuckDB changes its headers with each checkpoint.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
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


SET_ASIDE = ".before-restore-"  # in the names of files of former warehouses
NOTHING = "empty"  # name of the newest change where there is none
_COPY = re.compile(rf"published-([0-9a-f]{{32}}|{NOTHING})\.duckdb")


def published_copies(home: Home) -> list[Path]:
    """The files that are named like a copy; all other files of the home's folder belong to somebody else."""
    return sorted(path for path in home.root.glob("published-*.duckdb") if _COPY.fullmatch(path.name))


def copy_of(home: Home, change_id: str) -> Path:
    """The copy whose newest change has an id."""
    return home.root / f"published-{change_id}.duckdb"


def current_copy(home: Home) -> Path | None:
    """The file that the link points to, which may be missing; None without a link to a file beside it."""
    if not home.published.is_symlink():
        return None
    copy = home.root / home.published.readlink()
    return copy if copy.parent == home.root else None


def unfinished_copies(home: Home) -> set[Path]:
    """The copies that a killed publish was bringing up to date: only then does a copy allow writing."""
    current = current_copy(home)
    others = (path for path in published_copies(home) if path != current and not path.is_symlink())
    return {path for path in others if path.stat().st_mode & stat.S_IWUSR}


def published_changes(home: Home) -> dict[str, Path]:
    """The newest change of the current copy, and those of copies that were finished after it, each with its copy.

    If every copy is gone, the changes of those that have a mark, which lies beside them.
    """
    unfinished, current = unfinished_copies(home), current_copy(home)
    copies = [path for path in published_copies(home) if not path.is_symlink()]  # a link is none that was published
    finished = [path for path in copies if path not in unfinished and path.is_file()]
    since = current.stat().st_mtime_ns if current in finished else 0
    newest = [path for path in finished if path.stat().st_mtime_ns >= since]
    changes = {path.stem.partition("-")[2]: path for path in newest or map(home.root.joinpath, read_marks(home))}
    return {change: path for change, path in changes.items() if change != NOTHING}


def mark_of(copy: Path) -> str:
    """Hash the size and the headers of a copy, which change when another program writes into it."""
    with copy.open("rb") as file:
        headers = file.read(HEADERS)
    return hashlib.sha256(headers + str(copy.stat().st_size).encode()).hexdigest()


def read_marks(home: Home) -> dict[str, str]:
    """Read the marks of the copies by file name; none if the file is missing or damaged."""
    try:
        return dict(json.loads(home.published_marks.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def write_marks(home: Home, marks: dict[str, str]) -> None:
    """Replace the marks."""
    write_whole(home.published_marks, json.dumps(marks).encode())


def written_by_others(copies: Iterable[Path], marks: dict[str, str]) -> dict[Path, datetime]:
    """The copies that are not as they were published, and when they were changed, in UTC; only links and those that have a mark."""
    changed: dict[Path, datetime] = {}
    for copy in copies:
        mark = marks.get(copy.name)
        if copy.is_symlink() or (mark is not None and (log_of(copy).exists() or mark != mark_of(copy))):
            changed[copy] = datetime.fromtimestamp(copy.lstat().st_mtime, UTC)
    return changed


def log_of(copy: Path) -> Path:
    """DuckDB's log beside a copy, which only a writer makes."""
    return copy.with_name(f"{copy.name}.wal")


def files_set_aside(home: Home) -> list[Path]:
    """The files of former warehouses, with what belonged to them."""
    return sorted(
        path
        for file in (home.warehouse, home.warehouse_log, home.warehouse_rollback)
        for path in home.root.glob(f"{file.name}{SET_ASIDE}*")
    )
