"""Divergence: how far the profile of a partition is from a baseline, from the counts of both alone.

What is compared are the shares of the cells: those of the histogram, the nulls, and the categories that the model does not
know. Errors against the same measures on the full data: the population stability index and the Jensen-Shannon distance
never exceed those of finer cells; the Kolmogorov-Smirnov distance is too small by at most the largest share that either
profile has in one cell with more than one value, about 1 / 20 in the reference.

A difference is an alarm if it is larger than chance explains, larger than what is usual between the partitions of the training
data, and large enough to matter. Cells do not tell how far away values are: one of the few cells holds everything beyond the last edge, so
that a few absurd values hardly change the shares. Numbers are therefore also judged by their range and their mean. A column with one value a day, such as the weekday, differs from the whole year on every day. A partition of few rows
differs from its baseline by chance alone: its index is `expected` on average even where nothing changed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Profile

SURPRISE = 0.001  # p-value from which a difference is more than chance
RARE = 5.0  # rows that the smaller sample is expected to have in a cell; cells with fewer are tested together
NEXT_TO_NONE = 0.5  # rows
USUAL_MARGIN = 1.25  # a partition may be a quarter farther from the whole than is usual
LEAST_VALUES = 1000  # a baseline of fewer values does not know its range and mean well enough to judge by them
UNLIKELY = 1e-4  # probability of so many values outside the range from which they are more than chance
OUTSIDE_MATTERS = 0.001  # share of the values
MEAN_MATTERS = 0.25  # standard deviations
MEAN_SURPRISE = 8.0  # standard errors: of heavy tails, a mean is often several from another
MOVED_MARGIN = (
    3.0  # times as far as any partition of the training data: each new record is a little farther than those before
)
UNUSUAL = f"psi - psi_by_chance - {USUAL_MARGIN} * coalesce(psi_usual, 0)"  # SQL of `beyond_usual` in a table, which may be negative
Level = Literal["none", "warn", "fail"]
Numbers = float | NDArray[Any]


def beyond_usual(psi: float, by_chance: float, usual: float | None) -> float:
    """The index beyond what chance gives and what is usual between partitions that no fit has seen; at least 0."""
    return max(0.0, psi - by_chance - USUAL_MARGIN * (usual or 0.0))


def usual_of(distances: Collection[float]) -> float:
    """The index that is usual, given those of some partitions beyond chance: the highest one, and more where they are few.

    The highest of n is on average H(n) times the scale of an exponential distribution (Rényi, On the theory of order statistics,
    1953). With the margin, at most about one partition in a thousand exceeds what follows.
    """
    scale = max(distances) / sum(1 / place for place in range(1, len(distances) + 1))
    return max(*distances, scale * -log(SURPRISE) / USUAL_MARGIN)


@dataclass(frozen=True)
class Divergence:
    """The distance of the values of a column from those of its baseline."""

    psi: float  # population stability index, at least 0
    expected: float  # index that chance alone gives to samples of this size, on average
    p_value: float  # probability of a difference like this or larger if nothing changed and rows are independent
    jensen_shannon: float  # distance with logarithms to the base of 2, from 0 to 1
    ks: float | None  # Kolmogorov-Smirnov distance of the values, from 0 to 1; None for text and without values

    @property
    def beyond_chance(self) -> float:
        """The index beyond what chance gives."""
        return max(0.0, self.psi - self.expected)

    def level(self, bounds: tuple[float, float], usual: float = 0.0, *, tests: int = 1) -> Level:
        """Judge it by the indices from which a column gives a warning and fails, beyond what is usual.

        It is one of so many tests that are made together, each with a share of the probability of a false alarm (Bonferroni).
        """
        warn, fail = bounds
        unusual = self.beyond_chance - USUAL_MARGIN * usual
        if self.p_value >= SURPRISE / tests or unusual < warn:
            return "none"
        return "fail" if unusual >= fail else "warn"


@dataclass(frozen=True)
class Moves:
    """Measure how far partitions of the training data are from a baseline at most, by the range, mean and spread of a number.

    Mean and spread are those of all values but the one farthest from the mean of the baseline.
    """

    outside: float  # share of the values of a partition outside the range of the others
    mean: float  # distance of the mean
    spread: float = inf  # standard deviation; unknown, and so never exceeded, in bundles of earlier versions


def outside_share(profile: Profile) -> float | None:
    """Share of values outside the range that the cells were made for; None for text and without values.

    Training had no value below the first edge or from the last one upwards when it made the cells.
    """
    if profile.bins.categories is not None or len(profile.bins.edges) < 2 or not profile.values:  # noqa: PLR2004 - both ends
        return None
    return (profile.histogram[0] + profile.histogram[-1]) / profile.values


def has_moved(profile: Profile, base: Profile, usual: Moves | None) -> bool:
    """Return whether more values than usual lie far outside the range of the training data, or their mean or spread is unusual.

    A column of which some partition of the training data lies mostly outside the range of the others, such as a counter, is not judged.
    """
    if usual is None or base.values < LEAST_VALUES or usual.outside * MOVED_MARGIN >= 1:
        return False
    return _has_left_range(profile, base, usual.outside) or _has_moved_in_mean_or_spread(profile, base, usual)


def _has_left_range(profile: Profile, base: Profile, usual: float) -> bool:
    """Some values are farther from the range than it is wide, and more are outside than chance, and partitions before, explain.

    Of independent values so many exceed those of the baseline with at most this probability (Chernoff's bound on the negative
    binomial distribution), whatever their distribution. The baseline's own extremes count as outside, since they made the range.
    """
    share, known = outside_share(profile), outside_share(base)
    if share is None or known is None or profile.bins != base.bins or profile.low is None or profile.high is None:
        return False
    first, *_, last = profile.bins.edges
    width = last - first
    if first - width <= profile.low and profile.high <= last + width:
        return False
    if share - known < OUTSIDE_MATTERS or share <= MOVED_MARGIN * usual:
        return False
    rows, before, pooled = profile.values, known + 2 / base.values, known * base.values + 2 + share * profile.values
    pooled /= rows + base.values
    return share > before and rows * _divergence(share, pooled) + base.values * _divergence(before, pooled) > -log(
        UNLIKELY
    )


def without_farthest(
    ends: tuple[Numbers, Numbers], mean: Numbers, variance: Numbers, rows: Numbers, middle: Numbers
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and variance of values without the lowest or the highest, whichever is farther from the middle: numbers, or arrays of them.

    The variance has n - 1 in the denominator, where n counts the value that is left out.
    """
    low, high = ends
    farthest = np.where(middle - low > high - middle, low, high)
    return (mean * rows - farthest) / (rows - 1), variance - (farthest - mean) ** 2 * rows / (rows - 1) ** 2


