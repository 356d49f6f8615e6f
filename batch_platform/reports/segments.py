"""Segments in the report: volume, score, performance, shift of scores, and the rates of binary decisions that fairness compares."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.drift import SURPRISE, divergences
from batch_platform.monitoring.measures.drift import OF_SEGMENTS
from batch_platform.monitoring.profiles import Bins, Profile
from batch_platform.reports.span import Span, score_column
from batch_platform.warehouse.sql import has_table, quoted

CELLS = 10  # cells of about equal frequency in which scores are compared
_FINE = 200  # cells of equal width that are joined to those
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


def read_segments(  # noqa: PLR0913 - what is scored, how it is measured, and what it is compared with
    con: duckdb.DuckDBPyConnection,
    spec: PipelineSpec,
    metric: str,
    window: Span,
    pooled: pl.DataFrame,
    spans: Sequence[Span],
) -> pl.DataFrame:
    """Read the volume, the performance and the shift of scores of each segment of a window; segments with most rows first.

    `spans` are the newest span and the one before it, if there is one: `shift` is the population stability index of the
    scores between both, beyond chance, and null where the difference may be chance. `level` is the worst level of drift that
    the predictions of a segment reached in a partition of the window, and null where none was judged.
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
        shifts = score_shifts(con, spec.name, column, spans)
        for judged in (shifts, drift_levels(con, spec.name, column, window)):
            rows = rows.join(judged, on="segment", how="left", nulls_equal=True)
        frames.append(rows)
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


def score_shifts(con: duckdb.DuckDBPyConnection, pipeline: str, column: str, spans: Sequence[Span]) -> pl.DataFrame:
    """Measure how far the scores of each segment moved from the second of two spans to the first: segment, shift.

    Scores are counted by the database, in cells that hold about a tenth of all rows of both spans.
    """
    score = score_column(con, pipeline)
    schema = {"segment": pl.String, "shift": pl.Float64}
    if len(spans) < 2:  # noqa: PLR2004 - nothing to compare with
        return pl.DataFrame(schema=schema)
    later, earlier = spans[0].keys, spans[1].keys
    table, values = f"{quoted(pipeline)}.predictions", {"both": [*earlier, *later], "later": later}
    if score is None:
        cell = "prediction::VARCHAR"
    else:
        ends = f"(SELECT min({quoted(score)}) AS __low, max({quoted(score)}) AS __high FROM {table} WHERE partition_key IN $both)"
        table = f"{table}, {ends}"
        place = f"floor(({quoted(score)} - __low) / nullif(__high - __low, 0) * {_FINE})"
        cell = f"coalesce(least({place}, {_FINE - 1}), 0)::INTEGER"
    query = f"""
        SELECT {quoted(column)}::VARCHAR AS segment, partition_key IN $later AS is_later, {cell} AS cell, count(*) AS rows
        FROM {table} WHERE partition_key IN $both GROUP BY ALL ORDER BY ALL
    """
    counts: dict[str | None, dict[object, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    totals: dict[object, int] = defaultdict(int)
    for segment, is_later, at, rows in con.execute(query, values).fetchall():
        counts[segment][at][is_later] += rows
        totals[at] += rows
    names = _coarse(totals)
    pairs = [(_profile(of_segment, names, 1), _profile(of_segment, names, 0)) for of_segment in counts.values()]
    shifts = [
        None if shift is None or shift.p_value >= SURPRISE else shift.beyond_chance for shift in divergences(pairs)
    ]
    return pl.DataFrame({"segment": list(counts), "shift": shifts}, schema=schema)


def drift_levels(con: duckdb.DuckDBPyConnection, pipeline: str, column: str, window: Span) -> pl.DataFrame:
    """The worst level of drift of each segment: segment, level."""
    if not has_table(con, pipeline, OF_SEGMENTS):
        return pl.DataFrame(schema={"segment": pl.String, "level": pl.String})
    query = f"""
        SELECT segment, coalesce(max(level) FILTER (level = 'fail'), max(level) FILTER (level = 'warn'), max(level)) AS level
        FROM {quoted(pipeline)}.{OF_SEGMENTS} WHERE segment_column = $column AND partition_key IN $keys GROUP BY ALL
    """
    return con.sql(query, params={"column": column, "keys": window.keys}).pl()


def _coarse(totals: Mapping[object, int]) -> dict[object, str]:
    """The coarse cell of each fine one: neighbours are joined until they hold a tenth of all rows; classes stay as they are."""
    share, names, held, at = sum(totals.values()) / CELLS, dict[object, str](), 0, 0
    for cell in sorted(totals, key=lambda cell: (isinstance(cell, str), cell)):
        names[cell] = str(cell) if isinstance(cell, str) else str(at)
        held += totals[cell]
        if held >= share * (at + 1):
            at += 1
    return names


def _profile(counts: Mapping[object, Sequence[int]], names: Mapping[object, str], at: int) -> Profile:
    """The scores of one segment in one span, counted in coarse cells."""
    cells = dict.fromkeys(names.values(), 0)
    for cell, rows in counts.items():
        cells[names[cell]] += rows[at]
    bins = Bins(categories=tuple(cells))
    return Profile("score", "prediction", bins, rows=sum(cells.values()), histogram=(*cells.values(), 0))
