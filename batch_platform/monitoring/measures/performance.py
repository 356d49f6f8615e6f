"""The measure `performance`: every metric of a partition's predictions, against the labels known now."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import polars as pl

from batch_platform.declaration.errors import listed, number
from batch_platform.declaration.inputs import WEIGHT
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.decisions import as_decided
from batch_platform.monitoring.measure import TRUTH, Check, Column, EvaluatedMeasure, Judgement, ScoredPartition
from batch_platform.monitoring.metrics import (
    CLASSIFICATION,
    METRICS,
    Metric,
    Outcomes,
    as_truth,
    default_metric,
    lower_is_better,
    measure,
    metrics_of,
)
from batch_platform.monitoring.outcomes import class_texts, weights_of
from batch_platform.monitoring.resampling import intervals
from batch_platform.warehouse.descriptions import IN_SAMPLE, OF_PARTITION, Description

OUTCOMES = "outcomes"
OUTCOME_WEIGHT = "outcome_weight"
COST = "decision_cost"  # begins the names of the metrics of what decisions cost
COVERAGE = "label_coverage"
NOT_KNOWN_YET, UNKNOWN_CLASS = "label_not_known_yet", "label_class_unknown"
INTERVAL = {
    "metric": "name of the metric",
    "value": "value of the metric",
    "low": "start of its 95% confidence interval; null if it has none",
    "high": "end of the interval",
    "rows": "rows that it was measured on",
    "positives": "how many of the labelled rows are positive; null without a positive class",
    "rows_labelled": "rows whose label was known",
    "rows_of_unknown_class": "labelled rows of a class that the model does not know: wrong where a metric judges decisions, left out where it judges probabilities",
    "unknown_classes": "names of these classes",
}


def performance_of(partition: ScoredPartition) -> dict[str, float]:
    """The metrics of a partition by name and, where labels are declared, how many of its rows have one."""
    return measure(labelled_outcomes(partition), partition.own_metrics) | _coverage(partition)


def _coverage(partition: ScoredPartition) -> dict[str, float]:
    """Shares of the rows whose labels count, which add up to 1: known, not known yet, and of a class that the model lacks."""
    if partition.labels is None:
        return {}
    rows = partition.predictions.height if partition.held_out is None else partition.held_out
    labelled, strange = partition.labelled.height, len(partition.of_unknown_class)
    shares = {
        COVERAGE: (labelled - strange) / max(1, rows),
        NOT_KNOWN_YET: (rows - labelled) / max(1, rows),
    }
    return shares | ({UNKNOWN_CLASS: strange / max(1, rows)} if partition.task in CLASSIFICATION else {})


def asked_of(metric: str | None, value: float) -> str:
    """The bound of a metric, as part of a sentence."""
    if metric is None:
        return f"its metric at least {number(value)} (an error: at most)"
    return f"{metric} {'at most' if lower_is_better(metric) else 'at least'} {number(value)}"


def labelled_outcomes(partition: ScoredPartition) -> Outcomes:
    """The labelled rows of a partition, or all rows of a model without labels, as metrics take them."""
    task = partition.task
    if task == "clustering":
        rows, matrix = partition.read_features()
        return Outcomes(task, rows["prediction"].to_numpy(), matrix=matrix)
    rows = partition.predictions if partition.labels is None else partition.labelled
    truth = None if partition.labels is None else as_truth(rows[TRUTH])
    units = partition.unit.numbers(with_unit(partition, rows), partition.key)
    predicted = rows["score" if task == "outliers" else "prediction"].to_numpy()
    if task in CLASSIFICATION:
        scores = rows.select(partition.score_columns).to_numpy()
        predicted = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if task == "binary" else scores
    outcomes = Outcomes(task, predicted, truth, partition.classes, units=units, weights=weights_of(rows))
    return as_decided(outcomes, rows, partition.decide) if task in CLASSIFICATION else outcomes


def with_unit(partition: ScoredPartition, rows: pl.DataFrame) -> pl.DataFrame:
    """Some rows of a partition with the columns that tell their unit, as far as these are stored."""
    beside = [name for name in partition.unit.columns if name not in partition.key]
    if beside and (stored := partition.read_segments()) is not None:
        stored = stored.select(*partition.key, *(name for name in beside if name in stored.columns))
        return rows.join(stored, on=list(partition.key), how="left", maintain_order="left")
    return rows


def metric_rows(
    outcomes: Outcomes, own: Sequence[Metric] = (), only: Collection[str] | None = None
) -> Iterator[tuple[Any, ...]]:
    """The metrics of some outcomes: name, value, ends of its interval, rows that it was measured on, and positives."""
    values = measure(outcomes, own, only)
    ends, metrics = intervals(outcomes, values, own), metrics_of(outcomes, own)
    for name, value in sorted(values.items()):
        interval, rows = ends.get(name), metrics[name].rows_of(outcomes)
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        yield name, value, low, high, len(rows.predicted), outcomes.positives


def named_classes(labels: pl.Series) -> str | None:
    """The distinct classes of some labels, as one text; None without labels."""
    return listed(labels.unique().cast(pl.String).to_list()) if len(labels) else None


def outcome_rows(partition: ScoredPartition) -> pl.DataFrame:
    """The labels of a partition for the table of outcomes: key columns, `outcome` as text, and of a regression the value.

    A class is written as the model writes it, whatever type the labels have.
    """
    labels = partition.labelled[TRUTH]
    if partition.task == "regression":
        outcome, value = pl.lit(None, pl.String), labels.cast(pl.Float64)
    else:
        texts = dict(zip(partition.classes, class_texts(partition.classes), strict=True))
        written = [texts.get(label) for label in as_truth(labels).tolist()]
        outcome = pl.Series(written, dtype=pl.String).zip_with(
            pl.Series([text is not None for text in written], dtype=pl.Boolean), labels.cast(pl.String)
        )
        value = pl.lit(None, pl.Float64)
    weight = {OUTCOME_WEIGHT: pl.col(WEIGHT)} if WEIGHT in partition.labelled.columns else {}
    return partition.labelled.select(*partition.key, outcome=outcome, outcome_value=value, **weight)


def _judged(row: Mapping[str, Any], bound: float) -> Judgement:
    """A row of the table, held against a bound; of a signed error its size counts."""
    name, value, ends = row["metric"], row["value"], [row["low"], row["high"]]
    known = [float(end) for end in ends if end is not None]
    best = (min if lower_is_better(name) else max)(known, default=None)
    if METRICS[name].signed:
        value = abs(value)
        best = 0.0 if known and known[0] <= 0 <= known[1] else min(map(abs, known), default=None)
    counts = {name: row[name] for name in ("rows", "positives") if row[name] is not None}
    remarks = {key: end for key, end in zip(("low", "high"), ends, strict=True) if end is not None} | counts
    return Judgement(name, value, bound, lower_is_better=lower_is_better(name), best=best, remarks=remarks)


class Performance(EvaluatedMeasure):
    """Every metric of a partition's predictions, against the labels known now."""

    name = "performance"
    description = "How good the predictions of each partition were, by metric."
    row = "a metric of a partition, measured against its labels"
    columns: ClassVar = {
        "metric": Column(pl.String, INTERVAL["metric"]),
        "value": Column(pl.Float64, INTERVAL["value"]),
        "low": Column(pl.Float64, INTERVAL["low"]),
        "high": Column(pl.Float64, INTERVAL["high"]),
        "rows": Column(pl.Int64, INTERVAL["rows"]),
        "positives": Column(pl.Int64, INTERVAL["positives"]),
        "rows_labelled": Column(pl.Int64, INTERVAL["rows_labelled"]),
        "rows_of_unknown_class": Column(pl.Int64, INTERVAL["rows_of_unknown_class"]),
        "unknown_classes": Column(pl.String, INTERVAL["unknown_classes"]),
        "in_sample": Column(pl.Boolean, IN_SAMPLE),
    }
    tables: ClassVar = {
        OUTCOMES: Description(
            "the label of a measured row, with its key",
            {
                **OF_PARTITION,
                "outcome": "true class, as text; null in a regression",
                "outcome_value": "true value of a regression",
                OUTCOME_WEIGHT: "weight of the label, where `labels.weight` declares one",
            },
        ),
    }
    has_section = True

    def compute(self, partition: ScoredPartition) -> pl.DataFrame:
        """A row for each metric, and for each share of the rows by what is known of their labels."""
        strange = partition.of_unknown_class
        beside = (partition.labelled.height, len(strange), named_classes(strange), partition.in_sample)
        rows = [(*row, *beside) for row in metric_rows(labelled_outcomes(partition), partition.own_metrics)]
        scored = partition.predictions.height
        rows += [
            (name, share, None, None, scored, None, *beside) for name, share in sorted(_coverage(partition).items())
        ]
        return pl.DataFrame(rows, schema=self.types, orient="row")

    def beside(self, partition: ScoredPartition) -> dict[str, pl.DataFrame]:
        """The labels of the measured rows."""
        return {OUTCOMES: outcome_rows(partition)}

    def numbers(self, value: pl.DataFrame) -> dict[str, float]:
        """The metrics by name."""
        return dict(zip(value["metric"], value["value"], strict=True))

    def check(self, spec: PipelineSpec) -> Check[pl.DataFrame] | None:
        """Hold the metric that judges the model against its declared bound."""
        rule, metric = spec.monitoring.performance, spec.model.promote.metric
        if rule is None:
            return None

        def judge(rows: pl.DataFrame, task: str) -> Judgement | None:
            name = metric or default_metric(task)
            found = rows.filter(pl.col("metric") == name).row(0, named=True) if name in rows["metric"] else None
            if found is None or found["in_sample"]:
                return None
            judged, costs = _judged(found, rule.warn_below), rows.filter(pl.col("metric").str.starts_with(COST))
            return replace(judged, remarks={**judged.remarks, **dict(costs.select("metric", "value").rows())})

        return Check(
            description=f"Measured against its labels, each partition has {asked_of(metric, rule.warn_below)}. "
            "A partition that misses this by more than chance, so that its whole 95% interval does, gets a warning; its "
            "predictions stay. A partition that its model has learned from is not judged."
            + ("" if spec.predictions.decide is None else f" The decisions: {spec.predictions.decide}."),
            judge=judge,
        )


PERFORMANCE = Performance()
