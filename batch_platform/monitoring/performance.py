"""Measures of a model against the true outcomes, one number each, on plain arrays.

A measure that is not defined on the rows at hand (the area under the ROC curve with one class only) is left out, never
guessed. Formulas are scikit-learn's (`sklearn.metrics`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_METRIC = {
    "binary": "roc_auc",
    "multiclass": "log_loss",
    "regression": "rmse",
    "clustering": "silhouette",
    "outliers": "outlier_share",
}
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse", "outlier_share"})
SILHOUETTE_ROWS = 2_000  # the measure compares every pair of rows


def measure_classes(
    truth: NDArray[Any], probabilities: NDArray[np.float64], classes: Sequence[Any]
) -> dict[str, float]:
    """AUC, log loss, Brier score and accuracy of a classification.

    Args:
        truth: True classes [n]; each is one of `classes`.
        probabilities: One column for each class [n, classes].
        classes: In the order of the columns; of two, the second is the positive one.
    """
    from sklearn import metrics

    if not len(truth):
        return {}
    positions = {label: at for at, label in enumerate(classes)}
    at = np.array([positions[label] for label in truth.tolist()])
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 models miss 1 by its last digit
    found = {
        "accuracy": float(np.mean(probabilities.argmax(axis=1) == at)),
        "log_loss": float(metrics.log_loss(at, shares, labels=range(len(classes)))),
        "brier": float(np.mean(((probabilities - np.eye(len(classes))[at]) ** 2).sum(axis=1))),
    }
    if len(classes) == 2:  # noqa: PLR2004 - binary
        found["brier"] /= 2  # the usual form: of the positive class alone
        if 0 < at.sum() < len(at):
            found["roc_auc"] = float(metrics.roc_auc_score(at, probabilities[:, 1]))
    elif len(np.unique(at)) == len(classes):
        found["roc_auc"] = float(
            metrics.roc_auc_score(at, probabilities, multi_class="ovr", labels=range(len(classes)))
        )
    return found


def measure_values(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, float]:
    """Mean absolute error, root mean squared error and R² of a regression, both arrays [n]."""
    from sklearn import metrics

    if not len(truth):
        return {}
    found = {
        "mae": float(metrics.mean_absolute_error(truth, prediction)),
        "rmse": float(metrics.root_mean_squared_error(truth, prediction)),
    }
    if len(truth) > 1 and np.ptp(truth) > 0:
        found["r2"] = float(metrics.r2_score(truth, prediction))
    return found


def measure_segments(matrix: NDArray[np.float64], segments: NDArray[Any]) -> dict[str, float]:
    """Silhouette of a clustering, over at most SILHOUETTE_ROWS rows taken evenly.

    Args:
        matrix: The features [n, columns]; a null (NaN) counts as its column's mean, columns are scaled to deviation 1.
        segments: The segment of each row [n].
    """
    from sklearn import metrics

    step = max(1, -(-len(segments) // SILHOUETTE_ROWS))
    rows, found = matrix[::step], segments[::step]
    if not 1 < len(np.unique(found)) < len(found):
        return {}
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    filled = np.where(known, rows, mean) - mean
    deviation = np.sqrt((filled**2).mean(axis=0))
    return {"silhouette": float(metrics.silhouette_score(filled / np.where(deviation > 0, deviation, 1), found))}


def measure_outliers(scores: NDArray[np.float64], truth: NDArray[Any] | None) -> dict[str, float]:
    """The share of rows that are found odd; with labels of two classes, how well the second one is told by the score.

    Args:
        scores: How odd each row is [n]; above 0 it is an outlier.
        truth: Labels [n]; None where there are none.
    """
    from sklearn import metrics

    if not len(scores):
        return {}
    found = {"outlier_share": float(np.mean(scores > 0))}
    if truth is not None and len(classes := np.unique(truth)) == 2:  # noqa: PLR2004 - two classes
        found["roc_auc"] = float(metrics.roc_auc_score(truth == classes[1], scores))
    return found


def is_worse(metric: str, value: float, bound: float) -> bool:
    """Whether a value of a metric is worse than a bound."""
    return value > bound if metric in LOWER_IS_BETTER else value < bound
