"""Sinks of kind `parquet` and `csv`: a folder with one file per partition, in Hive's layout.

A file is written under another name beside the folder, so that no reader of the folder sees it, and renamed over the former one.
"""

from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import duckdb
import pyarrow as pa

from batch_platform.delivery.sink import Sink, Target
from batch_platform.warehouse.checkpoint import sync
from batch_platform.warehouse.sql import connect, literal, quoted

CSV = ".csv"
# How DuckDB writes a file, by the ending of its name.
FORMATS = {
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
    CSV: "FORMAT csv, HEADER",
    ".json": "FORMAT json, ARRAY",
}
_NESTED = {"list", "array", "struct", "map"}  # types of DuckDB that CSV lacks


def flat(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """A query whose lists and structs are JSON, which CSV has no types for."""
    rows = con.sql(query)
    nested = [name for name, type_ in zip(rows.columns, rows.types, strict=True) if type_.id in _NESTED]
    replaced = ", ".join(f"to_json({quoted(name)}) AS {quoted(name)}" for name in nested)
    return f"SELECT * REPLACE ({replaced}) FROM ({query})" if nested else query


def file_of(target: Target, ending: str) -> Path:
    """The file with the rows of a partition."""
    return target.path / f"{target.column}={quote(target.partition_key)}" / f"{target.pipeline}{ending}"


def _replace(ending: str, target: Target, rows: pa.RecordBatchReader) -> None:
    root, file = target.path, file_of(target, ending)
    root.mkdir(parents=True, exist_ok=True)
    unfinished = f".{root.name}.{target.pipeline}.{quote(target.partition_key)}."
    for left_behind in [path for path in root.parent.iterdir() if path.name.startswith(unfinished)]:
        left_behind.unlink(missing_ok=True)
    aside = root.with_name(f"{unfinished}{uuid4().hex}")
    try:
        with connect() as con:
            con.execute("SET TimeZone = 'UTC'")
            con.register("delivered", rows)
            query = f"SELECT * EXCLUDE ({quoted(target.column)}) FROM delivered"  # the name of the folder holds it
            query = flat(con, query) if ending == CSV else query
            con.execute(f"COPY ({query}) TO {literal(str(aside))} ({FORMATS[ending]})")
        sync(aside)
        file.parent.mkdir(exist_ok=True)
        aside.replace(file)
        sync(file.parent)
        sync(root)
    finally:
        aside.unlink(missing_ok=True)


_ROOM = "make room, or let this user write into the folder and the one above it; the next run delivers it."
PARQUET = Sink(replace=partial(_replace, ".parquet"), hint=_ROOM)
CSV_FILES = Sink(replace=partial(_replace, CSV), hint=_ROOM)
