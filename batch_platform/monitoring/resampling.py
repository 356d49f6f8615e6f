"""Intervals of metrics: where a metric lies in the whole population that the rows stand for, as far as these rows can tell.

A 95% confidence interval: of many that are computed in this way, 95 in 100 hold that value, if the world stays the same. It
is as wide as independent units make it. Rows of one entity, or of one day, resemble each other: each unit is left out in turn
with all of its rows, and the metric measured again (the delete-a-group jackknife: Kott, 2001), with Student's t for few
units (MacKinnon, Nielsen and Webb, Fast and Reliable Jackknife and Bootstrap Methods for Cluster-Robust Inference, 2023).
Where rows share an entity and a partition, both count if the metric varies by more between partitions than their rows explain
(F test; Cameron, Gelbach and Miller, Robust Inference With Multiway Clustering, 2011), otherwise entities.

Partitions that resemble their neighbours count as the fewer independent ones that tell as much: of n whose correlation with the
one before is r, n (1 - r) / (1 + r) (Zwiers and von Storch, Taking Serial Correlation into Account in Tests of the Mean,
Journal of Climate 8, 1995). In long series resemblance may last longer than r tells: the interval is as wide, too, as a few slow
cosine waves are large (Lazarus, Lewis, Stock and Watson, HAR Inference: Recommendations for Practice, 2018), after r is removed
(Andrews and Monahan, 1992). Shares of rows, and what else lies between two bounds, have Wilson's interval (1927) for the number
of independent rows that would vary as much (Dean and Pagano, 2015); quantiles have Woodruff's (1952). A mean error that is never negative
has the interval of `_of_positive_mean`, which reaches further upwards the more of the error few rows hold. What remains has Student's t
with as many degrees of freedom as the kurtosis of the units leaves: an area under the curve of six positive rows is known as badly as from six.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.metrics import Metric, metrics_of
from batch_platform.monitoring.outcomes import (
    CLASSIFICATION,
    ENTITY,
    PARTITION,
    REGRESSION,
    Floats,
    Outcomes,
    Ratio,
    Weighted,
)

LEVEL = 0.95
SEED = 0
GROUPS = 100  # most groups that are left out in turn; of more units, several make a group
LEAST_UNITS = 3  # fewer do not tell how much they vary
LEAST_SERIES, LEAST_WAVES = 10, 60  # fewer partitions do not tell if they resemble their neighbours, and for how long
LEAST_MONTH = 30  # fewer partitions: only a correlation that chance hardly explains counts
TAIL_ERRORS = 0.5  # standard errors by which the tail of an error is taken to be heavier than it seems
LEAST_TAIL = 5  # units in the tail at least
LEAST_ALIKE = 4  # independent partitions for which a series counts at least: a correlation of few is hardly known
MAX_ROWS = 5_000  # rows without units that are measured again; of more, evenly spaced ones, and the interval is scaled
MAX_ROWS_IN_UNITS = 50_000  # more rows: those of some units if these are many, otherwise evenly spaced ones
_MOST_WEIGHTS = (
    400_000  # weights in memory at once: with ten times as many, an interval takes two to four times as long
)
_BY_CHANCE = 0.1  # probability that partitions seem to vary by more than entities explain
_TINY = 1e-12
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
    even: float  # half the width if no few units hold most of what varies
    parts: Floats  # what each unit moves the value by, times the number of units; their mean is 0


NoInterval = Literal["few units", "few rows", "heavy tail", "not defined"]  # why a metric has no interval
REASONS: dict[NoInterval, str] = {
    "few units": f"there are fewer than {LEAST_UNITS} independent units",
    "few rows": "few rows make it larger than it is",
    "heavy tail": "a few rows hold so much of the error that more rows may show any larger value",
    "not defined": "it would not be defined without some of the rows, or does not vary",
}


def intervals(outcomes: Outcomes, values: dict[str, float], own: Sequence[Metric] = ()) -> dict[str, Interval]:
    """The intervals of metrics, given their values on all rows, without those that have none."""
    ends = intervals_or_reasons(outcomes, values, own)
    return {name: interval for name, interval in ends.items() if isinstance(interval, Interval)}


def intervals_or_reasons(
    outcomes: Outcomes, values: dict[str, float], own: Sequence[Metric] = ()
) -> dict[str, Interval | NoInterval]:
    """The interval of each metric that has a weighted form, given its value on all rows, or the reason why it has none."""
    resampled = Resampled.of(outcomes)
    chosen = {
        name: metric
        for name, metric in metrics_of(outcomes, own).items()
        if name in values and metric.weighted is not None
    }
    varying = (
        metric
        for metric in chosen.values()
        if not metric.grows_on_few_rows and (metric.share is None or outcomes.weights is not None or resampled.numbers)
    )
    reaches = resampled.reaches({metric.name: resampled.form(metric) for metric in varying})
    return {name: resampled.interval(metric, values[name], reaches.get(name)) for name, metric in chosen.items()}


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
    even = float(stdtrit(freedom, (1 + LEVEL) / 2) * wider) * error
    # A variance that comes from few units is known as badly as from few: its degrees of freedom follow from the kurtosis.
    fourth = count * float(parts**4 @ np.ones(count)) / squares**2 if squares > 0 else 0.0
    fewer = min(freedom, max(1.0, 2 * count / max(fourth - 1, _TINY) / as_one))
    half = float(stdtrit(fewer, (1 + LEVEL) / 2) * wider) * error
    if alike > 0 and count >= LEAST_WAVES:
        news, waves = parts[1:] - alike * parts[:-1], round(0.3 * (count - 1) ** (2 / 3))
        times = np.pi * (np.arange(len(news)) + 0.5) / len(news)
        slow = np.mean((np.cos(np.outer(np.arange(1, waves + 1), times)) @ news) ** 2)
        slow_half = float(stdtrit(waves, (1 + LEVEL) / 2) * np.sqrt(2 * slow / len(news) / count) / (1 - alike))
        half, even = max(half, slow_half), max(even, slow_half)
    return Reach(half, error, unit, units, even, parts / scale)


@dataclass(frozen=True, eq=False)
class _Unit:
    """Units of rows, in groups that are left out in turn."""

    name: str
    units: int
    places: NDArray[np.int64]  # unit of each row [n]
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
        return cls(name, units, positions, groups[positions], count, scale)

    def weights(self) -> Iterator[Floats]:
        """Weights of the rows [groups, n], for some groups at a time: 0 for the rows of the group that is left out."""
        at_once = max(1, _MOST_WEIGHTS // len(self.groups))
        for first in range(0, self.count, at_once):
            left_out = np.arange(first, min(first + at_once, self.count))
            yield (self.groups != left_out[:, None]).astype(np.float64)


@dataclass(frozen=True)
class Form:
    """What is measured again without each unit."""

    weighted: Weighted  # given weights of the rows
    without: Callable[[_Unit], Floats] | None = (
        None  # without each unit, exactly and at once; None: by weights, in groups
    )


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

    def form(self, metric: Metric) -> Form:
        """The part of a metric that varies: of what follows from a share or a mean, that."""
        rows = metric.rows_of(self.rows)
        ratio = metric.mean(rows) if metric.mean else metric.share(rows) if metric.share else None
        if ratio is None:
            return Form(self.weighted(metric, self.rows, metric.weighted))
        return Form(ratio.weighted, partial(self._without, metric, self.rows, replace(ratio, scaled=lambda part: part)))

    def form_of_difference(self, metric: Metric, others: Outcomes) -> Form:
        """A metric of the rows minus that of the same rows of another model."""
        first, second = (self.weighted(metric, rows, metric.weighted) for rows in (self.rows, others))

        def weighted(weights: Floats) -> Floats:
            return np.asarray(first(weights) - second(weights))

        ratio_of = metric.mean or (metric.share if metric.of_decisions else None)
        ratios = [(rows, ratio_of(metric.rows_of(rows)) if ratio_of else None) for rows in (self.rows, others)]
        (_, of_first), (_, of_second) = ratios
        if of_first is None or of_second is None:
            return Form(weighted)

        def without(unit: _Unit) -> Floats:
            return self._without(metric, self.rows, of_first, unit) - self._without(metric, others, of_second, unit)

        return Form(weighted, without)

    def least_half(self, metric: Metric, others: Outcomes) -> float:
        """Half the width of a difference of decisions on which all rows agree: as if two units disagreed, one in each direction.

        Of a difference of shares (Bonett and Price, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based
        on Paired Data, 2012). 0 for other metrics, and of a model beside itself.
        """
        if not metric.of_decisions or np.array_equal(self.rows.predicted, others.predicted):
            return 0.0
        share = metric.share(self.whole) if metric.share else None
        units = self._independent(self.whole, _rarest(self.whole) if share is None else share.whole > 0)
        return TWO_SIDED * 2**0.5 / (units + 2)

    def _without(self, metric: Metric, rows: Outcomes, ratio: Ratio, unit: _Unit) -> Floats:
        """What follows from a ratio, of some rows without each unit."""
        weights, places = rows.row_weights, unit.places
        if not metric.of_decisions and not (known := rows.of_known_class).all():
            weights, places = weights[known], places[known]
        units = int(unit.places.max()) + 1
        part, whole = (np.bincount(places, weights * values, units) for values in (ratio.part, ratio.whole))
        return ratio.scaled((part.sum() - part) / (whole.sum() - whole))

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

    def reaches(self, forms: Mapping[str, Form]) -> dict[str, Reach]:
        """The reach of each value, by name, for the unit that counts; NaN where a value needs each unit."""
        reaches = dict[str, list[Reach]]()
        for unit in self._crossed if forms else ():
            left = {name: list[Floats]() for name in forms}
            with np.errstate(invalid="ignore", divide="ignore"):
                for name, form in forms.items():
                    if form.without is not None:
                        left[name].append(form.without(unit))
                by_weights = {name: form.weighted for name, form in forms.items() if form.without is None}
                for kept in unit.weights() if by_weights else ():
                    weights = kept if self.rows.weights is None else kept * self.rows.row_weights
                    for name, weighted in by_weights.items():
                        left[name].append(np.asarray(weighted(weights), dtype=np.float64))
                for name, parts in left.items():
                    reach = reach_of(np.concatenate(parts), unit.name, unit.units, unit.scale)
                    reaches.setdefault(name, []).append(reach)
        return {name: _both(*of_units) for name, of_units in reaches.items()}

    @property
    def _crossed(self) -> Sequence[_Unit]:
        """The units, and of two kinds the rows that share both."""
        if len(self.units) < 2:  # noqa: PLR2004 - one kind
            return self.units
        first, second = self.units
        shared = first.places * (int(second.places.max()) + 1) + second.places
        return *self.units, _Unit.of("row", shared, len(shared), first.scale)

    def interval(self, metric: Metric, value: float, reach: Reach | None) -> Interval | NoInterval:
        """The interval about the value of a metric, or why it has none."""
        least, most = metric.bounds(self.whole)
        if metric.grows_on_few_rows:
            return "few rows"
        ends = Interval(least, most) if least == most else self._ends(metric, value, reach)
        if not isinstance(ends, Interval):
            return ends
        if np.isnan(ends.low + ends.high):
            return "few rows"
        return Interval(max(least, min(value, ends.low)), min(most, max(value, ends.high)))

    def _ends(self, metric: Metric, value: float, reach: Reach | None) -> Interval | NoInterval:
        """The ends on the scale on which the metric varies evenly."""
        (least, most), outcomes = metric.bounds(self.whole), metric.rows_of(self.whole)
        share = metric.share(outcomes) if metric.share else None
        if share is not None and (self.units or not self.numbers):
            rate = float(share.weighted(outcomes.row_weights))
            half = np.nan if reach is None else reach.even if outcomes.weights is None else reach.half
            ends = wilson(rate, self._rows_like(share, rate, half, outcomes))
            return Interval(share.scaled(ends.low), share.scaled(ends.high))
        if reach is None or np.isnan(half := reach.half):
            return "not defined" if self.units else "few units"
        if np.isfinite(least) and np.isfinite(most):
            wide, place = most - least, (value - least) / (most - least)
            varies = place * (1 - place) * (TWO_SIDED * wide) ** 2
            ends = wilson(place, varies / half**2 if varies * half else self._independent(outcomes, _rarest(outcomes)))
            return Interval(least + wide * ends.low, least + wide * ends.high)
        if np.isinf(least) and np.isinf(most):
            return Interval(value - half, value + half)
        return _one_sided(metric, outcomes, value, reach)

    def _rows_like(self, share: Ratio, rate: float, half: float, outcomes: Outcomes) -> float:
        """The number of independent rows whose share varies as much; of a share of 0 or 1, that of the units that count.

        Rows that do not weigh alike tell as much as fewer that do (Kish, Survey Sampling, 1965).
        """
        weights, varies = outcomes.row_weights, rate * (1 - rate)
        counted = weights * share.whole
        rows = float(counted.sum() ** 2 / (counted @ counted))
        if not self.numbers and (outcomes.weights is None or not varies):
            return rows
        known = varies > 0 and half > 0
        return min(rows, varies * (TWO_SIDED / half) ** 2 if known else self._independent(outcomes, share.whole > 0))

    def _independent(self, outcomes: Outcomes, rows: NDArray[np.bool_]) -> int:
        """The number of independent ones among some rows: of their units, partitions aside."""
        names = self.numbers.keys() - {PARTITION}
        return min((len(np.unique(outcomes.units[name][rows])) for name in names), default=int(rows.sum()))


def _both(first: Reach, second: Reach | None = None, shared: Reach | None = None) -> Reach:
    """The reach of rows that depend on each other by two kinds of units: both variances, less what rows that share both add.

    Multiway clustering (Cameron, Gelbach and Miller, Robust Inference With Multiway Clustering, 2011), if the second kind adds more
    than chance explains.
    """
    from scipy.special import fdtri

    if second is None or shared is None or np.isnan(first.half + second.half + shared.half):
        return second if second is not None and np.isnan(second.half) else first
    by_chance = fdtri(len(second.parts) - 1, len(shared.parts) - 1, 1 - _BY_CHANCE)
    if second.error**2 <= shared.error**2 * by_chance:
        return first
    wider = second if second.error > first.error else first

    def added(name: str) -> float:
        halves = [getattr(reach, name) for reach in (first, second, shared)]
        return float(np.sqrt(max(halves[0] ** 2 + max(0.0, halves[1] ** 2 - halves[2] ** 2), halves[1] ** 2)))

    return replace(wider, half=added("half"), even=added("even"))


def _one_sided(metric: Metric, outcomes: Outcomes, value: float, reach: Reach) -> Interval | NoInterval:
    """The interval of a metric with one bound: on the scale of the logarithm of the distance from it, or as that of a mean."""
    least, most = metric.bounds(outcomes)
    bound = least if np.isfinite(least) else most
    if value == bound or not reach.half:
        return "not defined"
    if metric.mean is None:
        factor = np.exp(min(reach.half / abs(value - bound), 700.0))
        return Interval(*sorted((bound + (value - bound) / factor, bound + (value - bound) * factor)))
    ratio = metric.mean(outcomes)
    mean = float(ratio.weighted(outcomes.row_weights))
    ends = _of_positive_mean(mean, reach, unbounded=outcomes.task in REGRESSION)
    return Interval(float(ratio.scaled(ends.low)), float(ratio.scaled(ends.high))) if ends else "heavy tail"


def _of_positive_mean(mean: float, reach: Reach, *, unbounded: bool) -> Interval | None:
    """The interval of the mean of an error that is never negative, which few rows may hold most of; None if these are too few.

    The lower end lies on the scale of the logarithm. So does the upper one, unless skewness moves it further (Hall, On the Removal
    of Skewness by Transformation, 1992), of the units as they are or with a tail that follows Pareto's law: its index is Hill's
    (1975), so that the end does not depend on whether the few largest errors have come up yet (Cowell and Flachaire, Income
    Distribution and Inequality Measurement: The Problem of Extreme Values, 2007).
    """
    count, error, width = len(reach.parts), reach.error, reach.even / reach.error
    values, high = np.sort(mean + reach.parts)[::-1], mean * np.exp(min(reach.even / mean, 700.0))
    shrunk = error / (values.std(ddof=1) / np.sqrt(count))  # of all rows, where some of them are measured again
    tail = min(max(LEAST_TAIL, round(np.sqrt(count))), count - 1)
    samples = [values]
    if unbounded and values[tail] > 0:
        index = float(np.log(values[:tail] / values[tail]).mean())
        if index * (1 - 1 / np.sqrt(tail)) >= 1:  # as far as these rows tell, no mean is finite
            return None
        index *= 1 + TAIL_ERRORS / np.sqrt(tail)
        smooth = values[tail] * ((tail + 1) / np.arange(1, tail + 1)) ** index
        samples.append(np.concatenate([smooth, values[tail:]]))
    for sample in samples:
        apart, spread = sample - sample.mean(), sample.std(ddof=1)
        skewness = float(np.mean(apart**3)) / spread**3 / np.sqrt(count) * shrunk
        if skewness > _TINY:
            reached = 3 / skewness * (1 - np.cbrt(1 - skewness * (width + skewness / 6)))
            high = max(high, mean + reached * spread / np.sqrt(count) * shrunk)
    return Interval(mean * np.exp(-min(reach.even / mean, 700.0)), float(high))


def _rarest(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Mask of the rows of the class that occurs least; of a task without classes, of all rows."""
    if outcomes.task not in (*CLASSIFICATION, "outliers"):
        return np.ones(len(outcomes.predicted), dtype=np.bool_)
    classes = outcomes.positive_and_score[0] if outcomes.task == "outliers" else outcomes.true_positions
    found, rows = np.unique(classes, return_counts=True)
    return classes == found[rows.argmin()]
