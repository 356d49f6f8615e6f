"""Rows to deliver, and what a receiver holds afterwards."""

from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline import deliver
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.delivery.receivers import KEY

NOW = datetime(2024, 2, 4, tzinfo=UTC)
STAMP = Stamp("delivering", NOW)
KEYS = ["2024-02-01", "2024-02-02", "2024-02-03"]


def deliver_keys(pipeline: Pipeline, *keys: str) -> None:
    (delivery,) = pipeline.spec.predictions.deliver
    partitions = [pipeline.spec.partitions.calendar.named(key) for key in keys]
    list(deliver.deliver(pipeline, delivery, partitions, STAMP))


OLD = pl.DataFrame({"x": [1.0, 2.0, 3.0], "text": ["a", None, "ü 'x' \"y\", متجر"]})
NEW = pl.DataFrame({"x": [7.0], "text": ["b"]})
ODD = pl.DataFrame(
    {
        "text": ["ü", None, "", ' "a", b\n\t\\', "'; DROP TABLE rows; --"],
        "whole": pl.Series([1, None, -(2**63), 2**63 - 1, 0], dtype=pl.Int64),
        "byte": pl.Series([0, 255, None, 1, 2], dtype=pl.UInt8),
        "long": pl.Series([0, 2**64 - 1, None, 1, 2], dtype=pl.UInt64),
        "number": [0.1, None, float("inf"), -1e300, 1e-300],
        "money": pl.Series([Decimal("1.10"), None, Decimal("-0.01"), Decimal("99999.99"), Decimal(0)], dtype=pl.Decimal(10, 2)),
        "at": pl.Series([datetime(2026, 1, 1, 0, 30, 0, 123456, UTC), None, datetime(1969, 1, 1, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)], dtype=pl.Datetime("us", "UTC")),
        "local": [datetime.fromisoformat(text) if text else None for text in ("2026-01-01T00:30", "", "1969-01-01", "2026-03-29T02:30", "2026-07-01")],
        "day": [date(2026, 1, 1), None, date(1969, 1, 1), date(2026, 3, 29), date(9999, 12, 31)],
        "flag": [True, None, False, True, False],
        "reasons": [[{"column": "ü", "value": 1.5}], [], None, [{"column": "x", "value": None}], [{"column": "y", "value": 0.0}]],
    }
)  # fmt: skip


def as_text(rows: pl.DataFrame) -> list[tuple[object, ...]]:
    return sorted(map(tuple, rows.select(pl.all().map_elements(str, return_dtype=pl.String)).rows()), key=str)


def holds(rows: pl.DataFrame, key: str = KEY) -> list[tuple[object, ...]]:
    """The rows as `delivered` shows them of one partition."""
    return as_text(
        rows.with_columns(pl.lit(key).alias("partition_key")).select(sorted([*rows.columns, "partition_key"]))
    )


def shown(rows: pl.DataFrame) -> list[tuple[object, ...]]:
    return as_text(rows.select(sorted(rows.columns)))
