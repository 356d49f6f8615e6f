"""The paired bootstrap, against scikit-learn's metrics and against what is known of it."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from batch_platform.monitoring.comparison import paired_difference
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import MAX_ROWS
from batch_platform_tests.monitoring.every_task import OUTCOMES

pytestmark = pytest.mark.unit

ROWS = 400
TRUTH = np.random.default_rng(1).integers(0, 2, ROWS)
POSITIVE = np.random.default_rng(2).uniform(size=ROWS).round(2)
CASES = [(name, task) for name, metric in METRICS.items() for task in metric.tasks]


def binary(positive: np.ndarray, truth: np.ndarray = TRUTH) -> Outcomes:
    return Outcomes("binary", np.column_stack([1 - positive, positive]), truth, [0, 1])


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_estimate_is_the_difference_of_the_metrics(name, task):
    first = OUTCOMES[task]
    second = replace(first, predicted=np.roll(first.predicted, 7, axis=0))
    difference, metric = paired_difference(name, first, second), METRICS[name]
    if metric.weighted is None:
        assert difference is None
    else:
        assert difference.estimate == pytest.approx(metric.value(first) - metric.value(second), abs=1e-12)
        assert difference.low <= difference.estimate <= difference.high


def test_the_interval_of_a_clear_difference_excludes_zero_and_pairing_makes_it_narrow():
    good = np.where(TRUTH == 1, 0.9, 0.1) + np.random.default_rng(3).normal(scale=0.02, size=ROWS)
    difference = paired_difference("brier", binary(good), binary(POSITIVE))
    assert difference.high < 0
    narrow = paired_difference("brier", binary(good), binary(good - 0.01))
    assert narrow.high - narrow.low < (difference.high - difference.low) / 10, "the same rows are hard for both"


def test_the_same_rows_give_the_same_interval_and_the_estimate_is_on_all_of_many_rows():
    truth, score = np.arange(3 * MAX_ROWS) % 2, np.linspace(0, 1, 3 * MAX_ROWS)
    first, second = (
        paired_difference("log_loss", binary(score, truth), binary(np.full_like(score, 0.5), truth)) for _ in range(2)
    )
    assert first == second
    assert (first.rows, first.resampled_by, first.groups) == (3 * MAX_ROWS, "row", 3 * MAX_ROWS)
    flat = metrics.log_loss(truth, np.full_like(score, 0.5))
    assert first.estimate == pytest.approx(metrics.log_loss(truth, score) - flat, rel=1e-12)


@pytest.mark.parametrize(("metric", "truth"), [("roc_auc", np.zeros(50, int)), ("silhouette", np.arange(50) % 2)])
def test_a_metric_that_is_not_defined_has_no_interval(metric, truth):
    score = np.linspace(0, 1, 50)
    assert paired_difference(metric, binary(score, truth), binary(score[::-1], truth)) is None
