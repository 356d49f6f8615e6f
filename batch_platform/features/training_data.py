"""The rows of a training window: those that the judged fit learns from, those that it is judged on, and what lies between."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import polars as pl

from batch_platform.declaration.calendar import Calendar

# Columns beside the features, which no model is given: the time of a row on the clocks of the pipeline (without
# `features.time` there is none), a hash of its group, otherwise of its key without dates and times, the start of its partition
# and, in snapshots, a hash of what is held out together with it. Rows for evaluation have a hash of their partition and key too,
# the same wherever and whenever it is computed; in snapshots they say whether they are in the first half of the rows held out.
ROW_TIME, ENTITY, PARTITION_START, GROUP, ROW = "__row_time", "__entity", "__partition_start", "__group", "__row"
FIRST_HALF = "__first_half"
SEED = 0
_CLASS, _DRAW = "__class", "__draw"
_SLACK = 4  # how many times the size of the sample is held before rows are dropped
MOST_LABEL_BYTES = 256 << 20
MOST_ROW_BYTES = 512 << 20


@dataclass(frozen=True)
class Rows:
    """Rows of a part of a window, perhaps a sample, and how many there were before it was taken."""

    frame: pl.DataFrame
    before_cap: int
    classes: Mapping[str, int]  # rows by class before the sample, as text; empty if no class is counted


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training window: feature columns, with labels the label, and the columns beside the features."""

    fit: pl.DataFrame  # the beginning of the window, as far as its labels were known at the start of the end
    evaluate: pl.DataFrame  # the end of the window
    label: str | None  # name of the label column; None for a clustering
    rows_before_cap: int = 0  # number of rows to fit on before a sample was taken
    balanced: bool = False  # whether that sample has equally many rows of each class; see `Sample`
    classes_before_cap: Mapping[str, int] = field(default_factory=dict[str, int])  # rows by class, as text
    rows_unlabelled: int = 0  # rows of the window whose label is not known, and the nulls in them by column
    nulls_unlabelled: Mapping[str, int] = field(default_factory=dict[str, int])
    # The first part of the end of the window, which refinements learn from; None unless it is divided.
    first_part: pl.DataFrame | None = None
    between: pl.DataFrame | None = None  # rows of the first half whose labels were not known at the start of the second
    by_entity: bool = False  # whether other entities are evaluated, of the same times, rather than later rows
    rows_apart: int = 0  # rows that were left out of `fit`, because rows of their group are evaluated
    earlier: pl.DataFrame | None = None  # `fit` with these rows; None unless groups are kept apart
    # Rows between `fit` and `evaluate`, whose labels were not known at the start of the latter.
    not_known: Rows | None = None
    # The time from which on the labels of a partition are known, by its start; of a partition that is missing, its start.
    known_from: Mapping[datetime, datetime] = field(default_factory=dict[datetime, datetime])
    # Of a snapshot, a hash of the group or key of each row that is learned from or evaluated; see `snapshot_hashes`.
    labelled: pl.Series | None = None
    # Calendar of the partitions; None if a partition is not compared with the week before.
    calendar: Calendar | None = None

    @property
    def unseen(self) -> pl.DataFrame:
        """The rows that neither a fit nor the evaluation sees; none unless the end of the window is divided."""
        return self.evaluate.clear() if self.first_part is None else self.first_part

    @property
    def rows_not_known(self) -> int:
        """Number of rows that the judged model does not learn from, because their labels were not known yet."""
        return (self.not_known.before_cap if self.not_known else 0) + (
            0 if self.between is None else self.between.height
        )

    def divided(self) -> "TrainingData":
        """The same data with the end of the window divided in two: by partitions in time, of a snapshot by a hash of group or key.

        The first part is empty if all rows are of one partition, or none of its labels is known at the start of the second.
        """
        if self.first_part is not None:
            return self
        rows = self.evaluate
        if FIRST_HALF in rows.columns:
            return replace(self, first_part=rows.filter(rows[FIRST_HALF]), evaluate=rows.filter(~rows[FIRST_HALF]))
        starts = rows[PARTITION_START].unique().sort()
        if not len(starts):
            return replace(self, first_part=rows)
        second = starts[len(starts) // 2]
        first, later = rows.filter(pl.col(PARTITION_START) < second), rows.filter(pl.col(PARTITION_START) >= second)
        known = known_at(second, first, self.known_from)
        return replace(self, first_part=first.filter(known), between=first.filter(~known), evaluate=later)

    def undivided(self) -> "TrainingData":
        """The same data with the end of the window in one part."""
        if self.first_part is None:
            return self
        parts = [part for part in (self.first_part, self.between, self.evaluate) if part is not None]
        return replace(self, first_part=None, between=None, evaluate=pl.concat(parts))

    def whole(self, max_rows: int | None, *, stratified: bool) -> "TrainingData":
        """The same data with all rows to fit on, as far as `max_rows` allows: each part is sampled in proportion.

        Of balanced data, the rows of each class are.
        """
        before = self.fit if self.earlier is None else self.earlier
        evaluated, by = (
            self.undivided().evaluate.drop(ROW, FIRST_HALF, strict=False),
            self.label if stratified else None,
        )
        parts = [
            Rows(before, max(self.rows_before_cap + self.rows_apart, before.height), self.classes_before_cap),
            *([] if self.not_known is None else [self.not_known]),
            Rows(evaluated, evaluated.height, {} if by is None else class_counts(evaluated, by)),
        ]
        total, classes, frames = sum(part.before_cap for part in parts), Counter[str](), [part.frame for part in parts]
        for part in parts:
            classes.update(part.classes)
        if self.balanced and by is not None:
            quotas = equal_shares(classes, max_rows)
            later = [
                {name: quotas[name] * part.classes.get(name, 0) // classes[name] for name in classes}
                for part in parts[1:]
            ]
            first = {name: quotas[name] - sum(quota[name] for quota in later) for name in classes}
            frames = [sampled_by_class(frame, most, by) for frame, most in zip(frames, (first, *later), strict=True)]
        elif max_rows is not None and total > max_rows:
            later = [max_rows * part.before_cap // total for part in parts[1:]]
            quotas = (max_rows - sum(later), *later)
            frames = [sampled(frame, quota, by) for frame, quota in zip(frames, quotas, strict=True)]
        fit = pl.concat(
            [frame for frame in frames if frame.height] or frames[:1], how="vertical_relaxed", rechunk=False
        )
        return replace(self, fit=fit, rows_before_cap=total, classes_before_cap=classes, earlier=None, not_known=None)


def known_at(instant: datetime, rows: pl.DataFrame, known_from: Mapping[datetime, datetime]) -> pl.Series:
    """Mark the rows whose labels are known at an instant, given the time from which on those of each partition are."""
    late = [start for start, known in known_from.items() if known > instant]
    return ~rows[PARTITION_START].is_in(pl.Series(late, dtype=pl.Datetime("us", "UTC")).implode())


class Sample:
    """Draws a sample from frames as they come, with a fixed seed; rows keep their order."""

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


class RecentLabels:
    """Label frames by any key, at most MOST_LABEL_BYTES in total; the oldest are dropped first."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._frames: dict[tuple[str, ...], pl.DataFrame] = {}
        self._bytes = 0

    def get(self, key: tuple[str, ...], read: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """The frame of a key, which is read unless it is kept."""
        if key in self._frames:
            return self._frames[key]
        frame = self._frames[key] = read()
        self._bytes += frame.estimated_size()
        while self._bytes > MOST_LABEL_BYTES:
            self._bytes -= self._frames.pop(next(iter(self._frames))).estimated_size()
        return frame


@dataclass(frozen=True)
class Learnable:
    """The rows of a partition whose label is known, and a count of the others."""

    read_from: tuple[str, str]  # digest of the feature file, and the versions of the label sources
    keyed: pl.DataFrame  # key, time, features and label
    # The same rows as a model learns from them: without key and time, and with the columns beside the features.
    rows: pl.DataFrame
    unlabelled: int
    nulls_unlabelled: Counter[str]  # nulls of the others by column


class LearnableRows:
    """The rows of partitions by key, which trainings that follow each other share: the first ones that MOST_ROW_BYTES hold."""

    def __init__(self) -> None:
        """Keep nothing outside of `kept`."""
        self._partitions: dict[str, Learnable] = {}
        self._bytes = self._users = 0

    @contextmanager
    def kept(self) -> Generator[None]:
        """Keep rows until the end of the outermost block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._partitions, self._bytes = {}, 0

    def get(self, key: str, read_from: tuple[str, str]) -> Learnable | None:
        """The rows of a partition, if they are kept and were read from the same files."""
        held = self._partitions.get(key)
        return held if held is not None and held.read_from == read_from else None

    def add(self, key: str, learnable: Learnable) -> None:
        """Keep the rows of a partition, if there is room."""
        size = int(learnable.keyed.estimated_size())
        if self._users and key not in self._partitions and self._bytes + size <= MOST_ROW_BYTES:
            self._partitions[key], self._bytes = learnable, self._bytes + size
