"""The published copies of a home, and their marks, by which a publish notices that another program wrote into one.

A copy is named after the newest change that it holds.

`duckdb.connect("published.duckdb")` opens a file for writing unless told otherwise. So copies are made read-only, and a digest of
the size and the headers of each is kept beside them: DuckDB changes its headers with each checkpoint.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterable
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
