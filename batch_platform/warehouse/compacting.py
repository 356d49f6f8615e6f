"""Deletion down to the bytes: DuckDB keeps those of deleted rows in free blocks, so the files are written anew without them.

Whoever deletes rows for good leaves a mark in the home, within the transaction. The next publication, of this process or of
another one, then writes the warehouse and its copy anew, removes all other copies and takes the mark away. The cost is that
of the whole warehouse.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.home import Home, feature_file_name
from batch_platform.warehouse.instance import READABLE_FROM
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, journal, read_latest
from batch_platform.warehouse.sql import literal, transaction


def leave_mark(home: Home, pipeline: str = "", files: Iterable[str] = ()) -> None:
    """Leave the mark, within the transaction that deletes rows: without the lock, a publication could take it away too early.

    With it go the names of feature files that hold deleted rows too.
    """
    with home.wiping.open("a", encoding="utf-8") as mark:
        mark.writelines(f"{pipeline}/{name}\n" for name in files)
        mark.flush()
        os.fsync(mark.fileno())
    sync(home.root)


def remove_marked(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Remove the feature files that the mark names, except those that the newest build of a partition names, and the mark."""
    marked: dict[str, set[str]] = {}
    for line in home.wiping.read_text(encoding="utf-8").splitlines():
        if line.endswith(".parquet"):  # a killed process may have left part of a line
            pipeline, name = Path(line).parts
            marked.setdefault(pipeline, set()).add(name)
    for pipeline, names in marked.items():
        builds = read_latest(con, FeatureBuild, pipeline)
        for name in names - {feature_file_name(key, build.sha256) for key, build in builds.items()}:
            home.remove(home.features(pipeline) / name)
    home.wiping.unlink()


def require_wiped(home: Home) -> None:
    """Raise WarehouseError if the bytes of deleted rows could not be removed."""
    if home.wiping.exists():
        msg = f"The rows are deleted, but {home.warehouse} could not be written anew, so their bytes are still in it."
        hint = "make room on the disk for a second file of that size and repeat the command; the next run does it too."
        raise WarehouseError(msg, hint=hint)


def compact_file(con: duckdb.DuckDBPyConnection, to: Path) -> Path:
    """Write what the warehouse holds to a file that is not there yet, which is complete on the disk afterwards; returns its path.

    The journal notes it, so that a copy is published under a new name.

    Raises:
        duckdb.Error: The file cannot be written; the warehouse is as before.
    """
    with transaction(con):
        journal(con, [(LEDGERS_SCHEMA, "meta", None)])
    ((name,),) = con.execute("SELECT current_database()").fetchall()
    con.execute(f"ATTACH {literal(str(to))} AS compacted (STORAGE_VERSION '{READABLE_FROM}')")
    try:
        con.execute(f"COPY FROM DATABASE {name} TO compacted")
        con.execute("CHECKPOINT compacted")
    finally:
        con.execute("DETACH compacted")
    sync(to)
    return to
