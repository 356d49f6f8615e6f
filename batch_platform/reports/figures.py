"""The numbers of the report, all read from the published copy; the same copy gives the same numbers."""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from math import hypot
from statistics import median_low
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.operating import ReportEvery
from batch_platform.declaration.spec import DECISION, PipelineSpec
from batch_platform.models.registry import Registry, read_registry
from batch_platform.monitoring.catalogue import FailedCheck, read_failed_checks
from batch_platform.monitoring.measures.performance import OUTCOME_WEIGHT, OUTCOMES
from batch_platform.monitoring.measures.scored import ScoreDistribution, committed_distributions
from batch_platform.monitoring.metrics import METRICS, default_metric, lower_is_better, own_metrics
from batch_platform.monitoring.outcomes import CLASSIFICATION, CONFIDENCE, UNSUPERVISED, UnitRule, class_texts
from batch_platform.reports.drift import DriftFigures, read_drift_figures
from batch_platform.reports.issues import (
    Doubtful,
    OpenIssue,
    open_issues,
    read_doubtful,
    rejections,
    unusual_counts,
)
from batch_platform.reports.measures import FurtherMeasure, GroupFigures, read_further_measures, read_groups
from batch_platform.reports.performance import (
    LEAST_OF_A_CLASS,
    SCORE_BIAS,
    EstimateFigures,
    Gap,
    definitions_of,
    gaps_of,
    is_vague,
    measured,
    measured_keys,
    missed,
    no_better_than_guessing,
    performance_by_partition,
    read_estimate_figures,
    read_segments,
    row_of,
    shown_of,
)
from batch_platform.reports.span import Span, score_column
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, ScoreRun, read_latest
from batch_platform.warehouse.sql import has_table, quoted, table_columns

if TYPE_CHECKING:
    from batch_platform.pipeline.status import PipelineStatus

MOST_PARTITIONS = 366  # the newest ones are reported where no window is named
LONG = {"month": timedelta(days=59), "week": timedelta(days=14)}  # longer windows are summed up by the newest one
BINS = 10  # groups of rows with similar scores


@dataclass(frozen=True)
class Headline:
    """One number that sums up a span, and the same number of the span before."""

    label: str
    value: float
    before: float | None
    form: str = ".3g"  # Python's format for numbers below 1000 that are no counts
    low: float | None = None  # ends of the 95% interval
    high: float | None = None
    before_low: float | None = None
    before_high: float | None = None
    lower_is_better: bool | None = None  # None: neither direction is better

    @property
    def verdict(self) -> str:
        """The word better or worse, compared with the span before, where the interval of the difference says so; otherwise empty.

        That interval is recovered from those of both values (Zou and Donner, Construction of confidence limits about effect
        measures, 2008).
        """
        ends = (self.before, self.low, self.high, self.before_low, self.before_high)
        if self.lower_is_better is None or None in ends:
            return ""
        before, low, high, before_low, before_high = (float(end) for end in ends if end is not None)
        difference = self.value - before
        if difference - hypot(self.value - low, before_high - before) > 0:
            return "worse" if self.lower_is_better else "better"
        if difference + hypot(high - self.value, before - before_low) < 0:
            return "better" if self.lower_is_better else "worse"
        return ""


@dataclass(frozen=True)
class Service:
    """A version of the model, and the partitions in a row that it scored."""

    version: str
    first: str
    last: str
    partitions: int
    rows_trained: int


