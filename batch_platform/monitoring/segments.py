"""Counts by segment: how many rows with each value of a kept column lie in each cell of a profile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Role

MOST_SEGMENTS = 1_000  # values of a column in a partition; one with more is not broken down: memory stays bounded
CountsByValue = Mapping[str | None, tuple[int, ...]]  # rows in each cell, by value of a column as text
Cells = NDArray[np.int64] | NDArray[np.uint8]  # the cell of each row [n]
Places = tuple[Cells, int]  # and how many cells there are
Numbered = tuple[NDArray[np.int64], pl.Series]  # the number of each row's value [n], and the value of each number


@dataclass(frozen=True)
class SegmentCounts:
    """Rows in each cell of a profile by its role, column and value; None for a column with too many values.

    The counts of a whole are the sum of those of its parts, whatever the parts.
    """

    counts: Mapping[tuple[Role, str], CountsByValue | None] = field(
        default_factory=dict[tuple[Role, str], CountsByValue | None]
    )

    def of(self, role: Role) -> dict[str, CountsByValue]:
        """The counts of one role by column, without columns of too many values; the values ascend, null last."""
        return {
            column: dict(sorted(by_value.items(), key=lambda item: (item[0] is None, item[0])))
            for (counted, column), by_value in self.counts.items()
            if counted == role and by_value is not None
        }

    def __add__(self, further: "SegmentCounts") -> "SegmentCounts":
        """The counts of the rows of both."""
        keys = dict.fromkeys([*self.counts, *further.counts])
        return SegmentCounts({key: _summed(self.counts.get(key, {}), further.counts.get(key, {})) for key in keys})

    def to_json(self) -> list[Any]:
        """Plain values."""
        return [
            [*key, None if by_value is None else [[value, counts] for value, counts in by_value.items()]]
            for key, by_value in self.counts.items()
        ]

    @classmethod
    def from_json(cls, values: list[Any]) -> "SegmentCounts":
        """Read what `to_json` returned."""
        return cls(
            {
                (role, column): None if pairs is None else {value: tuple(counts) for value, counts in pairs}
                for role, column, pairs in values
            }
        )


def numbered_values(column: pl.Series) -> Numbered:
    """Number the values of a column."""
    groups = pl.DataFrame({"value": column}).with_row_index("row").group_by("value").agg("row")
    codes = np.empty(len(column), dtype=np.int64)
    codes[groups["row"].explode().to_numpy()] = np.repeat(np.arange(groups.height), groups["row"].list.len().to_numpy())
    return codes, groups["value"]


def counted_by_segment(
    segments: pl.DataFrame,
    places: Mapping[Role, Places],
    number: Callable[[pl.Series], Numbered | None] = numbered_values,
) -> SegmentCounts:
    """Count rows by each of some columns, given the cells of each row by role; `number` gives None for too many values."""
    by_segment = dict[tuple[Role, str], CountsByValue | None]()
    for column in segments.get_columns():
        numbered = number(column.cast(pl.String) if column.dtype.is_float() else column)  # 0 and -0 are two texts
        for role, (of_rows, cells) in places.items():
            by_segment[role, column.name] = None if numbered is None else _histograms(numbered, of_rows, cells)
    return SegmentCounts(by_segment)


def _histograms(numbered: Numbered, of_rows: Cells, cells: int) -> CountsByValue | None:
    """The number of rows of each value in each cell; None with too many values."""
    codes, values = numbered
    counts = np.bincount(codes * cells + of_rows, minlength=len(values) * cells).reshape(len(values), cells)
    by_value = dict[str | None, tuple[int, ...]]()
    for value, histogram in zip(values.cast(pl.String), counts.tolist(), strict=True):
        counted = tuple(histogram)
        by_value[value] = tuple(map(add, by_value[value], counted)) if value in by_value else counted
    return by_value if len(by_value) <= MOST_SEGMENTS else None


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = tuple(map(add, both[value], counts)) if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
