"""Counts by segment: how many rows with each value of a kept column lie in each cell of a profile."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Role

MOST_SEGMENTS = 1_000  # values of a column in a partition; one with more is not broken down: memory stays bounded
CountsByValue = Mapping[str | None, NDArray[np.int64]]  # rows in each cell, by value of a column as text
Cells = NDArray[np.int64] | NDArray[np.uint8]  # the cell of each row [n]
Places = tuple[Cells, int]  # and how many cells there are


@dataclass(frozen=True, eq=False)
class SegmentCounts:
    """Rows in each cell of a profile by its role, column and value; None for a column with too many values.

    The counts of a whole are the sum of those of its parts, whatever the parts.
    """

    counts: Mapping[tuple[Role, str], CountsByValue | None] = field(
        default_factory=dict[tuple[Role, str], CountsByValue | None]
    )

    def of(self, role: Role) -> dict[str, dict[str | None, list[int]]]:
        """The counts of one role by column and value, without columns of too many values; the values ascend, null last."""
        return {
            column: {
                value: by_value[value].tolist() for value in sorted(by_value, key=lambda text: (text is None, text))
            }
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
            [*key, None if by_value is None else [[value, counts.tolist()] for value, counts in by_value.items()]]
            for key, by_value in self.counts.items()
        ]

    @classmethod
    def from_json(cls, values: list[Any]) -> "SegmentCounts":
        """Read what `to_json` returned."""
        return cls(
            {
                (role, column): None
                if pairs is None
                else {value: np.array(counts, dtype=np.int64) for value, counts in pairs}
                for role, column, pairs in values
            }
        )


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = both[value] + counts if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
