"""How far two models differ on the same rows, and how sure that is: a paired bootstrap of one metric.

Both models are measured on the same resampled rows each time, so that what makes rows hard for both cancels out
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile interval). On plain arrays;
seeded, so that the same rows give the same interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 200
MOST_ROWS = 5_000  # of more, evenly taken ones are used: the interval is then a little wider than it need be
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus that of another, on the same rows."""

    metric: str
    estimate: float
    low: float
    high: float
    level: float
    rounds: int
    rows: int


Weighted = Callable[[NDArray[np.float64]], float]  # a metric, given how often each row was drawn


def paired_difference(
    metric: str,
    truth: NDArray[Any],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    classes: Sequence[Any],
) -> Difference | None:
    """The difference of a metric between two models; None where the metric is not defined on most samples.

    Args:
        metric: One of a classification or a regression, as named in `performance.py`.
        truth: True classes or values [n].
        one: Class probabilities [n, classes] or values [n] of the first model.
        other: The same of the second.
        classes: In the order of the columns; none for a regression.
    """
    step = max(1, -(-len(truth) // MOST_ROWS))
    truth, one, other = truth[::step], one[::step], other[::step]
    if not len(truth):
        return None
    measures = [_weighted(metric, truth, prediction, classes) for prediction in (one, other)]
    everything = np.ones(len(truth))
    generator = np.random.default_rng(SEED)
    shares = np.full(len(truth), 1 / len(truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = measures[0](everything) - measures[1](everything)
        draws = (generator.multinomial(len(truth), shares).astype(np.float64) for _ in range(ROUNDS))
        sampled = np.array([measures[0](weights) - measures[1](weights) for weights in draws])
    sampled = sampled[np.isfinite(sampled)]
    if not np.isfinite(estimate) or len(sampled) < ROUNDS // 2:
        return None
    low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(metric, float(estimate), float(low), float(high), LEVEL, len(sampled), len(truth))


def _weighted(metric: str, truth: NDArray[Any], prediction: NDArray[np.float64], classes: Sequence[Any]) -> Weighted:
    if not classes:
        return _of_values(metric, truth.astype(np.float64), prediction)
    positions = {label: at for at, label in enumerate(classes)}
    at = np.array([positions[label] for label in truth.tolist()])
    if metric != "roc_auc":
        losses = _row_losses(metric, at, prediction)
        return lambda weights: float(weights @ losses / weights.sum())
    columns = range(1, 2) if len(classes) == 2 else range(len(classes))  # noqa: PLR2004 - of two, the positive one
    areas = [_area(at == column, prediction[:, column]) for column in columns]
    return lambda weights: float(np.mean([area(weights) for area in areas]))


def _row_losses(metric: str, at: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row adds to the mean that a metric of a classification is."""
    rows = np.arange(len(at))
    match metric:
        case "accuracy":
            return (probabilities.argmax(axis=1) == at).astype(np.float64)
        case "log_loss":
            return -np.log(np.clip(probabilities[rows, at], np.finfo(np.float64).eps, 1.0))
        case "brier":
            distance = ((probabilities - np.eye(probabilities.shape[1])[at]) ** 2).sum(axis=1)
            return distance / 2 if probabilities.shape[1] == 2 else distance  # noqa: PLR2004 - of the positive class alone
        case _:
            return np.full(len(at), np.nan)


def _area(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> Weighted:
    """The area under the ROC curve: the chance that a positive row ranks before a negative one, ties counting half."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positive = positive[order]

    def area(weights: NDArray[np.float64]) -> float:
        drawn = weights[order]
        hits = np.add.reduceat(drawn * positive, starts)
        misses = np.add.reduceat(drawn * ~positive, starts)
        below = np.cumsum(misses) - misses
        return float((hits * (below + misses / 2)).sum() / (hits.sum() * misses.sum()))

    return area


def _of_values(metric: str, truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> Weighted:
    error = truth - prediction

    def measure(weights: NDArray[np.float64]) -> float:
        total = weights.sum()
        squares = float(weights @ error**2)
        match metric:
            case "mae":
                return float(weights @ np.abs(error) / total)
            case "rmse":
                return float(np.sqrt(squares / total))
            case "r2":
                mean = weights @ truth / total
                return 1 - squares / float(weights @ (truth - mean) ** 2)
            case _:
                return float("nan")

    return measure
