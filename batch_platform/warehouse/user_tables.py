"""Tables by name: reads any table from the published copy, and stores users' own tables in the warehouse.

A user's table is replaced by partition or as a whole, in one transaction with its entry in the journal of changes, from
which the published copy is brought up to date. The tables of a pipeline are only read here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import DataError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.notation import RESERVED_NAMES
from batch_platform.declaration.redaction import redact
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import DROPPED
from batch_platform.warehouse.descriptions import reserved_tables
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, journal
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import has_table, literal, quoted, table_columns, tables
from batch_platform.warehouse.tables_in_files import views

PARTITION = "partition_key"
CHALLENGER = "challenger"  # column of a measure's table with the measured challenger; null for the champion
WHOLE = ""  # partition key of rows without a partition
DEFAULT_SCHEMA = "assets"  # schema of assets whose key has one part


@dataclass(frozen=True)
class TableName:
    """A table of the warehouse."""

    schema: str
    table: str

    def __str__(self) -> str:
        """Write it as SQL does."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def shown(self) -> str:
        """As messages name it."""
        return f"{self.schema}.{self.table}"


def table_of_asset(path: Sequence[str], default_schema: str | None = None) -> TableName:
    """The table of an asset: the last part of its key, in the schema that the part before names."""
    return TableName(path[-2] if len(path) > 1 else default_schema or DEFAULT_SCHEMA, path[-1])


def open_table(
    home: Home, name: TableName, *, partitions: Collection[str] | None = None, columns: Sequence[str] | None = None
) -> duckdb.DuckDBPyRelation:
    """A table as it was last published, read-only and lazy; by default all partitions and columns.

    A table without partitions has no column for them. Of a measure such as `performance`, the rows of challengers are
    read only if the column `challenger` is named. Raises DataError if the table or one of the partitions is not published, or a
    column is missing.
    """
    con = _published(home, name)
    try:
        return con.sql(select_rows(con, name, partitions, columns))
    except BaseException:
        con.close()
        raise


def select_rows(
    con: duckdb.DuckDBPyConnection,
    name: TableName,
    partitions: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    database: str | None = None,
) -> str:
    """The SELECT of a table of the current database, for `open_table`; with `database`, valid from any other one."""
    present = [str(column) for column, *_ in con.execute(f"DESCRIBE {name}").fetchall()]
    stored = published_partitions(con, name)
    if stored == {WHOLE} and PARTITION in present:
        present.remove(PARTITION)
    of_production = CHALLENGER in present and CHALLENGER not in (columns or ()) and _is_measured(con, name)
    if of_production and columns is None:
        present.remove(CHALLENGER)
    wanted = list(present if columns is None else columns)
    if unknown := [column for column in wanted if column not in present]:
        msg = f"{name.shown} has no column {listed(map(repr, unknown))}; it has {listed(present)}."
        raise DataError(msg, hint=did_you_mean(unknown[0], present))
    whole = f"{name}" if database is None else f"{quoted(database)}.{name}"
    source = f"(FROM {whole} WHERE {CHALLENGER} IS NULL)" if of_production else whole
    rows = f"SELECT {', '.join(map(quoted, wanted))} FROM {source}"
    if partitions is None:
        return rows
    if missing := set(partitions) - stored:
        msg = f"{name.shown}: no rows are published of partition {listed(missing)}."
        raise DataError(msg, hint="materialize it first, or set allow_missing_partitions in the input's metadata.")
    return f"{rows} WHERE {PARTITION} IN ({', '.join(map(literal, sorted(partitions))) or 'NULL'})"


def _is_measured(con: duckdb.DuckDBPyConnection, name: TableName) -> bool:
    """Return whether a table belongs to a measure, and so holds rows of challengers too: evaluations are journaled under its name."""
    query = f"""
        SELECT 1 FROM {LEDGERS_SCHEMA}.changes JOIN {LEDGERS_SCHEMA}.evaluations USING (seq)
        WHERE schema_name = $schema AND table_name = $table LIMIT 1
    """
    return bool(con.execute(query, vars(name)).fetchall())


def stored_partitions(home: Home, name: TableName) -> set[str]:
    """The keys of a table's published partitions, with or without rows; raises DataError if the table is not published."""
    with _published(home, name) as con:
        return published_partitions(con, name)


