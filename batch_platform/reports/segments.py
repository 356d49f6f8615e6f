"""Segments in the report: volume, score, performance, drift, and the rates of binary decisions that fairness compares."""

from dataclasses import dataclass
from math import exp, hypot, log
from statistics import NormalDist

import duckdb
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import UNUSUAL
from batch_platform.monitoring.measures.drift import OF_SEGMENTS
from batch_platform.reports.span import Span, score_column
from batch_platform.warehouse.sql import has_table, quoted

LEAST_POSITIVES = 100  # fewer positives, or fewer negatives, keep a segment out of the comparison
FOUR_FIFTHS = 0.8
RATES = {
    "selection_rate": "share chosen",
    "recall": "share found",
    "false_positive_rate": "share chosen in error",
}


@dataclass(frozen=True)
class Gap:
    """A rate of binary decisions in a segment that is clearly less than four fifths, or more than five fourths, of another one's."""

    column: str
    rate: str  # common name
    segment: str | None
    beside: str | None  # the segment of the column with most rows
    ratio: float
    low: float  # ends of the interval of the ratio, wide enough for all segments together
    high: float


def read_segments(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, metric: str, window: Span, pooled: pl.DataFrame
) -> pl.DataFrame:
    """Read the volume, the performance and the drift of each segment of a window; segments with most rows first.

    `moved` is the greatest distance of the predictions of a segment from the training data in a partition of the window, beyond what
    is usual, and `level` the worst level that they reached; null where none was measured, or judged.
    """
    score = score_column(con, spec.name)
    mean = "NULL" if score is None else f"avg({quoted(score)})"
    served = pl.all_horizontal(pl.col("challenger", "model_version").is_null())
    frames: list[pl.DataFrame] = []
    for column in spec.monitoring.segments:
        query = f"""
            SELECT $column AS segment_column, {quoted(column)}::VARCHAR AS segment, count(*) AS scored, {mean}::DOUBLE AS mean_score
            FROM {quoted(spec.name)}.predictions WHERE partition_key IN $keys GROUP BY ALL ORDER BY scored DESC, segment
        """
        rows = con.sql(query, params={"column": column, "keys": window.keys}).pl()
        measured = pooled.filter(served, pl.col("segment_column") == column)
        of_metric = measured.filter(pl.col("metric") == metric)
        values = of_metric.select("segment", "value", "low", "high", "rows", "positives")
        rows = rows.join(values, on="segment", how="left", nulls_equal=True)
        for rate in RATES:
            names = [
                pl.col(name).alias(f"{rate}{end}") for name, end in (("value", ""), ("low", "_low"), ("high", "_high"))
            ]
            of_rate = measured.filter(pl.col("metric") == rate).select("segment", *names)
            rows = rows.join(of_rate, on="segment", how="left", nulls_equal=True)
        drift = segment_drift(con, spec.name, column, window)
        frames.append(rows.join(drift, on="segment", how="left", nulls_equal=True))
    return pl.concat(frames) if frames else pl.DataFrame()


def comparable(segments: pl.DataFrame) -> pl.DataFrame:
    """The segments with enough measured rows of both classes, most rows first; of one alone there is nothing to compare."""
    if not segments.height:
        return segments
    least = pl.min_horizontal(pl.col("positives"), pl.col("rows") - pl.col("positives")) >= LEAST_POSITIVES
    known = segments.filter(least, *(pl.col(rate).is_not_null() for rate in RATES))
    return known.filter(pl.len().over("segment_column") > 1)


def ordered(rows: pl.DataFrame) -> list[dict[str, object]]:
    """The rows of segments, those with dates or numbers for names in their order, others as they are."""
    numeric = all(str(name)[:1].isdigit() for name in rows["segment"])
    return (rows.sort("segment") if numeric else rows).rows(named=True)


def gaps_of(segments: pl.DataFrame) -> list[Gap]:
    """Hold the rates of comparable segments against those of the largest one, by column.

    The interval of a ratio is recovered from those of both rates (Donner and Zou, Closed-form confidence intervals for functions
    of the normal mean and standard deviation, 2012), on the scale of its logarithm, and is wider the more segments are compared
    (Bonferroni).
    """
    gaps: list[Gap] = []
    if not segments.height:
        return gaps
    for (column,), rows in comparable(segments).group_by("segment_column", maintain_order=True):
        largest, *others = rows.iter_rows(named=True)
        normal = NormalDist()
        wider = normal.inv_cdf(1 - 0.025 / len(others)) / normal.inv_cdf(0.975)
        for name, text in RATES.items():
            for other in others:
                ends = [row[f"{name}{end}"] for row in (other, largest) for end in ("", "_low", "_high")]
                if not all(ends):  # a rate of 0, or without an interval
                    continue
                rate, low, high, base, base_low, base_high = map(log, ends)
                below, above = wider * hypot(rate - low, base_high - base), wider * hypot(high - rate, base - base_low)
                ratio, low, high = (exp(rate - base + reach) for reach in (0.0, -below, above))
                if high < FOUR_FIFTHS or low > 1 / FOUR_FIFTHS:
                    gaps.append(Gap(str(column), text, other["segment"], largest["segment"], ratio, low, high))
    return gaps


def segment_drift(con: duckdb.DuckDBPyConnection, pipeline: str, column: str, window: Span) -> pl.DataFrame:
    """The drift of each segment in the partition where its predictions moved most, and its worst level: segment, moved, level."""
    if not has_table(con, pipeline, OF_SEGMENTS):
        return pl.DataFrame(schema={"segment": pl.String, "moved": pl.Float64, "level": pl.String})
    query = f"""
        SELECT segment, max(greatest(0, {UNUSUAL})) AS moved,
            coalesce(max(level) FILTER (level = 'fail'), max(level) FILTER (level = 'warn'), max(level)) AS level
        FROM {quoted(pipeline)}.{OF_SEGMENTS} WHERE segment_column = $column AND partition_key IN $keys GROUP BY ALL
    """
    return con.sql(query, params={"column": column, "keys": window.keys}).pl()
