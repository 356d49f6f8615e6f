"""Sources of kind `duckdb`: a table or view of a DuckDB file, attached read-only under its path."""

import duckdb

from batch_platform.declaration.redaction import redact
from batch_platform.features.sources.files import file_location, files_of, files_size, files_version
from batch_platform.features.sources.kind import SourceKind, SourceTable, create_view
from batch_platform.warehouse.sql import literal, quoted


def _attach(con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
    path = str(files_of(table)[0])
    con.execute(f"ATTACH IF NOT EXISTS {literal(path)} AS {quoted(path)} (READ_ONLY)")
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
