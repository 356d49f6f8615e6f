"""Sources of kind `asset`: the table in which the project's IO manager keeps a Dagster asset, as it was last published.

Nobody waits for anybody: the published copy is attached read-only, and a connection goes on reading the copy that it found.
"""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import NothingPublishedError, SourceError, did_you_mean
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import SourceKind, SourceTable, create_view, digest
from batch_platform.warehouse.files import current_copy
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.sql import has_table, literal, quoted
from batch_platform.warehouse.user_tables import WHOLE, TableName, published_partitions, select_rows, table_of_asset

_COPY = "published copy"  # name under which the copy is attached
_ESTIMATED_BYTES = 8  # estimated size of a value


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


def _version(table: SourceTable) -> str:
    home, name = _home(table), _name(table.source)
    copy = current_copy(home)
    newest = None if copy is None else _newest_change(home, copy, name)
    if newest is None:
        raise _missing(table)
    return digest(name.shown, newest)


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


def _attach(con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
    """Attach the copy that is published now, once for all sources of a connection."""
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


def _size(table: SourceTable) -> int:
    name = _name(table.source)
    with reading_published(_home(table)) as con:
        query = """
            SELECT estimated_size * column_count FROM duckdb_tables()
            WHERE database_name = current_database() AND schema_name = $schema AND table_name = $table
        """
        values = con.execute(query, vars(name)).fetchall()
    return _ESTIMATED_BYTES * sum(int(count) for (count,) in values)


ASSET = SourceKind(
    version=_version,
    location=lambda table: f"{_name(table.source).shown} in {_home(table).published}",
    description=lambda source: f"the table `{redact(_name(source).shown)}` of the asset `{redact(source.location)}`",
    admit=_attach,
    view=lambda _con, _table: None,  # `admit` creates the view, as it needs the columns of the copy
    frame=lambda con, table: con.sql(f"FROM {quoted(table.name)}").pl().lazy(),
    size=_size,
    stands_still=True,
    unreadable="the published copy cannot be read: batch-platform status --verify says what is wrong with it.",
)
