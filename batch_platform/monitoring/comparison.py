"""The difference between two models on the same rows, with its uncertainty: a paired bootstrap of one metric.

Both models are measured on the same resampled rows, so that what makes rows hard for both cancels out (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile interval). Seeded, so that the same rows
give the same interval.
"""

from dataclasses import dataclass

import numpy as np

from batch_platform.monitoring.metrics import METRICS, Outcomes

ROUNDS = 200
MAX_ROWS = 5_000  # larger data are thinned to evenly spaced rows, which makes the interval a little wider
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus the metric of another, on the same rows."""

    metric: str
    estimate: float
    low: float
    high: float
    level: float
    rounds: int
    rows: int


def paired_difference(metric: str, first: Outcomes, second: Outcomes) -> Difference | None:
    """A metric of the first model minus that of the second, on the same rows in the same order.

    None if there are no rows, if the metric has no weighted form or measures other tasks, or if it is not defined on most
    of the samples.
    """
    record, first, second = METRICS[metric], first.thinned(MAX_ROWS), second.thinned(MAX_ROWS)
    rows = len(first.predicted)
    if not rows or record.weighted is None or first.task not in record.tasks:
        return None
    of_first, of_second = record.weighted(first), record.weighted(second)
    everything, shares = np.ones(rows), np.full(rows, 1 / rows)
    generator = np.random.default_rng(SEED)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = of_first(everything) - of_second(everything)
        draws = (generator.multinomial(rows, shares).astype(np.float64) for _ in range(ROUNDS))
        sampled = np.array([of_first(weights) - of_second(weights) for weights in draws])
    sampled = sampled[np.isfinite(sampled)]
    if not np.isfinite(estimate) or len(sampled) < ROUNDS // 2:
        return None
    low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(metric, float(estimate), float(low), float(high), LEVEL, len(sampled), rows)
