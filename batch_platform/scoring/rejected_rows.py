"""Rejected rows: how they are encoded, and the report on them, which reads the published copy."""

import json
import math
from dataclasses import dataclass
from typing import Any

import polars as pl
import polars.selectors as cs

from batch_platform.declaration.errors import NothingPublishedError
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import has_table, quoted

TABLE = "rejected_rows"


@dataclass(frozen=True)
class RejectedRow:
    """An input row that broke the contract, unchanged."""

    partition: str
    key: dict[str, Any]
    column: str | None  # None if the row was rejected for its score
    reason: str
    row: dict[str, Any]
    run_id: str


@dataclass(frozen=True)
class Rejections:
    """The rejected rows of some partitions."""

    pipeline: str
    rows: int  # all rejected rows, listed or not
    reasons: dict[str, int]  # number of rows by column and reason, the most frequent first
    listed: list[RejectedRow]  # ordered by partition and key


def rows_as_json(rows: pl.DataFrame) -> pl.Series:
    """Encode each row as a JSON object without loss: "NaN", "Infinity" and "-Infinity" as text, bytes in hexadecimal."""
    plain = rows.with_columns(cs.binary().bin.encode("hex"))
    encoded = plain.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    floats = rows.select(cs.float() & ~cs.decimal())
    if not floats.width:
        return encoded
    infinite = (
        floats.select(pl.any_horizontal(pl.all().is_finite().not_().fill_null(value=False))).to_series().arg_true()
    )
    texts: list[str] = []
    for text, row in zip(encoded.gather(infinite), floats[infinite].iter_rows(named=True), strict=True):
        named = {
            name: json.dumps(value) for name, value in row.items() if value is not None and not math.isfinite(value)
        }
        texts.append(json.dumps(json.loads(text) | named, ensure_ascii=False, separators=(",", ":")))
    return encoded.scatter(infinite, texts) if texts else encoded


def rejections(pipeline: str, home: Home, *, partition_key: str | None = None, most: int | None = None) -> Rejections:
    """Report the rejected rows of one partition, by default of all, and list at most so many."""
    nothing = Rejections(pipeline, 0, {}, [])
    try:
        con = open_published(home)
    except NothingPublishedError:
        return nothing
    rejected = f"FROM {quoted(pipeline)}.{TABLE} WHERE $key IS NULL OR partition_key = $key"
    counted = f"SELECT column_name, reason, count(*) AS n {rejected} GROUP BY ALL ORDER BY n DESC, column_name, reason"
    shown = "partition_key, key, column_name, reason, row, run_id"
    selected = f"SELECT {shown} {rejected} ORDER BY partition_key, key LIMIT $most"
    with con:
        if not has_table(con, pipeline, TABLE):
            return nothing
        counts = con.execute(counted, {"key": partition_key}).fetchall()
        rows = con.execute(selected, {"key": partition_key, "most": most}).fetchall()
    return Rejections(
        pipeline=pipeline,
        rows=sum(count for *_, count in counts),
        reasons={f"{column}: {reason}" if column else reason: count for column, reason, count in counts},
        listed=[
            RejectedRow(partition, json.loads(key), column, reason, json.loads(row), run_id)
            for partition, key, column, reason, row, run_id in rows
        ],
    )
