"""A whole pipeline in the warehouse: what is held of it, a copy of it under another name, and its removal; and its stored columns.

A pipeline is renamed as a copy and a removal, each in one transaction, so that whoever declares the old name or the new
one finds all of it in between. The rows keep their numbers: what refers to them goes on to do so.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.declaration.errors import DataError, listed
from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, Change, next_numbers, note
from batch_platform.warehouse.sql import folded, has_table, quoted, table_columns
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, TableInFiles, make_view, rename_in_files
from batch_platform.warehouse.user_tables import TABLES_OF_PIPELINES

_JOURNAL = "changes"


@dataclass(frozen=True)
class HeldPipeline:
    """What the warehouse holds of a pipeline."""

    name: str
    partitions: int  # of predictions
    rows: int
    versions: int
    last_commit: datetime | None


def held_pipelines(con: duckdb.DuckDBPyConnection) -> dict[str, HeldPipeline]:
    """The pipelines that the ledgers name, whether anything declares them or not."""
    names = " UNION ".join(f"SELECT pipeline FROM {LEDGERS_SCHEMA}.{table}" for table in _ledgers(con))
    query = f"""
        SELECT pipeline, coalesce(partitions, 0), coalesce(rows, 0), coalesce(versions, 0), committed_at
        FROM ({names}) LEFT JOIN (
            SELECT pipeline, count(DISTINCT partition_key) AS partitions, max(committed_at) AS committed_at
            FROM {LEDGERS_SCHEMA}.score_runs GROUP BY ALL
        ) USING (pipeline) LEFT JOIN (
            SELECT pipeline, sum(rows_scored) AS rows FROM (
                FROM {LEDGERS_SCHEMA}.score_runs
                QUALIFY row_number() OVER (PARTITION BY pipeline, partition_key ORDER BY seq DESC) = 1
            ) GROUP BY ALL
        ) USING (pipeline) LEFT JOIN (
            SELECT pipeline, count(*) AS versions FROM {LEDGERS_SCHEMA}.model_versions GROUP BY ALL
        ) USING (pipeline) ORDER BY pipeline
    """
    return {name: HeldPipeline(name, *facts) for name, *facts in con.execute(query).fetchall()}


def recorded_rows(con: duckdb.DuckDBPyConnection, pipeline: str) -> set[tuple[str, int]]:
    """The rows of the ledgers that name a pipeline: table and number."""
    rows: set[tuple[str, int]] = set()
    for table in _ledgers(con, numbered=True):
        query = f"SELECT seq FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline"
        rows |= {(table, int(seq)) for (seq,) in con.execute(query, {"pipeline": pipeline}).fetchall()}
    return rows


def copy_pipeline(con: duckdb.DuckDBPyConnection, name: str, copy: str) -> None:
    """Copy a pipeline's tables and all that the ledgers say of it to a name that holds nothing, in the caller's transaction."""
    names = {"name": name, "copy": copy}
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(copy)}")
    for table in _tables(con, name):
        con.execute(f"CREATE TABLE {quoted(copy)}.{quoted(table)} AS FROM {quoted(name)}.{quoted(table)}")
    for table in _in_files(con, name):
        make_view(con, copy, table)
    for table in _ledgers(con):
        ledger = f"{LEDGERS_SCHEMA}.{table}"
        rows = f"SELECT * REPLACE ($copy AS pipeline) FROM {ledger} WHERE pipeline = $name"
        con.execute(f"INSERT INTO {ledger} BY NAME {rows}", names)
    journal = f"{LEDGERS_SCHEMA}.{_JOURNAL}"
    rows = f"SELECT * REPLACE ($copy AS schema_name) FROM {journal} WHERE schema_name = $name AND {_OF_PIPELINE}"
    con.execute(f"INSERT INTO {journal} BY NAME {rows}", names | _KNOWN)
    _note_all(con)


def drop_pipeline(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Remove a pipeline's tables and all that the ledgers say of it, in the caller's transaction; users' tables stay.

    The journal of changes keeps its entries: published copies are named after them.
    """
    for table in _in_files(con, name):
        con.execute(f"DROP VIEW {quoted(name)}.{table.view}")
    for table in _tables(con, name):
        con.execute(f"DROP TABLE {quoted(name)}.{quoted(table)}")
    for table in _ledgers(con):
        con.execute(f"DELETE FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $name", {"name": name})
    query = "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database() AND schema_name = $name LIMIT 1"
    if not con.execute(query, {"name": name}).fetchall():
        con.execute(f"DROP SCHEMA IF EXISTS {quoted(name)}")
    _note_all(con)


# Tables whose columns a pipeline names.
_WITH_OWN_COLUMNS = (
    *(name for table in TABLES_IN_FILES for name in (table.view, table.rows)),
    "outcomes",
    "backtest_scores",
)
_SEGMENTED = ("performance_pooled", "estimates_by_segment", "drift_by_segment")  # whose rows name a column


