"""The difference between two models on the same rows, with its uncertainty.

Both models are measured again without the same units, so that what makes rows hard for both cancels out.
"""

from dataclasses import dataclass

import numpy as np

from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import Floats, Outcomes
from batch_platform.monitoring.resampling import Resampled

ROUNDING = 1e-9  # two ways to compute the same number may differ by as much


@dataclass(frozen=True)
class Difference:
    """A metric of one model minus the metric of another, on the same rows, with its 95% interval."""

    metric: str
    estimate: float  # value on all rows
    low: float
    high: float
    rows: int
    resampled_by: str = "row"  # the unit: "row", "partition", "entity", "group", or a column
    groups: int = 0  # number of units


def paired_difference(metric: str, first: Outcomes, second: Outcomes) -> Difference | None:
    """A metric of the first model minus that of the second, on the same rows in the same order.

    None if there are no rows, if the metric has no weighted form or measures other tasks, if it is not defined on the rows or
    without one of their units, and if there are too few units.
    """
    record = METRICS[metric]
    if not len(first.predicted) or record.weighted is None or first.task not in record.tasks:
        return None
    value, other = _value(record, first), _value(record, second)
    if value is None or other is None:
        return None
    resampled = Resampled.of(first, least=2)
    of_first = resampled.weighted(record, resampled.rows, record.weighted)
    of_second = resampled.weighted(record, second.at(resampled.kept), record.weighted)

    def difference(weights: Floats) -> Floats:
        return np.asarray(of_first(weights) - of_second(weights))

    reach = resampled.reaches({metric: difference}).get(metric)
    if reach is None or np.isnan(reach.half):
        return None
    estimate = value - other
    (least, most), half = record.bounds(first), reach.half
    low, high = max(least - most, estimate - half), min(most - least, estimate + half)  # no difference is larger
    return Difference(metric, estimate, low, high, len(first.predicted), reach.unit, reach.units)


def _value(metric: Metric, outcomes: Outcomes) -> float | None:
    rows = metric.rows_of(outcomes)
    return metric(rows) if len(rows.predicted) else None
