"""Partitions that were deleted for good: their rows leave the tables and the ledgers, and an entry says so.

A partition counts as dropped until it is made again, when the ledgers name it once more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.warehouse.descriptions import tables_of_pipelines
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    STATUS_TABLE,
    Change,
    create_table,
    insert,
    next_numbers,
    note,
)
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES, forget_partitions

DROPPED = "dropped_partitions"
_LEDGERS = ("feature_builds", "score_runs", "evaluations")  # whose rows are about one partition
_OF_FEATURES = (
    f"{LEDGERS_SCHEMA}.feature_builds",
    "fingerprints",
    "failures",
    "refused_rows",
    "backtests",
    "backtest_scores",
)


@dataclass(frozen=True)
class DroppedPartition:
    """A partition that was deleted for good; a row of the table `dropped_partitions`."""

    partition_key: str
    rows: int  # of the pipeline's tables
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
        f"SELECT partition_key FROM {LEDGERS_SCHEMA}.{table} WHERE pipeline = $pipeline" for table in _LEDGERS
    )
    query = (
        f"SELECT {', '.join(DroppedPartition.__dataclass_fields__)} FROM {quoted(pipeline)}.{DROPPED} "
        f"WHERE partition_key NOT IN ({made}) ORDER BY seq"
    )
    entries = [DroppedPartition(*row) for row in con.execute(query, {"pipeline": pipeline}).fetchall()]
    return {entry.partition_key: entry for entry in entries}


def held_rows(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]
) -> dict[str, dict[str, int]]:
    """The rows of some partitions in the tables of a pipeline, and in the ledgers, by table and partition key.

    A table of the ledgers has the name of its schema before its own.
    """
    held: dict[str, dict[str, int]] = {}
    for table, where in _tables(con, pipeline).items():
        query = f"SELECT partition_key, count(*) FROM {where} GROUP BY ALL ORDER BY ALL"
        values = {"keys": list(partition_keys)} | _named(where, pipeline)
        if counts := dict(con.execute(query, values).fetchall()):
            held[table] = counts
    return held


def drop_rows(
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    held: Mapping[str, Mapping[str, int]],
    drops: Sequence[DroppedPartition],
) -> None:
    """Delete the rows that are held of some partitions, and record each drop, in the caller's transaction."""
    keys = [drop.partition_key for drop in drops]
    _delete(con, pipeline, _tables(con, pipeline), held, keys)
    create_table(con, pipeline, DROPPED, DroppedPartition, "seq BIGINT")
    seqs = next_numbers(con, len(drops))  # after those of the journal, where a dropped partition is no longer stored
    insert(con, DROPPED, [{**vars(drop), "seq": seq} for seq, drop in zip(seqs, drops, strict=True)], schema=pipeline)
    note(con, [Change(seq, pipeline, DROPPED, key) for seq, key in zip(seqs, keys, strict=True)])


def drop_scores(con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str]) -> None:
    """Delete what was scored and measured of some partitions, in the caller's transaction; their features stay."""
    tables = {table: where for table, where in _tables(con, pipeline).items() if table not in _OF_FEATURES}
    _delete(con, pipeline, tables, held_rows(con, pipeline, partition_keys), partition_keys)


def _delete(
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    tables: Mapping[str, str],
    held: Mapping[str, Mapping[str, int]],
    partition_keys: Collection[str],
) -> None:
    """Delete the rows that some tables hold of some partitions, and note it in the journal."""
    keys = list(partition_keys)
    in_files = {table.view: table for table in TABLES_IN_FILES if has_table(con, pipeline, table.files)}
    changed: list[tuple[str, str, str | None]] = []  # in the form of the journal
    for table, where in tables.items():
        if table in in_files:
            forget_partitions(con, pipeline, in_files[table], keys)
        else:
            con.execute(f"DELETE FROM {where}", {"keys": keys} | _named(where, pipeline))
        changed += [(pipeline, table, key) for key in held.get(table, {}) if "." not in table]
    changed += [(LEDGERS_SCHEMA, ledger, None) for ledger in _LEDGERS]
    changed.append((LEDGERS_SCHEMA, STATUS_TABLE, pipeline))
    numbered = zip(next_numbers(con, len(changed)), changed, strict=True)
    note(con, [Change(seq, *change) for seq, change in numbered])


def _tables(con: duckdb.DuckDBPyConnection, pipeline: str) -> dict[str, str]:
    """The tables with rows of a partition, and each with the condition on some partitions, as SQL after FROM.

    Of a table that is in files, the view stands for what it is made of.
    The failure to train a model names a serving period in the place of a partition, so it stays.
    """
    query = """
        SELECT table_name FROM duckdb_columns() WHERE database_name = current_database() AND schema_name = $schema
        AND column_name = 'partition_key' AND table_name IN $tables ORDER BY ALL
    """
    behind_views = {name for table in TABLES_IN_FILES for name in (table.files, table.rows)}
    values = {"schema": pipeline, "tables": list(tables_of_pipelines().keys() - {DROPPED, *behind_views})}
    tables = {
        table: f"{quoted(pipeline)}.{quoted(table)} WHERE partition_key IN $keys"
        + (" AND step <> 'model'" if table == "failures" else "")
        for (table,) in con.execute(query, values).fetchall()
    }
    for ledger in (*_LEDGERS, STATUS_TABLE):
        name = f"{LEDGERS_SCHEMA}.{ledger}"
        tables[name] = f"{name} WHERE partition_key IN $keys AND pipeline = $pipeline"
    return tables


def _named(where: str, pipeline: str) -> dict[str, str]:
    return {"pipeline": pipeline} if "$pipeline" in where else {}