def _has_moved_in_mean_or_spread(profile: Profile, base: Profile, usual: Moves) -> bool:
    """The values without the farthest, which alone tells nothing, have a mean or a spread beyond chance and partitions before, and far enough to matter."""
    low, high, rows = profile.low, profile.high, profile.values
    if profile.mean is None or base.mean is None or low is None or high is None:
        return False
    if rows < 2 or not base.variance or profile.variance is None:  # noqa: PLR2004 - one is left out
        return False
    mean, variance = map(float, without_farthest((low, high), profile.mean, profile.variance, rows, base.mean))
    spread = sqrt(max(0.0, variance))
    error = sqrt(1 / rows + 1 / base.values)
    least = max(MEAN_MATTERS, MEAN_SURPRISE * error) * sqrt(base.variance)
    has_moved = abs(mean - base.mean) > max(least, MOVED_MARGIN * usual.mean)
    return has_moved or spread > MOVED_MARGIN * max(usual.spread, sqrt(base.variance))


def _divergence(share: float, other: float) -> float:
    """Kullback and Leibler's divergence of one share of rows from another."""
    parts = ((share, other), (1 - share, 1 - other))
    return sum(part * log(part / of) for part, of in parts if part > 0)


def divergences(pairs: Sequence[tuple[Profile, Profile]]) -> list[Divergence | None]:
    """The distance of each profile from its baseline, over the cells that both have; None where either has no rows.

    Population stability index: the sum of (p - q) ln(p / q) over the cells (Kullback and Leibler's divergence in both
    directions, 1951). Half a row is added to each cell, so that an empty one does not make it infinite. Without a change it
    is (cells - 1) (1 / n + 1 / m) on average (Yurdakul, Statistical Properties of Population Stability Index, 2018).
    The p-value is that of Pearson's test of both samples, with the likelihood ratio for cells that stay rare together.
    """
    if not pairs:
        return []
    counted = [_counted(profile, baseline) for profile, baseline in pairs]
    own, other = (_padded([counts[at] for counts in counted]) for at in (0, 1))
    rows, base = own.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        psi, expected = _stability(own, other)
        distance = _jensen_shannon(own / rows, other / base)
        p_values = _p_values(own, other)
        ks = _kolmogorov_smirnov(*(_padded([counts[at][:-2] for counts in counted]) for at in (0, 1)))
    of_numbers = [profile.bins.categories is None for profile, _ in pairs]
    return [
        Divergence(
            float(psi[at]),
            float(expected[at]),
            p_values[at],
            float(distance[at]),
            float(ks[at]) if of_numbers[at] and np.isfinite(ks[at]) else None,
        )
        if rows[at] and base[at]
        else None
        for at in range(len(pairs))
    ]