@dataclass(frozen=True)
class Figures:
    """Every number and name in the report."""

    spec: PipelineSpec
    task: str  # task of the newest version in the window
    as_of: datetime  # newest commit of the pipeline, in UTC
    window: Span
    summed_up: Span  # partitions of the headlines
    before: Span | None  # partitions that the headlines are compared with
    headlines: list[Headline]
    metric: str | None  # metric that judges the model; None where it was not measured
    distributions: dict[str, ScoreDistribution]  # scores by partition key
    # Metric of each measured partition, of thin ones together: keys, partition_key (the middle one), value, low, high, rows, positives.
    performance: pl.DataFrame
    estimates: EstimateFigures | None  # None where nothing was estimated
    pooled: pl.DataFrame  # every metric of the whole window, in the form of `pooled_performance`
    segments: pl.DataFrame  # form: see `read_segments`
    gaps: list[Gap]  # differences between segments in the rates of binary decisions
    drift: DriftFigures | None
    measures: list[FurtherMeasure]  # measures without a section of their own
    confusion: pl.DataFrame  # decisions of a classification: decided, came_true, rows
    calibration: pl.DataFrame  # groups of rows with similar scores: rows, weight, mean_score, outcome
    rejections: dict[str, int]  # rows by column and reason
    failed_checks: list[FailedCheck]  # that partitions of the window failed, oldest partition first
    unusual: list[FailedCheck]  # of these, counts of rows that earlier partitions do not explain, newest first
    doubtful: Doubtful | None  # partitions that the other figures leave out; None without any
    services: list[Service]
    decisions: pl.DataFrame  # columns decided_at, version, action, reason
    challengers: pl.DataFrame  # columns challenger (null: the models that served), value, low, high, rows, partitions
    missed: list[str]  # partitions of `performance` whose metric misses the declared bound by more than chance
    no_better_than_guessing: list[str]  # partitions of `performance` whose metric is not above what guessing has
    decided: Mapping[str, int]  # rows of `summed_up` by their decision
    positive: str  # the positive class of a binary model
    guesses: dict[str, str]  # the simple model that a version was not clearly better than, by its first partition
    groups: GroupFigures | None  # None unless the model groups rows, or finds those that stand out
    status: "PipelineStatus | None"  # what `status` says; None if it was not asked
    issues: list[OpenIssue]  # what the status complains of
    confidence: str  # meaning of the intervals
    definitions: dict[str, str]  # a sentence for each metric, by name

    @property
    def unit(self) -> str:
        """The length of a partition, such as day."""
        return self.spec.partitions.every

    @property
    def rule(self) -> str:
        """The rule by which rows are chosen; of several classes, by which one is decided."""
        otherwise = "a score above one half" if self.positive else "the most probable class"
        return str(self.spec.predictions.decide or otherwise)

    @property
    def even(self) -> bool:
        """True if every partition has the same number of rows."""
        return len({(run.rows_in, run.rows_scored) for run in self.window.runs}) == 1 < len(self.window.runs)

    @property
    def thin(self) -> int | None:
        """The usual number of rows of a partition, where drift could not be told from chance; None where it can, and where it was."""
        usual = median_low(list(filter(None, (run.rows_scored for run in self.window.runs))) or [0])
        return None if usual >= LEAST_OF_A_CLASS or (self.drift and self.drift.worst) else usual

    @property
    def newest_decisions(self) -> pl.DataFrame:
        """The newest decision on the model in use, and on each challenger."""
        in_use = pl.col("version") == self.services[-1].version
        name = (
            pl.when(in_use)
            .then(pl.lit(""))
            .when(action="challenger")
            .then(pl.col("reason").str.split(";").list.first())
        )
        named = self.decisions.with_columns(name=name).drop_nulls("name")
        return named.unique("name", keep="last", maintain_order=True)

    @property
    def overall(self) -> dict[str, dict[str, Any]]:
        """The row of each metric of the whole window, by name."""
        return {row["metric"]: row for row in self.pooled.iter_rows(named=True)}

    @property
    def score(self) -> str:
        """Name for the number that sums up a row."""
        return "prediction" if self.task == "regression" else "score"


