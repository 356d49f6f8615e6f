"""Metrics: how good the output of a model is, as one number each, on plain arrays.

A metric that is not defined for the rows at hand (the area under the ROC curve where only one class occurs) is left
out, never guessed. To add a metric, add a record to `METRICS`, and its name to the `METRICS` of `declaration/spec.py`
if `model.promote.metric` may name it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

SILHOUETTE_ROWS = 2_000  # the silhouette compares every pair of rows
CLASSIFICATION = ("binary", "multiclass")
REGRESSION = ("regression",)
UNSUPERVISED = ("clustering", "outliers")

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], float]  # a metric of some rows, given a weight for each row


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The output of a model for some rows, and the truth.

    `predicted` holds class probabilities [n, classes] of a classification, otherwise values, segments or outlier scores
    [n]; a row is an outlier if its score is above 0.
    """

    task: str
    predicted: Floats
    truth: NDArray[Any] | None = None  # true classes (each one of `classes`) or values [n]; None without labels
    classes: Sequence[Any] = ()  # of a classification, in the order of the columns; of two, the second is positive
    matrix: Floats | None = None  # encoded features of a clustering [n, columns]; NaN is a missing value

    @cached_property
    def true_positions(self) -> NDArray[np.int64]:
        """Position of each row's true class in `classes` [n]."""
        positions = {label: position for position, label in enumerate(self.classes)}
        return np.array([positions[label] for label in self.labels.tolist()], dtype=np.int64)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The true classes, or the true values as float64 [n]; they must be known."""
        if self.truth is None:
            msg = f"the metrics of a {self.task} model need labels"
            raise ValueError(msg)
        return self.truth.astype(np.float64) if self.task == "regression" else self.truth

    def thinned(self, max_rows: int) -> "Outcomes":
        """At most so many of the rows, evenly spaced."""
        step = max(1, -(-len(self.predicted) // max_rows))
        truth, matrix = (None if values is None else values[::step] for values in (self.truth, self.matrix))
        return replace(self, predicted=self.predicted[::step], truth=truth, matrix=matrix)


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str  # in YAML, in tables and on plots
    tasks: Sequence[str]  # of the models that it measures
    value: Callable[[Outcomes], float | None]  # None if it is not defined for the rows; its docstring gives the formula
    lower_is_better: bool = False  # whether it is an error rather than a score
    default_for: Sequence[str] = ()  # tasks whose models it judges when `model.promote.metric` names no metric
    weighted: Callable[[Outcomes], Weighted] | None = None  # prepares it for weighted rows, for the paired bootstrap


def measure(outcomes: Outcomes) -> dict[str, float]:
    """Every metric that is defined for the outcomes, by name; empty without rows or without labels of a supervised task."""
    if not len(outcomes.predicted) or (outcomes.truth is None and outcomes.task not in UNSUPERVISED):
        return {}
    values = {metric.name: metric.value(outcomes) for metric in METRICS.values() if outcomes.task in metric.tasks}
    return {name: value for name, value in values.items() if value is not None}


def default_metric(task: str) -> str:
    """The metric that judges a model of a task when none is declared."""
    return next(metric.name for metric in METRICS.values() if task in metric.default_for)


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error rather than a score; a metric that is no longer known counts as a score."""
    return metric in METRICS and METRICS[metric].lower_is_better


def is_worse(metric: str, value: float, bound: float) -> bool:
    """Whether a value of a metric is worse than a bound."""
    return value > bound if lower_is_better(metric) else value < bound


def as_truth(labels: pl.Series) -> NDArray[Any]:
    """Labels as estimators take them: decimals as floats, categories and enumerations as text, the rest unchanged."""
    if labels.dtype.is_decimal():
        return labels.cast(pl.Float64).to_numpy()
    if isinstance(labels.dtype, pl.Categorical | pl.Enum):
        return labels.cast(pl.String).to_numpy()
    return labels.to_numpy()


