"""The difference between two models on the same rows, with its uncertainty: a paired bootstrap of one metric.

Both models are measured on the same resampled rows, so that what makes rows hard for both cancels out.
"""

from dataclasses import dataclass

import numpy as np

from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import Floats, Outcomes
from batch_platform.monitoring.resampling import LEVEL, ROUNDS, Resampled


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus the metric of another, on the same rows."""

    metric: str
    estimate: float  # on all rows
    low: float
    high: float
    level: float
    rounds: int
    rows: int
    resampled_by: str = "row"  # what was drawn: "row", "partition", or "group" of a snapshot
    groups: int = 0  # how many of them there are; 0 in the evidence of earlier releases


def paired_difference(metric: str, first: Outcomes, second: Outcomes) -> Difference | None:
    """A metric of the first model minus that of the second, on the same rows in the same order.

    None if there are no rows, if the metric has no weighted form or measures other tasks, or if it is not defined on the
    rows or on most of the samples.
    """
    record = METRICS[metric]
    if not len(first.predicted) or record.weighted is None or first.task not in record.tasks:
        return None
    values = [_value(record, outcomes) for outcomes in (first, second)]
    if values[0] is None or values[1] is None:
        return None
    resampled = Resampled.of(first)
    forms = [resampled.weighted(record, outcomes) for outcomes in (resampled.rows, second.every(resampled.step))]

    def difference(weights: Floats) -> Floats:
        return np.asarray(forms[0](weights) - forms[1](weights))

    estimate = values[0] - values[1]
    interval = resampled.ends({metric: difference}, {metric: estimate})[metric]
    if interval is None:
        return None
    return Difference(
        metric,
        estimate,
        interval.low,
        interval.high,
        LEVEL,
        ROUNDS,
        len(first.predicted),
        resampled.drawn,
        resampled.count,
    )


def _value(metric: Metric, outcomes: Outcomes) -> float | None:
    rows = metric.rows_of(outcomes)
    return metric.value(rows) if len(rows.predicted) else None
