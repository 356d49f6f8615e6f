"""Rows as wholes: how many repeat each other, whether they equal those of another partition, and whether their columns still go together.

Every column of a partition may look as ever although its rows are wrong: each column shuffled by itself, yesterday's rows once more, or
rows twice under new keys. A sketch of the rows tells: the sum of a hash of each, and the rows with the smallest hashes with
the number of their repeats. These rows depend on the values alone, so the sketch of a whole is the merge of those of its parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_KEPT, MOST_VALUES = 4096, 65_536  # different rows of a sketch, and values of them
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
    return max(512, min(MOST_KEPT, MOST_VALUES // max(1, columns)))


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
