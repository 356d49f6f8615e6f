"""Receivers of the tests, how each is read, one from outside of the package, and a process that delivers and is hindered."""

import os
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import duckdb
import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from batch_platform.declaration.errors import DeliveryError
from batch_platform.declaration.inputs import IcebergTable
from batch_platform.declaration.predictions import Delivery
from batch_platform.delivery.known import replace_at_receiver
from batch_platform.delivery.sink import Target
from batch_platform.sources.iceberg import catalog_of
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.object_store import BUCKET

KEY = "2026-01-01"
STORE = f"s3://{BUCKET}/out/late"
POSTGRESQL = "RECEIVING_POSTGRESQL"  # variable with the address of the server that receives


def _in_files(read: str, path: Path | str, options: str = "") -> pl.DataFrame:
    files = f"'{path}/**/*.{read.removeprefix('read_')}'"
    options = f"hive_partitioning = true, hive_types_autocast = false, union_by_name = true{options}"
    with duckdb.connect() as con:
        con.register_filesystem(fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True))
        con.execute("SET TimeZone = 'UTC'")
        there = con.execute(f"FROM glob({files})").fetchall()
        return con.sql(f"FROM {read}({files}, {options})").pl() if there else pl.DataFrame()


def _delta_in_store() -> pl.DataFrame:
    return pl.DataFrame(DeltaTable(STORE, storage_options={"allow_http": "true"}).scan().read_all())


def _in_sqlite(path: Path, table: str = "rows") -> pl.DataFrame:
    with closing(sqlite3.connect(path)) as con:
        return pl.read_database(f"SELECT * FROM {table}", con, infer_schema_length=None)


def execute(*statements: str) -> pl.DataFrame:
    """Run statements in the PostgreSQL that receives, and commit; returns the rows of the last one."""
    with closing(postgresql.connect(os.environ[POSTGRESQL])) as con, closing(con.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows = _plain_rows(cursor.fetch_arrow_table()) if statements[-1].startswith("SELECT") else pl.DataFrame()
        con.commit()
    return rows


def _plain_rows(table: pa.Table) -> pl.DataFrame:
    """The rows with numbers of any size and JSON as text."""
    for at, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in table[at].chunks]
            table = table.set_column(at, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return pl.DataFrame(table)


def _in_postgresql(_: Path) -> pl.DataFrame:
    rows = execute("SELECT (SELECT to_regclass('late'))::text IS NOT NULL AS there")
    return execute("SELECT * FROM late") if rows.item() else pl.DataFrame()


def _in_catalog(folder: Path, _: str) -> dict[str, object]:
    (folder / "out").mkdir(exist_ok=True)
    catalog = {"name": "lake", "uri": f"sqlite:///{folder}/out/catalog.db", "warehouse": f"file://{folder}/out/lake"}
    return {"catalog": catalog, "table": "sales.late"}


def iceberg_in(folder: Path) -> Any:
    """The Iceberg table of a test."""
    return catalog_of(IcebergTable.model_validate(_in_catalog(folder, ""))).load_table("sales.late")


@dataclass(frozen=True)
class Receiver:
    """A kind of receiver, and how all of its rows are read."""

    at: str  # file or folder
    read: Callable[[Path], pl.DataFrame]
    kind: str = ""  # of the sink, where it has another name
    declared: Callable[[Path, str], object] = lambda _, at: at  # what is declared in a folder for a file or folder


RECEIVERS = {
    "parquet": Receiver("out/late", lambda path: _in_files("read_parquet", path)),
    "csv": Receiver("out/late", lambda path: _in_files("read_csv", path, ", allow_quoted_nulls = false")),
    "delta": Receiver("out/late", lambda path: pl.DataFrame(DeltaTable(path).scan().read_all())),
    "parquet in a store": Receiver(STORE, lambda _: _in_files("read_parquet", STORE), "parquet"),
    "delta in a store": Receiver(STORE, lambda _: _delta_in_store(), "delta"),
    "iceberg": Receiver("", lambda path: pl.DataFrame(iceberg_in(path).scan().to_arrow()), declared=_in_catalog),
    "PostgreSQL": Receiver("", _in_postgresql, "sql", lambda *_: {"uri": os.environ[POSTGRESQL], "table": "late"}),
    "SQLite": Receiver(
        "out/late.db",
        lambda path: _in_sqlite(path, "late"),
        "sql",
        lambda _, at: {"uri": f"sqlite:///{at}", "table": "late"},
    ),
    "sqlite": Receiver("out/late.sqlite", _in_sqlite),
}


def target_of(folder: Path, receiver: str, key: str = KEY, at: str | None = None, **declared: object) -> Target:
    """A partition at a receiver; `at` is another file or folder."""
    it = RECEIVERS[receiver]
    block = {it.kind or receiver: it.declared(folder, at or it.at)}
    delivery = Delivery.model_validate({**block, "name": "late", **declared})
    return Target("small", key, delivery, folder, Home(folder / "home"), rows=0)


def place_of(folder: Path, receiver: str) -> Path:
    """The file or folder of a receiver; the folder of the test for one that is elsewhere."""
    at = RECEIVERS[receiver].at
    return folder if "://" in at else folder / at


def deliver(target: Target, rows: pl.DataFrame) -> None:
    """Deliver rows of a partition, in batches of two; unless the target says otherwise, it expects as many."""
    whole = rows.with_columns(pl.lit(target.partition_key).alias(target.column)).to_arrow()
    table = whole.cast(pa.schema([field.with_type(_plain(field.type)) for field in whole.schema]))
    batches = table.to_batches(max_chunksize=2)
    target = replace(target, rows=target.rows or rows.height)
    replace_at_receiver(target, lambda: pa.RecordBatchReader.from_batches(table.schema, batches))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type as DuckDB gives it to Arrow."""
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def delivered(folder: Path, receiver: str) -> pl.DataFrame:
    """All rows at a receiver."""
    return RECEIVERS[receiver].read(place_of(folder, receiver))


_IN_BATCH = 20_000  # rows


def _many_rows(number: int, *, pausing: bool) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(0)
    for at in range(number):
        yield pa.record_batch({"x": random.random(_IN_BATCH), "partition_key": pa.array([KEY] * _IN_BATCH)})
        if pausing and at == number // 2:
            print("half", flush=True)
            sys.stdin.read()


def main() -> None:
    """Deliver many rows to a receiver as `hindrance` says.

    `limit`: files cannot grow, rows break a constraint, or there is no such bucket. `pause`: half-way.
    """
    folder, kind, hindrance = sys.argv[1:]
    target, schema = target_of(Path(folder), kind), pa.schema({"x": pa.float64(), "partition_key": pa.string()})
    if hindrance == "limit" and kind == "PostgreSQL":
        execute("ALTER TABLE late ADD CONSTRAINT full_up CHECK (x < 0.99999) NOT VALID")
    elif hindrance == "limit" and "store" not in kind:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    elif hindrance == "limit":
        target = target_of(Path(folder), kind, at="s3://nowhere/late")
    target = replace(target, rows=8 * _IN_BATCH)
    batches = _many_rows(8, pausing=hindrance == "pause")
    try:
        replace_at_receiver(target, lambda: pa.RecordBatchReader.from_batches(schema, batches))
    except DeliveryError as error:
        print(error)
    if hindrance == "limit" and kind == "PostgreSQL":
        execute("ALTER TABLE late DROP CONSTRAINT full_up")


if __name__ == "__main__":
    main()