def read_figures(  # noqa: PLR0913 - the window, how it is summed up, and what is open
    con: duckdb.DuckDBPyConnection,
    spec: PipelineSpec,
    first: str | None = None,
    last: str | None = None,
    *,
    every: ReportEvery = "month",
    status: "PipelineStatus | None" = None,
) -> Figures:
    """Read the numbers of a pipeline for the scored partitions from `first` to `last`, both included.

    `con` is a connection to the published copy. Without a window, the newest partitions are reported, at most a year of days.
    Open issues are those of the `status`, so that both say the same.
    A window of two months or more is summed up by its newest month; by its newest week if `every` says so, and it has two.

    Raises:
        DataError: No partition of the window is scored.
        DamagedRowsError: A file with rows of these partitions is not as it was published.
    """
    runs = sorted(read_latest(con, ScoreRun, spec.name).values(), key=lambda run: run.partition_start)
    whole = _window(spec, runs, first, last)
    summed_up, before = _spans(spec, runs, whole, every)
    for span in filter(None, (whole, before)):
        span.require_undamaged(con, spec.name)
    failed = read_failed_checks(con, spec)
    of_window = [check for check in failed if check.partition_key in {*whole.keys}]
    doubts = {check.partition_key for check in failed if check.doubtful}
    if doubts.issuperset(summed_up.keys):
        summed_up, before = whole, None
    window, summed_up, before = whole.without(doubts), summed_up.without(doubts), before and before.without(doubts)
    registry = read_registry(con, spec.name)
    served, services = registry.named(whole.runs[-1].model_version), _services(registry, whole)
    task = served.task
    metric = spec.model.promote.metric or default_metric(task)
    own = own_metrics(spec)
    pooled = measured(con, spec, window, metric, [SCORE_BIAS, *own], whole=True)
    performance = performance_by_partition(con, spec, metric, window, own)
    judged_by = metric if row_of(pooled, metric) or performance.height else None

    def measure(span: Span) -> Mapping[str, float] | None:
        return row_of(pooled if span == window else measured(con, spec, span, metric, own, whole=False), metric)

    newest, overall = measure(summed_up), row_of(pooled, metric)
    known = METRICS.get(metric, next((item for item in own if item.name == metric), None))
    if summed_up != window and newest is not None and overall is not None and is_vague(newest, known):
        summed_up, before = window, None
    calibration, confusion = _calibration(con, spec, registry, window)
    estimates = read_estimate_figures(con, spec, metric, window, doubts)
    shown = shown_of(pooled, metric, spec.predictions.decide)
    segments = read_segments(con, spec, metric, window, pooled)
    return Figures(
        spec=spec,
        task=task,
        as_of=max(run.committed_at for run in runs),
        window=window,
        summed_up=summed_up,
        before=before,
        headlines=_headlines(con, spec.name, metric, summed_up, before, measure),
        metric=judged_by,
        distributions=committed_distributions(con, spec.name, window.keys),
        performance=performance,
        estimates=estimates,
        pooled=shown,
        segments=segments,
        gaps=gaps_of(segments) if task == "binary" else [],
        drift=read_drift_figures(con, spec, window),
        measures=read_further_measures(con, spec.name, window),
        confusion=confusion,
        calibration=calibration,
        rejections=rejections(con, spec.name, window),
        failed_checks=of_window,
        unusual=unusual_counts(of_window),
        doubtful=read_doubtful(con, spec, whole, of_window, metric, own),
        services=services,
        decisions=_decisions(con, spec.name, whole),
        challengers=_challengers(pooled, metric),
        missed=missed(spec, performance, metric, task),
        no_better_than_guessing=no_better_than_guessing(performance, metric),
        decided=read_decided(con, spec.name, summed_up.keys),
        positive=class_texts(served.class_labels)[-1] if task == "binary" else "",
        guesses={
            service.first: _simple_model(registry, service.version)
            for service in services
            if registry.not_better_than_guessing(service.version)
        },
        groups=read_groups(con, spec, window.keys, outliers=task == "outliers") if task in UNSUPERVISED else None,
        status=status,
        issues=[] if status is None else open_issues(spec, status),
        confidence=f"{CONFIDENCE} {UnitRule.of(spec)}{_weighted(spec)}",
        definitions=definitions_of({*shown["metric"], *([estimates.metric] if estimates else [])}, own),
    )


def _window(spec: PipelineSpec, runs: Sequence[ScoreRun], first: str | None, last: str | None) -> Span:
    named = spec.partitions.calendar.named
    start, end = (None if key is None else named(key).start for key in (first, last))
    chosen = [
        run
        for run in runs
        if (start is None or run.partition_start >= start) and (end is None or run.partition_start <= end)
    ]
    if first is None:
        chosen = chosen[-MOST_PARTITIONS:]
    if not chosen:
        asked = f" from {first or 'the first one'} to {last or 'the last one'}" if first or last else ""
        msg = f"{spec.name}: no partition{asked} is scored, so there is nothing to report."
        raise DataError(msg, hint=f"batch-platform status {spec.name} shows what is scored.")
    return Span(tuple(chosen))


def _spans(spec: PipelineSpec, runs: Sequence[ScoreRun], window: Span, every: ReportEvery) -> tuple[Span, Span | None]:
    """Return the partitions of the headlines, and those to compare them with.

    They are the newest month or week of a long window, else the window, and as many partitions right before it. Without a
    comparison they are the window.
    """
    if spec.report is not None and not spec.report.compare:
        return window, None
    summed_up = window
    if window.runs[-1].partition_end - window.runs[0].partition_start >= LONG[every]:
        periods = window.periods(every, spec.partitions.calendar.zone)
        *_, (_, newest) = (
            (name, tuple(group)) for name, group in groupby(window.runs, key=lambda run: periods[run.partition_key])
        )
        summed_up = Span(newest)
    at = bisect_left([run.partition_start for run in runs], summed_up.runs[0].partition_start)
    earlier = runs[max(0, at - len(summed_up.runs)) : at]
    return summed_up, Span(tuple(earlier)) if len(earlier) == len(summed_up.runs) else None