def rename_column(con: duckdb.DuckDBPyConnection, pipeline: str, old: str, new: str) -> list[str]:
    """Give a stored column another name in every table of a pipeline, in the caller's transaction; returns those tables.

    Where rows were scored under the new name meanwhile, both columns become one.

    Raises:
        DataError: The new column has another type, or rows hold values under both names.
    """
    renamed: list[str] = []
    in_files = _in_files(con, pipeline)
    view_of = {name: table.view for table in in_files for name in (table.files, table.rows)}
    for table in sorted({*_WITH_OWN_COLUMNS} & {*_tables(con, pipeline)}):
        name, columns = f"{quoted(pipeline)}.{quoted(table)}", dict(table_columns(con, pipeline, table))
        spellings = {folded(column): column for column in columns}
        former, present = spellings.get(folded(old)), spellings.get(folded(new))
        if former is None:
            continue
        if present is None:
            con.execute(f"ALTER TABLE {name} RENAME COLUMN {quoted(former)} TO {quoted(new)}")
        else:
            everywhere = f"{quoted(pipeline)}.{view_of.get(table, table)}"
            _require_one_column(con, everywhere, pipeline, (former, columns[former]), (present, columns[present]))
            one = f"coalesce({quoted(present)}, {quoted(former)}) AS {quoted(present)}"
            rows = f"SELECT * EXCLUDE ({quoted(former)}) REPLACE ({one}) FROM {name}"
            con.execute(f"CREATE OR REPLACE TABLE {name} AS {rows}")
            write_comments(con, pipeline, table)
        renamed.append(table)
    for table in in_files:
        if table.rows in renamed:
            rename_in_files(con, pipeline, table, old, new)
            make_view(con, pipeline, table)
            renamed.append(table.files)
    for table in sorted({*_SEGMENTED} & {*_tables(con, pipeline)}):
        query = f"UPDATE {quoted(pipeline)}.{table} SET segment_column = $new WHERE segment_column = $old"
        ((count,),) = con.execute(query, {"old": old, "new": new}).fetchall()
        renamed += [table] if count else []
    seqs = next_numbers(con, len(renamed))
    note(con, [Change(seq, pipeline, table, None) for seq, table in zip(seqs, renamed, strict=True)])
    return sorted({view_of.get(table, table) for table in renamed})


def _require_one_column(
    con: duckdb.DuckDBPyConnection, name: str, pipeline: str, old: tuple[str, str], new: tuple[str, str]
) -> None:
    """Refuse to make one column of two that hold different things."""
    if old[1] != new[1]:
        msg = f"{pipeline}: {old[0]} is {old[1]} in {name}, but {new[0]} is {new[1]}; nothing is renamed."
        raise DataError(msg, hint="cast it in the features to the type that it had.")
    both = (
        f"SELECT DISTINCT partition_key FROM {name} WHERE {quoted(old[0])} IS NOT NULL AND {quoted(new[0])} IS NOT NULL"
    )
    if keys := [str(key) for (key,) in con.execute(both).fetchall()]:
        msg = f"{pipeline}, partition {listed(keys)}: {name} holds values of {old[0]} and of {new[0]}; nothing is renamed."
        raise DataError(msg, hint="a column takes the place of one that it has no row in common with.")


def _in_files(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[TableInFiles]:
    """The tables of a pipeline that are views."""
    return [table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)]


_OF_PIPELINE = "table_name IN $tables"
_KNOWN: dict[str, Collection[str]] = {"tables": list(TABLES_OF_PIPELINES)}


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[str]:
    query = f"""
        SELECT table_name FROM duckdb_tables()
        WHERE database_name = current_database() AND schema_name = $name AND {_OF_PIPELINE} ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"name": pipeline} | _KNOWN).fetchall()]


def _ledgers(con: duckdb.DuckDBPyConnection, *, numbered: bool = False) -> list[str]:
    """The tables of the warehouse's own schema that name the pipeline of each row."""
    query = """
        SELECT table_name FROM duckdb_columns()
        WHERE database_name = current_database() AND schema_name = $schema
        GROUP BY table_name HAVING list_has_all(list(column_name), $columns) ORDER BY ALL
    """
    columns = ["pipeline", "seq"] if numbered else ["pipeline"]
    values = {"schema": LEDGERS_SCHEMA, "columns": columns}
    return [str(table) for (table,) in con.execute(query, values).fetchall()]


def _note_all(con: duckdb.DuckDBPyConnection) -> None:
    """Record that the ledgers and the journal changed as a whole, so that the published copy takes them over."""
    tables = [*_ledgers(con), _JOURNAL]
    seqs = next_numbers(con, len(tables))
    note(con, [Change(seq, LEDGERS_SCHEMA, table, None) for seq, table in zip(seqs, tables, strict=True)])
