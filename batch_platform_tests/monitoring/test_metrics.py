"""Metrics: one suite that every metric passes, then scikit-learn's numbers and examples by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from batch_platform.monitoring.metrics import METRICS, Outcomes, default_metric, is_worse, lower_is_better, measure
from batch_platform_tests.monitoring.every_task import OUTCOMES, ROWS, TASKS, require_one_value_of_rows, rows_of

pytestmark = pytest.mark.unit

CASES = [(metric, task) for metric in METRICS.values() for task in metric.tasks]
every_metric = pytest.mark.parametrize(("metric", "task"), CASES, ids=[f"{m.name}-{task}" for m, task in CASES])


@every_metric
def test_no_rows_have_no_value_one_row_a_finite_one_or_none_and_the_order_of_rows_does_not_matter(metric, task):
    require_one_value_of_rows(metric, task)


def test_every_metric_of_labels_and_of_the_gate_is_weighted():
    assert [task for metric, task in CASES if metric.weighted is None and task not in ("clustering", "outliers")] == []


@every_metric
def test_a_metric_of_weighted_rows_is_that_of_rows_that_occur_so_often_whatever_the_unit_of_the_weights(metric, task):
    counts = np.random.default_rng(3).integers(0, 4, ROWS)
    weighted = replace(OUTCOMES[task], weights=counts / 100)
    repeated = rows_of(OUTCOMES[task], np.repeat(np.arange(ROWS), counts)) if metric.weighted else OUTCOMES[task]
    assert metric(weighted) == pytest.approx(metric(repeated), rel=1e-9), "without weights, all rows count alike"


SKLEARN = {
    ("accuracy", "binary"): lambda o: metrics.accuracy_score(o.true_positions, o.predicted.argmax(axis=1)),
    ("accuracy", "multiclass"): lambda o: metrics.accuracy_score(o.true_positions, o.predicted.argmax(axis=1)),
    ("log_loss", "binary"): lambda o: metrics.log_loss(o.labels, o.predicted),
    ("log_loss", "multiclass"): lambda o: metrics.log_loss(o.labels, o.predicted),
    ("brier", "binary"): lambda o: metrics.brier_score_loss(o.true_positions, o.predicted[:, 1]),
    ("brier", "multiclass"): lambda o: metrics.brier_score_loss(o.true_positions, o.predicted, labels=range(3)),
    ("mae", "regression"): lambda o: metrics.mean_absolute_error(o.labels, o.predicted),
    ("rmse", "regression"): lambda o: metrics.root_mean_squared_error(o.labels, o.predicted),
    ("r2", "regression"): lambda o: metrics.r2_score(o.labels, o.predicted),
    ("silhouette", "clustering"): lambda o: metrics.silhouette_score(
        (o.matrix - o.matrix.mean(axis=0)) / o.matrix.std(axis=0), o.predicted
    ),
    ("roc_auc", "binary"): lambda o: metrics.roc_auc_score(o.true_positions, o.predicted[:, 1]),
    ("roc_auc", "multiclass"): lambda o: metrics.roc_auc_score(o.labels, o.predicted, multi_class="ovr"),
    ("roc_auc", "outliers"): lambda o: metrics.roc_auc_score(o.labels, o.predicted),
    ("outlier_share", "outliers"): lambda o: (o.predicted > 0).mean(),
    ("precision", "binary"): lambda o: metrics.precision_score(o.true_positions, o.predicted.argmax(axis=1)),
    ("recall", "binary"): lambda o: metrics.recall_score(o.true_positions, o.predicted.argmax(axis=1)),
    ("f1", "binary"): lambda o: metrics.f1_score(o.true_positions, o.predicted.argmax(axis=1)),
    ("f1", "multiclass"): lambda o: metrics.f1_score(o.true_positions, o.predicted.argmax(axis=1), average="macro"),
    ("decision_cost", "binary"): lambda o: (o.true_positions != o.predicted.argmax(axis=1)).mean(),
    ("decision_cost", "multiclass"): lambda o: (o.true_positions != o.predicted.argmax(axis=1)).mean(),
    ("decision_cost_always", "binary"): lambda o: (o.true_positions == 0).mean(),
    ("decision_cost_always", "multiclass"): lambda o: 1 - np.bincount(o.true_positions).max() / ROWS,
    ("decision_cost_never", "binary"): lambda o: o.true_positions.mean(),
    ("decision_cost_in_hindsight", "binary"): lambda o: min(
        (o.true_positions != (o.predicted[:, 1] >= least)).mean() for least in [*o.predicted[:, 1], 2]
    ),
    ("selection_rate", "binary"): lambda o: (o.predicted[:, 1] > 0.5).mean(),
    ("false_positive_rate", "binary"): lambda o: (
        1 - metrics.recall_score(o.true_positions, o.predicted.argmax(axis=1), pos_label=0)
    ),
    ("calibration_error", "binary"): lambda o: calibration_error(o.true_positions, o.predicted[:, 1]),
    ("average_precision", "binary"): lambda o: metrics.average_precision_score(o.true_positions, o.predicted[:, 1]),
    ("ks", "binary"): lambda o: (
        stats.ks_2samp(o.predicted[o.true_positions == 1, 1], o.predicted[o.true_positions == 0, 1]).statistic
    ),
    **{(f"lift_at_{share}", "binary"): lambda o, share=share: lift(o, share / 100) for share in (1, 5, 10)},
    ("bias", "regression"): lambda o: o.predicted.mean() - o.labels.mean(),
    ("mape", "regression"): lambda o: metrics.mean_absolute_percentage_error(o.labels, o.predicted),
    **{
        (f"error_p{share}", "regression"): lambda o, share=share: np.quantile(
            o.predicted - o.labels, share / 100, method="inverted_cdf"
        )
        for share in (10, 50, 90)
    },
}


def calibration_error(truth: np.ndarray, score: np.ndarray) -> float:
    """The error by the mean of each tenth of the probabilities."""
    tenths = [(score >= at / 10) & (score < (at + 1) / 10) for at in range(10)]
    return sum(abs(score[rows].mean() - truth[rows].mean()) * rows.mean() for rows in tenths if rows.any())


def lift(outcomes: Outcomes, share: float) -> float:
    """The gain at a share of the rows, between the corners of scikit-learn's ROC curve, in multiples of the share."""
    positive = outcomes.true_positions == 1
    of_negatives, of_positives, _ = metrics.roc_curve(positive, outcomes.predicted[:, 1], drop_intermediate=False)
    shares = of_positives * positive.mean() + of_negatives * (~positive).mean()
    return np.interp(share, shares, of_positives) / share


