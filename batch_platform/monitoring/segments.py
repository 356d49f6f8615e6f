"""Counts by segment: how many rows with each value of a kept column lie in each cell of what estimates are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST_SEGMENTS = (
    1_000  # values of a column in a partition; a column with more is not broken down, so that memory stays bounded
)
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
        by_value: dict[str | None, tuple[int, ...]] | None = None
        if rows["value"].n_unique() <= MOST_SEGMENTS:
            counts = rows.group_by("value", "cell").len()
            by_value = {}
            for (value,), of_value in counts.group_by("value"):
                histogram = np.zeros(cells, dtype=np.int64)
                histogram[of_value["cell"].to_numpy()] = of_value["len"].to_numpy()
                by_value[None if value is None else str(value)] = tuple(histogram.tolist())
        by_column[column.name] = by_value
    return SegmentCounts(by_column)


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = tuple(map(add, both[value], counts)) if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
