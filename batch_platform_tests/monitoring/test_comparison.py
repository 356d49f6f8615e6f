"""The paired bootstrap, held against scikit-learn's metrics and against what is known of it."""

import numpy as np
import pytest
from sklearn import metrics

from batch_platform.monitoring import comparison
from batch_platform.monitoring.comparison import MOST_ROWS, paired_difference
from batch_platform.monitoring.performance import measure_classes, measure_values

RANDOM = np.random.default_rng(1)
ROWS = 400
TRUTH = RANDOM.integers(0, 3, ROWS)
SHARES = RANDOM.dirichlet([1, 1, 1], ROWS).round(2) + 1e-3
SHARES /= SHARES.sum(axis=1, keepdims=True)
VALUES = RANDOM.normal(size=ROWS)


def both(shares: np.ndarray) -> np.ndarray:
    first = shares[:, 0]
    return np.column_stack([1 - first, first])


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "brier", "accuracy"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_estimate_is_the_difference_of_the_metrics(metric, classes):
    truth = TRUTH % classes
    one, other = (both(SHARES), both(SHARES[::-1])) if classes == 2 else (SHARES, SHARES[::-1])
    names = list(range(classes))
    expected = measure_classes(truth, one, names)[metric] - measure_classes(truth, other, names)[metric]
    found = paired_difference(metric, truth, one, other, names)
    assert found.estimate == pytest.approx(expected, abs=1e-12)
    assert found.low <= found.estimate <= found.high


@pytest.mark.parametrize("metric", ["mae", "rmse", "r2"])
def test_the_estimate_of_a_regression_is_the_difference_of_the_metrics(metric):
    one, other = VALUES + RANDOM.normal(size=ROWS), np.zeros(ROWS)
    expected = measure_values(VALUES, one)[metric] - measure_values(VALUES, other)[metric]
    assert paired_difference(metric, VALUES, one, other, []).estimate == pytest.approx(expected, abs=1e-12)


def test_an_area_with_drawn_rows_is_that_of_scikit_learn_with_weights():
    weights = RANDOM.integers(0, 4, ROWS).astype(float)
    positive, score = TRUTH == 1, SHARES[:, 1]
    expected = metrics.roc_auc_score(positive, score, sample_weight=weights)
    assert comparison._area(positive, score)(weights) == pytest.approx(expected, abs=1e-12)


def test_a_model_against_itself_differs_by_nothing():
    found = paired_difference("roc_auc", TRUTH % 2, both(SHARES), both(SHARES), [0, 1])
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_clear_difference_lies_wholly_on_one_side_and_pairing_makes_it_narrow():
    truth = TRUTH % 2
    good = both(np.column_stack([np.where(truth == 1, 0.9, 0.1) + RANDOM.normal(scale=0.02, size=ROWS)]))
    found = paired_difference("brier", truth, good, both(SHARES), [0, 1])
    assert found.high < 0
    shifted = good + np.array([0.01, -0.01])
    narrow = paired_difference("brier", truth, good, shifted, [0, 1])
    assert narrow.high - narrow.low < (found.high - found.low) / 10, "the same rows are hard for both"


def test_the_same_rows_give_the_same_interval_and_many_rows_are_thinned_out():
    truth = np.arange(3 * MOST_ROWS) % 2
    score = both(np.linspace(0, 1, 3 * MOST_ROWS)[:, None])
    one, two = (paired_difference("log_loss", truth, score, 0.5 * np.ones_like(score), [0, 1]) for _ in range(2))
    assert one == two
    assert one.rows == MOST_ROWS


@pytest.mark.parametrize(("metric", "truth"), [("roc_auc", np.zeros(50, int)), ("silhouette", np.arange(50) % 2)])
def test_what_is_not_defined_has_no_interval(metric, truth):
    score = both(np.linspace(0, 1, 50)[:, None])
    assert paired_difference(metric, truth, score, score[::-1], [0, 1]) is None


def test_without_rows_there_is_no_interval():
    assert paired_difference("roc_auc", np.array([], int), np.empty((0, 2)), np.empty((0, 2)), [0, 1]) is None
