"""A random sample of rows that arrive frame by frame: a fixed seed, the order of rows kept.

Each class keeps its share, or the sample is balanced: each class has the same number of rows, as far as there are so many.
Rows that can no longer be in the sample are dropped on the way.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl

SEED = 0
_CLASS, _DRAW = "__class", "__draw"
_SLACK = 4  # how many times the size of the sample is held before rows are dropped


class Sample:
    """Draws a sample from frames as they come."""

    def __init__(self, most: int | None, by: str | None, *, balanced: bool = False) -> None:
        """Start a sample of at most `most` rows (None: all), which keeps the shares of the classes in column `by` (None: no classes).

        If it is balanced, the classes get equal shares instead; without `most`, as many rows each as the rarest class has.
        """
        self._most, self._by, self._balanced = most, by, balanced
        self._random = np.random.default_rng(SEED)
        self._frames: list[pl.DataFrame] = []
        self._drawn: list[pl.DataFrame] = []  # columns _CLASS and _DRAW of the rows of the first frames
        self._rows = self._undrawn = (
            0  # rows that are held, and the number of the last frames that nothing is drawn for yet
        )
        self.counts: Counter[str] = Counter()  # rows of each class, by its name as text; complete after `frames`
        self.seen = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Draw from more rows."""
        self.seen += rows.height
        self._frames.append(rows)
        self._rows, self._undrawn = self._rows + rows.height, self._undrawn + 1
        if self._most is not None and self._rows > _SLACK * self._most:
            self._draw()
            self._keep(dict.fromkeys(self.counts, self._most))

    def frames(self, most: Mapping[str, int] | None = None) -> list[pl.DataFrame]:
        """Return the sampled rows in their order, in one frame if the columns of all are alike; at most so many of each class, if that is given."""
        if self._most is None and not self._balanced:
            return self._frames
        self._draw()
        if most is None and self._balanced:
            most = equal_shares(self.counts, self._most)
        elif most is None and self._most is not None and self.seen > self._most:
            most = _shares(self.counts, self._most)
        if most is not None and self._frames:
            self._keep(most)
        return self._frames

    def _draw(self) -> None:
        """Draw a number for each row of the last frames, and count their classes."""
        frames = self._frames[len(self._frames) - self._undrawn :]
        rows = sum(frame.height for frame in frames)
        classes = (
            [pl.repeat("", rows, eager=True)] if self._by is None else [it[self._by].cast(pl.String) for it in frames]
        )
        drawn = pl.DataFrame(
            {_CLASS: pl.concat(classes or [pl.Series(dtype=pl.String)]), _DRAW: self._random.random(rows)}
        )
        self.counts.update(dict(drawn[_CLASS].value_counts(name="n").iter_rows()))
        self._drawn, self._undrawn = [*self._drawn, drawn], 0

    def _keep(self, most: Mapping[str, int]) -> None:
        """Keep the rows of each class with the smallest draws, which later rows cannot displace."""
        allowed = pl.col(_CLASS).replace_strict(dict(most), return_dtype=pl.Int64)
        drawn = pl.concat(self._drawn)
        kept = drawn.select(pl.col(_DRAW).rank("ordinal").over(_CLASS) <= allowed).to_series()
        if all(frame.schema == self._frames[0].schema for frame in self._frames):
            self._frames = [pl.concat(self._frames, rechunk=False)]
        ends = np.cumsum([frame.height for frame in self._frames]).tolist()
        self._frames = [
            frame.filter(kept[end - frame.height : end]) for frame, end in zip(self._frames, ends, strict=True)
        ]
        self._drawn, self._rows = [drawn.filter(kept)], int(kept.sum())


def sampled(rows: pl.DataFrame, most: int, by: str | None) -> pl.DataFrame:
    """Sample at most so many rows of one frame, in its order; see `Sample`."""
    sample = Sample(most, by)
    sample.add(rows)
    return sample.frames()[0]


def sampled_by_class(rows: pl.DataFrame, most: Mapping[str, int], by: str) -> pl.DataFrame:
    """Sample at most so many rows of each class of one frame, in its order."""
    sample = Sample(None, by, balanced=True)
    sample.add(rows)
    return sample.frames(most)[0]


def class_counts(rows: pl.DataFrame, by: str) -> Counter[str]:
    """The rows of each class of a column, by its name as text."""
    return Counter(dict(rows[by].cast(pl.String).alias("class").value_counts(name="n").iter_rows()))


def equal_shares(counts: Mapping[str, int], most: int | None) -> dict[str, int]:
    """Distribute the rows of a sample equally over classes; what a rare class lacks, the others get.

    Without `most`, each class gets as many rows as the rarest one has.
    """
    rarest_first = sorted(counts, key=lambda name: (counts[name], name))
    if most is None:
        return dict.fromkeys(counts, counts[rarest_first[0]]) if counts else {}
    shares: dict[str, int] = {}
    for position, name in enumerate(rarest_first):
        classes_left = len(rarest_first) - position
        shares[name] = min(counts[name], max(1, (most - sum(shares.values())) // classes_left))
    return shares


def _shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """Distribute the rows of a sample over classes by largest remainder; every class gets a row while there is room."""
    total = sum(counts.values())
    shares = {name: max(1, most * count // total) for name, count in counts.items()}
    remainders = sorted(counts, key=lambda name: (-(most * counts[name] % total), name))
    for name in remainders[: max(0, most - sum(shares.values()))]:
        shares[name] += 1
    while sum(shares.values()) > most:
        shares[max(shares, key=lambda name: (shares[name], name))] -= 1
    return shares
