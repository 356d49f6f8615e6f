"""Trivial models, which a trained one has to beat: the mean or the class shares, by season, and the last known value.

They learn from the rows that the model was fitted on and are measured on its evaluation rows. A season is the hour or the
weekday of a row's time on the clocks of the pipeline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.spec import Model, Predictions
from batch_platform.features.history import ENTITY, ROW_TIME
from batch_platform.kernels.native_threads import one_thread
from batch_platform.kernels.predictor import Predictor
from batch_platform.models.contract import Signature
from batch_platform.models.declared_model import require_rule
from batch_platform.models.judged import JudgedScores, known_rows, scores_of
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.metrics import as_truth, default_metric, is_worse, measure
from batch_platform.monitoring.outcomes import Outcomes, weights_of

LEAST_PER_SEASON = 10  # rows, on average
LEAST_KNOWN = 0.5  # share of the evaluation rows whose entity has an earlier value
_DAYS, _HOURS = 7, 24


@dataclass(frozen=True)
class Baseline:
    """The strongest trivial model, and its metrics on the evaluation rows."""

    name: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class AgainstBaseline:
    """A model beside the strongest trivial one, on the same rows."""

    baseline: Baseline
    verdict: Verdict | None  # its metric is the one by which the baseline was chosen


def against_baseline(  # noqa: PLR0913 - a model, and what a trivial one learns from
    metric: str, outcomes: Outcomes, fitted: pl.DataFrame, rows: pl.DataFrame, label: str, rates: Sequence[float] = ()
) -> AgainstBaseline | None:
    """Hold a model against the trivial one that is strongest by a metric; None if no trivial one can be measured by it.

    `fitted` are the rows that the model was fitted on, in order of time, and `rows` those of the outcomes. `rates` are those at
    which the rows of each class were sampled; none: all alike.
    """
    trivial = {
        name: replace(outcomes, predicted=predicted, matrix=None, units={})
        for name, predicted in _predictions(outcomes, fitted, rows, label, rates)
    }
    strongest: Baseline | None = None
    for name, candidate in trivial.items():
        metrics = {key: value for key, value in measure(candidate).items() if key != "outlier_share"}
        if metric in metrics and (strongest is None or is_worse(metric, strongest.metrics[metric], metrics[metric])):
            strongest = Baseline(name, metrics)
    if strongest is None:
        return None
    return AgainstBaseline(strongest, Verdict.on(metric, outcomes, trivial[strongest.name]))


def measured(  # noqa: PLR0913 - a model and its rows
    model: Model,
    predictor: Predictor,
    signature: Signature,
    rows: tuple[pl.DataFrame, pl.DataFrame],
    label: str | None,
    rates: Sequence[float] = (),
    predictions: Predictions | None = None,
) -> tuple[JudgedScores | None, dict[str, float], AgainstBaseline | None]:
    """The scores and the metrics of a model on evaluation rows, and the trivial model that is strongest by the gate's metric beside it.

    `rows` are those that a trivial model learns from and those that both are evaluated on; `rates` are those at which the rows
    of each class were sampled. Metrics of decisions are those of the rule, if one is declared.
    """
    rule = require_rule(predictions and predictions.decide, signature.task, signature.classes)
    earlier, later = known_rows(signature, rows[0], label), rows[1]
    judged = scores_of(predictor, signature, later, label)
    if judged is None:
        return None, {}, None
    metric, outcomes = model.promote.metric or default_metric(signature.task), replace(judged.outcomes, rule=rule)
    judged = replace(judged, outcomes=outcomes)
    with one_thread():
        trivial = None if label is None else against_baseline(metric, outcomes, earlier, later, label, rates)
        return judged, measure(outcomes), trivial


def _predictions(
    outcomes: Outcomes, fitted: pl.DataFrame, rows: pl.DataFrame, label: str, rates: Sequence[float]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Predictions of each trivial model for the rows, by name, simplest first."""
    task, classes = outcomes.task, outcomes.classes
    if task == "outliers":
        yield "one score for all rows", np.zeros(rows.height)
        return
    if not fitted.height or task not in ("binary", "multiclass", "regression"):
        return
    truth = as_truth(fitted[label])
    weights = weights_of(fitted)
    weights = np.ones(len(truth)) if weights is None else weights / weights.mean()
    regression = task == "regression"
    seasonal = (
        _RegressionMeans(truth.astype(np.float64), weights)
        if regression
        else _ClassShares(truth, classes, weights, rates)
    )
    everywhere = np.zeros(rows.height, dtype=np.int64)
    yield seasonal.name, seasonal.of(np.zeros(fitted.height, dtype=np.int64), 1)[everywhere]
    if ROW_TIME in fitted.columns and ROW_TIME in rows.columns:
        for name, (of_fitted, of_rows, count) in _seasons(fitted[ROW_TIME], rows[ROW_TIME]).items():
            if len(np.unique(of_fitted)) > 1 and fitted.height >= LEAST_PER_SEASON * len(np.unique(of_fitted)):
                yield f"{seasonal.name} by {name}", seasonal.of(of_fitted, count)[of_rows]
    if ENTITY in fitted.columns and ENTITY in rows.columns:
        last = _last_of_each(fitted, rows)
        known = ~np.isnan(last)
        if known.mean() >= LEAST_KNOWN:
            yield "last known value", seasonal.at(last, known)


