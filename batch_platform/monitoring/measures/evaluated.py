"""The measures that an evaluation adds to the metrics: `cluster_profiles`, `interval_coverage` and `concept_drift`.

The estimate of a partition follows every change of its rows, so what it does not explain is a change of what the same rows lead to.
"""

from collections.abc import Collection, Iterator, Mapping
from math import isfinite, log, sqrt
from typing import Any, ClassVar

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import (
    ALARMS,
    TRUTH,
    Check,
    Column,
    EvaluatedMeasure,
    Expected,
    Finding,
    ScoredPartition,
    rounded,
)
from batch_platform.monitoring.measures.performance import labelled_outcomes
from batch_platform.monitoring.measures.rows import FEATURE_ROWS
from batch_platform.monitoring.metrics import lower_is_better, measure
from batch_platform.monitoring.outcomes import HIGH, LOW, Outcomes
from batch_platform.monitoring.reference import AREA
from batch_platform.monitoring.resampling import TWO_SIDED
from batch_platform.monitoring.segments import LEAST_KEYS, named_texts
from batch_platform.warehouse.descriptions import IN_SAMPLE, SEGMENT
from batch_platform.warehouse.sql import has_table, quoted, table_columns

LEAST_ROWS = 5  # rows behind a typical value: that of fewer would tell what somebody's row held
CONFIDENCE = 0.999  # one of a thousand partitions gives a warning by chance
SUDDEN = 4.0  # standard deviations of the estimate by which a single partition is worse
SLOW = 2.0  # standard deviations by which the newest partitions are worse on average; large, because days resemble each other
RECENT, LEAST_RECENT = 7, 4  # partitions of that average
LEAST_LABELS = 30  # labelled rows; of two classes, of each
CONTRADICTED = 3.5  # standard deviations by which labels that contradict are worse; that alone is not enough
EXCHANGED = "exchanged labels"  # cause of the alarm where labels contradict the predictions
CONTRADICTION = "the labels contradict the predictions, as if the two classes were exchanged in many rows"
LOSS, COIN = "log_loss", log(2)  # its value for one half, whatever comes true


class ClusterProfiles(EvaluatedMeasure):
    """The typical values of each cluster of a partition, and how far each column tells the clusters apart."""

    name = "cluster_profiles"
    description = "The typical values of each cluster, and how far each column tells clusters apart."
    row = "the typical value of a column in a cluster of a partition"
    columns: ClassVar = {
        "cluster": Column(pl.Int64, "number of the cluster"),
        "rows": Column(pl.Int64, "rows of the cluster"),
        "column_name": Column(pl.String, "column of the features: any number, and text that the model is given"),
        "mean": Column(pl.Float64, f"mean of a number; null for text, and of fewer than {LEAST_ROWS} values"),
        "category": Column(pl.String, f"most frequent text; null for a number, and of fewer than {LEAST_KEYS} rows"),
        "share": Column(pl.Float64, "share of the rows of the cluster that have this text"),
        "explained": Column(pl.Float64, "share of the column's variance that lies between the clusters, from 0 to 1"),
    }
    has_section = True

    def declared(self, spec: PipelineSpec) -> bool:
        """Return whether there are no labels."""
        return spec.labels is None

    def compute(self, partition: ScoredPartition) -> pl.DataFrame:
        """A row for each column in each cluster."""
        profiles = [pl.DataFrame(schema=self.types)]
        if partition.task == "clustering":
            frame, _ = partition.read_features()
            # Whatever names somebody is left out: the key, columns that tell units apart, and text that no model is given.
            left_out = {*partition.predictions.columns, *partition.unit.columns}
            for column in frame.select(pl.exclude(left_out)):
                is_text = isinstance(column.dtype, pl.String | pl.Categorical | pl.Enum)
                if column.dtype.is_numeric() or column.dtype == pl.Boolean:
                    profiles.append(_profile(frame["prediction"], column.cast(pl.Float64)))
                elif is_text and column.name not in partition.not_given:
                    profiles.append(_profile(frame["prediction"], column.cast(pl.String)))
        return pl.concat(profiles, how="diagonal_relaxed")


