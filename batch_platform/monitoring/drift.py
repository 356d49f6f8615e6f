"""Drift: how far the profile of a partition is from a baseline, from the counts of both alone.

What is compared are the shares of the cells: those of the histogram, the nulls, and the categories that the model does not
know. Errors against the same measures on the full data: the population stability index and the Jensen-Shannon distance
never exceed those of finer cells; the Kolmogorov-Smirnov distance is too small by at most the largest share that either
profile has in one cell with more than one value, about 1 / 20 in the reference.

A difference is an alarm if it is both larger than chance explains and large enough to matter. A partition of few rows
differs from its baseline by chance alone: its index is `expected` on average even where nothing changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Profile

SURPRISE = 0.001  # p-value from which a difference is more than chance
RARE = 5.0  # rows that the smaller sample is expected to have in a cell; cells below are tested together
Level = Literal["none", "warn", "fail"]


@dataclass(frozen=True)
class Bounds:
    """The population stability index, beyond what chance explains, from which a column gives a warning or fails."""

    warn: float | None = None  # None: never
    fail: float | None = None

    def level(self, divergence: "Divergence") -> Level:
        """How a divergence is judged."""
        if divergence.p_value >= SURPRISE:
            return "none"
        if self.fail is not None and divergence.beyond_chance >= self.fail:
            return "fail"
        return "warn" if self.warn is not None and divergence.beyond_chance >= self.warn else "none"


@dataclass(frozen=True)
class Divergence:
    """How far the values of a column are from those of its baseline."""

    psi: float  # population stability index, at least 0
    expected: float  # index that chance alone gives to samples of this size, on average
    p_value: float  # probability of a difference like this or larger if nothing changed and rows are independent
    jensen_shannon: float  # distance with logarithms to the base of 2, from 0 to 1
    ks: float | None  # Kolmogorov-Smirnov distance of the values, from 0 to 1; None for text and without values

    @property
    def beyond_chance(self) -> float:
        """The index beyond what chance gives."""
        return max(0.0, self.psi - self.expected)


def divergences(pairs: Sequence[tuple[Profile, Profile]]) -> list[Divergence | None]:
    """How far each profile is from its baseline, over the cells that both have; None where either has no rows.

    Population stability index: the sum of (p - q) ln(p / q) over the cells (Kullback and Leibler's divergence in both
    directions, 1951). Half a row is added to each cell, so that an empty one does not make it infinite. Without a change it
    is (cells - 1) (1 / n + 1 / m) on average (Yurdakul, Statistical Properties of Population Stability Index, 2018).
    The p-value is that of Pearson's test of both samples, with the likelihood ratio for the rare cells together, by the
    cube-root approximation of the chi-square distribution (Wilson and Hilferty, The Distribution of Chi-Square, 1931).
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
    ks = [_kolmogorov_smirnov(profile, *counts) for (profile, _), counts in zip(pairs, counted, strict=True)]
    return [
        Divergence(float(psi[at]), float(expected[at]), p_values[at], float(distance[at]), ks[at])
        if rows[at] and base[at]
        else None
        for at in range(len(pairs))
    ]


def _counted(profile: Profile, baseline: Profile) -> tuple[list[int], list[int]]:
    """The rows of both in the cells that they share: those of the histogram, null, unknown."""
    bins = profile.bins if profile.bins == baseline.bins else profile.bins.common(baseline.bins)
    own, other = ([*part.within(bins).histogram, part.nulls, part.unknown] for part in (profile, baseline))
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
    """The p-value of each pair: rare cells are tested as one, since no approximation holds for them one by one."""
    rows, base = own.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    total = rows + base
    filled = own + other > 0
    rare = filled & (other / base * np.minimum(rows, base) < RARE)  # whatever the partition holds there
    statistic, cells = np.zeros(len(own)), (filled & ~rare).sum(axis=1) + rare.any(axis=1)
    for counts, size in ((own, rows), (other, base)):
        share = (own + other) * size / total
        statistic += np.where(rare | (share == 0), 0.0, (counts - share) ** 2 / share).sum(axis=1)
        counted, awaited = (np.where(rare, part, 0.0).sum(axis=1) for part in (counts, share))
        ratio = np.where(counted > 0, counted * np.log(counted / awaited), 0.0)
        statistic += 2 * (ratio - counted + awaited)
    return [_chi_square_tail(float(value), int(count) - 1) for value, count in zip(statistic, cells, strict=True)]


def _chi_square_tail(value: float, degrees: int) -> float:
    """The probability that a chi-square variable exceeds a value."""
    if degrees < 1 or not value > 0:
        return 1.0
    spread = 2 / (9 * degrees)
    return erfc(((value / degrees) ** (1 / 3) - 1 + spread) / sqrt(2 * spread)) / 2


def _kolmogorov_smirnov(profile: Profile, own: Sequence[int], other: Sequence[int]) -> float | None:
    """The largest distance of the shares of values below an edge."""
    first, second = np.cumsum(own[:-2]), np.cumsum(other[:-2])
    if profile.bins.categories is not None or not first[-1] or not second[-1]:
        return None
    return float(np.abs(first / first[-1] - second / second[-1]).max())