@every_metric
def test_the_number_is_that_of_scikit_learn(metric, task):
    assert metric.value(OUTCOMES[task]) == pytest.approx(SKLEARN[metric.name, task](OUTCOMES[task]), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_docstring_gives_the_formula_and_a_value_is_worse_on_its_worse_side(metric):
    assert metric.value.__doc__
    assert is_worse(metric.name, 1.0, 0.0) == metric.lower_is_better == lower_is_better(metric.name)
    assert is_worse(metric.name, 0.0, 1.0) != metric.lower_is_better
    assert not is_worse(metric.name, 0.5, 0.5)
    assert is_worse(metric.name, -1.0, 0.5) == (not metric.lower_is_better or metric.signed)


def test_every_task_has_a_default():
    assert {task: default_metric(task) for task in TASKS} == {
        "binary": "roc_auc",
        "multiclass": "log_loss",
        "regression": "rmse",
        "clustering": "silhouette",
        "outliers": "outlier_share",
    }
    assert all(sum(task in metric.default_for for metric in METRICS.values()) == 1 for task in TASKS)


def test_a_supervised_model_without_labels_has_no_metrics():
    assert all(measure(replace(OUTCOMES[task], truth=None)) == {} for task in ("binary", "multiclass", "regression"))
    assert set(measure(replace(OUTCOMES["outliers"], truth=None))) == {"outlier_share"}


def test_the_relative_error_leaves_out_rows_whose_truth_is_zero():
    values = measure(Outcomes("regression", np.array([1.0, 3.0, 5.0]), np.array([0.0, 2.0, 5.0])))
    assert values["mape"] == 0.25
    assert "mape" not in measure(Outcomes("regression", np.ones(3), np.zeros(3)))


def test_a_metric_that_is_not_defined_is_left_out():
    some_classes = rows_of(OUTCOMES["multiclass"], OUTCOMES["multiclass"].truth != "c")
    assert set(measure(replace(some_classes, rule=None))) == {"accuracy", "log_loss", "brier", "f1"}
    errors = {"mae", "rmse", "mape", "bias", "error_p10", "error_p50", "error_p90"}
    for truth, predicted in (([1.0], [2.0]), ([1.0, 1.0], [2.0, 0.0])):
        assert set(measure(Outcomes("regression", np.array(predicted), np.array(truth)))) == errors
    for matrix, segments in ((np.ones((5, 2)), np.zeros(5)), (np.ones((2, 2)), np.array([0, 1]))):
        assert measure(Outcomes("clustering", segments, matrix=matrix)) == {}
    for labels in (["a", "b", "c"], ["a", "a", "a"]):
        assert "roc_auc" not in measure(Outcomes("outliers", np.array([-1.0, 0.5, 1.0]), np.array(labels)))


@pytest.mark.parametrize("strange", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_prediction_that_is_no_number_is_refused(task, strange):
    predicted = OUTCOMES[task].predicted.copy()
    predicted[7] = strange
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure(replace(OUTCOMES[task], predicted=predicted))
