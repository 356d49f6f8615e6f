"""Partitions that were deleted for good: their rows leave the tables and the ledgers, and an entry says so; and whole pipelines.

A partition counts as dropped until it is made again, when the ledgers name it once more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.declaration.operating import RetentionKind
from batch_platform.declaration.stamp import Stamp
from batch_platform.warehouse.descriptions import reserved_tables, tables_of_pipelines
from batch_platform.warehouse.erasures import ERASURES
from batch_platform.warehouse.failures import FAILURES, REFUSED_ROWS
from batch_platform.warehouse.fingerprints import FINGERPRINTS
from batch_platform.warehouse.ledger import (
    LEDGERS,
    LEDGERS_SCHEMA,
    STATUS_TABLE,
    EvaluationRun,
    FeatureBuild,
    create_table,
    insert,
    journal,
    read_records,
    statuses_of,
)
from batch_platform.warehouse.sql import has_table, literal, quoted, tables
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, TableInFiles, forget_partitions

DROPPED = "dropped_partitions"
_OF_FEATURES = (f"{LEDGERS_SCHEMA}.{LEDGERS[FeatureBuild]}", FINGERPRINTS, FAILURES, REFUSED_ROWS)


@dataclass(frozen=True)
class DroppedPartition:
    """A partition that was deleted for good; a row of the table `dropped_partitions`."""

    partition_key: str
    rows: int  # deleted rows of the pipeline's tables
    actor: str
    dropped_at: datetime
    run_id: str
    seq: int = 0

    def __str__(self) -> str:
        """Say when and by whom."""
        return f"on {self.dropped_at:%Y-%m-%d} by {self.actor}"


def read_dropped(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, DroppedPartition]:
    """The partitions that were dropped and not made again since, by key."""
    if not has_table(con, pipeline, DROPPED):
        return {}
    made = " UNION ".join(
        f"SELECT partition_key FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline" for table in LEDGERS.values()
    )
    entries = f"{quoted(pipeline)}.{DROPPED} WHERE partition_key NOT IN ({made}) ORDER BY seq"
    return {
        entry.partition_key: entry for entry in read_records(con, DroppedPartition, entries, {"pipeline": pipeline})
    }


def held_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """Count the rows of some partitions in the tables of a pipeline, and in the ledgers, by table and partition key.

    A table of the ledgers has the name of its schema before its own.
    """
    held: dict[str, dict[str, int]] = {}
    for table, where in _tables(con, pipeline).items():
        query = f"SELECT partition_key, count(*) FROM {where} GROUP BY ALL ORDER BY ALL"
        if counts := dict(con.execute(query, {"keys": list(partition_keys)}).fetchall()):
            held[table] = counts
    return held


def old_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, kind: RetentionKind, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """Count what retention removes of a kind of rows of some partitions, as `held_rows` does."""
    held, evaluations = held_rows(con, pipeline, partition_keys), f"{LEDGERS_SCHEMA}.{LEDGERS[EvaluationRun]}"
    if kind == "predictions":
        return {table: counts for table, counts in held.items() if table not in {*_OF_FEATURES, evaluations}}
    tables = _OF_FEATURES[:1] if kind == "features" else ("rejected_rows", REFUSED_ROWS)
    return {table: counts for table, counts in held.items() if table in tables}


def drop_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str], actor: str, stamp: Stamp
) -> list[str]:
    """Delete the rows of some partitions, and record each drop, in the caller's transaction.

    Returns the keys of the partitions that had rows; the others get no entry.
    """
    held = held_rows(con, pipeline, partition_keys)
    keys = sorted({key for counts in held.values() for key in counts})
    if keys:
        delete_rows(con, pipeline, held)
        create_table(con, pipeline, DROPPED, DroppedPartition, "seq BIGINT")
        seqs = journal(con, [(pipeline, DROPPED, key) for key in keys])  # greater than those of the deleted rows
        own = [counts for table, counts in held.items() if "." not in table]
        drops = [
            DroppedPartition(key, sum(rows.get(key, 0) for rows in own), actor, stamp.now(), stamp.run_id, seq)
            for seq, key in zip(seqs, keys, strict=True)
        ]
        insert(con, DROPPED, [vars(drop) for drop in drops], schema=pipeline)
    return keys


def drop_scores(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str], *, but: Collection[str]
) -> None:
    """Delete what was scored and measured of some partitions, in the caller's transaction.

    Their features stay, as do the rows of further tables that the caller names.
    """
    held = held_rows(con, pipeline, partition_keys)
    delete_rows(con, pipeline, {table: counts for table, counts in held.items() if table not in {*_OF_FEATURES, *but}})


def delete_rows(con: duckdb.DuckDBPyConnection, pipeline: str, held: Mapping[str, Mapping[str, int]]) -> None:
    """Delete the rows of partitions in the caller's transaction, given by table as `held_rows` counts them, and note it in the journal."""
    in_files = {table.view: table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)}
    changed: list[tuple[str, str, str | None]] = []
    wheres = _tables(con, pipeline)
    for table, counts in held.items():
        if table in in_files:
            forget_partitions(con, pipeline, in_files[table], [*counts])
        else:
            con.execute(f"DELETE FROM {wheres[table]}", {"keys": [*counts]})
        changed += [(pipeline, table, key) for key in counts if "." not in table]
    changed += [(LEDGERS_SCHEMA, ledger, None) for ledger in LEDGERS.values()]
    journal(con, [*changed, statuses_of(pipeline)])


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, str]:
    """The tables with rows by partition, each with the condition on some partitions, as SQL after FROM.

    For a table that is in files, this is the view. The failure to train a model names a serving period in the place of a
    partition, so it stays.
    """
    query = """
        SELECT table_name FROM duckdb_columns() WHERE database_name = current_database() AND schema_name = $schema
        AND column_name = 'partition_key' AND table_name IN $tables ORDER BY ALL
    """
    behind_views = {name for table in TABLES_IN_FILES for name in (table.files, table.rows)}
    values = {"schema": pipeline, "tables": list(tables_of_pipelines().keys() - {DROPPED, *behind_views})}
    wheres = {
        table: f"{quoted(pipeline)}.{quoted(table)} WHERE partition_key IN $keys"
        + (" AND step <> 'model'" if table == FAILURES else "")
        for (table,) in con.execute(query, values).fetchall()
    }
    for name in (f"{LEDGERS_SCHEMA}.{ledger}" for ledger in (*LEDGERS.values(), STATUS_TABLE)):
        wheres[name] = f"{name} WHERE partition_key IN $keys AND pipeline = {literal(pipeline)}"
    return wheres


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


