"""A pipeline of snapshots of customers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import small_events, small_pipeline

CUSTOMERS_SQL = "SELECT id, shop, amount, items, known FROM events"
LABELS_SQL = "SELECT id, shop, returned FROM events WHERE returned IS NOT NULL"
FILES = {"features_sql": CUSTOMERS_SQL, "labels_sql": LABELS_SQL}
SNAPSHOT: dict[str, Any] = {
    "partitions": {"start": "2026-01-05", "end": None, "snapshot": True},
    "features": {"time": None, "key": ["id", "shop"]},
    "labels": {"delay": None},
    "model": {"train": {"every": None, "window": None, "evaluate": None}},
    "predictions": {"keep": ["items"]},
}
WITHOUT_REFIT: dict[str, Any] = {**SNAPSHOT["model"], "refit": False}
MONDAY = datetime(2026, 1, 5, 12, tzinfo=UTC)


def customers(unknown: int = 400) -> pl.DataFrame:
    """Customers, of whom the last ones have no label yet."""
    events = small_events().drop("ts")
    known = pl.int_range(pl.len()) < events.height - unknown
    return events.with_columns(returned=pl.when(known).then(pl.col("returned")))


def snapshots(folder: Path, events: pl.DataFrame | None = None, **overrides: Any) -> Pipeline:
    return small_pipeline(folder, events=customers() if events is None else events, **FILES, **SNAPSHOT | overrides)


def days_later(days: int) -> datetime:
    return MONDAY + timedelta(days=days)
