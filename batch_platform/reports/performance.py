"""Performance in the report: the metrics of a span, of each partition and of each segment, and what was expected without labels.

Thin partitions are measured together. The rates of binary decisions of segments are those that fairness compares.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, hypot, inf, log
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np
import polars as pl

from batch_platform.declaration.predictions import Decide
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.divergence import UNUSUAL
from batch_platform.monitoring.measures.drift import OF_SEGMENTS
from batch_platform.monitoring.measures.estimates import (
    EstimatedMetric,
    TrackRecord,
    estimated_metric,
    read_estimates,
    track_records,
)
from batch_platform.monitoring.measures.performance import OUTCOMES, PERFORMANCE
from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import BINARY, Outcomes, UnitRule, Weighted, over_all_rows, total
from batch_platform.monitoring.pooled import measured_partitions, pooled_performance
from batch_platform.monitoring.resampling import LEAST_UNITS, LEVEL, wilson
from batch_platform.reports.span import Span, score_column
from batch_platform.reports.wording import GUESSING, SELF_EXPLANATORY
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


_FUNCTION = re.compile(r" \(`[^)]*`\)")  # a library's function that gives the metric too
LEAST_OF_A_CLASS = 30  # rows; partitions with fewer count together with their neighbours


def _score_bias(outcomes: Outcomes) -> Weighted:
    """Mean score minus the share of positives: above 0, scores are too high."""
    positive, score = outcomes.positive_and_score
    return lambda weights: weights @ (score - positive) / total(weights)


SCORE_BIAS = Metric("bias", BINARY, lambda rows: over_all_rows(_score_bias, rows), weighted=_score_bias, signed=True)
UNMEASURED: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("metric", "challenger", "model_version", "segment_column", "segment"), pl.String),
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("rows", "positives", "partitions"), pl.Int64),
}

_NUMBERS = {**dict.fromkeys(("value", "low", "high"), pl.Float64), **dict.fromkeys(("rows", "positives"), pl.Int64)}


def measured(  # noqa: PLR0913 - the span, and what is measured of it
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, span: Span, metric: str, own: Sequence[Metric], *, whole: bool
) -> pl.DataFrame:
    """The metrics of a span, of all models together and of each challenger.

    For the `whole` window, this is every metric, and the metrics of each segment that are shown; for another span, only `metric`.
    """
    if not has_table(con, spec.name, OUTCOMES):
        return pl.DataFrame(schema=UNMEASURED)
    return pooled_performance(
        con,
        spec.name,
        span.keys[0],
        span.keys[-1],
        partitions=span.keys,
        by=spec.monitoring.segments if whole else (),
        metrics=own,
        only=None if whole else {metric},
        of_segments={metric, *RATES},
        by_version=False,
        unit=UnitRule.of(spec),
    )


def measured_keys(con: duckdb.DuckDBPyConnection, spec: PipelineSpec, span: Span) -> list[str]:
    """The partitions of a span that were measured on rows that their model had not learned from."""
    return [key for key in measured_partitions(con, spec.name, span.keys[0], span.keys[-1]) if key in span.keys]


def row_of(pooled: pl.DataFrame, metric: str) -> Mapping[str, float] | None:
    """The row of a metric of all models that served together."""
    together = pl.all_horizontal(pl.col("challenger", "segment_column", "model_version").is_null())
    rows = pooled.filter(together, pl.col("metric") == metric)
    return rows.row(0, named=True) if rows.height else None


def thin_together(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, metric: str, span: Span
) -> list[list[dict[str, Any]]]:
    """The measured partitions of a span, each with a metric; neighbours with too few rows of a class are together, until they have enough."""
    if not has_table(con, spec.name, "performance"):
        return []
    query = f"""
        SELECT partition_key, {", ".join(_NUMBERS)} FROM {quoted(spec.name)}.performance
        WHERE metric = $metric AND challenger IS NULL AND NOT in_sample AND partition_key IN $keys ORDER BY partition_key
    """
    rows = con.sql(query, params={"metric": metric, "keys": span.keys}).pl().rows(named=True)
    together = list[list[dict[str, Any]]]()
    pooled = has_table(con, spec.name, OUTCOMES)
    for row in rows:
        if pooled and together and _few(together[-1]):
            together[-1].append(row)
        else:
            together.append([row])
    if pooled and len(together) > 1 and _few(together[-1]):
        rest = together.pop()
        together[-1] += rest
    return together


def performance_by_partition(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, metric: str, span: Span, own: Sequence[Metric]
) -> pl.DataFrame:
    """The metric of each partition; thin neighbours are measured together."""
    runs, values = {run.partition_key: run for run in span.runs}, list[dict[str, Any]]()
    for members in thin_together(con, spec, metric, span):
        part, row = Span(tuple(runs[row["partition_key"]] for row in members)), members[0]
        if len(members) > 1:
            row = row_of(measured(con, spec, part, metric, own, whole=False), metric)
        if row is not None:
            number_of = {name: row[name] for name in _NUMBERS}
            values.append({"keys": part.words, "partition_key": part.keys[len(members) // 2], **number_of})
    return pl.DataFrame(values, schema={"keys": pl.String, "partition_key": pl.String, **_NUMBERS})


def _few(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether partitions have too few rows together, or of a class, or are more than one and too few for an interval."""
    total, positives = (sum(row[name] or 0 for row in rows) for name in ("rows", "positives"))
    known = any(row["positives"] is not None for row in rows)
    return 1 < len(rows) < LEAST_UNITS or (min(positives, total - positives) if known else total) < LEAST_OF_A_CLASS


