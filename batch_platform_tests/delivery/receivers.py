"""Receivers of the tests, how each is read, one from outside of the package, and a process that delivers and is hindered."""

import os
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from batch_platform.declaration.deliveries import SINK_KEYS, Delivery
from batch_platform.declaration.errors import DeliveryError
from batch_platform.delivery.known import SINKS, replace_at_receiver
from batch_platform.delivery.sink import Sink, Target
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import quoted

KEY = "2026-01-01"


def _replace_in_sqlite(target: Target, rows: pa.RecordBatchReader) -> None:
    """Replace a partition in the table `rows`, whose cells are all text, in one transaction."""
    columns = ", ".join(map(quoted, rows.schema.names))
    target.path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(target.path, timeout=60)) as con, con:
        con.execute("PRAGMA journal_mode = WAL")  # readers see the former rows meanwhile
        con.execute("BEGIN IMMEDIATE")
        con.execute(f"CREATE TABLE IF NOT EXISTS rows ({columns})")
        con.execute(f"DELETE FROM rows WHERE {quoted(target.column)} = ?", [target.partition_key])
        for batch in rows:
            values = pl.DataFrame(batch).select(pl.all().map_elements(str, return_dtype=pl.String)).rows()
            con.executemany(f"INSERT INTO rows ({columns}) VALUES ({', '.join('?' * len(rows.schema))})", values)


SQLITE = Sink(replace=_replace_in_sqlite)


def register_sqlite(patch: pytest.MonkeyPatch) -> None:
    """Register the sink from outside, as a user of the package would."""
    patch.setitem(SINK_KEYS, "sqlite", str)
    patch.setitem(SINKS, "sqlite", SQLITE)


def _in_files(read: str, path: Path, options: str = "") -> pl.DataFrame:
    query = f"FROM {read}('{path}/**/*.{read.removeprefix('read_')}', hive_partitioning = true, hive_types_autocast = false, union_by_name = true{options})"
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        return con.sql(query).pl() if [*path.rglob("*=*/*.*")] else pl.DataFrame()


def _in_sqlite(path: Path) -> pl.DataFrame:
    with closing(sqlite3.connect(path)) as con:
        return pl.read_database("SELECT * FROM rows", con, infer_schema_length=None)


@dataclass(frozen=True)
class Receiver:
    """A kind of receiver, and how all of its rows are read."""

    at: str
    read: Callable[[Path], pl.DataFrame]


RECEIVERS = {
    "parquet": Receiver("out/late", lambda path: _in_files("read_parquet", path)),
    "csv": Receiver("out/late", lambda path: _in_files("read_csv", path, ", allow_quoted_nulls = false")),
    "delta": Receiver("out/late", lambda path: pl.DataFrame(DeltaTable(path).scan().read_all())),
    "sqlite": Receiver("out/late.sqlite", _in_sqlite),
}


def target_of(folder: Path, kind: str, key: str = KEY, **declared: object) -> Target:
    delivery = Delivery.model_validate({kind: RECEIVERS[kind].at, "name": "late", **declared})
    return Target("small", key, delivery, folder)


def deliver(target: Target, rows: pl.DataFrame) -> None:
    """Deliver rows of a partition, in batches of two."""
    whole = rows.with_columns(pl.lit(target.partition_key).alias(target.column)).to_arrow()
    table = whole.cast(pa.schema([field.with_type(_plain(field.type)) for field in whole.schema]))
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))
    replace_at_receiver(Home(target.folder / "home"), target, reader)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type as DuckDB gives it to Arrow."""
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def delivered(target: Target) -> pl.DataFrame:
    return RECEIVERS[target.delivery.kind].read(target.path)


def _many_rows(number: int, *, pausing: bool) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(0)
    for at in range(number):
        yield pa.record_batch({"x": random.random(20_000), "partition_key": pa.array([KEY] * 20_000)})
        if pausing and at == number // 2:
            print("half", flush=True)
            sys.stdin.read()


def main() -> None:
    """Deliver many rows to a receiver as `hindrance` says: `limit` (files cannot grow), `nobody` (another user), `pause` (half-way)."""
    folder, kind, hindrance = sys.argv[1:]
    with pytest.MonkeyPatch.context() as patch:
        register_sqlite(patch)
        target, schema = target_of(Path(folder), kind), pa.schema({"x": pa.float64(), "partition_key": pa.string()})
        if hindrance == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        if hindrance == "nobody" and os.geteuid() == 0:
            os.setuid(65534)
        rows = pa.RecordBatchReader.from_batches(schema, _many_rows(8, pausing=hindrance == "pause"))
        try:
            replace_at_receiver(Home(Path(folder) / "home"), target, rows)
        except DeliveryError as error:
            print(error)


if __name__ == "__main__":
    main()
