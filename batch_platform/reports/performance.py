"""Performance in the report: the metrics of a span and of each partition; thin partitions are measured together."""

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.deciding import Decide
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measures.performance import OUTCOMES, PERFORMANCE
from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import BINARY, Outcomes, UnitRule, Weighted, over_all_rows, total
from batch_platform.monitoring.pooled import measured_partitions, pooled_performance
from batch_platform.monitoring.resampling import LEAST_UNITS
from batch_platform.reports.segments import RATES
from batch_platform.reports.span import Span
from batch_platform.reports.wording import GUESSING, SELF_EXPLANATORY
from batch_platform.warehouse.sql import has_table, quoted

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
    known = METRICS | {metric.name: metric for metric in own}
    texts = {name: known[name].value.__doc__ or "" for name in sorted(shown & {*known} - SELF_EXPLANATORY)}
    first = {name: _FUNCTION.sub("", text.strip().split("\n\n")[0]) for name, text in texts.items()}
    return {name: " ".join(text.replace("`", "").split()) for name, text in first.items() if text}
