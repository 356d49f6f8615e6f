"""Segments in the report: volume, score, performance, drift, and the rates of binary decisions that fairness compares."""

from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.drift import UNUSUAL
from batch_platform.monitoring.measures.drift import OF_SEGMENTS
from batch_platform.reports.span import Span, score_column
from batch_platform.warehouse.sql import has_table, quoted

LEAST_ROWS = 100  # fewer measured rows keep a segment out of the comparison
RATES = {
    "selection_rate": "selection rate",
    "recall": "true positive rate",
    "false_positive_rate": "false positive rate",
}


@dataclass(frozen=True)
class Gap:
    """A rate of binary decisions in the segment where it is lowest, and where it is highest."""

    column: str
    rate: str  # common name
    lowest: str | None  # segment with the lowest rate
    highest: str | None  # segment with the highest rate
    low: float
    high: float
    segments: int  # number of compared segments

    @property
    def ratio(self) -> float | None:
        """The lowest rate as a part of the highest; below 0.8 it is adverse impact by the four-fifths rule."""
        return self.low / self.high if self.high else None


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
            of_rate = measured.filter(pl.col("metric") == rate).select("segment", pl.col("value").alias(rate))
            rows = rows.join(of_rate, on="segment", how="left", nulls_equal=True)
            compared = pl.col(rate).filter(pl.col("rows") >= LEAST_ROWS)
            rows = rows.with_columns((pl.col(rate) / compared.max()).alias(f"{rate}_ratio"))
        drift = segment_drift(con, spec.name, column, window)
        frames.append(rows.join(drift, on="segment", how="left", nulls_equal=True))
    return pl.concat(frames) if frames else pl.DataFrame()


def gaps_of(segments: pl.DataFrame) -> list[Gap]:
    """Compare the rates of binary decisions between the segments of a column that have enough measured rows."""
    if not segments.height:
        return []
    gaps: list[Gap] = []
    for (column,), rows in segments.group_by("segment_column", maintain_order=True):
        for name, words in RATES.items():
            rates = rows.filter(pl.col("rows") >= LEAST_ROWS, pl.col(name).is_not_null()).sort(name)
            if rates.height > 1:
                (lowest, low), (highest, high) = (rates.select("segment", name).row(at) for at in (0, -1))
                gaps.append(Gap(str(column), words, lowest, highest, low, high, rates.height))
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
