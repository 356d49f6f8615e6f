"""Intervals of metrics: where a metric lies in the whole population that the rows stand for, as far as these rows can tell.

A 95% confidence interval: of many that are computed in this way, 95 in 100 hold that value, if the world stays the same. It
is as wide as independent units make it. Rows of one entity, or of one day, resemble each other: each unit is left out in turn
with all of its rows, and the metric measured again (the delete-a-group jackknife: Kott, 2001), with Student's t for few
units (MacKinnon, Nielsen and Webb, Fast and Reliable Jackknife and Bootstrap Methods for Cluster-Robust Inference, 2023).
Where rows share an entity and a partition, partitions count if the metric varies by more between them than entities explain
(F test), otherwise entities.

Partitions that resemble their neighbours count as the fewer independent ones that tell as much: of n whose correlation with the
one before is r, n (1 - r) / (1 + r) (Zwiers and von Storch, Taking Serial Correlation into Account in Tests of the Mean,
Journal of Climate 8, 1995). In long series resemblance may last longer than r tells: the interval is as wide, too, as a few slow
cosine waves are large (Lazarus, Lewis, Stock and Watson, HAR Inference: Recommendations for Practice, 2018), after r is removed
(Andrews and Monahan, 1992). Shares of rows, and what else lies between two bounds, have Wilson's interval (1927) for the number
of independent rows that would vary as much (Dean and Pagano, 2015); quantiles have Woodruff's (1952). An error that is never
negative varies on the scale of its logarithm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.metrics import Metric, metrics_of
from batch_platform.monitoring.outcomes import CLASSIFICATION, ENTITY, PARTITION, Floats, Outcomes, Share, Weighted

LEVEL = 0.95
SEED = 0
GROUPS = 100  # most groups that are left out in turn; of more units, several make a group
LEAST_UNITS = 3  # fewer do not tell how much they vary
LEAST_SERIES, LEAST_WAVES = 10, 60  # fewer partitions do not tell if they resemble their neighbours, and for how long
LEAST_MONTH = 30  # fewer partitions: only a correlation that chance hardly explains counts
LEAST_ALIKE = 4  # independent partitions for which a series counts at least: a correlation of few is hardly known
MAX_ROWS = 5_000  # rows without units that are measured again; of more, evenly spaced ones, and the interval is scaled
MAX_ROWS_IN_UNITS = 50_000  # more rows: those of some units if these are many, otherwise evenly spaced ones
_MOST_WEIGHTS = (
    400_000  # weights in memory at once: with ten times as many, an interval takes two to four times as long
)
_BY_CHANCE = 0.1  # probability that partitions seem to vary by more than entities explain
_MOST_ALIKE = 0.95  # largest correlation of neighbours that is taken for one
_CLEAR = NormalDist().inv_cdf(0.95)
TWO_SIDED = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Interval:
    """The ends of a 95% confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Reach:
    """Half the width of an interval, and the units that it comes from."""

    half: float
    error: float  # standard error, if no unit resembles its neighbours
    unit: str  # "row", "partition", "entity", "group", or a column
    units: int


def intervals(outcomes: Outcomes, values: dict[str, float], own: Sequence[Metric] = ()) -> dict[str, Interval]:
    """The intervals of metrics, given their values on all rows.

    A metric has none without a weighted form, if few rows make it too large, and if it is not defined without one of the
    units. No metric has one if there are fewer than LEAST_UNITS units.
    """
    resampled = Resampled.of(outcomes)
    chosen = {
        name: metric
        for name, metric in metrics_of(outcomes, own).items()
        if name in values and metric.weighted is not None and not metric.grows_on_few_rows
    }
    varying = (metric for metric in chosen.values() if resampled.share_of(metric) is None or resampled.numbers)
    reaches = resampled.reaches({metric.name: resampled.form(metric) for metric in varying})
    ends = {name: resampled.interval(metric, values[name], reaches.get(name)) for name, metric in chosen.items()}
    return {name: interval for name, interval in ends.items() if interval is not None}


def wilson(share: float, rows: float) -> Interval:
    """Wilson's interval of a share of so many independent rows (Probable Inference, 1927)."""
    weight = TWO_SIDED**2 / rows
    centre, half = (share + weight / 2) / (1 + weight), np.sqrt(weight * share * (1 - share) + weight**2 / 4)
    return Interval(max(0.0, centre - half / (1 + weight)), min(1.0, centre + half / (1 + weight)))


