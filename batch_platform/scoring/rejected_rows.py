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
_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


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
    texts = [
        json.dumps(json.loads(text) | _named(numbers), ensure_ascii=False, separators=(",", ":"))
        for text, numbers in zip(encoded.gather(infinite), floats[infinite].iter_rows(named=True), strict=True)
    ]
    return encoded.scatter(infinite, texts) if texts else encoded


def _named(numbers: dict[str, float | None]) -> dict[str, str]:
    """The numbers that JSON does not have, by name."""
    return {
        name: _NAMES[str(value)] for name, value in numbers.items() if value is not None and not math.isfinite(value)
    }


def rejections(pipeline: str, home: Home, *, partition_key: str | None = None, most: int | None = None) -> Rejections:
    """Report the rejected rows of one partition, or of all partitions.

    Args:
        pipeline: Name of the pipeline.
        home: Home with the published copy.
        partition_key: Key of the partition; None for all partitions.
        most: Maximum number of rows to list; None for no limit.
    """
    nothing = Rejections(pipeline, 0, {}, [])
    try:
        con = open_published(home)
    except NothingPublishedError:
        return nothing
    where = "" if partition_key is None else "WHERE partition_key = $key"
    values = {} if partition_key is None else {"key": partition_key}
    table = f"{quoted(pipeline)}.{TABLE}"
    with con:
        if not has_table(con, pipeline, TABLE):
            return nothing
        counts = con.execute(
            f"SELECT column_name, reason, count(*) AS n FROM {table} {where} GROUP BY ALL ORDER BY n DESC, column_name, reason",
            values,
        ).fetchall()
        rows = con.execute(
            f"SELECT partition_key, key, column_name, reason, row, run_id FROM {table} {where} "
            f"ORDER BY partition_key, key {'' if most is None else f'LIMIT {most:d}'}",
            values,
        ).fetchall()
    return Rejections(
        pipeline=pipeline,
        rows=sum(count for *_, count in counts),
        reasons={f"{column}: {reason}" if column else reason: count for column, reason, count in counts},
        listed=[
            RejectedRow(partition, json.loads(key), column, reason, json.loads(row), run_id)
            for partition, key, column, reason, row, run_id in rows
        ],
    )
