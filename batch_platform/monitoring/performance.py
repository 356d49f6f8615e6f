"""The measure `performance`: every metric of a partition's predictions, against the labels known now."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import TRUTH, Check, Judgement, Measure, ScoredPartition
from batch_platform.monitoring.metrics import Outcomes, as_truth, default_metric, lower_is_better, measure

COVERAGE = "label_coverage"


def performance_of(partition: ScoredPartition) -> dict[str, float]:
    """The metrics of a partition by name and, where labels are declared, the share of its rows whose label is known."""
    metrics = measure(_outcomes(partition))
    if partition.labels is None:
        return metrics
    scored = partition.predictions.height
    return metrics | {COVERAGE: partition.labelled.height / scored if scored else 0.0}


def asked_of(metric: str | None, value: float) -> str:
    """The bound of a metric, as part of a sentence."""
    if metric is None:
        return f"its metric at least {value:g} (an error: at most)"
    return f"{metric} {'at most' if lower_is_better(metric) else 'at least'} {value:g}"


def _outcomes(partition: ScoredPartition) -> Outcomes:
    task = partition.task
    if task == "clustering":
        rows, matrix = partition.read_features()
        return Outcomes(task, rows["prediction"].to_numpy(), matrix=matrix)
    rows = partition.predictions if partition.labels is None else partition.labelled
    truth = None if partition.labels is None else as_truth(rows[TRUTH])
    if task == "outliers":
        return Outcomes(task, rows["score"].to_numpy(), truth)
    if task == "regression":
        return Outcomes(task, rows["prediction"].to_numpy(), truth)
    scores = rows.select(partition.score_columns).to_numpy()
    shares = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if task == "binary" else scores
    return Outcomes(task, shares, truth, partition.classes)


def _compute(partition: ScoredPartition) -> pl.DataFrame:
    metrics = sorted(performance_of(partition).items())
    rows = [(metric, value, partition.labelled.height) for metric, value in metrics]
    return pl.DataFrame(rows, schema=PERFORMANCE.columns, orient="row")


def _check(spec: PipelineSpec) -> Check | None:
    rule, metric = spec.monitoring.performance, spec.model.promote.metric
    if rule is None:
        return None

    def judge(metrics: Mapping[str, float], task: str) -> Judgement | None:
        name = metric or default_metric(task)
        if name not in metrics:
            return None
        return Judgement(name, metrics[name], rule.warn_below, lower_is_better=lower_is_better(name))

    return Check(
        description=f"Measured against its labels, each partition has {asked_of(metric, rule.warn_below)}. "
        "A partition that misses this gets a warning; its predictions stay.",
        judge=judge,
    )


PERFORMANCE = Measure(
    name="performance",
    description="How good the predictions of each partition were, by metric.",
    columns={"metric": pl.String, "value": pl.Float64, "rows_labelled": pl.Int64},
    compute=_compute,
    numbers=lambda rows: dict(zip(rows["metric"], rows["value"], strict=True)),
    check=_check,
)
