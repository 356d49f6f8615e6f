"""Marks of the published copies, by which a publish notices that another program wrote into one.

`duckdb.connect("published.duckdb")` opens a file for writing unless told otherwise. So copies are made read-only, and size,
time of change, inode and the digest of the headers of each are kept beside them: DuckDB changes its headers with each
checkpoint.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.warehouse.checkpoint import HEADERS, sync
from batch_platform.warehouse.home import Home


@dataclass(frozen=True)
class Mark:
    """What changes when another program writes into a copy."""

    size: int
    changed_ns: int  # since 1970
    inode: int  # another one after the home was copied or moved
    headers: str  # SHA-256

    @classmethod
    def of(cls, copy: Path) -> "Mark":
        """Read it from a file."""
        with copy.open("rb") as file:
            headers = file.read(HEADERS)
        state = copy.stat()
        return cls(state.st_size, state.st_mtime_ns, state.st_ino, hashlib.sha256(headers).hexdigest())

    def is_of_another_content(self, later: "Mark") -> bool:
        """Whether the content changed since; another file of the same content is a copy of the home."""
        touched = self.inode == later.inode and self.changed_ns != later.changed_ns
        return touched or (self.size, self.headers) != (later.size, later.headers)


def read_marks(home: Home) -> dict[str, Mark]:
    """The marks of the copies by file name; none of copies that an earlier version published."""
    try:
        written = json.loads(home.published_marks.read_text())
        return {name: Mark(**mark) for name, mark in written.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def write_marks(home: Home, marks: dict[str, Mark]) -> None:
    """Replace the marks, at once and for good."""
    aside = home.published_marks.with_name(f".{home.published_marks.name}")
    aside.write_text(json.dumps({name: asdict(mark) for name, mark in marks.items()}))
    sync(aside)
    aside.replace(home.published_marks)


def written_by_others(copies: Iterable[Path], marks: dict[str, Mark]) -> dict[Path, datetime]:
    """The copies that are not as they were published, and when they were changed, in UTC; only links and those that have a mark."""
    changed: dict[Path, datetime] = {}
    for copy in copies:
        mark = marks.get(copy.name)
        if copy.is_symlink() or (
            mark is not None and (log_of(copy).exists() or mark.is_of_another_content(Mark.of(copy)))
        ):
            changed[copy] = datetime.fromtimestamp(copy.lstat().st_mtime, UTC)
    return changed


def log_of(copy: Path) -> Path:
    """DuckDB's log beside a copy, which only a writer makes."""
    return copy.with_name(f"{copy.name}.wal")
