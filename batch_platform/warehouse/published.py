"""The readers' copy of the warehouse: complete and consistent at every moment, never locked by a writer.

A copy is named after the newest change that it holds, and the link points to one that is complete. The copy that the
link does not point to is brought up to date from the warehouse's journal of changes, renamed, and the link is flipped
to it; where a reader still holds it, it is left alone. So publishing costs in proportion to what changed, the file that
readers open is never touched, and no reader can delay a write.

Where there is no such copy, or much of the warehouse changed since, its bytes are copied instead, under the lock; an
open warehouse has no log that they would lack. Another process does that: a process that opens a file of its own
database a second time loses its lock on it as soon as it closes it.
"""

import contextlib
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import NothingPublishedError, WarehouseError
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.database import HELD_BY_ANOTHER, READABLE_FROM, Warehouse, is_damage
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, STATUS_TABLE, require_format
from batch_platform.warehouse.sql import literal, quoted

MUCH_ROWS, MUCH_OF_ALL = 100_000, 0.25
_NOTHING = "empty"


def open_published(home: Home) -> duckdb.DuckDBPyConnection:
    """Connect to the published copy, read-only and with time zone UTC; close the connection, or use it in `with`.

    A connection goes on reading the copy it opened, whatever is published meanwhile.

    Raises:
        NothingPublishedError: The home has no published copy yet.
        WarehouseError: The copy is missing or cannot be read, or another version of this project wrote it.
    """
    while True:
        copy = _current_copy(home)
        if copy is None:
            home.require_folder()
            msg = f"Nothing is published in {home.root} yet."
            raise NothingPublishedError(msg, hint="run a pipeline first: batch-platform run NAME.")
        try:
            con = duckdb.connect(str(copy), read_only=True)
        except duckdb.Error as error:
            if _current_copy(home) != copy:  # the next publish but one takes the file away
                continue
            msg = f"The published copy {copy} cannot be opened: {error}"
            hint = f"remove {copy} and run a pipeline: batch-platform run NAME publishes a new copy."
            raise WarehouseError(msg, hint=hint) from error
        con.execute("SET TimeZone = 'UTC'")
        require_format(con, copy)
        return con


def publish(home: Home) -> Path:
    """Bring `published.duckdb` up to date and return the file that it points to.

    Raises:
        WarehouseBusyError: The warehouse was held by another process for too long.
        WarehouseError: The copy cannot be written.
    """
    with Warehouse(home).open() as con:
        wanted = home.root / f"published-{_newest_change(con)}.duckdb"
        current = _current_copy(home)
        if current == wanted and wanted.is_file():
            return wanted
        spares = [path for path in _copies(home) if path != current]
        try:
            copy = next((path for path in spares if _brought_up_to_date(con, path)), None) or _new_copy(con, home)
        except (duckdb.Error, OSError) as error:
            msg = f"{home.published} could not be brought up to date: {error}"
            raise WarehouseError(msg, hint="make room on the disk; the last complete copy is still there.") from error
        copy.rename(wanted)
        _flip(home, wanted)
        for other in _copies(home):
            if other not in (wanted, current):
                _remove(other)
    return wanted


def _current_copy(home: Home) -> Path | None:
    """The file that the link points to, whether it exists or not; None without a link."""
    return home.published.resolve() if home.published.is_symlink() else None


def _copies(home: Home) -> list[Path]:
    return sorted(home.root.glob("published-*.duckdb"))


def _remove(copy: Path) -> None:
    copy.unlink()
    copy.with_name(f"{copy.name}.wal").unlink(missing_ok=True)


def _flip(home: Home, to: Path) -> None:
    aside = home.root / ".published"
    aside.unlink(missing_ok=True)
    aside.symlink_to(to.name)
    aside.replace(home.published)


def _newest_change(con: duckdb.DuckDBPyConnection) -> str:
    newest = con.execute(
        f"SELECT change_id FROM {LEDGERS_SCHEMA}.changes ORDER BY seq DESC, change_id LIMIT 1"
    ).fetchall()
    return newest[0][0] if newest else _NOTHING


def _new_copy(con: duckdb.DuckDBPyConnection, home: Home) -> Path:
    path = home.root / f"published-{uuid.uuid4().hex}.duckdb"
    if _is_readable(con):
        copy_bytes(home, path)
    else:
        _write_anew(con, path)
    return path


