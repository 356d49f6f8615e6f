"""Measures that have no section of their own in the report: what each says, and its numbers over the partitions."""

from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measures.interval_coverage import INTERVAL_COVERAGE
from batch_platform.reports.span import Span


@dataclass(frozen=True)
class SummedUp:
    """A number of a measure over the partitions of a span."""

    name: str
    newest: float
    lowest: float
    highest: float
    partitions: int


@dataclass(frozen=True)
class FurtherMeasure:
    """A measure and its numbers."""

    name: str
    description: str
    numbers: list[SummedUp]
    together: str = ""  # sentence on all partitions together


def read_further_measures(con: duckdb.DuckDBPyConnection, pipeline: str, span: Span) -> list[FurtherMeasure]:
    """Read the measures that have numbers and no section of their own, of the model that served; without rows they are left out."""
    further = list[FurtherMeasure]()
    for name, measure in MEASURES.items():
        if measure.has_section or measure.numbers is None or not measure.columns:
            continue
        values = dict[str, list[float]]()
        by_partition = measure.served_rows(con, pipeline, span.keys)
        for key in span.keys:
            if key in by_partition:
                for number, value in measure.numbers(by_partition[key]).items():
                    values.setdefault(number.removeprefix(f"{name}_"), []).append(value)
        if values:
            numbers = [SummedUp(number, of[-1], min(of), max(of), len(of)) for number, of in values.items()]
            together = _coverage(pl.concat(by_partition.values())) if name == INTERVAL_COVERAGE.name else ""
            further.append(FurtherMeasure(name, measure.description, numbers, together))
    return further


def _coverage(rows: pl.DataFrame) -> str:
    """Say how many outcomes lay inside their intervals, without partitions that a model has learned from."""
    rows = rows.filter(pl.col("segment_column").is_null(), ~pl.col("in_sample"))
    sums = (pl.sum("rows"), pl.sum("covered"), (pl.col("expected") * pl.col("rows")).sum())
    total, inside, promised = rows.select(*sums).row(0)
    if not total:
        return ""
    return f"{inside / total:.0%} of {total:,} outcomes lay inside; {promised / total:.0%} were promised."
