"""Sinks of kind `iceberg`: one commit to an Iceberg table that replaces the rows of a partition.

A table that is created here has no partitions of its own. Each of its files holds one partition key, with bounds by which a delivery
drops whole files and readers skip them. Rows are written in parts, of which pyiceberg holds one in memory; the last one ends the commit.
"""

import warnings
from collections.abc import Iterator
from hashlib import sha256

import pyarrow as pa

from batch_platform.declaration.importing import needed, require_installed
from batch_platform.delivery.sink import Sink, Target, alone, storable
from batch_platform.sources.iceberg import catalog_of

_LARGEST_PART = 128 << 20  # bytes


def _replace(target: Target, rows: pa.RecordBatchReader) -> None:
    declared, new = target.delivery.iceberg, storable(rows)
    if declared is None:
        raise TypeError(target.delivery.name)
    with needed("pyiceberg", extra="iceberg"):
        from pyiceberg.exceptions import NoSuchTableError
        from pyiceberg.expressions import EqualTo
        from pyiceberg.table.snapshots import Operation
    place = sha256(declared.model_dump_json().encode()).hexdigest()[:16]
    with alone(target.home, f"iceberg-{place}"):  # pyiceberg gives up soon where many commit at once
        catalog = catalog_of(declared)
        try:
            table = catalog.load_table(declared.table)
        except NoSuchTableError:
            catalog.create_namespace_if_not_exists(declared.table.rpartition(".")[0])
            bounds = {f"write.metadata.metrics.column.{target.column}": "full"}
            table = catalog.create_table_if_not_exists(declared.table, new.schema, properties=bounds)
        with table.transaction() as transaction, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyiceberg warns where there was nothing to delete
            with transaction.update_schema() as update:
                update.union_by_name(new.schema)  # refuses types that would lose values
            rows_there = EqualTo(target.column, target.partition_key)  # pyright: ignore[reportCallIssue] - its own __init__
            parts, origin = _parts(new), {"batch_platform": target.pipeline}
            transaction.overwrite(next(parts), rows_there, origin)
            for part in parts:
                transaction.append(part, origin)
            before = {snapshot.snapshot_id for snapshot in table.snapshots()}
            appended = [it.summary for it in transaction.table_metadata.snapshots if it.snapshot_id not in before]
            there = [int(it["added-records"] or 0) for it in appended if it and it.operation == Operation.APPEND]
            target.require_whole(sum(there))


def _parts(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables of bounded size; without rows an empty one."""
    batches, size = list[pa.RecordBatch](), 0
    for batch in rows:
        if size > _LARGEST_PART:
            yield pa.Table.from_batches(batches)
            batches, size = [], 0
        batches.append(batch)
        size += batch.nbytes
    yield pa.Table.from_batches(batches, rows.schema)


ICEBERG = Sink(
    replace=_replace,
    path=lambda _: None,
    hint="check the catalog and the table; the next run delivers it.",
    require=lambda _: require_installed("pyiceberg", extra="iceberg"),
)
