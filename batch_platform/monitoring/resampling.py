"""Intervals of metrics: how far each may be off by chance, from resampled groups of rows.

Rows of one day share their weather, so resampling them one by one makes intervals too narrow: where the outcomes name
groups, whole groups are drawn (Field and Welsh, Bootstrapping clustered data, 2007). Percentile intervals (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13); with few groups they are widened as Student's distribution
is wider than the normal one. Seeded, so that the same rows give the same interval.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.metrics import Metric, Weighted, metrics_of
from batch_platform.monitoring.outcomes import Floats, Outcomes

ROUNDS = 200
LEVEL = 0.95
SEED = 0
MAX_ROWS = 5_000  # rows that are resampled; more are thinned to evenly spaced ones, and the interval is scaled to the size of all
MAX_GROUPED_ROWS = (
    50_000  # rows in groups; above, evenly spaced ones are resampled, which makes the interval a little wider
)
MANY_GROUPS = 200  # groups from which no interval is widened
_MOST_WEIGHTS = (
    400_000  # weights in memory at once: with ten times as many, an interval takes two to four times as long
)


@dataclass(frozen=True)
class Interval:
    """Between which values a metric would lie in 95% of repetitions, as far as these rows can tell."""

    low: float
    high: float


def intervals(outcomes: Outcomes, values: dict[str, float], own: Sequence[Metric] = ()) -> dict[str, Interval]:
    """The intervals of metrics, given their values on all rows.

    A metric without a weighted form has none, nor has one that is not defined on most of the samples.
    """
    resampled = Resampled.of(outcomes)
    chosen = {
        name: metric
        for name, metric in metrics_of(outcomes, own).items()
        if name in values and metric.weighted is not None
    }
    ends = resampled.ends({name: resampled.weighted(metric, resampled.rows) for name, metric in chosen.items()}, values)
    return {
        name: Interval(max(interval.low, chosen[name].least), min(interval.high, chosen[name].most))
        for name, interval in ends.items()
        if interval is not None
    }


@dataclass(frozen=True, eq=False)
class Resampled:
    """Rows that are drawn again and again, in groups where they have some."""

    rows: Outcomes
    groups: NDArray[np.int64] | None  # position of each row's group; None if rows are drawn one by one
    count: int  # number of groups, or of rows
    scale: float  # factor of deviations
    step: int  # between the rows that are drawn

    @classmethod
    def of(cls, outcomes: Outcomes) -> "Resampled":
        """The rows of some outcomes, or evenly spaced ones; a single group is no reason not to draw its rows."""
        if outcomes.groups is not None:
            step = _step(outcomes, MAX_GROUPED_ROWS)
            rows = outcomes.every(step)
            names, groups = np.unique(np.asarray(rows.groups), return_inverse=True)
            if len(names) > 1:
                return cls(rows, groups, len(names), widened(len(names)), step)
        step = _step(outcomes, MAX_ROWS)
        rows = outcomes.every(step)
        count = len(rows.predicted)
        return cls(rows, None, count, float(np.sqrt(count / max(1, len(outcomes.predicted)))), step)

    @property
    def drawn(self) -> str:
        """The unit that is drawn."""
        return "row" if self.groups is None else self.rows.grouped_by

    def weighted(self, metric: Metric, rows: Outcomes) -> Weighted:
        """A metric of some outcomes of these rows, given weights of all of them."""
        prepare, kept = metric.weighted, metric.rows_of(rows)
        if prepare is None:
            msg = f"{metric.name} has no weighted form"
            raise ValueError(msg)
        prepared = prepare(kept)
        if kept is rows:
            return prepared
        known = rows.of_known_class
        return lambda weights: prepared(weights[..., known])

    def ends(
        self, forms: dict[str, Callable[[Floats], Floats]], values: dict[str, float]
    ) -> dict[str, Interval | None]:
        """The intervals of values, by name, given their forms for weighted rows; None where most samples have none."""
        if not forms or not self.count:
            return {}
        with np.errstate(invalid="ignore", divide="ignore"):
            at_once = {name: float(form(np.ones(len(self.rows.predicted)))) for name, form in forms.items()}
            sampled = {name: list[Floats]() for name in forms}
            for weights in self._draws():
                for name, form in forms.items():
                    sampled[name].append(np.asarray(form(weights), dtype=np.float64))
        return {
            name: self._interval(np.concatenate(parts), at_once[name], values[name]) for name, parts in sampled.items()
        }

    def _draws(self) -> Iterator[Floats]:
        """Weights of the rows [rounds, rows], for some rounds at a time."""
        generator = np.random.default_rng(SEED)
        rounds = max(1, _MOST_WEIGHTS // max(1, len(self.rows.predicted)))
        for first in range(0, ROUNDS, rounds):
            at_once = min(rounds, ROUNDS - first)
            drawn = generator.integers(0, self.count, (at_once, self.count)) + self.count * np.arange(at_once)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=at_once * self.count).astype(np.float64)
            counts = counts.reshape(at_once, self.count)
            yield counts if self.groups is None else counts[:, self.groups]

    def _interval(self, sampled: Floats, centre: float, value: float) -> Interval | None:
        """The interval about a value on all rows, from samples that deviate from a value on the resampled rows."""
        sampled = sampled[np.isfinite(sampled)]
        if not np.isfinite(centre) or len(sampled) < ROUNDS // 2:
            return None
        low, high = np.quantile(sampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - centre
        return Interval(value + self.scale * min(float(low), 0.0), value + self.scale * max(float(high), 0.0))


def _step(outcomes: Outcomes, max_rows: int) -> int:
    return max(1, -(-len(outcomes.predicted) // max_rows))


def widened(groups: int) -> float:
    """By how much an interval from few groups is wider than one from many.

    Student's quantile by the series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if groups >= MANY_GROUPS:
        return 1.0
    z, free = NormalDist().inv_cdf((1 + LEVEL) / 2), groups - 1
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    student = z + sum(term / free**power for power, term in enumerate(terms, start=1))
    return float(student / z * np.sqrt(groups / free))
