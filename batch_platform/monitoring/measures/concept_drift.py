"""The measure `concept_drift`: how far a partition's performance is from what was expected of its rows before labels were known.

The estimate follows every change of the rows, so what it does not explain is a change of what the same rows lead to.
"""

from collections.abc import Collection
from math import log, sqrt
from typing import Any

import duckdb
import numpy as np
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.estimates import AREA
from batch_platform.monitoring.measure import (
    ALARMS,
    Check,
    Column,
    Expected,
    Finding,
    Measure,
    ScoredPartition,
    rounded,
)
from batch_platform.monitoring.measures.performance import labelled_outcomes
from batch_platform.monitoring.measures.rows import FEATURE_ROWS
from batch_platform.monitoring.metrics import lower_is_better, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import TWO_SIDED
from batch_platform.warehouse.sql import has_table, quoted, table_columns

SUDDEN = 4.0  # standard deviations of the estimate by which a single partition is worse
SLOW = 2.0  # standard deviations by which the newest partitions are worse on average; large, because days resemble each other
RECENT, LEAST_RECENT = 7, 4  # partitions of that average
LEAST_ROWS = 30  # labelled rows; of two classes, of each
CONTRADICTED = 3.5  # standard deviations by which labels that contradict are worse; that alone is not enough
EXCHANGED = "exchanged labels"  # cause of the alarm where labels contradict the predictions
CONTRADICTION = "the labels contradict the predictions, as if the two classes were exchanged in many rows"
LOSS, COIN = "log_loss", log(2)  # its value for one half, whatever comes true


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


def _compute(partition: ScoredPartition) -> pl.DataFrame:
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
    return pl.DataFrame(rows, schema=CONCEPT_DRIFT.types, orient="row")


def _judged(expected: Expected, outcomes: Outcomes, count: int) -> tuple[str, float, float, float] | None:
    """The expected metric, what came true, what was expected, and the deviation; None of too few rows."""
    positives = outcomes.positives
    fewest = count if positives is None else min(positives, count - positives)
    value = measure(outcomes, only=(expected.metric,)).get(expected.metric)
    less = lower_is_better(expected.metric)
    reach = (expected.high - expected.estimate) if less else (expected.estimate - expected.low)
    if value is None or reach <= 0 or fewest < LEAST_ROWS:
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
    if expected.log_loss is None or positives is None or count < LEAST_ROWS:
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


def _check(spec: PipelineSpec) -> Check[pl.DataFrame] | None:
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
            name: row[name] for name in ("value", "estimate", "deviation", "deviation_recent") if row[name] is not None
        }
        figures = f"{row['metric']} is {row['value']:.4f}, where {row['estimate']:.4f} was expected of these rows"
        if is_sudden and misplaced is not None:
            text = (
                f"{figures}: they have the features of other rows ({misplaced}), as the check {FEATURE_ROWS.name} says"
            )
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


CONCEPT_DRIFT = Measure[pl.DataFrame](
    name="concept_drift",
    description="How far the performance of each partition is from what was expected of its rows.",
    row="the estimated metric of a partition that its model has not learned from, beside what came true",
    columns={
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
    },
    compute=_compute,
    declared=lambda spec: spec.labels is not None,
    check=_check,
)