def is_vague(row: Mapping[str, Any], metric: Metric | None) -> bool:
    """Return whether a metric is of too few rows to sum anything up: few of a class, or as far from guessing as its interval is wide."""
    judged = metric is not None and row["low"] is not None and not (metric.signed or metric.neutral)
    return _few([row]) or (judged and abs(row["value"] - GUESSING.get(row["metric"], 0)) < row["high"] - row["low"])


def missed(spec: PipelineSpec, performance: pl.DataFrame, metric: str, task: str) -> list[str]:
    """List the partitions whose metric is worse than monitoring.performance allows, by more than chance."""
    check = PERFORMANCE.check(spec)
    if check is None:
        return []
    has_interval = pl.col("low").is_not_null()  # where a metric has intervals, a value without one tells nothing
    rows = performance.filter(has_interval | ~has_interval.any()).with_columns(metric=pl.lit(metric), in_sample=False)
    judged = {str(keys): check.judge(row, task) for (keys,), row in rows.group_by("keys", maintain_order=True)}
    return [key for key, judgement in judged.items() if judgement is not None and judgement.level != "none"]


def no_better_than_guessing(performance: pl.DataFrame, metric: str) -> list[str]:
    """List the partitions whose metric is not above what a model without features has."""
    return performance.filter(pl.col("value") <= GUESSING.get(metric, -inf))["keys"].to_list()


def shown_of(pooled: pl.DataFrame, metric: str, rule: Decide | None) -> pl.DataFrame:
    """The metrics of all models that served together, without those that mislead and do not judge the model.

    They are an error relative to a target that may be 0, and the accuracy of the most probable class beside a rule that decides
    otherwise. A share that the rule sets has no interval.
    """
    dropped = {"mape", *(["accuracy"] if rule else [])} - {metric}
    rows = pooled.filter(
        pl.all_horizontal(pl.col("challenger", "segment_column", "model_version").is_null()),
        ~pl.col("metric").is_in(dropped),
    )
    fixed = (pl.col("metric") == "selection_rate") & (rule is not None and rule.top is not None)
    return rows.with_columns(pl.when(~fixed).then(end).alias(end) for end in ("low", "high"))


def definitions_of(shown: set[str], own: Sequence[Metric]) -> dict[str, str]:
    """Return the first paragraph of the docstring of each metric that the report shows and whose name does not define it."""
    known = {**METRICS} | {metric.name: metric for metric in own}
    texts = {name: known[name].value.__doc__ or "" for name in sorted(shown & {*known} - SELF_EXPLANATORY)}
    first = {name: _FUNCTION.sub("", text.strip().split("\n\n")[0]) for name, text in texts.items()}
    return {name: " ".join(text.replace("`", "").split()) for name, text in first.items() if text}


MOST_UNMEASURED = 7  # newest partitions that are listed


@dataclass(frozen=True)
class EstimateFigures:
    """The expected values of one metric."""

    metric: str
    partitions: tuple[EstimatedMetric, ...]  # estimates in order of time
    measured: tuple[tuple[str, ...], ...]  # keys of the measured partitions, those of thin neighbours together
    record: TrackRecord | None  # record over every estimate of the metric; None before one came true

    @property
    def falls_short(self) -> bool:
        """True if the intervals held fewer observed values than LEVEL promises, by more than chance."""
        record = self.record
        return record is not None and wilson(record.within, record.partitions).high < LEVEL

    @property
    def drawn(self) -> list[EstimatedMetric]:
        """The estimates with what came true, those of thin neighbours as one; and those that are not measured."""
        realised = {row.partition_key: row for row in self.partitions if row.realised is not None}
        together = [[realised[key] for key in keys if key in realised] for keys in self.measured]
        return [row for row in self.partitions if row.realised is None] + [_as_one(rows) for rows in together if rows]

    @property
    def unmeasured(self) -> tuple[EstimatedMetric, ...]:
        """The newest partitions that were not measured, in order of time."""
        return tuple(row for row in self.partitions if row.realised is None)[-MOST_UNMEASURED:]


def _as_one(rows: Sequence[EstimatedMetric]) -> EstimatedMetric:
    """The mean of some partitions by their rows, at the middle one; the interval is as wide as theirs, which share some of their error."""
    shares = np.array([row.rows for row in rows]) / sum(row.rows for row in rows)
    numbers = [(row.estimate, row.low, row.high, row.realised) for row in rows]
    estimate, low, high, realised = (shares @ np.array(numbers, dtype=np.float64)).tolist()
    return replace(rows[len(rows) // 2], estimate=estimate, low=low, high=high, realised=realised)


def read_estimate_figures(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, judged_by: str, span: Span, doubtful: Collection[str]
) -> EstimateFigures | None:
    """Read the estimates of the metric that a model is judged by, or of the one that stands in for it.

    Partitions that a model has learned from are left out, and those that are `doubtful` out of the record. None where nothing was estimated.
    """
    keys = [run.partition_key for run in span.runs if not run.in_sample]
    pipeline, by_partition = spec.name, read_estimates(con, spec.name, keys)
    rows = [row for key in keys for row in by_partition.get(key, ())]
    metric = estimated_metric(judged_by, {row.metric for row in rows})
    if metric is None:
        return None
    partitions = tuple(row for row in rows if row.metric == metric)
    return EstimateFigures(
        metric,
        partitions,
        tuple(tuple(row["partition_key"] for row in rows) for rows in thin_together(con, spec, metric, span)),
        track_records(con, pipeline, doubtful).get(metric),
    )
