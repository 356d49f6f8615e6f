"""The table `deliveries` of a pipeline: the newest delivery of each partition to each receiver."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import duckdb

from batch_platform.declaration.deliveries import Delivery
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.descriptions import OF_PARTITION, OF_PIPELINES, Description
from batch_platform.warehouse.failures import DeliveredAsset, forget_failures
from batch_platform.warehouse.ledger import (
    LEDGERS_SCHEMA,
    ScoreRun,
    create_table,
    insert,
    note_partitions,
    read_records,
)
from batch_platform.warehouse.sql import has_table, quoted

TABLE = "deliveries"
OF_PIPELINES[TABLE] = Description(
    "a partition as it was last delivered to a receiver",
    {
        **OF_PARTITION,
        "name": "name of the delivery",
        "rows": "rows that were delivered",
        "rows_hash": "hash of these rows, whatever their order",
        "score_seq": "seq of the row of score_runs whose rows they are",
        "declared": "hash of the delivery as it was declared",
        "delivered_at": "when the receiver had them, in UTC",
    },
)
Deliveries = Mapping[tuple[str, str], "Delivered"]  # key: name of the delivery, and partition key


@dataclass(frozen=True)
class Delivered:
    """A partition as it was last delivered to one receiver."""

    partition_key: str
    name: str
    rows: int
    rows_hash: str
    score_seq: int
    declared: str
    delivered_at: datetime
    run_id: str


def asset_of(delivery: Delivery) -> DeliveredAsset:
    """The asset that a delivery is, under whose name its failures are recorded."""
    return DeliveredAsset(delivery.asset)


def read_deliveries(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str] | None = None
) -> dict[tuple[str, str], Delivered]:
    """The deliveries of a pipeline, of some partitions if keys are given."""
    if not has_table(con, pipeline, TABLE):
        return {}
    only, values = ("", {}) if partition_keys is None else ("WHERE partition_key IN $keys", {"keys": [*partition_keys]})
    rows = read_records(con, Delivered, f"{quoted(pipeline)}.{TABLE} {only}", values)
    return {(row.name, row.partition_key): row for row in rows}


def not_outdated(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, scores: Mapping[str, ScoreRun], deliveries: Deliveries
) -> Deliveries:
    """The deliveries, those of rejected rows as of the newest commit where all since only applied another rule of decision."""
    names = {delivery.name for delivery in spec.predictions.deliver if delivery.of == "rejected_rows"}
    older = {
        (name, key): row
        for (name, key), row in deliveries.items()
        if name in names and key in scores and row.score_seq != scores[key].seq
    }
    if not older:
        return deliveries
    query = f"""
        SELECT partition_key, max(seq) FROM (
            SELECT partition_key, seq, decision_rule IS NOT DISTINCT FROM lag(decision_rule) OVER before
                OR (model_sha256, input_hash, code_version)
                IS DISTINCT FROM lag((model_sha256, input_hash, code_version)) OVER before AS scored
            FROM {LEDGERS_SCHEMA}.score_runs WHERE pipeline = $name AND partition_key IN $keys
            WINDOW before AS (PARTITION BY partition_key ORDER BY seq)
        ) WHERE scored GROUP BY ALL"""
    scored = dict(con.execute(query, {"name": spec.name, "keys": [key for _, key in older]}).fetchall())
    stand = {of: row for of, row in older.items() if scored[of[1]] <= row.score_seq}
    return {**deliveries, **{of: replace(row, score_seq=scores[of[1]].seq) for of, row in stand.items()}}


def record_delivery(con: duckdb.DuckDBPyConnection, pipeline: str, delivery: Delivery, row: Delivered) -> None:
    """Replace the record of a partition's delivery, in the caller's transaction, and forget that it failed."""
    create_table(con, pipeline, TABLE, Delivered)
    where = f"{quoted(pipeline)}.{TABLE} WHERE name = $name AND partition_key = $key"
    con.execute(f"DELETE FROM {where}", {"name": row.name, "key": row.partition_key})
    insert(con, TABLE, [vars(row)], schema=pipeline)
    note_partitions(con, pipeline, TABLE, [row.partition_key])
    forget_failures(con, pipeline, asset_of(delivery), [row.partition_key])
