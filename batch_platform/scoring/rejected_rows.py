"""Rejected rows: how they are stored, and the report on them, which reads the published copy."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import polars as pl
import polars.selectors as cs
import pyarrow as pa

from batch_platform.declaration.errors import NothingPublishedError, shortened
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.contract import OFFENDER, REASON
from batch_platform.monitoring.measures.scored import REJECTED, rejected_because
from batch_platform.warehouse.failures import REFUSED_ROWS
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import has_table, quoted

SAMPLES = 3
COLUMNS = ("partition_key", "key", "reason", "column_name", "row", "run_id")  # all text


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
    refused: "Rejections | None" = None  # those that cost partitions their publication when they were last scored


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


def stored_rows(rejected: pl.DataFrame, spec: PipelineSpec, partition_key: str, run_id: str) -> pa.Table:
    """Rejected rows as the warehouse stores them, with the COLUMNS."""
    if not rejected.height:  # made by polars: Arrow would import pandas for it
        return pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String)).to_arrow()
    stored = rejected.select(
        pl.lit(partition_key).alias("partition_key"),
        rows_as_json(rejected.select(spec.features.key)).alias("key"),
        pl.col(REASON).alias("reason"),
        pl.col(OFFENDER).alias("column_name"),
        rows_as_json(rejected.drop(REASON, OFFENDER)).alias("row"),
        pl.lit(run_id).alias("run_id"),
    )
    return stored.to_arrow()


def reasons_of(rejected: pl.DataFrame) -> dict[str, int]:
    """Number of rejected rows by column and reason, the most frequent first."""
    if not rejected.height:
        return {}
    pairs = rejected.group_by(OFFENDER, REASON).len().sort("len", OFFENDER, REASON, descending=[True, False, False])
    return {f"{column}: {reason}" if column else reason: count for column, reason, count in pairs.iter_rows()}


def samples_of(rejected: pl.DataFrame, spec: PipelineSpec) -> tuple[str, ...]:
    """Keys of the first rejected rows, each with the value that is the reason."""
    key = spec.features.key
    samples: list[str] = []
    for at, row in enumerate(rejected.head(SAMPLES).select(*key, OFFENDER).iter_rows()):
        named = " ".join(f"{name}={shortened(value)}" for name, value in zip(key, row, strict=False))
        column = row[-1]
        value = rejected[column][at] if column else None
        shown = f"no {column}" if value is None else f"{column}={shortened(value)}"
        samples.append(f"{named} ({shown})" if column else named)
    return tuple(samples)


def rejections(
    pipeline: str, home: Home, *, partition_keys: Collection[str] | None = None, most: int | None = None
) -> Rejections:
    """Report the rejected rows of some partitions, by default of all, and list at most so many.

    Of the rows that cost a partition its publication only some are kept, and all are counted.
    """
    nothing = Rejections(pipeline, 0, {}, [])
    try:
        con = open_published(home)
    except NothingPublishedError:
        return nothing
    with con:
        published = _read(con, pipeline, REJECTED, "count(*)", partition_keys, most) or nothing
        refused = _read(con, pipeline, REFUSED_ROWS, "any_value(rows_alike)", partition_keys, most)
    return replace(published, refused=refused)


def _read(  # noqa: PLR0913 - what is read, and how much of it
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    table: str,
    count: str,
    partition_keys: Collection[str] | None,
    most: int | None,
) -> Rejections | None:
    """The rejected rows in a table; None if there are none. `count` gives the number of rows of one partition and reason."""
    if not has_table(con, pipeline, table):
        return None
    rejected = f"FROM {quoted(pipeline)}.{table} WHERE $keys IS NULL OR partition_key IN $keys"
    by_partition = f"SELECT partition_key, column_name, reason, {count} AS n {rejected} GROUP BY ALL"
    counted = f"SELECT column_name, reason, sum(n) AS n FROM ({by_partition}) GROUP BY ALL ORDER BY n DESC, column_name, reason"
    shown = "partition_key, key, column_name, reason, row, run_id"
    selected = f"SELECT {shown} {rejected} ORDER BY partition_key, key LIMIT $most"
    keys = None if partition_keys is None else list(partition_keys)
    counts = con.execute(counted, {"keys": keys}).fetchall()
    rows = con.execute(selected, {"keys": keys, "most": most}).fetchall()
    if not counts:
        return None
    return Rejections(
        pipeline=pipeline,
        rows=sum(int(count) for *_, count in counts),
        reasons={rejected_because(column, reason): int(count) for column, reason, count in counts},
        listed=[
            RejectedRow(partition, json.loads(key), column, reason, json.loads(row), run_id)
            for partition, key, column, reason, row, run_id in rows
        ],
    )
