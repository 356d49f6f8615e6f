"""Sources that are tables of DuckDB files, attached read-only; a connection goes on reading the state that it found.

The file is one of the user's (`duckdb`), or the published copy, in which the project's IO manager keeps Dagster's assets (`asset`):
nobody waits for anybody there.
"""

import time
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.errors import NothingPublishedError, SourceError, did_you_mean
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.redaction import redact
from batch_platform.sources.adbc import is_sqlite
from batch_platform.sources.files import Files, files_of
from batch_platform.sources.kind import SourceKind, SourceTable, create_view, digest
from batch_platform.warehouse.database import HELD_BY_ANOTHER, holder_of
from batch_platform.warehouse.files import current_copy
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.sql import has_table, literal, quoted
from batch_platform.warehouse.user_tables import WHOLE, TableName, published_partitions, select_rows, table_of_asset

_WAIT = "2 minutes"
_PAUSE_SECONDS = 0.1
_COPY = "published copy"  # name under which the copy is attached
_ESTIMATED_BYTES = 8  # estimated size of a value


def _relation(table: SourceTable) -> str:
    schema, _, name = (table.source.table or "").rpartition(".")
    return ".".join(quoted(part) for part in (str(files_of(table)[0]), schema or "main", name))


class _DuckDB(Files):
    endings = (".duckdb", ".db")
    stands_still = True
    unreadable = (
        "if another process writes to the file, close it or read a copy; if the table is a view that reads files, make it a table; "
        "else check the source in the YAML."
    )

    def description(self, source: Source) -> str:
        return f"table `{source.table}` of the DuckDB file `{redact(source.location)}`"

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
        """Attach the file; while another process has it open for writing, DuckDB refuses, so try again until `wait` is over."""
        file, wait = files_of(table)[0], table.source.wait or _WAIT
        path = str(file)
        if isinstance(file, Path) and is_sqlite(file):
            problem = f" cannot be read: {path} is a SQLite file, not a DuckDB file."
            sql = f"{{sql: {{uri: sqlite:///{table.source.location}, table: {table.source.table}}}}}"
            hint = f"declare it as sources.{table.name}: {sql}."
            raise table.error(problem, hint)
        until = time.monotonic() + parse_duration(wait).nominal.total_seconds()
        while True:
            try:
                con.execute(f"ATTACH IF NOT EXISTS {literal(path)} AS {quoted(path)} (READ_ONLY)")
            except duckdb.IOException as error:
                if not HELD_BY_ANOTHER.search(str(error)):
                    raise
                if time.monotonic() >= until:
                    problem = f" cannot be read: process {holder_of(error) or 'unknown'} has {path} open for writing; waited {wait}."
                    hint = f"let that process close the file, read a copy, or wait longer: sources.{table.name}.wait."
                    raise table.error(problem, hint) from error
                time.sleep(_PAUSE_SECONDS)
            else:
                return ()

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        create_view(con, table.name, _relation(table))

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        return con.sql(f"FROM {_relation(table)}").pl().lazy()


DUCKDB = _DuckDB()


def _name(source: Source) -> TableName:
    """The table: as declared, or as the IO manager names that of the asset."""
    return table_of_asset(source.table.split(".") if source.table else (source.asset or "").split("/"))


def _home(table: SourceTable) -> Home:
    if table.home is None:
        problem = " belongs to no pipeline, and so to no warehouse."
        raise table.error(problem)
    return table.home


@lru_cache(maxsize=256)
def _newest_change(home: Home, copy: Path, name: TableName) -> str | None:  # noqa: ARG001 - an answer holds for a copy
    """The newest change of a table in the copy that is published now; None if there is no such table."""
    with reading_published(home) as con:
        query = f"""
            SELECT change_id FROM {LEDGERS_SCHEMA}.changes WHERE schema_name = $schema AND table_name = $table
            ORDER BY seq DESC LIMIT 1
        """
        newest = con.execute(query, vars(name)).fetchall() if has_table(con, name.schema, name.table) else []
        return str(newest[0][0]) if newest else None


def _missing(table: SourceTable) -> SourceError:
    home, name, asset = _home(table), _name(table.source), table.source.asset
    problem = f": the published warehouse has no table {name.shown}, in which it looks for the asset {asset}."
    try:
        with reading_published(home) as con:
            query = (
                "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = current_database()"
            )
            nearest = did_you_mean(name.shown, [str(known) for (known,) in con.execute(query).fetchall()])
    except NothingPublishedError:
        nearest = None
    hint = (
        f"materialize {asset} with io_manager_key='batch_platform_io_manager'; sources.{table.name}.table names a table that is "
        "not named after its asset, and a path beside `asset` what is kept elsewhere."
    )
    return table.error(problem, f"{nearest} Else {hint}" if nearest else hint)


def not_stored(table: SourceTable, keys: Collection[str]) -> list[str]:
    """Those of some partitions that the table does not hold, with or without rows; none where it has no partitions."""
    home, name = _home(table), _name(table.source)
    try:
        with reading_published(home) as con:
            stored = published_partitions(con, name) if has_table(con, name.schema, name.table) else {WHOLE}
    except NothingPublishedError:
        return []  # reading the source says so
    return [] if WHOLE in stored else sorted({*keys} - stored)


class _Asset(SourceKind):
    stands_still = True
    unreadable = "the published copy cannot be read: batch-platform status --verify says what is wrong with it."

    def version(self, table: SourceTable) -> str:
        home, name = _home(table), _name(table.source)
        copy = current_copy(home)
        newest = None if copy is None else _newest_change(home, copy, name)
        if newest is None:
            raise _missing(table)
        return digest(name.shown, newest)

    def location(self, table: SourceTable) -> str:
        return f"{_name(table.source).shown} in {_home(table).published}"

    def description(self, source: Source) -> str:
        return f"the table `{redact(_name(source).shown)}` of the asset `{redact(source.location)}`"

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
        """Attach the copy that is published now, once for all sources of a connection, and create the view."""
        home, name = _home(table), _name(table.source)
        attached = f"SELECT 1 FROM duckdb_databases() WHERE database_name = {literal(_COPY)}"
        while not con.execute(attached).fetchall():
            copy = current_copy(home)
            if copy is None:
                raise _missing(table)
            try:
                con.execute(f"ATTACH {literal(str(copy))} AS {quoted(_COPY)} (READ_ONLY)")
            except duckdb.Error:
                if current_copy(home) == copy:  # otherwise a later publish has removed the copy
                    raise
        con.execute(f"USE {quoted(_COPY)}")
        try:
            if not has_table(con, name.schema, name.table):
                raise _missing(table)
            rows = select_rows(con, name, database=_COPY)
        finally:
            con.execute("USE memory")
        create_view(con, table.name, f"({rows})")
        return ()

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        """Leave the view that `admit` created, as it needs the columns of the copy."""

    def size(self, table: SourceTable) -> int:
        name = _name(table.source)
        with reading_published(_home(table)) as con:
            query = """
                SELECT estimated_size * column_count FROM duckdb_tables()
                WHERE database_name = current_database() AND schema_name = $schema AND table_name = $table
            """
            values = con.execute(query, vars(name)).fetchall()
        return _ESTIMATED_BYTES * sum(int(count) for (count,) in values)


ASSET = _Asset()