def known_to(classes: Sequence[object], labels: pl.Series) -> pl.Series:
    """Whether each label is one of a model's classes."""
    known = set(classes)
    return pl.Series([value in known for value in as_truth(labels).tolist()], dtype=pl.Boolean)


def _accuracy(outcomes: Outcomes) -> float:
    """Share of the rows whose most probable class is the true one (`sklearn.metrics.accuracy_score`)."""
    return float(np.mean(_hits(outcomes)))


def _hits(outcomes: Outcomes) -> NDArray[np.bool_]:
    return outcomes.predicted.argmax(axis=1) == outcomes.true_positions


def _log_loss(outcomes: Outcomes) -> float:
    """Mean negative logarithm of the true class's probability (`sklearn.metrics.log_loss`)."""
    from sklearn import metrics

    shares = outcomes.predicted / outcomes.predicted.sum(axis=1, keepdims=True)  # float32 models miss 1 by a last digit
    return float(metrics.log_loss(outcomes.true_positions, shares, labels=range(len(outcomes.classes))))


def _row_log_losses(outcomes: Outcomes) -> Floats:
    of_truth = outcomes.predicted[np.arange(len(outcomes.predicted)), outcomes.true_positions]
    return -np.log(np.clip(of_truth, np.finfo(np.float64).eps, 1.0))


def _brier(outcomes: Outcomes) -> float:
    """Mean squared distance between the probabilities and the true class as 0 and 1 (Brier, 1950).

    For two classes half of that: the usual form, of the positive class alone (`sklearn.metrics.brier_score_loss`).
    """
    return float(np.mean(_row_brier_scores(outcomes)))


def _row_brier_scores(outcomes: Outcomes) -> Floats:
    truth = np.eye(len(outcomes.classes))[outcomes.true_positions]
    distances = ((outcomes.predicted - truth) ** 2).sum(axis=1)
    return distances / 2 if outcomes.task == "binary" else distances


def _weighted_mean(row_values: Callable[[Outcomes], NDArray[Any]]) -> Callable[[Outcomes], Weighted]:
    """The mean of a value per row, for weighted rows."""

    def prepare(outcomes: Outcomes) -> Weighted:
        values = row_values(outcomes).astype(np.float64)
        return lambda weights: float(weights @ values / weights.sum())

    return prepare