def published_partitions(con: duckdb.DuckDBPyConnection, name: TableName) -> set[str]:
    """The keys of a table's partitions, with or without rows, on an open connection."""
    query = (
        f"SELECT DISTINCT {PARTITION} FROM {LEDGERS_SCHEMA}.changes WHERE schema_name = $schema AND table_name = $table"
    )
    if name.table in reserved_tables() and has_table(con, name.schema, DROPPED):
        drops = f"SELECT max(seq) FROM {quoted(name.schema)}.{DROPPED} AS dropped"
        query += f" AND seq > coalesce(({drops} WHERE dropped.partition_key = changes.partition_key), 0)"
    keys = {key for (key,) in con.execute(query, vars(name)).fetchall()}
    if None not in keys:
        return keys
    if PARTITION not in dict(table_columns(con, name.schema, name.table)):
        return {WHOLE}
    held = con.execute(f"SELECT DISTINCT {PARTITION} FROM {name} WHERE {PARTITION} IS NOT NULL").fetchall()
    return (keys - {None}) | {str(key) for (key,) in held}


def check_own(name: TableName) -> None:
    """Raise WrongUseError if a name is reserved and so cannot be a user's table."""
    if name.schema.lower() in RESERVED_NAMES or not name.schema or not name.table:
        msg = f"{name.shown} cannot be a table of yours: the schemas {listed(RESERVED_NAMES)} are reserved."
        raise WrongUseError(msg, hint="choose another schema: metadata={'schema': 'reports'} on the asset.")


def store_table(warehouse: Warehouse, name: TableName, file: Path, keys: Collection[str] | None) -> int:
    """Replace partitions of a user's table, or all of it, by the rows of a Parquet file, by column name.

    With keys, the column `partition_key` names the partition of each row; without, the whole table is replaced, columns included.
    A missing table is created, like its schema. Returns the number of rows in the file.

    Raises:
        WrongUseError: The name is reserved, or the table belongs to a pipeline.
        DataError: Rows belong to other partitions, or values or columns do not fit; nothing is changed.
    """
    check_own(name)
    with warehouse.transaction() as con:
        if _is_of_project(con, name):
            msg = f"{name.shown} belongs to the pipeline {name.schema!r}; it cannot be written as a table of yours."
            raise WrongUseError(msg, hint="give the asset another name, or another schema by metadata={'schema': …}.")
        try:
            count, changed = _replace_whole(con, name, file) if keys is None else _replace_some(con, name, file, keys)
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException) as error:
            msg = f"{name.shown}: the rows do not fit: {redact(str(error)).splitlines()[0]}; nothing is changed."
            raise DataError(msg) from error
        journal(con, [(name.schema, name.table, key) for key in sorted(changed)])
    return count


def _is_of_project(con: duckdb.DuckDBPyConnection, name: TableName) -> bool:
    query = f"SELECT 1 FROM {LEDGERS_SCHEMA}.feature_builds WHERE pipeline = $schema LIMIT 1"
    of_pipeline = name.table.lower() in reserved_tables() and con.execute(query, {"schema": name.schema}).fetchall()
    return name.schema == LEDGERS_SCHEMA or bool(of_pipeline) or _is_measured(con, name)


def _replace_whole(con: duckdb.DuckDBPyConnection, name: TableName, file: Path) -> tuple[int, set[str]]:
    before = published_partitions(con, name)
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(name.schema)}")
    rows = f"SELECT *, $whole AS {PARTITION} FROM read_parquet($path, hive_partitioning := false)"
    values = {"whole": WHOLE, "path": str(file)}
    ((count,),) = con.execute(f"CREATE OR REPLACE TABLE {name} AS {rows}", values).fetchall()
    return int(count), before | {WHOLE}


def _replace_some(
    con: duckdb.DuckDBPyConnection, name: TableName, file: Path, keys: Collection[str]
) -> tuple[int, set[str]]:
    query = f"SELECT DISTINCT {PARTITION} FROM read_parquet($path, hive_partitioning := false)"
    held = {key for (key,) in con.execute(query, {"path": str(file)}).fetchall()}
    if strange := held - set(keys):
        msg = f"{name.shown}: rows belong to partition {listed(map(repr, strange))}; the run is for {listed(keys)}."
        raise DataError(msg, hint=f"{PARTITION!r} holds the partition of each row; rename a column of another meaning.")
    was_whole = {WHOLE} & published_partitions(con, name)
    return replace_rows(con, name.schema, name.table, [*keys, *was_whole], [file]), {*keys, *was_whole}


def _published(home: Home, name: TableName) -> duckdb.DuckDBPyConnection:
    """The published copy; raises DataError if it does not hold the table."""
    con = open_published(home)
    readable = [*tables(con), *((pipeline, table.view) for pipeline, table in views(con))]
    if (name.schema, name.table) not in readable:
        con.close()
        others = [f"{schema}.{table}" for schema, table in readable if schema != LEDGERS_SCHEMA]
        msg = f"{name.shown} is not published; there are {listed(others) or 'no tables yet'}."
        raise DataError(msg, hint=did_you_mean(name.shown, others) or "materialize it first.")
    return con