def _write_anew(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Write a copy row by row."""
    con.execute(_attach(path))
    with _attached(con):
        _copy_changes(con, since=0)


def _is_readable(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the warehouse itself is in the form that readers are promised; one that is older than this is not."""
    query = "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = current_database()"
    return con.execute(query).fetchall() == [(f"{READABLE_FROM}+",)]


def copy_bytes(home: Home, path: Path) -> None:
    """Copy the file of the warehouse, which nobody writes to meanwhile; under another name until it is whole.

    Raises:
        OSError: It cannot be written.
    """
    for left in home.root.glob(".published-*"):  # by a process that was killed
        left.unlink()
    aside = home.root / f".{path.name}"
    command = ["cp", "--", str(home.warehouse), str(aside)]
    copied = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if copied.returncode:
        aside.unlink(missing_ok=True)
        raise OSError(copied.stderr.strip() or f"cp ended with {copied.returncode}")
    sync(aside)
    aside.rename(path)


def _brought_up_to_date(con: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Make a copy equal to the warehouse; False where that is not worth while, or a reader holds it, or it is damaged.

    One of another past than the warehouse's is not used either; a damaged one goes.
    """
    try:
        con.execute(_attach(path))
    except duckdb.Error as error:
        if not (isinstance(error, duckdb.ResourceInUseException) or HELD_BY_ANOTHER.search(str(error))):
            _remove(path)
        return False
    try:
        with _attached(con):
            since = _shared_past(con)
            if since is None or (_is_readable(con) and _much_changed(con, since)):
                return False
            _copy_changes(con, since)
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        _remove(path)
        _write_anew(con, path)  # which fails too where it is the warehouse that is damaged: its bytes are not passed on
    return True


def _much_changed(con: duckdb.DuckDBPyConnection, since: int) -> bool:
    """Whether so many rows were scored since a change that copying all bytes is quicker than writing them once more."""
    query = f"SELECT coalesce(sum(rows_scored + rows_rejected), 0) FROM {LEDGERS_SCHEMA}.score_runs WHERE seq > $since"
    ((changed,),) = con.execute(query, {"since": since}).fetchall()
    query = "SELECT sum(estimated_size) FROM duckdb_tables() WHERE database_name = current_database()"
    ((rows,),) = con.execute(query).fetchall()
    return changed > max(MUCH_ROWS, MUCH_OF_ALL * rows)


def _attach(path: Path) -> str:
    return f"ATTACH {literal(str(path))} AS copy (STORAGE_VERSION '{READABLE_FROM}')"


@contextmanager
def _attached(con: duckdb.DuckDBPyConnection) -> Generator[None]:
    """Hold the attached copy for one transaction."""
    try:
        con.execute("BEGIN")
        try:
            yield
            con.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                con.execute("ROLLBACK")
            raise
        con.execute("CHECKPOINT copy")
    finally:
        con.execute("DETACH copy")


def _shared_past(con: duckdb.DuckDBPyConnection) -> int | None:
    """Up to which change the attached copy is a beginning of the warehouse; None if it is not one, or has none.

    Its newest change must be one of the warehouse's: a file restored from a backup may have gone on differently.
    """
    known = con.execute("SELECT 1 FROM duckdb_tables() WHERE database_name = 'copy' AND table_name = 'changes'")
    if not known.fetchall():
        return None
    newest = f"(SELECT max(seq) FROM copy.{LEDGERS_SCHEMA}.changes)"
    theirs = f"SELECT seq, change_id FROM copy.{LEDGERS_SCHEMA}.changes WHERE seq = {newest}"
    ours = f"SELECT seq, change_id FROM {LEDGERS_SCHEMA}.changes"
    ((seq, foreign),) = con.execute(f"SELECT {newest}, (SELECT count(*) FROM ({theirs} EXCEPT {ours}))").fetchall()
    return None if foreign or seq is None else int(seq)


def _copy_changes(con: duckdb.DuckDBPyConnection, since: int) -> None:
    """Bring every table of the attached copy from change `since` to now, and drop the tables that are gone."""
    query = f"""
        SELECT schema_name, table_name, bool_or(partition_key IS NULL) FROM {LEDGERS_SCHEMA}.changes
        WHERE seq > $since GROUP BY ALL
    """
    journaled = {  # whether the table is to be copied as a whole
        (schema, table): whole for schema, table, whole in con.execute(query, {"since": since}).fetchall()
    }
    query = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = $database ORDER BY ALL"
    ((database,),) = con.execute("SELECT current_database()").fetchall()
    tables = con.execute(query, {"database": database}).fetchall()
    for schema, table in set(con.execute(query, {"database": "copy"}).fetchall()) - set(tables):
        con.execute(f"DROP TABLE copy.{quoted(schema)}.{quoted(table)}")
    for schema, table in tables:
        live, copy = f"{quoted(schema)}.{quoted(table)}", f"copy.{quoted(schema)}.{quoted(table)}"
        con.execute(f"CREATE SCHEMA IF NOT EXISTS copy.{quoted(schema)}")
        differs = _columns(con, "copy", schema, table) != _columns(con, database, schema, table)
        if differs or journaled.get((schema, table)) or (schema, table) == (LEDGERS_SCHEMA, "meta"):
            con.execute(f"CREATE OR REPLACE TABLE {copy} AS FROM {live}")
        elif schema == LEDGERS_SCHEMA and table != STATUS_TABLE:
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE seq > $since", {"since": since})
        elif (schema, table) in journaled:
            column = "pipeline" if schema == LEDGERS_SCHEMA else "partition_key"  # what the journal names of the table
            changed = (
                f"{column} IN (SELECT partition_key FROM {LEDGERS_SCHEMA}.changes "
                "WHERE seq > $since AND schema_name = $schema AND table_name = $table)"
            )
            values = {"since": since, "schema": schema, "table": table}
            con.execute(f"DELETE FROM {copy} WHERE {changed}", values)
            con.execute(f"INSERT INTO {copy} BY NAME FROM {live} WHERE {changed}", values)


def _columns(con: duckdb.DuckDBPyConnection, database: str, schema: str, table: str) -> list[tuple[str, str]]:
    """Names and types of a table's columns, in order; none where there is no such table."""
    query = (
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = $database "
        "AND schema_name = $schema AND table_name = $table ORDER BY column_index"
    )
    return con.execute(query, {"database": database, "schema": schema, "table": table}).fetchall()