def _headlines(  # noqa: PLR0913 - the two spans and how they are measured
    con: duckdb.DuckDBPyConnection,
    pipeline: str,
    metric: str,
    span: Span,
    before: Span | None,
    measure: Callable[[Span], Mapping[str, float] | None],
) -> list[Headline]:
    score = score_column(con, pipeline)
    known = METRICS.get(metric)
    neutral = metric == "outlier_share" or (known and (known.neutral or known.signed))
    better = None if neutral else lower_is_better(metric)
    now, then = measure(span), None if before is None else measure(before)
    ends = {} if now is None else {"low": now["low"], "high": now["high"]}
    if then is not None:
        ends |= {"before_low": then["low"], "before_high": then["high"]}

    def numbers(of: Span) -> dict[str, float | None]:
        row = now if of is span else then
        return {
            "rows scored": of.total("rows_scored"),
            "rows rejected": of.total("rows_rejected") / max(1, of.total("rows_in")),
            f"mean {score}": None if score is None else _mean(con, pipeline, score, of),
            metric: None if row is None else row["value"],
        }

    earlier = {} if before is None else numbers(before)
    forms: dict[str, dict[str, Any]] = {
        "rows rejected": {"form": ".2%" if any(of.total("rows_rejected") for of in (span, before) if of) else ".0%"},
        metric: {"lower_is_better": better, **ends},
    }
    return [
        Headline(label, value, earlier.get(label), **forms.get(label, {}))
        for label, value in numbers(span).items()
        if value is not None
    ]


def _mean(con: duckdb.DuckDBPyConnection, pipeline: str, column: str, span: Span) -> float | None:
    query = f"SELECT avg({quoted(column)}) FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys"
    ((mean,),) = con.execute(query, {"keys": span.keys}).fetchall()
    return mean


