"""The rows that a pipeline rejected: how they are written, which there are, why, and how many of each kind.

Reads the published copy; changes nothing. Scoring them again is the work of `replay.py`.
"""

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
    """One input row that broke the contract, as it came."""

    partition: str
    key: dict[str, Any]
    column: str | None  # None where the score itself was none
    reason: str
    row: dict[str, Any]
    run_id: str


@dataclass(frozen=True)
class Rejections:
    """The rejected rows of some partitions."""

    pipeline: str
    rows: int  # in all, listed or not
    reasons: dict[str, int]  # rows by column and reason, the most frequent first
    listed: list[RejectedRow]  # by partition and key


def rows_as_json(rows: pl.DataFrame) -> pl.Series:
    """Each row as a JSON object, nothing of it lost: "NaN", "Infinity" and "-Infinity" as text, bytes in hexadecimal."""
    plain = rows.with_columns(cs.binary().bin.encode("hex"))
    encoded = plain.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    unknown = rows.select(cs.float() & ~cs.decimal()).select(pl.all().is_finite().not_().fill_null(value=False))
    if not unknown.width:
        return encoded
    odd = unknown.select(pl.any_horizontal(pl.all())).to_series().arg_true()
    if not odd.len():
        return encoded
    numbers = rows.select(unknown.columns)[odd].iter_rows(named=True)
    return encoded.scatter(
        odd, [_with_names_of_numbers(text, row) for text, row in zip(encoded.gather(odd), numbers, strict=True)]
    )


def rejections(pipeline: str, home: Home, *, partition_key: str | None = None, most: int | None = None) -> Rejections:
    """The rejected rows of one partition, or of all.

    Args:
        pipeline: Its name.
        home: Where its published copy lies.
        partition_key: Of one partition; None for all.
        most: How many are listed; None for all.
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


def _with_names_of_numbers(text: str, numbers: dict[str, float | None]) -> str:
    named = {
        name: _NAMES[str(value)] for name, value in numbers.items() if value is not None and not math.isfinite(value)
    }
    return json.dumps({**json.loads(text), **named}, ensure_ascii=False, separators=(",", ":"))


_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
