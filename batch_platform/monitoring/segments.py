"""Counts by segment: how many rows with each value of a kept column lie in each cell of what estimates are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST_SEGMENTS = 1_000  # values of a column in a partition; one with more is not broken down: memory stays bounded
CountsByValue = Mapping[str | None, tuple[int, ...]]  # rows in each cell, by value of a column as text


@dataclass(frozen=True)
class SegmentCounts:
    """Rows in each cell by column and value; None for a column with too many values.

    The counts of a whole are the sum of those of its parts, whatever the parts.
    """

    by_column: Mapping[str, CountsByValue | None] = field(default_factory=dict[str, CountsByValue | None])

    def __add__(self, further: "SegmentCounts") -> "SegmentCounts":
        """The counts of the rows of both."""
        columns = dict.fromkeys([*self.by_column, *further.by_column])
        return SegmentCounts(
            {column: _summed(self.by_column.get(column, {}), further.by_column.get(column, {})) for column in columns}
        )


def counted_by_segment(segments: pl.DataFrame, places: NDArray[np.int64], cells: int) -> SegmentCounts:
    """Count rows by each of some columns, given the cell of each row [n] and how many cells there are."""
    by_column = dict[str, CountsByValue | None]()
    for column in segments.get_columns():
        rows = pl.DataFrame({"value": column.cast(pl.String), "cell": places})
        by_value = rows.group_by("value").agg("cell")
        by_column[column.name] = None if by_value.height > MOST_SEGMENTS else _histograms(by_value, cells)
    return SegmentCounts(by_column)


def _histograms(by_value: pl.DataFrame, cells: int) -> CountsByValue:
    """The number of rows in each cell, given a list of their cells for each value."""
    return {
        value: tuple(np.bincount(of_value.to_numpy(), minlength=cells).tolist())
        for value, of_value in zip(by_value["value"], by_value["cell"], strict=True)
    }


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = tuple(map(add, both[value], counts)) if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
