"""The published copies of a home, and their marks, by which a publish notices that another program wrote into one.

A copy is named after the newest change that it holds.

`duckdb.connect("published.duckdb")` opens a file for writing unless told otherwise. So copies are made read-only, and size,
time of change, inode and the digest of the headers of each are kept beside them: DuckDB changes its headers with each
checkpoint.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.warehouse.checkpoint import HEADERS, write_whole
from batch_platform.warehouse.home import Home

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
    """The newest change of the current copy, and those of copies that were finished after it, each with its copy."""
    unfinished, current = unfinished_copies(home), current_copy(home)
    finished = [path for path in published_copies(home) if path not in unfinished and path.is_file()]
    since = current.stat().st_mtime_ns if current in finished else 0
    newest = {path.stem.partition("-")[2]: path for path in finished if path.stat().st_mtime_ns >= since}
    return {change: path for change, path in newest.items() if change != NOTHING}


@dataclass(frozen=True)
class Mark:
    """Properties of a copy that change when another program writes into it."""

    size: int
    changed_ns: int  # nanoseconds since 1970
    inode: int  # differs after the home was copied
    headers: str  # SHA-256 of the headers

    @classmethod
    def of(cls, copy: Path) -> "Mark":
        """Read it from a file."""
        with copy.open("rb") as file:
            headers = file.read(HEADERS)
        state = copy.stat()
        return cls(state.st_size, state.st_mtime_ns, state.st_ino, hashlib.sha256(headers).hexdigest())

    def is_of_another_content(self, later: "Mark") -> bool:
        """Return whether the content changed since; another file of the same content belongs to a copied home."""
        touched = self.inode == later.inode and self.changed_ns != later.changed_ns
        return touched or (self.size, self.headers) != (later.size, later.headers)


def read_marks(home: Home) -> dict[str, Mark]:
    """Read the marks of the copies by file name; none if the file is missing or damaged."""
    try:
        written = json.loads(home.published_marks.read_text())
        return {name: Mark(**mark) for name, mark in written.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def write_marks(home: Home, marks: dict[str, Mark]) -> None:
    """Replace the marks."""
    write_whole(home.published_marks, json.dumps({name: asdict(mark) for name, mark in marks.items()}).encode())


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
