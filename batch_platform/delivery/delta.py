"""Sinks of kind `delta`: one commit to a Delta table that replaces the rows of a partition."""

from collections.abc import Generator, Sequence
from hashlib import sha256

import pyarrow as pa

from batch_platform.declaration.errors import DeliveryError, listed
from batch_platform.declaration.importing import needed, require_installed
from batch_platform.delivery.sink import Sink, Target, alone, storable
from batch_platform.sources.objects import delta_options
from batch_platform.warehouse.sql import literal, quoted


def _in_order(rows: pa.RecordBatchReader, names: Sequence[str], lacking: pa.Schema) -> pa.RecordBatchReader:
    """The rows with their columns in the order of names; a column that they lack is null."""
    fields = [rows.schema.field(name) if name in rows.schema.names else lacking.field(name) for name in names]
    schema = pa.schema(fields)

    def columns(batch: pa.RecordBatch) -> list[pa.Array]:
        present = {*batch.schema.names}
        return [batch[it.name] if it.name in present else pa.nulls(len(batch), it.type) for it in fields]

    batches = (pa.RecordBatch.from_arrays(columns(batch), schema=schema) for batch in rows)
    return pa.RecordBatchReader.from_batches(schema, batches)


def _counted(target: Target, rows: pa.RecordBatchReader, refusals: list[DeliveryError]) -> Generator[pa.RecordBatch]:
    """Count the rows as deltalake takes them, which commits once it has them all; it passes on only the text of a refusal."""
    there = 0
    for batch in rows:
        there += len(batch)
        yield batch
    try:
        target.require_whole(there)
    except DeliveryError as error:
        refusals.append(error)
        raise


def _replace(target: Target, rows: pa.RecordBatchReader) -> None:
    with needed("deltalake", extra="delta"):
        from deltalake import CommitProperties, DeltaTable, Schema, write_deltalake
        from deltalake.exceptions import DeltaError, TableNotFoundError
    new, root, options = storable(rows), str(target.path), delta_options(target.path)
    schema = Schema.from_arrow(new.schema)
    # deltalake lets two processes create a table one after the other; the second one would invalidate commits in between.
    with alone(target.home, f"delta-{sha256(root.encode()).hexdigest()[:16]}"):
        # Not `is_deltatable`: it holds Python's lock while it waits, and never ends where deliveries beside it need the lock.
        try:
            table = DeltaTable(root, storage_options=options)
        except TableNotFoundError:
            table = DeltaTable.create(
                root, schema, mode="ignore", partition_by=[target.column], storage_options=options
            )
    present = {field.name: field.type for field in table.schema().fields}
    wrong = [
        f"{field.name} is {_type(present[field.name])} there and {_type(field.type)} here"
        for field in schema.fields
        if field.name in present and field.type != present[field.name]
    ]
    if wrong:  # Delta would cast, and round
        problem = f"the Delta table {root} has other types: {listed(wrong)}."
        raise target.error(problem, "deliver to another table, or cast the column there or in the features.")
    if (partitions := table.metadata().partition_columns) != [target.column]:
        problem = f"the Delta table {root} is partitioned by {listed(partitions) or 'nothing'}, not {target.column}."
        raise target.error(problem, "deliver to a table of its own, which is made if it does not exist.")
    added, refusals = [name for name in new.schema.names if name not in present], list[DeliveryError]()
    # Another order of columns would change the table.
    ordered = _in_order(new, [*present, *added], pa.schema(table.schema().to_arrow()))
    try:
        write_deltalake(
            root,
            pa.RecordBatchReader.from_batches(ordered.schema, _counted(target, ordered, refusals)),
            mode="overwrite",
            schema_mode="merge" if added else None,
            partition_by=[target.column],
            storage_options=options,
            predicate=f"{quoted(target.column)} = {literal(target.partition_key)}",
            commit_properties=CommitProperties(custom_metadata={"batch_platform": target.pipeline}),
        )
    except DeltaError:
        if refusals:
            raise refusals[0] from None
        raise


def _type(of: object) -> str:
    return str(getattr(of, "type", of))


def _is_conflict(error: Exception) -> bool:
    from deltalake.exceptions import CommitFailedError

    return isinstance(error, CommitFailedError)


DELTA = Sink(
    replace=_replace,
    is_conflict=_is_conflict,
    hint="see the message, and check the table; the next run delivers it.",
    require=lambda _: require_installed("deltalake", extra="delta"),
)
