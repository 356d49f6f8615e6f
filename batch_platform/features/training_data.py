"""The rows of a training window: those that the judged fit learns from, those that it is judged on, and what lies between."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl

from batch_platform.declaration.calendar import Calendar
from batch_platform.features.sample import class_counts, equal_shares, sampled, sampled_by_class

# Columns beside the features, which no model is given: the time of a row on the clocks of the pipeline (without
# `features.time` there is none), a hash of its group, otherwise of its key without dates and times, the start of its partition
# and, in snapshots, a hash of what is held out together with it. Rows for evaluation have a hash of their partition and key too,
# the same wherever and whenever it is computed; in snapshots they say whether they are in the first half of the rows held out.
ROW_TIME, ENTITY, PARTITION_START, GROUP, ROW = "__row_time", "__entity", "__partition_start", "__group", "__row"
FIRST_HALF = "__first_half"


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