def _profile(clusters: pl.Series, column: pl.Series) -> pl.DataFrame:
    """The rows of a column; what is explained is eta squared, and of text Goodman and Kruskal's tau: of the chance that two rows differ."""
    value = pl.col("value")
    if column.dtype == pl.Float64:
        known = value.filter(value.is_finite())
        spread, typical = known.var(ddof=0), {"mean": pl.when(known.len() >= LEAST_ROWS).then(known.mean())}
    else:
        known = value.drop_nulls()
        counts, enough = known.unique_counts(), pl.when(known.unique_counts().max() >= LEAST_KEYS)
        spread = 1 - (counts / known.len()).pow(2).sum()
        typical = {"category": enough.then(known.mode().min()), "share": enough.then(counts.max() / pl.len())}
    frame, spread = pl.DataFrame({"cluster": clusters, "value": column}), spread * known.len()
    of_clusters = frame.group_by("cluster").agg(rows=pl.len(), within=spread, **typical).sort("cluster")
    total, differ = frame.select(total=spread, differ=known.min() != known.max()).row(0)
    explained = max(0.0, 1 - of_clusters["within"].sum() / total) if differ and total else None
    of_column = {"column_name": pl.lit(column.name), "explained": pl.lit(explained, pl.Float64)}
    return of_clusters.drop("within").with_columns(**of_column)


