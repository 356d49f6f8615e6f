"""Sinks of kind `parquet` and `csv`: a folder with one file per partition, in Hive's layout.

A file is written under another name beside the folder, so that no reader of the folder sees it, and renamed over the former one.
In a store of objects, which renames nothing, it is written in the home and sent under its final name, where it appears once complete.
"""

from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import duckdb
import pyarrow as pa

from batch_platform.delivery.sink import NESTED, Sink, Target
from batch_platform.sources.objects import ObjectPath, put_object, require_store
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
