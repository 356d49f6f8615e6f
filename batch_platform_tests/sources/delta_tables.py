"""A Delta table with odd columns and partitions."""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from deltalake import write_deltalake

ODD = 'p ü.`"=%'
SUMMER = datetime(2024, 7, 1, 12, 30, tzinfo=UTC)


def commit(table: Path, *actions: Mapping[str, Any]) -> None:
    """Write a commit as another writer would."""
    log = table / "_delta_log"
    text = "".join(f"{json.dumps(action)}\n" for action in actions)
    (log / f"{len([*log.glob('*.json')]):020}.json").write_text(text)


def added(
    table: Path, rows: pl.DataFrame, name: str, values: Mapping[str, str | None], **options: Any
) -> dict[str, Any]:
    """Write a file as another writer would; returns the action that adds it to a table."""
    pq.write_table(rows.to_arrow(), table / name, **options)
    size = (table / name).stat().st_size
    return {"add": {"path": name, "partitionValues": values, "size": size, "modificationTime": 0, "dataChange": True}}


def odd_table(table: Path) -> pl.DataFrame:
    """A table with partition columns of many types, a column that came later, and times as Spark writes them; returns its rows."""
    old = pl.DataFrame(
        {
            ODD: ["a b", "ü/%=+", None, "'; --", "a%20b"],
            "day": [date(2024, 1, 1), None, date(1583, 1, 1), date(2024, 1, 1), None],
            "n": pl.Series([-1, 2, None, 4, 5], dtype=pl.Int16),
            "at": [SUMMER, None, SUMMER + timedelta(microseconds=1), SUMMER, SUMMER],
            "price": pl.Series([Decimal("1.10"), None, Decimal("10.05"), None, Decimal(7)], dtype=pl.Decimal(9, 2)),
            "flag": [True, False, None, True, True],
            "id": [1, 2, 3, 4, 5],
            "file": [0.5, float("nan"), None, float("inf"), -0.0],
            "ts": [SUMMER + timedelta(days=day) for day in range(5)],
        }
    )
    write_deltalake(table, old.to_arrow(), partition_by=[ODD, "day", "n", "at", "price", "flag"])
    new = old.with_columns(id=pl.col("id") + 5, added=pl.lit("new"))
    write_deltalake(table, new.to_arrow(), mode="append", schema_mode="merge")
    values = dict.fromkeys((ODD, "day", "n", "at", "price", "flag"), None) | {ODD: "é", "n": "7"}
    by_spark = pl.DataFrame({"ts": [SUMMER, None], "id": [11, 12]})
    commit(table, added(table, by_spark, "by spark.parquet", values, use_deprecated_int96_timestamps=True))
    named = by_spark.with_columns(pl.lit("é").alias(ODD), n=pl.lit(7, pl.Int16))
    return pl.concat([old, new, named], how="diagonal").select([*old.columns, "added"]).sort("id")