def _calibration(
    con: duckdb.DuckDBPyConnection, spec: PipelineSpec, registry: Registry, span: Span
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with similar scores, and decisions beside what came true; neither where versions know other classes.

    A row without a stored decision is decided to be of its most probable class. The mean score of rows with similar ones stands beside what came true, of binary models and regressions. Probabilities are
    grouped by tenths, values of a regression into ten groups of about equal size (DeGroot and Fienberg, The Comparison and
    Evaluation of Forecasters, 1983).
    """
    of_bins = pl.DataFrame(
        schema={"bin": pl.Int64, "rows": pl.Int64, **dict.fromkeys(("weight", "mean_score", "outcome"), pl.Float64)}
    )
    decided = pl.DataFrame(schema={"decided": pl.String, "came_true": pl.String, "rows": pl.Int64})
    kinds = {
        (version.task, tuple(version.class_labels))
        for version in map(registry.named, {run.model_version for run in span.runs})
    }
    if not has_table(con, spec.name, OUTCOMES) or len(kinds) != 1:
        return of_bins, decided
    ((task, classes),) = kinds
    known = class_texts(classes)
    values: dict[str, object] = {"keys": measured_keys(con, spec, span)}
    scored = f"(SELECT * FROM {quoted(spec.name)}.predictions WHERE partition_key IN $keys)"
    key = ", ".join(map(quoted, ["partition_key", *spec.features.key]))
    joined = f"{scored} JOIN {quoted(spec.name)}.{OUTCOMES} USING ({key})"
    stored = {name for table in ("predictions", OUTCOMES) for name, _ in table_columns(con, spec.name, table)}
    weight = f"coalesce({OUTCOME_WEIGHT}, 1)::DOUBLE" if OUTCOME_WEIGHT in stored else "1::DOUBLE"
    if task == "regression":
        edges = f"SELECT approx_quantile(prediction, {[at / BINS for at in range(1, BINS)]}) AS __edges FROM {scored}"
        query = f"""
            SELECT len(list_filter(__edges, lambda edge: edge <= prediction)) AS bin, count(*) AS rows, sum({weight}) AS weight,
                sum({weight} * prediction) / sum({weight}) AS mean_score, sum({weight} * outcome_value) / sum({weight}) AS outcome
            FROM {joined}, ({edges}) GROUP BY bin HAVING sum({weight}) > 0 ORDER BY bin
        """
        return con.sql(query, params=values).pl().cast(dict(of_bins.schema)), decided
    if task not in CLASSIFICATION:
        return of_bins, decided
    score, decided_class = "score" if task == "binary" else "NULL::DOUBLE", "prediction::VARCHAR"
    if DECISION in stored:
        values |= {"negative": known[0], "positive": known[-1]} if task == "binary" else {}
        of_rule = f"CASE {DECISION} WHEN true THEN $positive WHEN false THEN $negative END"
        decided_class = f"coalesce({of_rule if task == 'binary' else f'{DECISION}::VARCHAR'}, {decided_class})"
    query = f"""
        SELECT {decided_class} AS decided, outcome AS came_true, least(floor({score} * {BINS}), {BINS - 1})::BIGINT AS bin,
            count(*) AS rows, sum({weight}) AS weight, sum({weight} * {score}) AS total
        FROM {joined} GROUP BY ALL ORDER BY ALL
    """
    counts = con.sql(query, params=values).pl()
    decided = (
        counts.group_by("decided", "came_true", maintain_order=True).agg(pl.sum("rows")).cast(dict(decided.schema))
    )
    if task == "multiclass":
        return of_bins, decided
    of_known = (
        counts.filter(pl.col("came_true").is_in(known))
        .group_by("bin")
        .agg(
            pl.sum("rows"),
            pl.sum("weight"),
            (pl.sum("total") / pl.sum("weight")).alias("mean_score"),
            (pl.col("weight").filter(pl.col("came_true") == known[-1]).sum() / pl.sum("weight")).alias("outcome"),
        )
        .filter(pl.col("weight") > 0)
    )
    return of_known.sort("bin").cast(dict(of_bins.schema)), decided


def _simple_model(registry: Registry, version: str) -> str:
    """The name of the simple model that a version was compared with when it was judged."""
    evidence = (json.loads(event.evidence) for event in registry.promotions if event.version == version)
    return next(judged["baseline"]["baseline"]["name"] for judged in evidence if judged.get("baseline"))


def _weighted(spec: PipelineSpec) -> str:
    """A sentence on the weights of rows; empty without any."""
    weight = spec.labels and spec.labels.weight
    return f" Metrics count each row by its weight, {weight} (labels.weight)." if weight else ""


def _services(registry: Registry, span: Span) -> list[Service]:
    services: list[Service] = []
    for version, group in groupby(span.runs, key=lambda run: run.model_version):
        keys = [run.partition_key for run in group]
        services.append(Service(version, keys[0], keys[-1], len(keys), registry.named(version).rows_trained))
    return services


def _decisions(con: duckdb.DuckDBPyConnection, pipeline: str, span: Span) -> pl.DataFrame:
    """The decisions on the versions that scored something in the span, and those made since its start."""
    query = f"""
        SELECT decided_at, version, action, reason FROM {LEDGERS_SCHEMA}.promotions
        WHERE pipeline = $pipeline AND (version IN $versions OR decided_at >= $start) ORDER BY seq
    """
    versions = sorted({run.model_version for run in span.runs})
    return con.sql(
        query, params={"pipeline": pipeline, "versions": versions, "start": span.runs[0].partition_start}
    ).pl()


def read_decided(con: duckdb.DuckDBPyConnection, pipeline: str, keys: Sequence[str]) -> dict[str, int]:
    """Count the rows of some partitions by their decision; empty where there are none."""
    if DECISION not in dict(table_columns(con, pipeline, "predictions")):
        return {}
    query = f"SELECT {DECISION}::VARCHAR AS decided, count(*) FROM {quoted(pipeline)}.predictions WHERE partition_key IN $keys AND {DECISION} IS NOT NULL GROUP BY ALL"
    return dict(con.execute(query, {"keys": [*keys]}).fetchall())


def _challengers(pooled: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The metric of the models that served and of each challenger; empty without challengers."""
    together = pl.all_horizontal(pl.col("segment_column", "model_version").is_null())
    rows = pooled.filter(together, pl.col("metric") == metric)
    rows = rows.select("challenger", "value", "low", "high", "rows", "partitions")
    return rows if rows["challenger"].drop_nulls().len() else rows.clear()
