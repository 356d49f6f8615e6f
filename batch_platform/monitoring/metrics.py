"""Metrics: how good the output of a model is, as one number each, on plain arrays.

A metric that is not defined for the rows at hand (the area under the ROC curve where only one class occurs) is left
out, never guessed. A row whose true class the model does not know counts as wrong where a metric judges decisions, and is
left out where it judges probabilities. A pipeline names metrics of its own in `monitoring.metrics`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.extensions import Registry
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring import decisions
from batch_platform.monitoring.outcomes import (
    BINARY,
    CLASSIFICATION,
    REGRESSION,
    TASKS,
    UNSUPERVISED,
    Floats,
    Outcomes,
    Ranked,
    Ratio,
    Weighted,
    columns,
    over_all_rows,
    total,
)

SILHOUETTE_ROWS = 2_000  # the silhouette compares every pair of rows
LIFTS = (0.01, 0.05, 0.10)  # shares of the rows with the highest scores
LEAST_HIGHEST = 10  # rows with the highest scores, without which a lift has no interval
ERROR_QUANTILES = (0.1, 0.5, 0.9)
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str  # name in YAML, in tables and on plots
    tasks: Sequence[str]  # tasks of the models that it measures
    value: Callable[[Outcomes], float | None]  # None if it is not defined for the rows; its docstring gives the formula
    lower_is_better: bool = False  # whether it is an error rather than a score
    default_for: Sequence[str] = ()  # tasks whose models it judges when `model.promote.metric` names no metric
    weighted: Callable[[Outcomes], Weighted] | None = None  # prepares it for weighted rows, for intervals
    share: Callable[[Outcomes], Ratio | None] | None = None  # the share of rows that it follows from; None if of none
    mean: Callable[[Outcomes], Ratio] | None = None  # the mean of a value per row that it follows from
    of_decisions: bool = False  # whether rows of a class that the model does not know count as wrong
    in_detail: bool = False  # whether lists of models leave it out
    signed: bool = False  # whether it is an error with a sign, of which 0 is best
    neutral: bool = False  # whether neither direction is better; a bound is then the least that it may be
    grows_on_few_rows: bool = False  # whether few rows make it larger than it is, so that it has no interval of its own
    least: float = -np.inf  # lowest possible value
    most: float = np.inf
    range_of: Callable[[Outcomes], tuple[float, float]] | None = None  # both, where they depend on classes or costs

    def bounds(self, outcomes: Outcomes) -> tuple[float, float]:
        """The lowest and the highest value that it can have on rows like some outcomes."""
        return (self.least, self.most) if self.range_of is None else self.range_of(outcomes)

    def __call__(self, outcomes: Outcomes) -> float | None:
        """The metric of all of these rows, which weigh what is declared; one without a weighted form counts them alike."""
        if outcomes.weights is None or self.weighted is None:
            return self.value(outcomes)
        return over_all_rows(self.weighted, outcomes)

    def rows_of(self, outcomes: Outcomes) -> Outcomes:
        """The rows that it is measured on."""
        return outcomes if self.of_decisions else outcomes.known


METRICS: Registry[Metric] = extensions.METRICS


def metrics_of(outcomes: Outcomes, own: Sequence[Metric] = ()) -> dict[str, Metric]:
    """The metrics that measure the task of some outcomes, and those of a pipeline's own, by name."""
    if not len(outcomes.predicted) or (outcomes.truth is None and outcomes.task not in UNSUPERVISED):
        return {}
    return {metric.name: metric for metric in (*METRICS.values(), *own) if outcomes.task in metric.tasks}


def measure(outcomes: Outcomes, own: Sequence[Metric] = (), only: Collection[str] | None = None) -> dict[str, float]:
    """Every metric that is defined for the outcomes, by name; empty without rows or without labels of a supervised task.

    With `only`, no other metric than these is measured.
    """
    values = dict[str, float | None]()
    for name, metric in metrics_of(outcomes, own).items():
        if only is not None and name not in only:
            continue
        rows = metric.rows_of(outcomes)
        values[name] = metric(rows) if len(rows.predicted) else None
    return {name: value for name, value in values.items() if value is not None}


