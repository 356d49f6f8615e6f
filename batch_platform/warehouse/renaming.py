"""A whole pipeline in the warehouse: what is held of it, another name for it, and its removal.

A rename is announced by a file of the home before its one transaction, and the next process that opens the warehouse
completes one that was killed: then only folders may still need the name that the rows have.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.warehouse.checkpoint import write_whole
from batch_platform.warehouse.descriptions import reserved_tables, write_comments
from batch_platform.warehouse.erasures import ERASURES
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, journal
from batch_platform.warehouse.sql import has_table, quoted, tables, transaction
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, TableInFiles, make_view

_JOURNAL = "changes"


@dataclass(frozen=True)
class HeldPipeline:
    """Contents of the warehouse that belong to one pipeline."""

    name: str
    partitions: int  # partitions with predictions
    rows: int
    versions: int
    last_commit: datetime | None


def held_pipelines(con: duckdb.DuckDBPyConnection) -> dict[str, HeldPipeline]:
    """The pipelines that the ledgers name, whether anything declares them or not."""
    names = " UNION ".join(
        f"SELECT pipeline FROM {LEDGERS_SCHEMA}.{table}" for table in _ledgers(con) if table != ERASURES
    )
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


def rename_rows(con: duckdb.DuckDBPyConnection, home: Home, old: str, new: str) -> None:
    """Rename a pipeline's tables and what the ledgers say of it in one transaction, and then its folders.

    The rows keep their numbers, so that what refers to them goes on to do so.
    """
    names = {"old": old, "new": new}
    write_whole(home.renaming, json.dumps(names).encode())
    with transaction(con):
        drop_pipeline(con, new)  # the ledgers do not name it, so this removes recorded failures at most
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(new)}")
        for table in _tables(con, old):
            con.execute(f"CREATE TABLE {quoted(new)}.{quoted(table)} AS FROM {quoted(old)}.{quoted(table)}")
            write_comments(con, new, table)
        for table in _in_files(con, old):
            make_view(con, new, table)
        for table in _ledgers(con):
            con.execute(f"UPDATE {LEDGERS_SCHEMA}.{table} SET pipeline = $new WHERE pipeline = $old", names)
        of_old = f"UPDATE {LEDGERS_SCHEMA}.{_JOURNAL} SET schema_name = $new WHERE schema_name = $old"
        con.execute(f"{of_old} AND table_name IN $tables", names | {"tables": list(reserved_tables())})
        drop_pipeline(con, old)
    complete_renaming(con, home)


def complete_renaming(con: duckdb.DuckDBPyConnection, home: Home) -> None:
    """Give the folders of a pipeline whose rename was announced the name that its rows have; may be repeated."""
    if not home.renaming.exists():
        return
    names = json.loads(home.renaming.read_text())
    wrong, right = (names["new"], names["old"]) if names["old"] in held_pipelines(con) else (names["old"], names["new"])
    for of in (home.features, home.bundles):
        if of(wrong).is_dir() and not of(right).exists():
            of(right).parent.mkdir(parents=True, exist_ok=True)
            of(wrong).rename(of(right))
    with suppress(OSError):  # files of tables stay until no published copy names them
        home.features(wrong).parent.rmdir()
    home.remove(home.renaming)


def drop_pipeline(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Remove a pipeline's tables and all that the ledgers say of it, in the caller's transaction; users' tables stay.

    The journal of changes keeps its entries: published copies are named after them. So do the proofs of erasures, by which a
    later pipeline of the name leaves the same subjects out.
    """
    for table in _in_files(con, name):
        con.execute(f"DROP VIEW {quoted(name)}.{table.view}")
    for table in _tables(con, name):
        con.execute(f"DROP TABLE {quoted(name)}.{quoted(table)}")
    for table in (table for table in _ledgers(con) if table != ERASURES):
        con.execute(f"DELETE FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $name", {"name": name})
    if all(schema != name for schema, _ in tables(con)):
        con.execute(f"DROP SCHEMA IF EXISTS {quoted(name)}")
    journal(con, [(LEDGERS_SCHEMA, table, None) for table in (*_ledgers(con), _JOURNAL)])  # copied as a whole


def _in_files(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[TableInFiles]:
    """The tables of a pipeline that are views."""
    return [table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)]


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[str]:
    """The tables of a pipeline, without those of users that have its name as their schema."""
    return [table for schema, table in tables(con) if schema == pipeline and table in reserved_tables()]


def _ledgers(con: duckdb.DuckDBPyConnection) -> list[str]:
    """The tables of the warehouse's own schema that name the pipeline of each row."""
    query = """
        SELECT table_name FROM duckdb_columns()
        WHERE database_name = current_database() AND schema_name = $schema AND column_name = 'pipeline' ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"schema": LEDGERS_SCHEMA}).fetchall()]
