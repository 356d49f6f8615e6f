"""Counts by segment: how many rows with each value of a kept column lie in each cell of a profile.

A text that few keys have may name a person. So nothing that outlives the rows names a text of fewer than LEAST_KEYS keys: profiles,
references, estimates and segments count such texts together, as OTHERS. Where counts are merged, that is done once they are whole.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Role

LEAST_KEYS = 10  # different keys of a text that is named
OTHERS = "others"
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

    @property
    def frequent(self) -> dict[str, set[str | None]]:
        """The values by column that have at least LEAST_KEYS rows, and null. Within a partition each row has a key of its own."""
        values = dict[str, set[str | None]]()
        for (_, column), by_value in self.counts.items():
            known = values.setdefault(column, {None})
            known |= {value for value, counts in (by_value or {}).items() if counts.sum() >= LEAST_KEYS}
        return values

    def naming(self, frequent: Mapping[str, Collection[str | None]]) -> "SegmentCounts":
        """The same counts, with the values of each column that are not frequent together as OTHERS."""

        def named(column: str, by_value: CountsByValue) -> CountsByValue:
            counts = dict[str | None, NDArray[np.int64]]()
            for value, own in by_value.items():
                name = value if value in frequent.get(column, ()) else OTHERS
                counts[name] = counts[name] + own if name in counts else own
            return counts

        return SegmentCounts({key: by_value and named(key[1], by_value) for key, by_value in self.counts.items()})

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


def frequent_texts(values: pl.Series, keys: pl.DataFrame | None = None) -> set[str]:
    """The texts among some values [n] that rows of at least LEAST_KEYS different keys [n, columns] have.

    Without keys, or without columns of one, every row has a key of its own.
    """
    rows = pl.DataFrame({"text": values.cast(pl.String)})
    counts = rows.group_by("text").agg(keys=pl.len())
    frequent = counts.filter(pl.col("keys") >= LEAST_KEYS, pl.col("text").is_not_null())["text"]
    if keys is not None and keys.width and len(frequent):
        of_frequent = rows.with_columns(key=keys.hash_rows()).filter(pl.col("text").is_in(frequent.implode()))
        counts = of_frequent.group_by("text").agg(keys=pl.col("key").n_unique())
        frequent = counts.filter(pl.col("keys") >= LEAST_KEYS)["text"]
    return set(frequent.to_list())


def named_texts(values: pl.Series, keys: pl.DataFrame | None = None) -> pl.Series:
    """Values [n] as texts, with OTHERS for those that are not frequent; null stays null."""
    frequent, text = frequent_texts(values, keys), pl.col("text")
    rows = pl.DataFrame({"text": values.cast(pl.String)})
    kept = text.is_null() | text.is_in(sorted(frequent))
    return rows.select(pl.when(kept).then(text).otherwise(pl.lit(OTHERS)).alias(values.name)).to_series()


def _summed(part: CountsByValue | None, rest: CountsByValue | None) -> CountsByValue | None:
    if part is None or rest is None:
        return None
    both = dict(part)
    for value, counts in rest.items():
        both[value] = both[value] + counts if value in both else counts
    return both if len(both) <= MOST_SEGMENTS else None
