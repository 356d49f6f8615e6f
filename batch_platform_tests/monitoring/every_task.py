"""Outcomes of every task, for which each of its metrics is defined, and a law of every metric."""

import math
from dataclasses import replace

import numpy as np
import pytest

from batch_platform.monitoring.metrics import Metric, measure
from batch_platform.monitoring.outcomes import Outcomes, Rule

ROWS = 300
LABELS = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"]}
TASKS = ("binary", "multiclass", "regression", "clustering", "outliers")


def random_outcomes(task: str) -> Outcomes:
    random = np.random.default_rng(TASKS.index(task))
    if task in LABELS:
        classes = LABELS[task]
        shares = random.dirichlet([1] * len(classes), ROWS).round(2) + 1e-3
        shares /= shares.sum(axis=1, keepdims=True)
        truth = np.array(classes)[random.integers(0, len(classes), ROWS)]
        return Outcomes(task, shares, truth, classes, rule=Rule(costs=1 - np.eye(len(classes))))
    if task == "clustering":
        segments = random.integers(0, 3, ROWS)
        return Outcomes(task, segments, matrix=random.normal(size=(ROWS, 2)) + segments[:, None])
    values = random.normal(size=ROWS)
    return Outcomes(task, values, values > 0.5 if task == "outliers" else values + random.normal(size=ROWS))


OUTCOMES = {task: random_outcomes(task) for task in TASKS}


def rows_of(outcomes: Outcomes, rows: np.ndarray) -> Outcomes:
    return replace(
        outcomes,
        predicted=outcomes.predicted[rows],
        truth=None if outcomes.truth is None else outcomes.truth[rows],
        matrix=None if outcomes.matrix is None else outcomes.matrix[rows],
    )


def require_one_value_of_rows(metric: Metric, task: str) -> None:
    """No rows have no value, one row has a finite one or none, and the order of rows does not matter."""
    outcomes = OUTCOMES[task]
    assert metric.name not in measure(rows_of(outcomes, np.arange(0)))
    value = measure(rows_of(outcomes, np.arange(1))).get(metric.name)
    assert value is None or math.isfinite(value)
    shuffled = rows_of(outcomes, np.random.default_rng(1).permutation(ROWS))
    assert metric.value(shuffled) == pytest.approx(metric.value(outcomes), rel=1e-12)
