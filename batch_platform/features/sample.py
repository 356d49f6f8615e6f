"""A sample of many frames: at most so many rows, drawn by one seed, each class in proportion, the order kept.

Frames come one by one, and what cannot be part of the sample is let go on the way. Knows nothing of what the rows mean.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

SEED = 0
_SLACK = 4  # samples that are held before one is thinned out


class Sample:
    """Draws from frames as they come."""

    def __init__(self, most: int | None, by: str | None) -> None:
        """Draw nothing yet.

        Args:
            most: Rows of the sample; None for all.
            by: The column of the classes whose shares are kept; None where all rows are alike.
        """
        self._most, self._by = most, by
        self._random = np.random.default_rng(SEED)
        self._frames: list[pl.DataFrame] = []
        self._classes: list[pl.Series] = []
        self._draws: list[NDArray[np.float64]] = []
        self._counts: Counter[str] = Counter()
        self.seen = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take the next rows."""
        self.seen += rows.height
        self._frames.append(rows)
        if self._most is None:
            return
        classes = pl.repeat("", rows.height, eager=True) if self._by is None else rows[self._by].cast(pl.String)
        self._counts.update(dict(classes.value_counts(name="n").iter_rows()))
        self._classes.append(classes.alias("class"))
        self._draws.append(self._random.random(rows.height))
        if sum(frame.height for frame in self._frames) > _SLACK * self._most:
            self._thin_out(dict.fromkeys(self._counts, self._most))

    def frames(self) -> list[pl.DataFrame]:
        """The sample: of each frame what was drawn, in its order."""
        if self._most is not None and self.seen > self._most:
            self._thin_out(_shares(self._counts, self._most))
        return self._frames

    def _thin_out(self, most: Mapping[str, int]) -> None:
        """Keep of each class the rows with the smallest draws: those that would be drawn whatever came after."""
        drawn = pl.DataFrame({"class": pl.concat(self._classes), "draw": np.concatenate(self._draws)})
        allowed = pl.col("class").replace_strict(dict(most), return_dtype=pl.Int64)
        kept = drawn.select(pl.col("draw").rank("ordinal").over("class") <= allowed).to_series()
        at = 0
        for number, frame in enumerate(self._frames):
            mine = kept[at : at + frame.height]
            at += frame.height
            self._frames[number] = frame.filter(mine)
            self._classes[number] = self._classes[number].filter(mine)
            self._draws[number] = self._draws[number][mine.to_numpy()]


def _shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """How many rows of each class: in proportion by the largest remainder, none left out as long as there is room."""
    total = sum(counts.values())
    shares = {name: max(1, most * count // total) for name, count in counts.items()}
    remainders = sorted(counts, key=lambda name: (-(most * counts[name] % total), name))
    for name in remainders[: max(0, most - sum(shares.values()))]:
        shares[name] += 1
    while sum(shares.values()) > most:
        shares[max(shares, key=lambda name: (shares[name], name))] -= 1
    return shares
