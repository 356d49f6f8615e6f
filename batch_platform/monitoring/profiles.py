"""Profiles: what a column held in some rows, small enough to keep for every partition, and mergeable.

The profile of a whole is the merge of the profiles of its parts, whatever the parts and their order. Counts, minimum
and maximum are then equal exactly. Mean and variance are computed within 1e-12 of the largest absolute value (squared,
for the variance), since sums of floating-point numbers depend on their order in the last bits.

Values are counted in the cells of `Bins`, which training fixes. Two profiles with different bins merge over the edges
and categories that they share, so the counts of the merged cells are exact too.

A sketch says of rows as wholes what profiles cannot: every column may look as ever although each is shuffled by itself, or rows come
twice. It depends on the values alone, so the sketch of a whole is the merge of those of its parts, too.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from hashlib import blake2b
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


MOST_KEPT, MOST_KEPT_VALUES = 4096, 65_536  # different rows of a sketch, and values of them
MOST_COLUMNS = 64  # columns of which it is known how they go together: the first ones
LEAST_ROWS = 100  # fewer rows do not tell how columns go together
FARTHEST = 3.0  # standard deviations at which a value counts, so that no single value decides
_BLOCK = 16_384  # rows that stay in the cache
_WORD = 1 << 64

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Categories = Mapping[str, Sequence[str] | None]  # categories of each column by name; None for a number
Mix = Callable[[Floats, int, Hashes], None]  # see `add_mixed`


@dataclass(frozen=True, eq=False)
class RowSketch:
    """Some rows: their number, the sum of their hashes, and the different rows with the smallest hashes."""

    rows: int = 0
    total: int = 0  # sum of the hashes, modulo 2^64
    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))  # ascending; at most `kept_of` of them
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # rows with each of them
    values: Floats = field(default_factory=lambda: np.empty((0, 0)))  # their first MOST_COLUMNS encoded values

    def __add__(self, further: "RowSketch") -> "RowSketch":
        """The sketch of these rows and further ones."""
        if not further.rows or not self.rows:
            return self if self.rows else further
        joined, both = np.concatenate, (self, further)
        hashes, first, place = np.unique(joined([part.hashes for part in both]), return_index=True, return_inverse=True)
        counts = np.bincount(place, weights=joined([part.counts for part in both])).astype(np.int64)
        kept, values = kept_of(self.values.shape[1]), joined([part.values for part in both])
        total = (self.total + further.total) % _WORD
        return RowSketch(self.rows + further.rows, total, hashes[:kept], counts[:kept], values[first[:kept]])

    @property
    def identity(self) -> str:
        """A text that rows have in common if they are the same, in any order."""
        return f"{self.rows:x}-{self.total:016x}"

    @property
    def repeated(self) -> float:
        """The share of the rows that repeat another one; an estimate if not all different rows are kept."""
        return 1 - len(self.counts) / int(self.counts.sum()) if len(self.counts) else 0.0


@dataclass(frozen=True)
class Components:
    """The principal components of the training data."""

    middle: tuple[float, ...]  # mean of each column
    scale: tuple[float, ...]  # standard deviation; 0 for a constant column, which is left out
    axes: tuple[
        tuple[float, ...], ...
    ]  # components, each with a weight for every column, over their standard deviation

    def standardised(self, matrix: Floats) -> Floats:
        """Rows [n, columns] whose columns have mean 0 and standard deviation 1 in the training data; a null is at the mean."""
        scale = np.asarray(self.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = (matrix - np.asarray(self.middle)) * np.divide(1, scale, where=scale > 0, out=np.zeros(len(scale)))
        return np.clip(np.nan_to_num(rows, nan=0.0), -FARTHEST, FARTHEST)

    def looseness(self, sketch: RowSketch) -> float | None:
        """The error of rows by the components, over that of the same columns if they had nothing to do with each other; None with few rows.

        The error is the mean squared distance from the rows' middle in standard deviations of the components. It is below 1 as far as
        columns go together, and 1 once each is shuffled by itself, whatever the values of each are like.
        """
        if int(sketch.counts.sum()) < max(LEAST_ROWS, 5 * len(self.scale)):
            return None
        rows, weights, axes = self.standardised(sketch.values), sketch.counts[:, None], np.asarray(self.axes)
        rows -= (rows * weights).sum(axis=0) / weights.sum()
        apart = float((np.square(rows) * weights).sum(axis=0) @ np.square(axes).sum(axis=0))
        return float((np.square(rows @ axes.T) * weights).sum()) / apart if apart > 0 else None


@dataclass(frozen=True)
class RowReference:
    """The knowledge of training about whole rows: what is the most that partitions usually have. None where it is not known."""

    components: Components | None = None
    looseness: float | None = None  # median of the partitions
    looseness_usual: float | None = None  # largest factor between a partition and the median
    repeated_usual: float | None = None  # highest share of repeated rows
    may_equal: bool | None = None  # whether any partition had the rows of the one before

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "components": self.components and vars(self.components)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "RowReference":
        """Read what `to_json` returned; a bundle of before rows were looked at knows nothing."""
        known = dict(values or {})
        if (of := known.get("components")) is not None:
            known["components"] = Components(tuple(of["middle"]), tuple(of["scale"]), tuple(map(tuple, of["axes"])))
        return cls(**known)


def kept_of(columns: int) -> int:
    """The number of different rows that a sketch of rows with so many columns keeps."""
    return max(512, min(MOST_KEPT, MOST_KEPT_VALUES // max(1, columns)))


def sketch_of(matrix: Floats, columns: Categories, mix: Mix | None = None) -> RowSketch:
    """Sketch encoded rows [n, columns]; `mix` adds the same as `add_mixed`, by default that itself."""
    hashes, width = row_hashes(matrix, columns, mix or add_mixed), min(matrix.shape[1], MOST_COLUMNS)
    kept, places = kept_of(width), np.arange(len(hashes))
    if (
        len(hashes) > 4 * kept
    ):  # looks first at twice as many as are kept, by chance; at all only if these repeat each other
        smallest = np.unique(hashes[hashes <= np.uint64(2 * kept * _WORD // len(hashes))])
        if len(smallest) >= kept:
            places = np.flatnonzero(hashes <= smallest[kept - 1])
    different, first, counts = np.unique(hashes[places], return_index=True, return_counts=True)
    values = matrix[places[first[:kept]], :width]
    return RowSketch(len(hashes), int(hashes.sum(dtype=np.uint64)), different[:kept], counts[:kept], values)


def add_mixed(numbers: Floats, factor: int, totals: Hashes) -> None:
    """Add the mixed bits of each number [n], times a factor, to a total for each."""
    bits = (numbers + 0.0).view(np.uint64)  # -0.0 is 0.0
    bits ^= bits >> np.uint64(32)
    bits *= np.uint64(factor)
    totals += bits


def row_hashes(matrix: Floats, columns: Categories, mix: Mix = add_mixed) -> Hashes:
    """A hash of each row [n], by the names and values of its columns: not by their order, nor by that of categories."""
    of_columns = [
        (_hashed(name) | 1, None if known is None else np.array([*map(_hashed, known), 0], np.uint64))
        for name, known in columns.items()
    ]
    totals = np.zeros(len(matrix), np.uint64)
    for start in range(0, len(matrix), _BLOCK):
        rows, total = matrix[start : start + _BLOCK], totals[start : start + _BLOCK]
        for at, (factor, known) in enumerate(of_columns):
            if known is None:
                mix(rows[:, at], factor, total)
            else:
                total += known[np.nan_to_num(rows[:, at], nan=len(known) - 1).astype(np.intp)] * np.uint64(factor)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # as SplitMix64 ends
            total ^= total >> np.uint64(shift)
            total *= np.uint64(factor)
        total ^= total >> np.uint64(31)
    return totals


def _hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