def binomial_interval(
    covered: NDArray[np.integer], rows: NDArray[np.integer], correlation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the exact interval of each share `covered / rows` at CONFIDENCE (Clopper and Pearson, 1934).

    Rows that are correlated count as fewer independent ones (the design effect: Kish, Survey Sampling, 1965).
    """
    from scipy.special import betaincinv

    independent = rows / (1 + (rows - 1) * correlation)
    inside, tail = covered / rows * independent, (1 - CONFIDENCE) / 2
    outside = independent - inside
    with np.errstate(invalid="ignore"):
        low = np.where(covered > 0, betaincinv(inside, outside + 1, tail), 0.0)
        return low, np.where(covered < rows, betaincinv(inside + 1, outside, 1 - tail), 1.0)


class IntervalCoverage(EvaluatedMeasure):
    """The share of the true values that intervals hold, of a partition and of its segments, and their width."""

    name = "interval_coverage"
    description = "How many of the true values the intervals of each partition hold, and how wide they are."
    row = "the coverage and the width of the intervals of a partition, or of a segment of it"
    columns: ClassVar = {
        "segment_column": Column(pl.String, f"{SEGMENT['segment_column']}; null for all rows"),
        "segment": Column(pl.String, SEGMENT["segment"]),
        "rows": Column(pl.Int64, "rows with an interval and a label"),
        "covered": Column(pl.Int64, "how many of the true values lie within their intervals, ends included"),
        "coverage": Column(pl.Float64, "the share of them"),
        "low": Column(pl.Float64, f"start of the exact {100 * CONFIDENCE:g}% interval of that share"),
        "high": Column(pl.Float64, "end of that interval"),
        "expected": Column(pl.Float64, "share that the intervals were made for"),
        "mean_width": Column(pl.Float64, "mean width of the intervals; infinite if one is"),
        "median_width": Column(pl.Float64, "median width of the intervals"),
        "in_sample": Column(pl.Boolean, IN_SAMPLE),
    }

    def declared(self, spec: PipelineSpec) -> bool:
        """Return whether predictions have intervals."""
        return spec.predictions.interval is not None

    def compute(self, partition: ScoredPartition) -> pl.DataFrame:
        """A row for the partition, and one for each segment."""
        version, labelled = partition.intervals, partition.labelled
        rows = labelled.drop_nulls(LOW) if version is not None and LOW in labelled.columns else labelled.clear()
        if version is None or not rows.height:
            return pl.DataFrame(schema=self.types)
        measured = pl.concat(_counted(partition, rows))
        low, high = binomial_interval(measured["covered"].to_numpy(), measured["rows"].to_numpy(), version.correlation)
        return measured.with_columns(
            coverage=pl.col("covered") / pl.col("rows"),
            low=low,
            high=high,
            expected=version.level,
            in_sample=partition.in_sample,
        ).select(*self.columns)

    def numbers(self, value: pl.DataFrame) -> dict[str, float]:
        """The coverage of all rows, what it should be, and the width where it is finite."""
        whole = _whole(value) or {}
        names = {
            "coverage": "interval_coverage",
            "expected": "expected_interval_coverage",
            "mean_width": "mean_interval_width",
            "median_width": "median_interval_width",
        }
        return {shown: whole[name] for name, shown in names.items() if name in whole and isfinite(whole[name])}

    def check(self, spec: PipelineSpec) -> Check[pl.DataFrame] | None:
        """Warn of a coverage that chance does not explain."""
        if (level := spec.predictions.interval) is None:
            return None

        def judge(rows: pl.DataFrame, _: str) -> Finding | None:
            whole = _whole(rows)
            if whole is None or whole["in_sample"]:
                return None
            passed = whole["low"] <= whole["expected"] <= whole["high"]
            return Finding("none" if passed else "warn", {**rounded(self.numbers(rows)), "what": _in_words(whole)})

        return Check(
            description=f"The intervals hold {_percent(level)} of the true values (predictions.interval), but for chance: a partition "
            f"gives a warning if the exact {_percent(CONFIDENCE)} interval of its share leaves that out. Partitions may differ by as much as "
            "they did in training. A partition that its model has learned from is not judged.",
            judge=judge,
            summary=lambda judged, failed: {"partitions": f"{len(judged):,}", "outside": listed(failed) or "none"},
        )


def _counted(partition: ScoredPartition, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Count the rows and those whose interval holds the true value, and measure widths: of all rows, then of each segment."""
    key, truth = list(partition.key), pl.col(TRUTH).cast(pl.Float64)
    numbers = (
        pl.len().cast(pl.Int64).alias("rows"),
        pl.col("inside").sum().cast(pl.Int64).alias("covered"),
        pl.col("width").mean().alias("mean_width"),
        pl.col("width").median().alias("median_width"),
    )
    rows = rows.select(*key, inside=truth.is_between(LOW, HIGH), width=pl.col(HIGH) - pl.col(LOW))
    yield rows.select(
        pl.lit(None, pl.String).alias("segment_column"), pl.lit(None, pl.String).alias("segment"), *numbers
    )
    stored = partition.read_segments() if partition.segments else None
    for column in partition.segments:
        if stored is not None and column in stored.columns:
            segments = stored.select(*key, segment=named_texts(stored[column]))
            beside = rows.join(segments, on=key, how="left")
            of_segments = beside.group_by("segment").agg(*numbers).sort("segment")
            yield of_segments.select(pl.lit(column).alias("segment_column"), pl.all())


def _whole(rows: pl.DataFrame) -> dict[str, Any] | None:
    """The row of all rows together; None if nothing was measured."""
    whole = rows.filter(pl.col("segment_column").is_null())
    return whole.row(0, named=True) if whole.height else None


def _in_words(row: Mapping[str, Any]) -> str:
    """A row of the table as a sentence, and what to make of it if chance does not explain it."""
    low, high, expected = row["low"], row["high"], row["expected"]
    text = f"{row['coverage']:.1%} of {row['rows']:,} true values lie within their intervals, and {_percent(expected)} should"
    if high < expected:
        text += f": fewer than chance explains (it explains up to {high:.1%}). Look at drift, and train the model again"
    elif low > expected:
        text += (
            f": more than chance explains (it explains down to {low:.1%}). The intervals are wider than they need to be"
        )
    if not isfinite(row["median_width"]):
        text += ". Most intervals are infinite: training held out too few rows"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


class ConceptDrift(EvaluatedMeasure):
    """The distance of a partition's performance from what was expected of its rows before labels were known."""

    name = "concept_drift"
    description = "How far the performance of each partition is from what was expected of its rows."
    row = "the estimated metric of a partition that its model has not learned from, beside what came true"
    columns: ClassVar = {
        "metric": Column(pl.String, "name of the metric"),
        "value": Column(pl.Float64, "what came true"),
        "estimate": Column(pl.Float64, "what was expected before labels were known"),
        "deviation": Column(
            pl.Float64, "difference in standard deviations of the estimate; negative where it is worse"
        ),
        "deviation_recent": Column(
            pl.Float64,
            f"mean of the newest partitions, at most {RECENT}, each at most {SUDDEN:g}, without those that are contradicted or "
            f"misplaced; null with fewer than {LEAST_RECENT}",
        ),
        "rows": Column(pl.Int64, "labelled rows"),
        "contradicted": Column(
            pl.Boolean,
            "whether labels contradict the predictions; the metric is then the log loss, which is worse than that of tossing a coin",
        ),
        "misplaced": Column(
            pl.String,
            "fault by which the rows have the features of other rows: copied rows or columns apart; null without one",
        ),
    }
    has_section = True

    def declared(self, spec: PipelineSpec) -> bool:
        """Return whether there are labels."""
        return spec.labels is not None

    def compute(self, partition: ScoredPartition) -> pl.DataFrame:
        """One row; none where nothing was expected, and of too few rows."""
        expected, rows = partition.expected, list[tuple[object, ...]]()
        outcomes = None if expected is None or partition.in_sample else labelled_outcomes(partition)
        if expected is not None and outcomes is not None:
            count = partition.labelled.height
            contradicted = _contradicted(expected, outcomes, count)
            if (row := contradicted or _judged(expected, outcomes, count)) is not None:
                is_doubtful = bool(contradicted or partition.misplaced)  # then it says nothing about other partitions
                counted = expected.before if is_doubtful else [*expected.before, row[-1]]
                newest = np.clip(counted[-RECENT:], -SUDDEN, SUDDEN)  # no single partition decides
                mean = float(newest.mean()) if len(newest) >= LEAST_RECENT else None
                rows.append((*row, mean, count, contradicted is not None, partition.misplaced))
        return pl.DataFrame(rows, schema=self.types, orient="row")

    def check(self, spec: PipelineSpec) -> Check[pl.DataFrame] | None:
        """Warn of performance that the rows do not explain."""
        if spec.labels is None:
            return None

        def judge(rows: pl.DataFrame, _: str) -> Finding | None:
            if not rows.height:
                return None
            row = rows.row(0, named=True)
            is_sudden, misplaced = row["contradicted"] or row["deviation"] <= -SUDDEN, row["misplaced"]
            slow = misplaced is None and row["deviation_recent"] is not None and row["deviation_recent"] <= -SLOW
            alarms = dict[str, Any]()
            numbers = {
                name: row[name]
                for name in ("value", "estimate", "deviation", "deviation_recent")
                if row[name] is not None
            }
            figures = f"{row['metric']} is {row['value']:.4f}, where {row['estimate']:.4f} was expected of these rows"
            if is_sudden and misplaced is not None:
                text = f"{figures}: they have the features of other rows ({misplaced}), as the check {FEATURE_ROWS.name} says"
            elif row["contradicted"]:
                alarms[ALARMS] = [[EXCHANGED, "warn"]]
                text = f"{CONTRADICTION}: {figures} (tossing a coin: {COIN:.4f}), and the rows are ranked no better than by chance"
            elif is_sudden or slow:
                since = f", like the last {RECENT} partitions on average" if slow else ""
                text = f"{figures}{since}: they lead to other outcomes than in training"
            else:
                text = f"{row['metric']} is {row['value']:.4f}, as expected of these rows ({row['estimate']:.4f})"
                return Finding("none", {"what": text, **rounded(numbers)})
            return Finding("warn", {"what": text, **rounded(numbers), **alarms})

        return Check(
            description=(
                "The performance of a partition is what was estimated before its labels were known. It gives a warning where it is worse by "
                f"{SUDDEN:g} standard deviations of the estimate, or by {SLOW:g} on average of the last {RECENT} partitions: the same rows "
                "then lead to other outcomes (concept drift), or labels are wrong. It also gives one where labels contradict the "
                "probabilities of two classes, which are then worse than tossing a coin. Train anew, or look at the labels. Where rows have "
                f"the features of other rows ({FEATURE_ROWS.name}), that is the reason, and neither labels nor model are."
            ),
            judge=judge,
            faults=(EXCHANGED,),
            extent=dict.fromkeys(("", EXCHANGED), "abs(value - estimate)"),
            doubtful=True,
        )


def read_deviations(con: duckdb.DuckDBPyConnection, pipeline: str, keys: Collection[str]) -> dict[str, float]:
    """The deviations from the first to the last of some partitions, and of those before them that count for them, by partition key.

    Partitions whose rows or labels are in doubt are left out: what they lead to says nothing about the others.
    """
    if not keys or not has_table(con, pipeline, CONCEPT_DRIFT.name):
        return {}
    stored = {name for name, _ in table_columns(con, pipeline, CONCEPT_DRIFT.name)}
    doubts = {"contradicted": "contradicted IS NOT true", "misplaced": "misplaced IS NULL"}  # older tables lack columns
    counted = "".join(f" AND {doubt}" for name, doubt in doubts.items() if name in stored)
    table = f"FROM {quoted(pipeline)}.{CONCEPT_DRIFT.name} SELECT partition_key, deviation WHERE challenger IS NULL{counted} AND partition_key"
    query = f"({table} < $first ORDER BY partition_key DESC LIMIT {RECENT - 1}) UNION ALL ({table} BETWEEN $first AND $last)"
    return dict(con.execute(query, {"first": min(keys), "last": max(keys)}).fetchall())


def counted_deviation(rows: pl.DataFrame) -> float | None:
    """The deviation of a partition that counts for later ones; None of one in doubt, and of one that was not judged."""
    counted = rows.filter(~pl.col("contradicted"), pl.col("misplaced").is_null())
    return counted["deviation"][0] if counted.height else None


def _judged(expected: Expected, outcomes: Outcomes, count: int) -> tuple[str, float, float, float] | None:
    """The expected metric, what came true, what was expected, and the deviation; None of too few rows."""
    positives = outcomes.positives
    fewest = count if positives is None else min(positives, count - positives)
    value = measure(outcomes, only=(expected.metric,)).get(expected.metric)
    less = lower_is_better(expected.metric)
    reach = (expected.high - expected.estimate) if less else (expected.estimate - expected.low)
    if value is None or reach <= 0 or fewest < LEAST_LABELS:
        return None
    deviation = (expected.estimate - value if less else value - expected.estimate) / reach * TWO_SIDED
    return expected.metric, value, expected.estimate, deviation


def _contradicted(expected: Expected, outcomes: Outcomes, count: int) -> tuple[str, float, float, float] | None:
    """The log loss, as `_judged` gives a metric, where labels contradict the probabilities of two classes; else None.

    It is then far beyond what was expected and worse than that of one half for every row, and the area under the ROC curve is
    not above one half by more than chance, whose variance is that of the U statistic without a difference (Mann and Whitney,
    1947). A class may have few rows: the loss is that of all.
    """
    positives = outcomes.positives
    if expected.log_loss is None or positives is None or count < LEAST_LABELS:
        return None
    (estimate, high), loss = expected.log_loss, measure(outcomes, only=(LOSS,)).get(LOSS)
    if loss is None or loss <= COIN or high <= estimate:
        return None
    deviation = (estimate - loss) / (high - estimate) * TWO_SIDED
    if deviation > -CONTRADICTED:
        return None
    area, negatives = measure(outcomes, only=(AREA,)).get(AREA), count - positives
    if area is not None and area > 0.5 + TWO_SIDED * sqrt((count + 1) / (12 * positives * negatives)):
        return None
    return LOSS, loss, estimate, deviation


CLUSTER_PROFILES, INTERVAL_COVERAGE, CONCEPT_DRIFT = ClusterProfiles(), IntervalCoverage(), ConceptDrift()
