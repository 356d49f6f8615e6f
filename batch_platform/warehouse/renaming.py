"""A whole pipeline in the warehouse: what is held of it, another name for it, and its removal."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.warehouse.descriptions import write_comments
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, Change, next_numbers, note
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, TableInFiles, make_view
from batch_platform.warehouse.user_tables import reserved_tables

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


def rename_rows(con: duckdb.DuckDBPyConnection, old: str, new: str, change_id: str) -> None:
    """Rename a pipeline's tables and what the ledgers say of it, in the caller's transaction, and note a change of an id.

    The rows keep their numbers, so that what refers to them goes on to do so.
    """
    names = {"old": old, "new": new}
    drop_pipeline(con, new)  # the ledgers do not name it, so this removes recorded failures at most
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(new)}")
    for table in _tables(con, old):
        con.execute(f"CREATE TABLE {quoted(new)}.{quoted(table)} AS FROM {quoted(old)}.{quoted(table)}")
        write_comments(con, new, table)
    for table in _in_files(con, old):
        make_view(con, new, table)
    for table in _ledgers(con):
        con.execute(f"UPDATE {LEDGERS_SCHEMA}.{table} SET pipeline = $new WHERE pipeline = $old", names)
    of_old = f"UPDATE {LEDGERS_SCHEMA}.{_JOURNAL} SET schema_name = $new WHERE schema_name = $old AND {_OF_PIPELINE}"
    con.execute(of_old, names | _known())
    drop_pipeline(con, old)
    note(con, [Change(next_numbers(con, 1)[0], LEDGERS_SCHEMA, _JOURNAL, None, change_id)])


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


def _in_files(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[TableInFiles]:
    """The tables of a pipeline that are views."""
    return [table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)]


_OF_PIPELINE = "table_name IN $tables"


def _known() -> dict[str, Collection[str]]:
    return {"tables": list(reserved_tables())}


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[str]:
    query = f"""
        SELECT table_name FROM duckdb_tables()
        WHERE database_name = current_database() AND schema_name = $name AND {_OF_PIPELINE} ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"name": pipeline} | _known()).fetchall()]


def _ledgers(con: duckdb.DuckDBPyConnection) -> list[str]:
    """The tables of the warehouse's own schema that name the pipeline of each row."""
    query = """
        SELECT table_name FROM duckdb_columns()
        WHERE database_name = current_database() AND schema_name = $schema AND column_name = 'pipeline' ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"schema": LEDGERS_SCHEMA}).fetchall()]


def _note_all(con: duckdb.DuckDBPyConnection) -> None:
    """Record that the ledgers and the journal changed as a whole, so that the published copy takes them over."""
    tables = [*_ledgers(con), _JOURNAL]
    seqs = next_numbers(con, len(tables))
    note(con, [Change(seq, LEDGERS_SCHEMA, table, None) for seq, table in zip(seqs, tables, strict=True)])
