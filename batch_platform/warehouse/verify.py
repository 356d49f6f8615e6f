"""Read the warehouse and its published copy as a whole: DuckDB checks the sum of every block that it reads."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import WarehouseError
from batch_platform.warehouse.database import Warehouse, is_damage, require_not_lost
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.marks import current_copy
from batch_platform.warehouse.published import anew, newest_copy
from batch_platform.warehouse.sql import digest, literal, quoted, table_columns, tables
from batch_platform.warehouse.tables_in_files import require_undamaged


@dataclass(frozen=True)
class Verified:
    """Result of reading the warehouse and its copy as a whole."""

    tables: int
    rows: int
    copy: Path | None  # the published copy; None if nothing is published yet
    is_newest: bool  # the copy holds the newest change; only then are both compared
    differing: tuple[str, ...]  # tables whose rows differ between the copy and the warehouse


def verify(home: Home) -> Verified:
    """Read every row of both and compare them, table by table, and every byte of the files of tables.

    It takes about 0.2 s per million rows, and holds the warehouse meanwhile.

    Raises:
        WarehouseBusyError: Another process held the warehouse for longer than the time-out.
        WarehouseError: One of them is missing or damaged.
        DamagedRowsError: A file of a table is.
    """
    require_not_lost(home)
    copy = current_copy(home)
    with Warehouse(home).open() as con:
        ours = _digests(con, "warehouse")
        rows_in_files = require_undamaged(con)
        theirs = {} if copy is None else _digests_of_copy(con, copy)
        is_newest = copy == newest_copy(con, home)
    differing = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} if is_newest else set()
    rows = sum(count for count, _ in ours.values()) + rows_in_files
    return Verified(len(ours), rows, copy, is_newest, tuple(sorted(map(".".join, differing))))


def behind_since(home: Home) -> datetime | None:
    """The time of publishing, in UTC, if the warehouse was written since: by a run that goes on or was killed. None otherwise."""
    copy = current_copy(home)
    if copy is None or not (copy.exists() and home.warehouse.exists()):
        return None
    published = copy.stat().st_mtime
    return datetime.fromtimestamp(published, UTC) if home.warehouse.stat().st_mtime > published else None


def cut_short(home: Home) -> list[str]:
    """The commands of several steps that a process has announced in the home and not completed: it goes on, or was killed."""
    return ["The removal of deleted rows from every file"] if home.wiping.exists() else []


def _digests_of_copy(con: duckdb.DuckDBPyConnection, copy: Path) -> dict[tuple[str, str], tuple[int, int | None]]:
    try:
        con.execute(f"ATTACH {literal(str(copy))} AS copy (READ_ONLY)")
        try:
            return _digests(con, "copy")
        finally:
            con.execute("DETACH copy")
    except duckdb.Error as error:
        kind = "is damaged" if is_damage(error) else "cannot be read"
        msg = f"The published copy {copy} {kind}: {error}"
        raise WarehouseError(msg, hint=anew(copy)) from error


def _digests(con: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], tuple[int, int | None]]:
    """Number of rows, and the sum of their hashes, of each table by schema and name."""
    digests: dict[tuple[str, str], tuple[int, int | None]] = {}
    for schema, table in tables(con, database):
        columns = sorted(column for column, _ in table_columns(con, schema, table, database))
        rows = f"SELECT {digest(columns)} FROM {database}.{quoted(schema)}.{quoted(table)}"
        (digests[schema, table],) = con.execute(rows).fetchall()
    return digests
