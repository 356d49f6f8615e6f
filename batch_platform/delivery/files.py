"""Sinks of kind `parquet` and `csv`, a folder with one file per partition in Hive's layout, and of kind `delta` and `iceberg`, tables of lakes.

A file is written under another name beside the folder, so that no reader of the folder sees it, and renamed over the former one.
In a store of objects, which renames nothing, it is written in the home and sent under its final name, where it appears once complete.

In a lake, one commit replaces the rows of a partition. An Iceberg table that is created here has no partitions of its own. Each of its
files holds one partition key, with bounds by which a delivery drops whole files and readers skip them. Rows are written in parts, of
which pyiceberg holds one in memory; the last one ends the commit.
"""

import warnings
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import duckdb
import pyarrow as pa

from batch_platform.declaration.errors import DeliveryError, listed
from batch_platform.declaration.importing import needed, require_installed
from batch_platform.delivery.sink import NESTED, Sink, Target, alone, storable
from batch_platform.sources.iceberg import catalog_of
from batch_platform.sources.objects import ObjectPath, answer_in_time, delta_options, put_object, require_store
from batch_platform.warehouse.files import sync
from batch_platform.warehouse.lock import staging_folder
from batch_platform.warehouse.sql import connect, literal, quoted

CSV = ".csv"
PARQUET_ENDING = ".parquet"
# How DuckDB writes a file, by the ending of its name.
FORMATS = {
    PARQUET_ENDING: "FORMAT parquet, COMPRESSION zstd",
    CSV: "FORMAT csv, HEADER",
    ".json": "FORMAT json, ARRAY",
}


def flat(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """A query whose lists and structs are JSON, which CSV has no types for."""
    rows = con.sql(query)
    nested = [name for name, type_ in zip(rows.columns, rows.types, strict=True) if type_.id in NESTED]
    replaced = ", ".join(f"to_json({quoted(name)}) AS {quoted(name)}" for name in nested)
    return f"SELECT * REPLACE ({replaced}) FROM ({query})" if nested else query


def _replace(ending: str, target: Target, rows: pa.RecordBatchReader) -> None:
    root = target.path
    file = root / f"{target.column}={quote(target.partition_key)}" / f"{target.pipeline}{ending}"
    if isinstance(file, ObjectPath):
        with staging_folder(target.home, f"delivery-{target.delivery.name}") as folder:
            _write(ending, target, rows, folder / file.name)
            put_object(file, folder / file.name)
    elif isinstance(root, Path):
        _replace_file(target, rows, root, file)


def _replace_file(target: Target, rows: pa.RecordBatchReader, root: Path, file: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    unfinished = f".{root.name}.{target.pipeline}.{quote(target.partition_key)}."
    for left_behind in [path for path in root.parent.iterdir() if path.name.startswith(unfinished)]:
        left_behind.unlink(missing_ok=True)
    aside = root.with_name(f"{unfinished}{uuid4().hex}")
    try:
        _write(file.suffix, target, rows, aside)
        sync(aside)
        file.parent.mkdir(exist_ok=True)
        aside.replace(file)
        sync(file.parent)
        sync(root)
    finally:
        aside.unlink(missing_ok=True)


def _write(ending: str, target: Target, rows: pa.RecordBatchReader, file: Path) -> None:
    """Write a file in the format of an ending, without the column that the name of its folder holds, and count its rows."""
    with connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("delivered", rows)
        query = f"SELECT * EXCLUDE ({quoted(target.column)}) FROM delivered"
        if ending == CSV:
            query = flat(con, query)
            con.execute("SET threads = 1")  # more would keep rows in memory until it is their turn
        written = con.execute(f"COPY ({query}) TO {literal(str(file))} ({FORMATS[ending]})")
        if ending == PARQUET_ENDING:
            written = con.execute(f"SELECT num_rows FROM parquet_file_metadata({literal(str(file))})")
        ((there,),) = written.fetchall()
        target.require_whole(there)


_ROOM = "make room, or let this user write into the folder and the one above it; the next run delivers it."
_FILES = partial(Sink, hint=_ROOM, require=lambda delivery: require_store(str(delivery.to)))
PARQUET = _FILES(replace=partial(_replace, PARQUET_ENDING))
CSV_FILES = _FILES(replace=partial(_replace, CSV))


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


def _replace_in_delta(target: Target, rows: pa.RecordBatchReader) -> None:
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
    replace=_replace_in_delta,
    is_conflict=_is_conflict,
    hint="see the message, and check the table; the next run delivers it.",
    require=lambda _: require_installed("deltalake", extra="delta"),
)


_LARGEST_PART = 128 << 20  # bytes


def _replace_in_iceberg(target: Target, rows: pa.RecordBatchReader) -> None:
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
            table = answer_in_time(lambda: catalog.load_table(declared.table))
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
    replace=_replace_in_iceberg,
    path=lambda _: None,
    hint="check the catalog and the table; the next run delivers it.",
    require=lambda _: require_installed("pyiceberg", extra="iceberg"),
)
