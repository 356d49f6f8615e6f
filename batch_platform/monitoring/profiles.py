"""Profiles: what a column held in some rows, small enough to keep for every partition, and mergeable.

The profile of a whole is the merge of the profiles of its parts, whatever the parts and their order. Counts, minimum
and maximum are then equal exactly. Mean and variance are computed within 1e-12 of the largest absolute value (squared,
for the variance), since sums of floating-point numbers depend on their order in the last bits.

Values are counted in the cells of `Bins`, which training fixes. Two profiles with different bins merge over the edges
and categories that they share, so the counts of the merged cells are exact too.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import pairwise
from math import ceil, inf, isfinite, isnan, nan, nextafter
from operator import add, sub
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["feature", "prediction", "estimate"]  # the last: what performance is estimated from
CELLS = 20  # cells of equal frequency in the reference; a value that is frequent on its own gets a cell of its own
ROWS_PER_CELL = 25  # least number of rows of the reference
MOST_VALUES = 24  # a number with at most so many distinct values has a cell for each
MOST_CATEGORIES = 30  # counted by name; the others together
_SAMPLE = 200_000  # evenly spaced values from which bins are made


@dataclass(frozen=True)
class Bins:
    """The cells in which the values of a column are counted.

    A number has a cell below the first edge, one from each edge up to the next, and one from the last edge upwards. A
    text has a cell for each named category and a last one for the other categories that the model knows.
    """

    edges: tuple[float, ...] = ()  # ascending
    categories: tuple[str, ...] | None = None  # None for a number

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.edges if self.categories is None else self.categories) + 1

    def common(self, other: "Bins") -> "Bins":
        """The finest bins whose cells are made of whole cells of both; raises ValueError for a number and a text."""
        if (self.categories is None) != (other.categories is None):
            msg = "a number and a text have no bins in common"
            raise ValueError(msg)
        if self.categories is None or other.categories is None:
            shared = {*other.edges}
            return Bins(edges=tuple(edge for edge in self.edges if edge in shared))
        named = {*other.categories}
        return Bins(categories=tuple(name for name in self.categories if name in named))

    def coarsened(self, histogram: Sequence[int], bins: "Bins") -> tuple[int, ...]:
        """The counts of these cells added up to the cells of coarser bins."""
        if bins == self:
            return tuple(histogram)
        counts = [0] * bins.cells
        if self.categories is None:
            places = np.searchsorted(bins.edges, (-inf, *self.edges), side="right").tolist()
        else:
            at = {name: place for place, name in enumerate(bins.categories or ())}
            places = [at.get(name, bins.cells - 1) for name in self.categories] + [bins.cells - 1]
        for place, count in zip(places, histogram, strict=True):
            counts[place] += count
        return tuple(counts)


@dataclass(frozen=True)
class Profile:
    """The values of one column in some rows, counted.

    `rows` are scored rows, and each of them is null, of an unknown category, or in one cell of the histogram.
    """

    name: str
    role: Role
    bins: Bins
    rows: int = 0
    nulls: int = 0
    unknown: int = 0  # rows with a category that the model does not know
    rejected: int = 0  # further rows, which were not scored because of this column
    low: float | None = None  # lowest number; None without any, and for text
    high: float | None = None
    mean: float | None = None
    squares: float | None = None  # sum of the squared distances from the mean
    histogram: tuple[int, ...] = ()

    @property
    def values(self) -> int:
        """Number of rows with a known value."""
        return self.rows - self.nulls - self.unknown

    @property
    def variance(self) -> float | None:
        """Variance of the values, with n - 1 in the denominator; None with fewer than two, and where it overflows."""
        if self.squares is None or self.values <= 1 or not isfinite(self.squares):
            return None
        return self.squares / (self.values - 1)

    def is_comparable(self, other: "Profile | None") -> bool:
        """Return whether another profile is of the same column, and both are of numbers or both of text."""
        of_text = self.bins.categories is not None
        return other is not None and (self.role, self.name, of_text) == (
            other.role,
            other.name,
            other.bins.categories is not None,
        )

    def without(self, part: "Profile") -> "Profile":
        """The counts of the other rows, given the profile of some of them in the same bins; their values are not known."""
        return Profile(
            name=self.name,
            role=self.role,
            bins=self.bins,
            rows=self.rows - part.rows,
            nulls=self.nulls - part.nulls,
            unknown=self.unknown - part.unknown,
            rejected=self.rejected - part.rejected,
            histogram=tuple(map(sub, self.histogram, part.histogram)),
        )

    def __add__(self, further: "Profile") -> "Profile":
        """The profile of the rows of both, over the bins that they share.

        Mean and variance as in Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances (1979). Raises ValueError if one is of a number and the other of a text.
        """
        bins = self.bins if self.bins == further.bins else self.bins.common(further.bins)
        mean, squares = _merged_moments(self, further)
        histograms = (part.bins.coarsened(part.histogram, bins) for part in (self, further))
        return Profile(
            name=self.name,
            role=self.role,
            bins=bins,
            rows=self.rows + further.rows,
            nulls=self.nulls + further.nulls,
            unknown=self.unknown + further.unknown,
            rejected=self.rejected + further.rejected,
            low=min((value for value in (self.low, further.low) if value is not None), default=None),
            high=max((value for value in (self.high, further.high) if value is not None), default=None),
            mean=mean,
            squares=squares,
            histogram=tuple(map(add, *histograms)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that overflowed is null."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Profile":
        """Read what `to_json` returned."""
        read: dict[str, Any] = dict(values)
        bins, histogram = read.pop("bins"), read.pop("histogram")
        categories = None if bins["categories"] is None else tuple(bins["categories"])
        return cls(**read, bins=Bins(tuple(bins["edges"]), categories), histogram=tuple(histogram))


def merged_profiles(parts: Iterable[Sequence[Profile]]) -> tuple[Profile, ...]:
    """The profiles of a whole from those of its parts, column by column; each part has the same columns in the same order."""

    def joined(whole: tuple[Profile, ...], part: Sequence[Profile]) -> tuple[Profile, ...]:
        return tuple(before + further for before, further in zip(whole, part, strict=True)) if whole else tuple(part)

    return reduce(joined, parts, ())


def count_at_least(values: NDArray[np.float64], edges: Sequence[float]) -> list[int]:
    """Count the values [n], none of them NaN, that reach each edge: faster than finding the cell of each value."""
    return [int(np.count_nonzero(values >= edge)) for edge in edges]


def cells_of(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.intp]:
    """The cell of each value [n], none of them NaN: how many edges it reaches; a search takes five times as long."""
    cells = np.zeros(len(values), dtype=np.min_scalar_type(len(edges)))
    for edge in edges:
        cells += values >= edge
    return cells.astype(np.intp)


def number_profile(  # noqa: PLR0913 - what is counted, and how
    name: str,
    role: Role,
    bins: Bins,
    values: NDArray[np.float64],
    *,
    rejected: int = 0,
    count: Callable[[NDArray[np.float64], Sequence[float]], list[int]] = count_at_least,
    histogram: tuple[int, ...] | None = None,
) -> Profile:
    """Profile numbers [n], of which NaN is null. They are counted in the cells unless their histogram is known."""
    rows = len(values)
    known, present, low = values, rows, float(values.min()) if rows else nan
    if isnan(low):  # any value is NaN: this costs less than to look for it
        known = values[~np.isnan(values)]
        present, low = len(known), float(known.min()) if len(known) else nan
    if not present:
        return Profile(name, role, bins, rows, rows, rejected=rejected, histogram=(0,) * bins.cells)
    high = float(known.max())
    if histogram is None:
        # All values reach an edge up to the lowest, and none an edge above the highest.
        first, last = bisect_right(bins.edges, low), bisect_right(bins.edges, high)
        counts = count(known, bins.edges[first:last]) if first < last else []
        reached = [*[present] * (1 + first), *counts, *[0] * (len(bins.edges) - last + 1)]
        histogram = tuple(more - less for more, less in pairwise(reached))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(known.mean())
        distances = known - mean
        squares = float(np.square(distances, out=distances).sum())
    return Profile(
        name,
        role,
        bins,
        rows,
        rows - present,
        rejected=rejected,
        low=low,
        high=high,
        mean=mean,
        squares=squares,
        histogram=histogram,
    )


def category_profile(  # noqa: PLR0913 - what is counted, and how
    name: str,
    role: Role,
    bins: Bins,
    codes: NDArray[np.float64],
    known: Sequence[str],
    *,
    nulls: int,
    rejected: int = 0,
) -> Profile:
    """Profile categories, given as positions [n] among the known ones; NaN is a null, of which there are `nulls`, or unknown."""
    positions = codes[~np.isnan(codes)]
    counts = np.bincount(positions.astype(np.int64), minlength=len(known)).tolist()
    histogram = Bins(categories=tuple(known)).coarsened((*counts, 0), bins)
    unknown = len(codes) - len(positions) - nulls
    return Profile(name, role, bins, len(codes), nulls, unknown, rejected, histogram=histogram)


def number_bins(values: NDArray[np.float64], most: int = CELLS) -> Bins:
    """Bins for numbers like these [n], of which NaN is left out.

    Few distinct values get a cell each. Otherwise the cells hold about equally many of the values, and a value that is
    more frequent than that gets a cell of its own. Below the first edge and from the last edge upwards is nothing yet.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Bins()
    sample = np.sort(values[:: ceil(len(values) / _SAMPLE)])
    low, high = float(values.min()), float(values.max())
    distinct: list[float] = sample[np.r_[True, sample[1:] != sample[:-1]]].tolist()
    if len(distinct) <= MOST_VALUES:
        edges = {max(nextafter(left, inf), left / 2 + right / 2) for left, right in pairwise(distinct)}
    else:
        cells = min(most, max(2, len(sample) // ROWS_PER_CELL))
        quantiles: list[float] = sample[np.arange(1, cells) * len(sample) // cells].tolist()
        edges = {*quantiles, *(nextafter(value, inf) for value in quantiles if quantiles.count(value) > 1)}
    edges = {edge for edge in edges if low < edge <= high}
    return Bins(edges=tuple(sorted({low, *edges, nextafter(high, inf)} - {inf})))


def category_bins(counts: Mapping[str, int], most: int = MOST_CATEGORIES) -> Bins:
    """Bins for categories with these counts: the most frequent ones are named."""
    frequent = sorted((name for name, count in counts.items() if count), key=lambda name: (-counts[name], name))
    return Bins(categories=tuple(sorted(frequent[:most])))


def _merged_moments(one: Profile, other: Profile) -> tuple[float | None, float | None]:
    for part, rest in ((one, other), (other, one)):
        if not part.values:
            return rest.mean, rest.squares
    if one.mean is None or one.squares is None or other.mean is None or other.squares is None:
        return None, None  # text, or numbers that are too large
    total, distance = one.values + other.values, other.mean - one.mean
    mean = one.mean + distance * (other.values / total)
    return mean, one.squares + other.squares + distance * distance * (one.values * other.values / total)


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not isfinite(value) else value
