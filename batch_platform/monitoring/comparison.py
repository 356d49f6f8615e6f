"""The difference between two models on the same rows, with its uncertainty.

Both models are measured again without the same units, so that what makes rows hard for both cancels out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import Outcomes
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
    return paired_differences([metric], first, second).get(metric)


def paired_differences(metrics: Iterable[str], first: Outcomes, second: Outcomes) -> dict[str, Difference]:
    """The differences of several metrics, by name, without those that `paired_difference` has none of: rows are left out once."""
    values = dict[str, tuple[float, float]]()
    for name in metrics if len(first.predicted) else ():
        record = METRICS[name]
        if record.weighted is not None and first.task in record.tasks:
            value, other = _value(record, first), _value(record, second)
            if value is not None and other is not None:
                values[name] = value, other
    resampled = Resampled.of(first, least=2)
    kept = second.at(resampled.kept)

    forms = {name: resampled.form_of_difference(METRICS[name], kept) for name in values}
    differences = dict[str, Difference]()
    for name, reach in resampled.reaches(forms).items():
        value, other = values[name]
        estimate, (least, most), half = value - other, METRICS[name].bounds(first), reach.half
        half = float(np.hypot(half, resampled.least_half(METRICS[name], kept)))
        if not np.isnan(half):  # no difference is larger than the bounds allow
            ends = max(least - most, estimate - half), min(most - least, estimate + half)
            differences[name] = Difference(name, estimate, *ends, len(first.predicted), reach.unit, reach.units)
    return differences


def _value(metric: Metric, outcomes: Outcomes) -> float | None:
    rows = metric.rows_of(outcomes)
    return metric(rows) if len(rows.predicted) else None
