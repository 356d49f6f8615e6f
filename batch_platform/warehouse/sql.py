"""SQL text, connections to DuckDB, and instances that live on between uses: attaching a file to one takes a tenth of the time of making a new one.

An instance serves one use at a time and has no file attached between uses, so nothing of a use reaches the next.
"""

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.threads import threads


def quoted(identifier: str) -> str:
    """An SQL identifier; the name may hold any character."""
    return '"' + identifier.replace('"', '""') + '"'


def folded(identifier: str) -> str:
    """An identifier as DuckDB compares it: ignoring the case of ASCII letters only."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in identifier)


def literal(text: str) -> str:
    """An SQL string, for the few statements that take no bound values."""
    return "'" + text.replace("'", "''") + "'"


def read_file(path: Path) -> str:
    """A Parquet file as SQL after FROM; no folder of its path is taken for a column."""
    return f"read_parquet({literal(str(path))}, hive_partitioning = false)"


def json_pointer(column: str) -> str:
    """The path of a column in a row that is kept as JSON."""
    return "/" + column.replace("~", "~0").replace("/", "~1")


def connect(
    file: Path | None = None, *, read_only: bool = False, config: dict[str, Any] | None = None
) -> duckdb.DuckDBPyConnection:
    """Connect to a database file, or by default to a new database in memory, with as many threads as this process may use.

    There is no progress bar: DuckDB would draw it on standard output, in the middle of a report in JSON. Raises BatchPlatformError if there is no
    memory for a database in memory; for a file, DuckDB's own error.
    """
    try:
        con = duckdb.connect(str(file or ":memory:"), read_only=read_only, config=config or {})
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        if file is not None:
            raise
        msg = f"DuckDB could not start for want of memory: {error}."
        raise BatchPlatformError(msg, hint="give the process more memory; what was committed stays.") from error
    con.execute(f"SET enable_progress_bar = false; SET threads = {threads()}")
    return con


def table_columns(
    con: duckdb.DuckDBPyConnection, schema: str, table: str, database: str | None = None
) -> list[tuple[str, str]]:
    """Names and types of a table's columns, in order, by default in the current database; none if there is no such table."""
    query = (
        "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = coalesce($database, current_database()) "
        "AND schema_name = $schema AND table_name = $table ORDER BY column_index"
    )
    return con.execute(query, {"database": database, "schema": schema, "table": table}).fetchall()


def tables(con: duckdb.DuckDBPyConnection, database: str | None = None) -> list[tuple[str, str]]:
    """List schema and name of every table, but no view, by default in the current database."""
    name = literal(database) if database else "current_database()"
    query = f"SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = {name} AND NOT temporary"
    return sorted(con.execute(query).fetchall())


def digest(columns: Iterable[str]) -> str:
    """The SELECT list of two values that tell whether tables of the same columns hold the same rows, in any order."""
    return f"count(*), sum(hash({', '.join(map(quoted, columns))}))"


def has_table(con: duckdb.DuckDBPyConnection, schema: str, table: str) -> bool:
    """Return whether the current database has a table or view of a name; for a view, the tables that it reads are looked up too."""
    try:
        con.table(f"{quoted(schema)}.{quoted(table)}")  # six times quicker than a look at the catalog
    except duckdb.CatalogException:
        return False
    except duckdb.Error:  # the view cannot be read now, or the schema has the name of a database
        return bool(table_columns(con, schema, table))
    return True


@contextlib.contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Generator[None]:
    """One transaction of a connection, committed at the end of the block and undone by any error."""
    con.execute("BEGIN")
    try:
        yield
        con.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            con.execute("ROLLBACK")
        raise


READABLE_FROM = "v1.5.0"  # the oldest version of DuckDB that can read the files
_DATABASE = "warehouse"

_idle: deque[duckdb.DuckDBPyConnection] = deque()


@dataclass(frozen=True)
class Attached:
    """A database file and the connection to it, which reads and writes nothing else by default."""

    con: duckdb.DuckDBPyConnection
    instance: duckdb.DuckDBPyConnection
    spilled: Path

    def close(self) -> None:
        """Release the file, and its lock."""
        self.con.close()
        with contextlib.suppress(duckdb.Error):
            self.instance.execute(f"DETACH {_DATABASE}")
            if not self.spilled.exists():
                _idle.append(self.instance)
                return
        self.instance.close()


def attach(file: Path, *, read_only: bool = False) -> Attached:
    """Open a database file, which is made if it is missing; it never checkpoints by itself: every checkpoint is made safe first.

    Raises duckdb.Error if the file cannot be opened, or another process has it open.
    """
    instance = _taken()
    spilled = file.with_name(f"{file.name}.tmp")
    try:
        instance.execute(f"SET temp_directory = {literal(str(spilled))}")
        instance.execute(f"ATTACH {literal(str(file))} AS {_DATABASE}{' (READ_ONLY)' if read_only else ''}")
        con = instance.cursor()
        con.execute(f"USE {_DATABASE}")
    except BaseException:
        instance.close()
        raise
    return Attached(con, instance, spilled)


@contextmanager
def in_memory() -> Generator[duckdb.DuckDBPyConnection]:
    """A connection for statements of this project's own that leave nothing behind."""
    instance = _taken()
    with instance.cursor() as con:
        yield con
    _idle.append(instance)


def _taken() -> duckdb.DuckDBPyConnection:
    """An idle instance, or a new one; another thread may take the last idle one at any moment."""
    try:
        return _idle.pop()
    except IndexError:
        return _instance()


def _instance() -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "storage_compatibility_version": READABLE_FROM,
        "checkpoint_threshold": "1TB",
    }
    instance = connect(config=config)
    instance.execute("PRAGMA disable_checkpoint_on_shutdown; SET GLOBAL TimeZone = 'UTC'")
    return instance


def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


os.register_at_fork(before=_close_idle)  # a forked child lacks the threads that an instance waits for when it ends