@dataclass(frozen=True)
class _RegressionMeans:
    """Means of the values that were learned from."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    name: str = "mean"

    def of(self, groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """The mean of each group [count]; that of all values for a group without any."""
        sums, rows = (np.bincount(groups, of, count) for of in (self.values * self.weights, self.weights))
        return np.where(rows > 0, sums / np.where(rows > 0, rows, 1), self._mean)

    def at(self, positions: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The values at positions; their mean where a position is not known."""
        return np.where(known, self.values[np.where(known, positions, 0).astype(np.int64)], self._mean)

    @property
    def _mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))


class _ClassShares:
    """Shares of the classes that were learned from; a row of a class that was sampled counts for those that were left out."""

    name = "class shares"

    def __init__(
        self, truth: NDArray[Any], classes: Sequence[Any], weights: NDArray[np.float64], rates: Sequence[float] = ()
    ) -> None:
        positions = {label: position for position, label in enumerate(classes)}
        self._classes = np.array([positions[label] for label in truth.tolist()], dtype=np.int64)
        self._weights = weights / np.array(rates or [1.0] * len(classes))[self._classes]
        self._shares = np.bincount(self._classes, self._weights, len(classes)) / self._weights.sum()

    def of(self, groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """The shares in each group [count, classes], as if it had one more row, with the shares of all rows."""
        known = len(self._shares)
        cells = groups * known + self._classes
        counts = np.bincount(cells, self._weights, count * known).reshape(count, known)
        return (counts + self._shares) / (counts.sum(axis=1, keepdims=True) + 1)

    def at(self, positions: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Certainty of the class at a position; the shares of all rows where a position is not known."""
        certain = np.eye(len(self._shares))[self._classes[np.where(known, positions, 0).astype(np.int64)]]
        return np.where(known[:, None], certain, self._shares)


def _seasons(fitted: pl.Series, rows: pl.Series) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """The season of each row, and how many there are, by the name of the kind of season."""
    times = (fitted, rows)
    days = [(column.dt.weekday().cast(pl.Int64) - 1).to_numpy() for column in times]
    hours = [column.dt.hour().cast(pl.Int64).to_numpy() for column in times]
    both = [day * _HOURS + hour for day, hour in zip(days, hours, strict=True)]
    return {
        "weekday": (days[0], days[1], _DAYS),
        "hour": (hours[0], hours[1], _HOURS),
        "weekday and hour": (both[0], both[1], _DAYS * _HOURS),
    }


def _last_of_each(fitted: pl.DataFrame, rows: pl.DataFrame) -> NDArray[np.float64]:
    """The position of the last fitted row of each row's entity [rows]; NaN if it has none."""
    at = "__at"
    earlier = fitted.select(ENTITY, *([ROW_TIME] if ROW_TIME in fitted.columns else [])).with_row_index(at)
    if ROW_TIME in earlier.columns:
        earlier = earlier.sort(ROW_TIME, maintain_order=True)
    last = earlier.group_by(ENTITY).agg(pl.col(at).last().cast(pl.Float64))
    return rows.select(ENTITY).join(last, on=ENTITY, how="left", maintain_order="left")[at].fill_null(np.nan).to_numpy()