def reach_of(left: Floats, unit: str, units: int, scale: float = 1.0) -> Reach:
    """The reach of a value, given the value without each of its units (or groups of them); NaN if one of these is.

    The correlation of neighbours is corrected for its bias (Kendall, Note on Bias in the Estimation of Autocorrelation, 1954).
    """
    from scipy.special import stdtrit

    count = len(left)
    parts = scale * (count - 1) * (left.mean() - left)
    squares = float(parts @ parts)
    error = float(np.sqrt(squares / count / (count - 1)))
    alike = 0.0
    if unit == PARTITION and count >= LEAST_SERIES and squares > 0:
        alike = float(parts[1:] @ parts[:-1]) / squares
        by_chance = _CLEAR / np.sqrt(count) if count < LEAST_MONTH else 0.0
        alike = min(alike + (1 + 3 * alike) / count, _MOST_ALIKE) if alike > by_chance else 0.0
    # Neighbours that tell as much as one that is independent; what is alike also varies less within few partitions.
    as_one = min((1 + alike) / (1 - alike), max(1.0, count / LEAST_ALIKE))
    wider = np.sqrt(as_one * (count - 1) / (count - as_one))
    freedom = count / as_one - 1
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * wider) * error
    if alike > 0 and count >= LEAST_WAVES:
        news, waves = parts[1:] - alike * parts[:-1], round(0.3 * (count - 1) ** (2 / 3))
        times = np.pi * (np.arange(len(news)) + 0.5) / len(news)
        slow = np.mean((np.cos(np.outer(np.arange(1, waves + 1), times)) @ news) ** 2)
        half = max(half, float(stdtrit(waves, (1 + LEVEL) / 2) * np.sqrt(2 * slow / len(news) / count) / (1 - alike)))
    return Reach(half, error, unit, units)


