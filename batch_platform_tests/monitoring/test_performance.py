"""The measures: scikit-learn's numbers, and by hand; what is not defined is left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from batch_platform.declaration.spec import METRICS
from batch_platform.monitoring.performance import (
    DEFAULT_METRIC,
    SILHOUETTE_ROWS,
    is_worse,
    measure_classes,
    measure_segments,
    measure_values,
)


def test_a_binary_classification_by_hand():
    truth = np.array(["no", "yes", "yes", "no"])
    of_yes = np.array([0.1, 0.8, 0.4, 0.6])
    found = measure_classes(truth, np.column_stack([1 - of_yes, of_yes]), ["no", "yes"])
    assert found["accuracy"] == 0.5
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.6**2) / 4)
    assert found["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.8) + 2 * math.log(0.4)) / 4)
    assert found["roc_auc"] == 0.75, "of the four pairs of yes and no, three are in order"


def test_a_regression_by_hand():
    found = measure_values(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0]))
    assert found == pytest.approx({"mae": 1.0, "rmse": math.sqrt(5 / 3), "r2": 1 - 5 / 2})


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=1, max_size=40))
def test_a_binary_classification_gives_scikit_learns_numbers(rows):
    truth, of_true = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = measure_classes(truth, np.column_stack([1 - of_true, of_true]), [False, True])
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, of_true, labels=[False, True]))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(truth, of_true, pos_label=True))
    if truth.any() and not truth.all():
        assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, of_true))
    else:
        assert "roc_auc" not in found


def test_several_classes_give_scikit_learns_numbers():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1, 1, 1], 50)
    truth = random.integers(0, 3, 50)
    labels = np.array(["a", "b", "c"])[truth]
    found = measure_classes(labels, probabilities, ["a", "b", "c"])
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, probabilities))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, probabilities.argmax(axis=1)))
    assert found["brier"] == pytest.approx(((probabilities - np.eye(3)[truth]) ** 2).sum(axis=1).mean())
    assert "roc_auc" not in measure_classes(labels[truth < 2], probabilities[truth < 2], ["a", "b", "c"])


@pytest.mark.parametrize("classes", [[False, True], [0, 1], [0.0, 1.0], ["no", "yes"]])
def test_classes_of_any_type_are_known_by_their_value(classes):
    truth = np.array([classes[0], classes[1]], dtype=object if isinstance(classes[0], str) else None)
    assert measure_classes(truth, np.array([[0.9, 0.1], [0.2, 0.8]]), classes)["accuracy"] == 1.0


def test_measures_that_are_not_defined_are_left_out():
    assert measure_classes(np.array([]), np.empty((0, 2)), [0, 1]) == {}
    assert measure_values(np.array([]), np.array([])) == {}
    assert set(measure_values(np.array([1.0]), np.array([2.0]))) == {"mae", "rmse"}
    assert set(measure_values(np.array([1.0, 1.0]), np.array([2.0, 0.0]))) == {"mae", "rmse"}
    assert measure_segments(np.ones((5, 2)), np.zeros(5)) == {}
    assert measure_segments(np.empty((0, 2)), np.empty(0)) == {}
    assert measure_segments(np.ones((2, 2)), np.array([0, 1])) == {}


def test_a_clustering_gives_the_silhouette_of_the_scaled_columns():
    random = np.random.default_rng(0)
    segments = random.integers(0, 2, 60)
    matrix = random.normal(size=(60, 2)) + segments[:, None] * 4
    scaled = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    assert measure_segments(matrix, segments)["silhouette"] == pytest.approx(metrics.silhouette_score(scaled, segments))
    with_nulls = matrix.copy()
    with_nulls[0, 0] = np.nan
    assert 0 < measure_segments(with_nulls, segments)["silhouette"] < 1


def test_a_large_clustering_is_measured_on_some_rows_taken_evenly():
    n = SILHOUETTE_ROWS * 3 + 1
    segments = np.arange(n) // (n // 2 + 1)
    matrix = segments[:, None] * 10.0 + np.linspace(0, 1, n)[:, None]
    assert measure_segments(matrix, segments)["silhouette"] > 0.9


def test_every_metric_that_can_be_declared_has_a_direction():
    lower = {name for name in METRICS if is_worse(name, 1.0, 0.0)}
    assert lower == {"log_loss", "brier", "mae", "rmse", "outlier_share"}
    assert all(is_worse(name, 0.0, 1.0) for name in set(METRICS) - lower)
    assert not any(is_worse(name, 0.5, 0.5) for name in METRICS)
    assert set(DEFAULT_METRIC.values()) <= set(METRICS)
