"""Counts by segment: how many rows with each value of a kept column lie in each cell of a profile."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Role

MOST_SEGMENTS = 1_000  # values of a column in a partition; one with more is not broken down: memory stays bounded
CountsByValue = Mapping[str | None, tuple[int, ...]]  # rows in each cell, by value of a column as text
Places = tuple[NDArray[np.int64], int]  # the cell of each row [n], and how many cells there are


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


def counted_by_segment(segments: pl.DataFrame, places: Mapping[Role, Places]) -> SegmentCounts:
    """Count rows by each of some columns, given the cells of each row by role."""
    by_segment = dict[tuple[Role, str], CountsByValue | None]()
    for column in segments.get_columns():
        of_rows = {role: cells for role, (cells, _) in places.items()}
        by_value = pl.DataFrame({"__value": column.cast(pl.String), **of_rows}).group_by("__value").agg(pl.all())
        for role, (_, cells) in places.items():
            has_too_many = by_value.height > MOST_SEGMENTS
            by_segment[role, column.name] = None if has_too_many else _histograms(by_value, role, cells)
    return SegmentCounts(by_segment)


def _histograms(by_value: pl.DataFrame, role: Role, cells: int) -> CountsByValue:
    """The number of rows in each cell, given a list of their cells for each value."""
    return {
        value: tuple(np.bincount(of_value.to_numpy(), minlength=cells).tolist())
        for value, of_value in zip(by_value["__value"], by_value[role], strict=True)
    }


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = tuple(map(add, both[value], counts)) if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