def own_metrics(spec: PipelineSpec) -> list[Metric]:
    """The metrics that a pipeline names as `module.function`, or as `module.NAME` of a record; raises WrongUseError."""
    return [_own(path) for path in spec.monitoring.metrics]


def _own(path: str) -> Metric:
    name, function = path.rpartition(".")[2], import_function(path, "monitoring.metrics")
    return replace(function, name=name) if isinstance(function, Metric) else metric_of(name, function)


def metric_of(name: str, function: Callable[[Outcomes], float | None], tasks: Sequence[str] = TASKS) -> Metric:
    """The metric that a function measures, with intervals; its docstring gives the formula."""

    def value(outcomes: Outcomes) -> float | None:
        number = function(outcomes)
        if number is None or np.isfinite(number):
            return None if number is None else float(number)
        msg = f"the metric {name} is {number}."
        raise DataError(msg, hint="return a finite number, or None where the metric is not defined for the rows.")

    value.__doc__ = function.__doc__  # which the report shows

    def weighted(outcomes: Outcomes) -> Weighted:
        rows = np.arange(len(outcomes.predicted))

        def repeated(weights: Floats) -> float:
            if outcomes.weights is None:
                number = value(outcomes.at(np.repeat(rows, weights.astype(np.int64))))
            else:
                number = value(replace(outcomes, weights=weights).at(weights > 0))
            return np.nan if number is None else number

        return lambda weights: np.apply_along_axis(repeated, -1, weights)

    return Metric(name, tasks, value, weighted=weighted)


def default_metric(task: str) -> str:
    """The metric that judges a model of a task when none is declared."""
    return next(metric.name for metric in METRICS.values() if task in metric.default_for)


def lower_is_better(metric: str) -> bool:
    """Return whether a metric is an error rather than a score; a metric that is no longer known counts as a score."""
    return metric in METRICS and METRICS[metric].lower_is_better


def is_worse(metric: str, value: float, bound: float) -> bool:
    """Return whether a value of a metric is worse than a bound; of a signed error, whether it is farther from 0."""
    if metric in METRICS and METRICS[metric].signed:
        return abs(value) > abs(bound)
    return value > bound if lower_is_better(metric) else value < bound


def as_truth(labels: pl.Series) -> NDArray[Any]:
    """Labels as estimators take them: decimals as floats, categories and enumerations as text, the rest unchanged."""
    if labels.dtype.is_decimal():
        return labels.cast(pl.Float64).to_numpy()
    if isinstance(labels.dtype, pl.Categorical | pl.Enum):
        return labels.cast(pl.String).to_numpy()
    return labels.to_numpy()


def known_to(classes: Sequence[object], labels: pl.Series) -> pl.Series:
    """Tell for each label if it is one of a model's classes."""
    known = set(classes)
    return pl.Series([value in known for value in as_truth(labels).tolist()], dtype=pl.Boolean)


def _require_finite(outcomes: Outcomes) -> None:
    """Raise ValueError if a prediction or a true value is NaN or infinite: no metric would say so."""
    measured = [outcomes.predicted, *([outcomes.labels] if outcomes.task == "regression" else [])]
    if not all(np.isfinite(values).all() for values in measured):
        msg = "a prediction or a label is NaN or infinite"
        raise ValueError(msg)


def _accuracy(outcomes: Outcomes) -> Ratio:
    """Share of the rows whose most probable class is the true one (`sklearn.metrics.accuracy_score`)."""
    hits = outcomes.predicted.argmax(axis=1) == outcomes.true_positions
    return Ratio(hits.astype(np.float64), np.ones(len(hits)))


def _log_loss(outcomes: Outcomes) -> float:
    """Mean negative logarithm of the true class's probability (`sklearn.metrics.log_loss`)."""
    _require_finite(outcomes)
    shares = outcomes.predicted / outcomes.predicted.sum(axis=1, keepdims=True)  # float32 models miss 1 by a last digit
    return float(np.mean(_log_losses(shares, outcomes.true_positions)))


