"""Outcomes of every task, for which each of its metrics is defined."""

import numpy as np

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