@dataclass(frozen=True, eq=False)
class _Unit:
    """Units of rows, in groups that are left out in turn."""

    name: str
    units: int
    groups: NDArray[np.int64]  # group of each row [n]
    count: int  # number of groups
    scale: float = 1.0  # factor of the width, from the rows that are measured again to all rows

    @classmethod
    def of(cls, name: str, numbers: NDArray[np.integer], units: int, scale: float) -> "_Unit":
        """Divide the units that are there, of so many in all, into groups: partitions in order of time, others at random."""
        distinct, positions = np.unique(numbers, return_inverse=True)
        present = len(distinct)
        count = -(-present // -(-present // GROUPS))
        groups = np.arange(present) * count // present
        if name != PARTITION:
            groups = np.random.default_rng(SEED).permutation(groups)
        return cls(name, units, groups[positions], count, scale)

    def weights(self) -> Iterator[Floats]:
        """Weights of the rows [groups, n], for some groups at a time: 0 for the rows of the group that is left out."""
        at_once = max(1, _MOST_WEIGHTS // len(self.groups))
        for first in range(0, self.count, at_once):
            left_out = np.arange(first, min(first + at_once, self.count))
            yield (self.groups != left_out[:, None]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Rows that are measured again and again, each time without some of their units."""

    whole: Outcomes
    kept: slice | NDArray[np.bool_]  # places of the rows that are measured again
    rows: Outcomes  # these rows
    numbers: Mapping[str, NDArray[np.integer]]  # numbers of the units of all rows, by name; empty if rows are the units
    units: tuple[_Unit, ...]  # none if there are too few

    @classmethod
    def of(cls, outcomes: Outcomes, least: int = LEAST_UNITS) -> "Resampled":
        """The rows of some outcomes with their units, of which there must be `least`; of many, some of them."""
        count = len(outcomes.predicted)
        sizes = {name: len(np.unique(numbers)) for name, numbers in outcomes.units.items()}
        partitions = sizes.get(PARTITION, 0)
        sizes = {
            name: size
            for name, size in sizes.items()
            if size > 1 and (name == PARTITION or size < count) and (name != ENTITY or size >= partitions)
        }
        kept, scale = slice(None, None, max(1, -(-count // (MAX_ROWS_IN_UNITS if sizes else MAX_ROWS)))), 1.0
        numbers = {name: outcomes.units[name] for name in sizes} or {"row": np.arange(count)}
        many = next((name for name, size in sizes.items() if name != PARTITION and size > GROUPS * kept.step), None)
        if many is not None and kept.step > 1:  # units are left out rather than rows of all units
            kept = np.unique(numbers[many], return_inverse=True)[1] % kept.step == 0
        rows = outcomes.every(kept.step) if isinstance(kept, slice) else outcomes.at(kept)
        if many is not None or not sizes:
            scale = float(np.sqrt(len(rows.predicted) / max(1, count)))
        units = (
            _Unit.of(name, of_rows[kept], sizes.get(name, count), 1.0 if name == PARTITION else scale)
            for name, of_rows in sorted(numbers.items(), key=lambda item: item[0] == PARTITION)
            if sizes.get(name, count) >= least
        )
        return cls(outcomes, kept, rows, numbers if sizes else {}, tuple(units))

    def share_of(self, metric: Metric) -> Callable[[Outcomes], Share] | None:
        """The share that a metric follows from; of weighted rows, only where it is nothing but a share."""
        return metric.share if self.whole.weights is None or metric.of_decisions else None

    def form(self, metric: Metric) -> Weighted:
        """The part of a metric that varies, given weights of the rows: of a share, the share."""
        share = self.share_of(metric)
        return self.weighted(metric, self.rows, metric.weighted if share is None else lambda kept: share(kept).weighted)

    def weighted(self, metric: Metric, rows: Outcomes, prepare: Callable[[Outcomes], Weighted] | None) -> Weighted:
        """A metric prepared on the rows of some outcomes that it is measured on, given weights of all of these."""
        kept = metric.rows_of(rows)
        if prepare is None:
            msg = f"{metric.name} has no weighted form"
            raise ValueError(msg)
        prepared = prepare(kept)
        if kept is rows:
            return prepared
        known = rows.of_known_class
        return lambda weights: prepared(weights[..., known])

    def reaches(self, forms: Mapping[str, Weighted]) -> dict[str, Reach]:
        """The reach of each value, by name, for the unit that counts; NaN where a value needs each unit."""
        from scipy.special import fdtri

        reaches = dict[str, Reach]()
        for unit in self.units if forms else ():
            more = float(np.sqrt(fdtri(unit.count - 1, self.units[0].count - 1, 1 - _BY_CHANCE)))
            left = {name: list[Floats]() for name in forms}
            with np.errstate(invalid="ignore", divide="ignore"):
                for kept in unit.weights():
                    weights = kept if self.rows.weights is None else kept * self.rows.row_weights
                    for name, form in forms.items():
                        left[name].append(np.asarray(form(weights), dtype=np.float64))
                for name, parts in left.items():
                    reach = reach_of(np.concatenate(parts), unit.name, unit.units, unit.scale)
                    if name not in reaches or not reach.error <= reaches[name].error * more:
                        reaches[name] = reach
        return reaches

    def interval(self, metric: Metric, value: float, reach: Reach | None) -> Interval | None:
        """The interval about the value of a metric, on the scale on which it varies evenly; None without one."""
        (least, most), outcomes = metric.bounds(self.whole), metric.rows_of(self.whole)
        half = np.nan if reach is None else reach.half
        if least == most:
            return Interval(least, most)
        if (share_of := self.share_of(metric)) is not None and (self.units or not self.numbers):
            share = share_of(outcomes)
            rate = float(share.weighted(outcomes.row_weights))
            ends = wilson(rate, self._rows_like(share, rate, half, outcomes))
            ends = Interval(share.scaled(ends.low), share.scaled(ends.high))
        elif np.isnan(half):
            return None
        elif np.isfinite(least) and np.isfinite(most):
            wide, place = most - least, (value - least) / (most - least)
            varies = place * (1 - place) * (TWO_SIDED * wide) ** 2
            ends = wilson(place, varies / half**2 if varies * half else self._independent(outcomes, _rarest(outcomes)))
            ends = Interval(least + wide * ends.low, least + wide * ends.high)
        elif np.isinf(least) and np.isinf(most):
            ends = Interval(value - half, value + half)
        else:
            bound = least if np.isfinite(least) else most
            if value == bound or not half:
                return None
            factor = np.exp(min(half / abs(value - bound), 700.0))
            ends = Interval(*sorted((bound + (value - bound) / factor, bound + (value - bound) * factor)))
        if np.isnan(ends.low + ends.high):
            return None
        return Interval(max(least, min(value, ends.low)), min(most, max(value, ends.high)))

    def _rows_like(self, share: Share, rate: float, half: float, outcomes: Outcomes) -> float:
        """The number of independent rows whose share varies as much; of a share of 0 or 1, that of the units that count.

        Rows that do not weigh alike tell as much as fewer that do (Kish, Survey Sampling, 1965), or as the residuals of the
        share say, if rows are the units (Taylor linearization: Woodruff, 1971).
        """
        weights, varies = outcomes.row_weights, rate * (1 - rate)
        counted = weights * share.whole
        rows = float(counted.sum() ** 2 / (counted @ counted))
        if not self.numbers:
            residuals = weights * (share.part - rate * share.whole)
            weighted = outcomes.weights is not None and varies > 0
            return varies * float(counted.sum() ** 2 / (residuals @ residuals)) if weighted else rows
        known = varies > 0 and half > 0
        return min(rows, varies * (TWO_SIDED / half) ** 2 if known else self._independent(outcomes, share.whole > 0))

    def _independent(self, outcomes: Outcomes, rows: NDArray[np.bool_]) -> int:
        """The number of independent ones among some rows: of their units, partitions aside."""
        names = self.numbers.keys() - {PARTITION}
        return min((len(np.unique(outcomes.units[name][rows])) for name in names), default=int(rows.sum()))


def _rarest(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Mask of the rows of the class that occurs least; of a task without classes, of all rows."""
    if outcomes.task not in (*CLASSIFICATION, "outliers"):
        return np.ones(len(outcomes.predicted), dtype=np.bool_)
    classes = outcomes.positive_and_score[0] if outcomes.task == "outliers" else outcomes.true_positions
    found, rows = np.unique(classes, return_counts=True)
    return classes == found[rows.argmin()]
