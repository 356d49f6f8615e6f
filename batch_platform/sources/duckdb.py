"""Sources of kind `duckdb`: a table or view of a DuckDB file, attached read-only under its path."""

import time
from pathlib import Path

import duckdb

from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.redaction import redact
from batch_platform.sources.drivers import is_sqlite
from batch_platform.sources.files import file_location, files_of, files_size, files_version
from batch_platform.sources.kind import SourceKind, SourceTable, create_view
from batch_platform.warehouse.database import HELD_BY_ANOTHER, holder_of
from batch_platform.warehouse.sql import literal, quoted

_WAIT = "2 minutes"
_PAUSE_SECONDS = 0.1


def _attach(con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
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


def _relation(table: SourceTable) -> str:
    schema, _, name = (table.source.table or "").rpartition(".")
    return ".".join(quoted(part) for part in (str(files_of(table)[0]), schema or "main", name))


DUCKDB = SourceKind(
    version=files_version,
    location=file_location,
    description=lambda source: f"table `{source.table}` of the DuckDB file `{redact(source.location)}`",
    admit=_attach,
    view=lambda con, table: create_view(con, table.name, _relation(table)),
    frame=lambda con, table: con.sql(f"FROM {_relation(table)}").pl().lazy(),
    size=files_size,
    stands_still=True,
    endings=(".duckdb", ".db"),
    unreadable="another process may be writing to the file: close it or read a copy; else check the source in the YAML.",
)