def drop_pipeline(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Remove a pipeline's tables and all that the ledgers say of it, in the caller's transaction; users' tables stay.

    The journal of changes keeps its entries: published copies are named after them. So do the proofs of erasures, by which a
    later pipeline of the name leaves the same subjects out.
    """
    for table in _in_files(con, name):
        con.execute(f"DROP VIEW {quoted(name)}.{table.view}")
    for table in _whole_tables(con, name):
        con.execute(f"DROP TABLE {quoted(name)}.{quoted(table)}")
    for table in (table for table in _ledgers(con) if table != ERASURES):
        con.execute(f"DELETE FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $name", {"name": name})
    if all(schema != name for schema, _ in tables(con)):
        con.execute(f"DROP SCHEMA IF EXISTS {quoted(name)}")
    journal(con, [(LEDGERS_SCHEMA, table, None) for table in (*_ledgers(con), "changes")])  # copied as a whole


def _in_files(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[TableInFiles]:
    """The tables of a pipeline that are views."""
    return [table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)]


def _whole_tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[str]:
    """The tables of a pipeline, without those of users that have its name as their schema."""
    return [table for schema, table in tables(con) if schema == pipeline and table in reserved_tables()]


def _ledgers(con: duckdb.DuckDBPyConnection) -> list[str]:
    """The tables of the warehouse's own schema that name the pipeline of each row."""
    query = """
        SELECT table_name FROM duckdb_columns()
        WHERE database_name = current_database() AND schema_name = $schema AND column_name = 'pipeline' ORDER BY ALL
    """
    return [str(table) for (table,) in con.execute(query, {"schema": LEDGERS_SCHEMA}).fetchall()]
