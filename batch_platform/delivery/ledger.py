"""The table `deliveries` of a pipeline: the newest delivery of each partition to each receiver."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import duckdb

from batch_platform.declaration.predictions import Delivery
from batch_platform.warehouse.descriptions import OF_PARTITION, OF_PIPELINES, Description
from batch_platform.warehouse.failures import DeliveredAsset, forget_failures
from batch_platform.warehouse.ledger import (
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


def record_delivery(con: duckdb.DuckDBPyConnection, pipeline: str, delivery: Delivery, row: Delivered) -> None:
    """Replace the record of a partition's delivery, in the caller's transaction, and forget that it failed."""
    create_table(con, pipeline, TABLE, Delivered)
    where = f"{quoted(pipeline)}.{TABLE} WHERE name = $name AND partition_key = $key"
    con.execute(f"DELETE FROM {where}", {"name": row.name, "key": row.partition_key})
    insert(con, TABLE, [vars(row)], schema=pipeline)
    note_partitions(con, pipeline, TABLE, [row.partition_key])
    forget_failures(con, pipeline, asset_of(delivery), [row.partition_key])