def _row_log_losses(outcomes: Outcomes) -> Floats:
    return _log_losses(outcomes.predicted, outcomes.true_positions)


def _log_losses(shares: Floats, positions: NDArray[np.int64]) -> Floats:
    of_truth = shares[np.arange(len(shares)), positions]
    return -np.log(np.clip(of_truth, np.finfo(np.float64).eps, 1.0))


def _brier(outcomes: Outcomes) -> float:
    """Mean squared distance between the probabilities and the true class as 0 and 1 (Brier, 1950).

    For two classes half of that: the usual form, of the positive class alone (`sklearn.metrics.brier_score_loss`).
    """
    return float(np.mean(_row_brier_scores(outcomes)))


def _range_of_brier(outcomes: Outcomes) -> tuple[float, float]:
    return 0.0, 1.0 if outcomes.task == "binary" else 2.0


def _row_brier_scores(outcomes: Outcomes) -> Floats:
    truth = np.eye(len(outcomes.classes))[outcomes.true_positions]
    distances = ((outcomes.predicted - truth) ** 2).sum(axis=1)
    return distances / 2 if outcomes.task == "binary" else distances


def _mean_of(
    row_values: Callable[[Outcomes], NDArray[Any]], scaled: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """The fields of a metric that is the mean of a value per row, or a function of the mean."""

    def mean(outcomes: Outcomes) -> Ratio:
        values = row_values(outcomes).astype(np.float64)
        ones = np.ones(len(values))
        return Ratio(values, ones) if scaled is None else Ratio(values, ones, scaled)

    return {"mean": mean, "weighted": _from_ratio(mean)}


def _from_ratio(ratio_of: Callable[[Outcomes], Ratio]) -> Callable[[Outcomes], Weighted]:
    """The weighted form of a metric that follows from a ratio."""

    def prepare(outcomes: Outcomes) -> Weighted:
        ratio = ratio_of(outcomes)
        return lambda weights: ratio.scaled(ratio.weighted(weights))

    return prepare


def _roc_auc(outcomes: Outcomes) -> Weighted:
    """Area under the ROC curve: the chance that a positive row ranks before a negative one (`roc_auc_score`).

    For several classes, the mean over each class against all others, defined only if every class occurs. For outliers,
    how well the score separates the second of two labels from the first.
    """
    _require_finite(outcomes)
    if outcomes.task != "multiclass":
        return _area(outcomes.ranked)
    areas = [weighted_area(outcomes.true_positions == at, scores) for at, scores in enumerate(outcomes.predicted.T)]
    return lambda weights: np.mean([area(weights) for area in areas], axis=0)


def weighted_area(positive: NDArray[np.bool_], score: Floats) -> Weighted:
    """The area under the ROC curve for weighted rows; ties count half."""
    return _area(Ranked(positive, score))


def _area(ranked: Ranked) -> Weighted:
    def area(weights: Floats) -> Floats:
        at = ranked.counted(weights)
        misses, positives = at.rows - at.hits, at.found[..., -1]
        before = np.einsum("...i,...i", misses, at.found) - np.einsum("...i,...i", misses, at.hits) / 2
        return before / (positives * (at.held[..., -1] - positives))

    return area


def _average_precision(outcomes: Outcomes) -> Weighted:
    """Mean of the precision at each score, weighted by the growth of the recall (`sklearn.metrics.average_precision_score`).

    Not defined without positives.
    """

    def value(weights: Floats) -> Floats:
        at = outcomes.ranked.counted(weights)
        precision = np.divide(at.found, at.held, out=np.zeros_like(at.found), where=at.held > 0)
        return np.einsum("...i,...i", precision, at.hits) / at.found[..., -1]

    return value


def _ks(outcomes: Outcomes) -> Weighted:
    """Kolmogorov and Smirnov's distance between the scores of positives and negatives (`scipy.stats.ks_2samp`).

    Not defined where only one class occurs.
    """

    def value(weights: Floats) -> Floats:
        at, turns = outcomes.ranked.counted(weights), outcomes.ranked.turns
        found = columns(at.found, turns)
        passed = columns(at.held, turns) - found
        return np.abs(found / found[..., -1:] - passed / passed[..., -1:]).max(axis=-1)

    return value


def _lift(share: float) -> Metric:
    """Lift: positives among the rows with the highest scores, over those of the same number of random rows."""

    def weighted(outcomes: Outcomes) -> Weighted:
        """Rate of positives among the {share:.0%} of the rows with the highest scores, divided by the rate among all rows.

        Of rows with equal scores at the boundary, and of a fraction of a row, a share is taken. Not defined without
        positives, nor where the share is less than one row.
        """

        def value(weights: Floats) -> Floats:
            at = outcomes.ranked.counted(weights)
            most = share * at.held[..., -1:]
            boundary = np.minimum((at.held < most).sum(axis=-1, keepdims=True), at.held.shape[-1] - 1)
            hits, rows, found, held = (
                np.take_along_axis(part, boundary, axis=-1)[..., 0] for part in (at.hits, at.rows, at.found, at.held)
            )
            found -= np.divide(hits * (held - most[..., 0]), rows, out=np.zeros_like(rows), where=rows > 0)
            return np.where(most[..., 0] >= 1, found / at.found[..., -1] / share, np.nan)

        return value

    def among_highest(outcomes: Outcomes) -> Ratio | None:
        if outcomes.weights is not None:  # of weighted rows, more than the share at the top varies
            return None
        positive, score = outcomes.positive_and_score
        highest, count = np.zeros(len(score)), round(share * len(score))
        highest[np.argsort(-score, kind="stable")[:count]] = 1
        rate_of_all = float(positive.mean()) if count >= LEAST_HIGHEST else np.nan
        return Ratio(highest * positive, highest, lambda rate: rate / rate_of_all)

    weighted.__doc__ = (weighted.__doc__ or "").replace("{share:.0%}", f"{share:.0%}")
    name = f"lift_at_{share * 100:g}"
    return _weighted(name, BINARY, weighted, share=among_highest, least=0, most=1 / share, in_detail=True)


def _mae(outcomes: Outcomes) -> float:
    """Mean absolute error (`sklearn.metrics.mean_absolute_error`)."""
    _require_finite(outcomes)
    return float(_absolute_errors(outcomes).mean())


def _absolute_errors(outcomes: Outcomes) -> Floats:
    return np.abs(outcomes.labels - outcomes.predicted)


def _rmse(outcomes: Outcomes) -> float:
    """Square root of the mean squared error (`sklearn.metrics.root_mean_squared_error`)."""
    _require_finite(outcomes)
    return float(np.sqrt(np.mean(_errors(outcomes) ** 2)))


def _squares(outcomes: Outcomes) -> Floats:
    return _errors(outcomes) ** 2


def _r2(outcomes: Outcomes) -> float | None:
    """Share of the variance that is explained (`sklearn.metrics.r2_score`); not defined where the truth is constant."""
    _require_finite(outcomes)
    truth = outcomes.labels
    if len(truth) < 2 or not np.ptp(truth) > 0:  # noqa: PLR2004 - one value has no variance
        return None
    return 1 - float(np.sum(_errors(outcomes) ** 2) / np.sum((truth - truth.mean()) ** 2))


def _weighted_r2(outcomes: Outcomes) -> Weighted:
    truth = outcomes.labels
    squares, centred = (truth - outcomes.predicted) ** 2, truth - truth.mean()
    floor = _ROUNDING * float(centred @ centred)  # below it, all truths of a draw are equal

    def value(weights: Floats) -> Floats:
        all_rows = total(weights)
        mean = weights @ truth / all_rows
        distance = np.maximum(weights @ centred**2 - all_rows * (mean - truth.mean()) ** 2, 0)
        return 1 - (weights @ squares) / np.where(distance > floor, distance, np.nan)

    return value


def _errors(outcomes: Outcomes) -> Floats:
    return outcomes.predicted - outcomes.labels


def _bias(outcomes: Outcomes) -> float:
    """Mean of the prediction minus the truth: above 0, predictions are too high."""
    return float(np.mean(_errors(outcomes)))


def _mape(outcomes: Outcomes) -> Ratio:
    """Mean absolute error relative to the truth (`sklearn.metrics.mean_absolute_percentage_error`), as a share.

    Over the rows whose truth is not 0.
    """
    size = np.abs(outcomes.labels)
    relative = np.divide(np.abs(_errors(outcomes)), size, out=np.zeros_like(size), where=size > 0)
    counted = (size > 0).astype(np.float64)
    return Ratio(relative, counted)


def _error_quantile(share: float) -> Metric:
    """A quantile of the error with its sign."""

    def weighted(outcomes: Outcomes) -> Weighted:
        """Quantile of prediction minus truth: a tenth of the rows is at most p10, half at most p50, nine tenths at most p90 (`numpy.quantile`, `inverted_cdf`)."""
        errors = _errors(outcomes)
        order = np.argsort(errors, kind="stable")
        ranked = errors[order]

        def value(weights: Floats) -> Floats:
            reached = np.cumsum(weights[..., order], axis=-1)
            enough = reached >= share * reached[..., -1:] * (1 - _ROUNDING)
            return ranked[enough.argmax(axis=-1)]

        return value

    def below(outcomes: Outcomes) -> Ratio:
        errors = _errors(outcomes)

        def at(rate: float) -> float:  # beyond the lowest and the highest error nothing is known
            inside = 1 <= rate * len(errors) <= len(errors) - 1
            return (
                float(np.quantile(errors, rate, method="inverted_cdf", weights=outcomes.weights)) if inside else np.nan
            )

        middle = np.quantile(errors, share, method="inverted_cdf", weights=outcomes.weights)
        return Ratio((errors <= middle).astype(np.float64), np.ones(len(errors)), at)

    name = f"error_p{share * 100:g}"
    return _weighted(name, REGRESSION, weighted, lower_is_better=True, share=below, signed=True, in_detail=True)


def _silhouette(outcomes: Outcomes) -> float | None:
    """Silhouette: how much nearer rows are to their own cluster than to the next one (`sklearn.metrics.silhouette_score`).

    Over at most SILHOUETTE_ROWS rows, taken evenly. A missing value counts as its column's mean, and columns are scaled
    to a standard deviation of 1. Not defined for one cluster, nor where every row is a cluster.
    """
    from sklearn import metrics

    outcomes = outcomes.every(max(1, -(-len(outcomes.predicted) // SILHOUETTE_ROWS)))
    rows, clusters = outcomes.matrix, outcomes.predicted
    if rows is None or not 1 < len(np.unique(clusters)) < len(clusters):
        return None
    known = ~np.isnan(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    centred = np.where(known, rows, mean) - mean
    deviation = np.sqrt((centred**2).mean(axis=0))
    return float(metrics.silhouette_score(centred / np.where(deviation > 0, deviation, 1), clusters))


def _outlier_share(outcomes: Outcomes) -> float:
    """Share of the rows that are outliers."""
    return float(np.mean(outcomes.predicted > 0))


def _weighted(name: str, tasks: Sequence[str], weighted: Callable[[Outcomes], Weighted], **further: Any) -> Metric:  # noqa: ANN401 - fields
    """A metric that is measured as its weighted form is, with rows that all weigh 1."""

    def value(outcomes: Outcomes) -> float | None:
        return over_all_rows(weighted, outcomes)

    value.__doc__ = weighted.__doc__
    return Metric(name, tasks, value, weighted=weighted, **further)


def _of_decisions(
    name: str,
    share: Callable[[Outcomes], Ratio],
    tasks: Sequence[str] = BINARY,
    **further: Any,  # noqa: ANN401 - fields
) -> Metric:
    """A metric of decisions that is a share of rows."""
    return _of_ratio(name, tasks, share, share=share, of_decisions=True, least=0, most=1, **further)


def _of_ratio(name: str, tasks: Sequence[str], ratio_of: Callable[[Outcomes], Ratio], **further: Any) -> Metric:  # noqa: ANN401 - fields
    """A metric that is the ratio of two sums over the rows."""
    weighted = _from_ratio(ratio_of)
    weighted.__doc__ = ratio_of.__doc__
    return _weighted(name, tasks, weighted, **further)


_SHARE: dict[str, Any] = {"least": 0, "most": 1, "in_detail": True}
_ERROR: dict[str, Any] = {"lower_is_better": True, "least": 0}
_COST: dict[str, Any] = {"lower_is_better": True, "in_detail": True}
ACCURACY = _of_decisions("accuracy", _accuracy, CLASSIFICATION)
LOG_LOSS = Metric(
    "log_loss",
    CLASSIFICATION,
    _log_loss,
    default_for=("multiclass",),
    **_mean_of(_row_log_losses),
    **_ERROR,
)
BRIER = Metric(
    "brier",
    CLASSIFICATION,
    _brier,
    **_mean_of(_row_brier_scores),
    range_of=_range_of_brier,
    most=2,
    **_ERROR,
)
MAE = Metric("mae", REGRESSION, _mae, **_mean_of(_absolute_errors), **_ERROR)
RMSE = Metric("rmse", REGRESSION, _rmse, default_for=REGRESSION, **_mean_of(_squares, np.sqrt), **_ERROR)
R2 = Metric("r2", REGRESSION, _r2, weighted=_weighted_r2, most=1)
SILHOUETTE = Metric("silhouette", ("clustering",), _silhouette, default_for=("clustering",))
OUTLIER_SHARE = Metric("outlier_share", ("outliers",), _outlier_share, lower_is_better=True, default_for=("outliers",))
ROC_AUC = _weighted("roc_auc", (*CLASSIFICATION, "outliers"), _roc_auc, default_for=BINARY, least=0, most=1)
PRECISION = _of_decisions("precision", decisions.precision, in_detail=True)
RECALL = _of_decisions("recall", decisions.recall, in_detail=True)
F1 = _weighted("f1", CLASSIFICATION, decisions.f1, of_decisions=True, **_SHARE)
DECISION_COST = _weighted(
    "decision_cost",
    CLASSIFICATION,
    decisions.realised,
    lower_is_better=True,
    range_of=decisions.range_of_costs,
)
DECISION_COST_ALWAYS = _weighted(
    "decision_cost_always", CLASSIFICATION, decisions.of_always, range_of=decisions.range_of_always, **_COST
)
DECISION_COST_NEVER = _weighted(
    "decision_cost_never", BINARY, decisions.of_never, range_of=decisions.range_of_never, **_COST
)
DECISION_COST_IN_HINDSIGHT = _weighted(
    "decision_cost_in_hindsight",
    BINARY,
    decisions.in_hindsight,
    grows_on_few_rows=True,
    range_of=decisions.range_of_costs,
    **_COST,
)
SELECTION_RATE = _of_decisions("selection_rate", decisions.selection_rate, in_detail=True, neutral=True)
FALSE_POSITIVE_RATE = _of_decisions(
    "false_positive_rate", decisions.false_positive_rate, in_detail=True, lower_is_better=True
)
CALIBRATION_ERROR = _weighted(
    "calibration_error",
    BINARY,
    decisions.calibration_error,
    lower_is_better=True,
    grows_on_few_rows=True,
    **_SHARE,
)
AVERAGE_PRECISION = _weighted("average_precision", BINARY, _average_precision, **_SHARE)
KS = _weighted("ks", BINARY, _ks, grows_on_few_rows=True, **_SHARE)
LIFT_AT_1, LIFT_AT_5, LIFT_AT_10 = map(_lift, LIFTS)
BIAS = Metric(
    "bias",
    REGRESSION,
    _bias,
    lower_is_better=True,
    **_mean_of(_errors),
    signed=True,
    in_detail=True,
)
MAPE = _of_ratio("mape", REGRESSION, _mape, mean=_mape, in_detail=True, **_ERROR)
ERROR_P10, ERROR_P50, ERROR_P90 = map(_error_quantile, ERROR_QUANTILES)


def without_details(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that lists of models show, by name; a pipeline's own metrics are always shown."""
    return {
        name: value for name, value in sorted(metrics.items()) if name not in METRICS or not METRICS[name].in_detail
    }