def beyond_chance(own: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """The index beyond chance of each pair, from the rows of both in each cell [pairs, cells]; 0 where either has no rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        psi, expected = _stability(own.astype(np.float64), other.astype(np.float64))
    known = (own.sum(axis=1) > 0) & (other.sum(axis=1) > 0)
    return np.where(known, np.maximum(0.0, psi - expected), 0.0)


def _counted(profile: Profile, baseline: Profile) -> tuple[list[int], list[int]]:
    """The rows of both in the cells that they share: those of the histogram, null, unknown."""
    bins = profile.bins if profile.bins == baseline.bins else profile.bins.common(baseline.bins)
    own, other = (
        [*part.bins.coarsened(part.histogram, bins), part.nulls, part.unknown] for part in (profile, baseline)
    )
    return own, other


def _padded(counts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    padded = np.zeros((len(counts), max(map(len, counts))))
    for at, cells in enumerate(counts):
        padded[at, : len(cells)] = cells
    return padded


def _stability(own: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The population stability index [pairs], and what chance gives on average."""
    filled = own + other > 0
    cells = filled.sum(axis=1, keepdims=True)
    rows, base = own.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    p, q = (own + 0.5) / (rows + 0.5 * cells), (other + 0.5) / (base + 0.5 * cells)
    psi = np.where(filled, (p - q) * np.log(p / q), 0.0).sum(axis=1)
    return psi, ((cells - 1) * (1 / rows + 1 / base))[:, 0]


def _jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of the mean divergence of both from their mean (Lin, 1991), as `scipy.spatial.distance` has it."""
    middle = (p + q) / 2
    parts = (np.where(share > 0, share * np.log2(share / middle), 0.0).sum(axis=1) for share in (p, q))
    return np.sqrt(np.clip(sum(parts) / 2, 0.0, 1.0))


def _p_values(own: NDArray[np.float64], other: NDArray[np.float64]) -> list[float]:
    """The p-value of each pair, over groups of cells that are not too rare for the test."""
    from scipy.special import chdtrc

    rows, base = own.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    awaited = other / base * np.minimum(rows, base)  # whatever the partition holds there
    groups = np.array([_groups(part.tolist()) for part in np.nan_to_num(awaited)])
    pairs, width = np.arange(len(own))[:, None], own.shape[1] + 1
    own, other, awaited = (_summed(counts, pairs, groups, width) for counts in (own, other, awaited))
    filled, common = own + other > 0, awaited >= RARE
    statistic = np.zeros(len(own))
    for counts, size in ((own, rows), (other, base)):
        expected = (own + other) * size / (rows + base)
        pearson = (counts - expected) ** 2 / expected
        ratio = 2 * (np.where(counts > 0, counts * np.log(counts / expected), 0.0) - counts + expected)
        statistic += np.where(filled, np.where(common, pearson, ratio), 0.0).sum(axis=1)
    freedom = filled.sum(axis=1) - 1
    return np.where(freedom < 1, 1.0, chdtrc(freedom, statistic)).tolist()


def _groups(awaited: Sequence[float]) -> list[int]:
    """The group of each cell: neighbours are joined until RARE rows are expected, and cells of next to none are group 0."""
    groups, group, held = [0] * len(awaited), 0, RARE
    for at, expected in enumerate(awaited):
        if expected < NEXT_TO_NONE:
            continue
        if held >= RARE or expected >= RARE:
            group, held = group + 1, 0.0
        groups[at] = group
        held += expected
    return groups


def _summed(
    counts: NDArray[np.float64], pairs: NDArray[np.int64], groups: NDArray[np.int64], width: int
) -> NDArray[np.float64]:
    sums = np.zeros((len(counts), width))
    np.add.at(sums, (pairs, groups), np.nan_to_num(counts))
    return sums


def _kolmogorov_smirnov(own: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest distance of the shares of values below an edge [pairs]; NaN where either has no values."""
    first, second = own.cumsum(axis=1), other.cumsum(axis=1)
    return np.abs(first / first[:, -1:] - second / second[:, -1:]).max(axis=1, initial=0.0)
