"""The readers' copy of the warehouse: complete and consistent at every moment, never locked by a writer.

Two database files are taken in turn. The one that the link does not point to is brought up to date from the
warehouse's journal of changes, and the link is flipped to it. A file that a reader still holds is left alone and a new
one is begun. So publishing costs in proportion to what changed, and no reader can delay a write.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.home import Home
from batch_platform.sources import literal, quoted
from batch_platform.warehouse import Warehouse

READABLE_FROM = "v1.5.0"
_LEDGERS = "batch_platform"


@dataclass(frozen=True)
class _Mark:
    """How far a copy has come: up to which change of which warehouse."""

    warehouse_id: str
    seq: int


def publish(home: Home) -> Path:
    """Bring `published.duckdb` up to date and flip it; gives the file that it points to.

    Raises:
        WarehouseBusyError: The warehouse was held by another process for too long.
    """
    with Warehouse(home).open() as con:
        target = _warehouse_mark(con)
        current = home.published.resolve() if home.published.is_symlink() else None
        if current is not None and current.is_file() and _mark_of(con, current) == target:
            return current
        spare = next((path for path in _copies(home) if path != current), None)
        if spare is None or not _bring_up_to_date(con, spare, target):
            spare = home.root / f"published-{uuid.uuid4().hex[:8]}.duckdb"
            _bring_up_to_date(con, spare, target)
        _flip(home, spare)
        for other in _copies(home):
            if other not in (spare, current):
                other.unlink()
    return spare


def _copies(home: Home) -> list[Path]:
    return sorted(home.root.glob("published-*.duckdb"))


def _flip(home: Home, to: Path) -> None:
    aside = home.root / f".published-{uuid.uuid4().hex[:8]}"
    aside.symlink_to(to.name)
    aside.replace(home.published)


@contextmanager
def _attached(con: duckdb.DuckDBPyConnection, path: Path, options: str) -> Iterator[None]:
    con.execute(f"ATTACH {literal(str(path))} AS copy ({options})")
    try:
        yield
    finally:
        con.execute("DETACH copy")


def _warehouse_mark(con: duckdb.DuckDBPyConnection) -> _Mark:
    query = "SELECT warehouse_id, (SELECT coalesce(max(seq), 0) FROM batch_platform.changes) FROM batch_platform.meta"
    ((warehouse_id, seq),) = con.execute(query).fetchall()
    return _Mark(warehouse_id, int(seq))


def _mark_of(con: duckdb.DuckDBPyConnection, path: Path) -> _Mark | None:
    with _attached(con, path, "READ_ONLY"):
        return _attached_mark(con)


def _attached_mark(con: duckdb.DuckDBPyConnection) -> _Mark | None:
    """The mark of the attached copy; None for an empty file."""
    known = con.execute("SELECT 1 FROM duckdb_tables() WHERE database_name = 'copy' AND table_name = 'published'")
    if not known.fetchall():
        return None
    ((warehouse_id, seq),) = con.execute(f"FROM copy.{_LEDGERS}.published").fetchall()
    return _Mark(warehouse_id, int(seq))


def _set_mark(con: duckdb.DuckDBPyConnection, mark: _Mark) -> None:
    con.execute(f"CREATE OR REPLACE TABLE copy.{_LEDGERS}.published (warehouse_id VARCHAR, seq BIGINT)")
    con.execute(f"INSERT INTO copy.{_LEDGERS}.published VALUES ($id, $seq)", {"id": mark.warehouse_id, "seq": mark.seq})


def _bring_up_to_date(con: duckdb.DuckDBPyConnection, path: Path, target: _Mark) -> bool:
    """Make a copy equal to the warehouse in one transaction; False if a reader holds it or it is of another past."""
    try:
        with _attached(con, path, f"STORAGE_VERSION '{READABLE_FROM}'"):
            mark = _attached_mark(con)
            if mark is not None and (mark.warehouse_id != target.warehouse_id or mark.seq > target.seq):
                return False
            con.execute("BEGIN")
            try:
                _copy_changes(con, 0 if mark is None else mark.seq)
                _set_mark(con, target)
                con.execute("COMMIT")
            except BaseException:
                con.execute("ROLLBACK")
                raise
            con.execute("CHECKPOINT copy")
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            return False
        raise
    return True


def _copy_changes(con: duckdb.DuckDBPyConnection, since: int) -> None:
    """Bring every table of the attached copy from change `since` to now."""
    query = "SELECT database_name, schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database() ORDER BY ALL"
    for database, schema, table in con.execute(query).fetchall():
        live, copy = f"{quoted(schema)}.{quoted(table)}", f"copy.{quoted(schema)}.{quoted(table)}"
        con.execute(f"CREATE SCHEMA IF NOT EXISTS copy.{quoted(schema)}")
        if _columns(con, "copy", schema, table) != _columns(con, database, schema, table):
            con.execute(f"CREATE OR REPLACE TABLE {copy} AS FROM {live}")
        elif schema != _LEDGERS:
            changed = (
                "partition_key IN (SELECT partition_key FROM batch_platform.changes "
                "WHERE seq > $since AND schema_name = $schema AND table_name = $table)"
            )
            values = {"since": since, "schema": schema, "table": table}
            con.execute(f"DELETE FROM {copy} WHERE {changed}", values)
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE {changed}", values)
        elif table != "meta":
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE seq > $since", {"since": since})


def _columns(con: duckdb.DuckDBPyConnection, database: str, schema: str, table: str) -> list[tuple[str, str]]:
    """Names and types of a table's columns, in order; none where there is no such table."""
    query = (
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = $database "
        "AND schema_name = $schema AND table_name = $table ORDER BY column_index"
    )
    return con.execute(query, {"database": database, "schema": schema, "table": table}).fetchall()