def _roc_auc(outcomes: Outcomes) -> float | None:
    """Area under the ROC curve: the chance that a positive row ranks before a negative one (`roc_auc_score`).

    For several classes, the mean over each class against all others, defined only if every class occurs. For outliers,
    how well the score separates the second of two labels from the first.
    """
    from sklearn import metrics

    if outcomes.task != "multiclass":
        positive, score = _positive(outcomes)
        return float(metrics.roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else None
    positions, count = outcomes.true_positions, len(outcomes.classes)
    if len(np.unique(positions)) < count:
        return None
    return float(metrics.roc_auc_score(positions, outcomes.predicted, multi_class="ovr", labels=range(count)))


def _positive(outcomes: Outcomes) -> tuple[NDArray[np.bool_], Floats]:
    """Which rows are positive, and their scores; of outliers without exactly two labels, no row is."""
    if outcomes.task != "outliers":
        return outcomes.true_positions == 1, outcomes.predicted[:, 1]
    labels = [] if outcomes.truth is None else np.unique(outcomes.truth)
    if len(labels) != 2:  # noqa: PLR2004 - two classes
        return np.zeros(len(outcomes.predicted), dtype=np.bool_), outcomes.predicted
    return outcomes.truth == labels[1], outcomes.predicted


def _weighted_roc_auc(outcomes: Outcomes) -> Weighted:
    if outcomes.task != "multiclass":
        return weighted_area(*_positive(outcomes))
    areas = [weighted_area(outcomes.true_positions == at, scores) for at, scores in enumerate(outcomes.predicted.T)]
    return lambda weights: float(np.mean([area(weights) for area in areas]))


def weighted_area(positive: NDArray[np.bool_], score: Floats) -> Weighted:
    """The area under the ROC curve for weighted rows; ties count half."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positive = positive[order]

    def area(weights: Floats) -> float:
        drawn = weights[order]
        hits = np.add.reduceat(drawn * positive, starts)
        misses = np.add.reduceat(drawn * ~positive, starts)
        below = np.cumsum(misses) - misses
        return float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))

    return area


def _mae(outcomes: Outcomes) -> float:
    """Mean absolute error (`sklearn.metrics.mean_absolute_error`)."""
    from sklearn import metrics

    return float(metrics.mean_absolute_error(outcomes.labels, outcomes.predicted))


def _absolute_errors(outcomes: Outcomes) -> Floats:
    return np.abs(outcomes.labels - outcomes.predicted)


def _rmse(outcomes: Outcomes) -> float:
    """Square root of the mean squared error (`sklearn.metrics.root_mean_squared_error`)."""
    from sklearn import metrics

    return float(metrics.root_mean_squared_error(outcomes.labels, outcomes.predicted))


def _weighted_rmse(outcomes: Outcomes) -> Weighted:
    squares = (outcomes.labels - outcomes.predicted) ** 2
    return lambda weights: float(np.sqrt(float(weights @ squares) / weights.sum()))


def _r2(outcomes: Outcomes) -> float | None:
    """Share of the variance that is explained (`sklearn.metrics.r2_score`); not defined where the truth is constant."""
    from sklearn import metrics

    truth = outcomes.labels
    return float(metrics.r2_score(truth, outcomes.predicted)) if len(truth) > 1 and np.ptp(truth) > 0 else None


def _weighted_r2(outcomes: Outcomes) -> Weighted:
    truth = outcomes.labels
    squares = (truth - outcomes.predicted) ** 2

    def value(weights: Floats) -> float:
        mean = weights @ truth / weights.sum()
        return float(1 - (weights @ squares) / (weights @ (truth - mean) ** 2))  # NaN or infinite where all are equal

    return value


def _silhouette(outcomes: Outcomes) -> float | None:
    """How much nearer rows are to their own segment than to the next one (`sklearn.metrics.silhouette_score`).

    Over at most SILHOUETTE_ROWS rows, taken evenly. A missing value counts as its column's mean, and columns are scaled
    to a standard deviation of 1. Not defined for one segment, nor where every row is a segment.
    """
    from sklearn import metrics

    outcomes = outcomes.thinned(SILHOUETTE_ROWS)
    rows, segments = outcomes.matrix, outcomes.predicted
    if rows is None or not 1 < len(np.unique(segments)) < len(segments):
        return None
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    centred = np.where(known, rows, mean) - mean
    deviation = np.sqrt((centred**2).mean(axis=0))
    return float(metrics.silhouette_score(centred / np.where(deviation > 0, deviation, 1), segments))


def _outlier_share(outcomes: Outcomes) -> float:
    """Share of the rows that are outliers."""
    return float(np.mean(outcomes.predicted > 0))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", CLASSIFICATION, _accuracy, weighted=_weighted_mean(_hits)),
        Metric(
            "log_loss",
            CLASSIFICATION,
            _log_loss,
            lower_is_better=True,
            default_for=("multiclass",),
            weighted=_weighted_mean(_row_log_losses),
        ),
        Metric("brier", CLASSIFICATION, _brier, lower_is_better=True, weighted=_weighted_mean(_row_brier_scores)),
        Metric("mae", REGRESSION, _mae, lower_is_better=True, weighted=_weighted_mean(_absolute_errors)),
        Metric("rmse", REGRESSION, _rmse, lower_is_better=True, default_for=REGRESSION, weighted=_weighted_rmse),
        Metric("r2", REGRESSION, _r2, weighted=_weighted_r2),
        Metric("silhouette", ("clustering",), _silhouette, default_for=("clustering",)),
        Metric("outlier_share", ("outliers",), _outlier_share, lower_is_better=True, default_for=("outliers",)),
        Metric("roc_auc", (*CLASSIFICATION, "outliers"), _roc_auc, default_for=("binary",), weighted=_weighted_roc_auc),
    )
}
