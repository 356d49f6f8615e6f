"""Declared sources, read alone: without the source of the small pipeline."""

from pathlib import Path
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.sources.opening import Sources
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import small_spec

CALENDAR = small_spec().partitions.calendar
FIRST, SECOND = (CALENDAR.named(key) for key in ("2024-01-01", "2024-01-02"))


def sources_in(folder: Path, **declared: dict[str, Any]) -> Sources:
    """Sources by name, with paths that start in a folder; the home lies beside it."""
    return Sources(small_spec(sources={"events": None, **declared}), folder, Home(folder.with_name("home")))


def rows(of: Sources, sql: str = "FROM a ORDER BY ALL", partition: Partition = FIRST) -> list[tuple[Any, ...]]:
    """The rows that SQL reads."""
    with of.connect(partition) as con:
        return con.duckdb.execute(sql).fetchall()
