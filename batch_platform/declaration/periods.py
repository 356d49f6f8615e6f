"""Serving periods, training windows and label maturity of a pipeline: derived once from its declaration, and handed along with it."""

from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from batch_platform.declaration.calendar import LONGEST, Calendar, Duration, Partition
from batch_platform.declaration.notation import parse_deadline, parse_duration

if TYPE_CHECKING:
    from batch_platform.declaration.spec import PipelineSpec


@dataclass(frozen=True, eq=False)
class Periods:
    """The times in which the models of a pipeline serve, and the windows from which they learn; `PipelineSpec.periods` gives the one of a declaration."""

    spec: "PipelineSpec"

    @cached_property
    def calendar(self) -> Calendar:
        """The partitions."""
        return self.spec.partitions.calendar

    @cached_property
    def serving(self) -> Calendar | None:
        """The serving periods of the models; None for a single model, and for the models of snapshots."""
        train, partitions = self.spec.model.train, self.spec.partitions
        if train.every is None or partitions.snapshot:
            return None
        start = datetime.fromisoformat(train.start or partitions.start)
        end = None if partitions.end is None else datetime.fromisoformat(partitions.end)
        return Calendar(every=train.every, zone=ZoneInfo(partitions.timezone), start=start, end=end, end_offset=1)

    @cached_property
    def _evaluated(self) -> Duration:
        """The length of the part of a training window that is kept for evaluation."""
        return self._whole(self.spec.model.train.evaluation_length)

    @cached_property
    def _windows(self) -> dict[datetime, list[Partition]]:
        return {}

    def window(self, serving_start: datetime, dropped: Container[str] = ()) -> list[Partition]:
        """The partitions a model may learn from: wholly before its serving period, with labels mature at its start.

        The partitions whose keys are `dropped` are left out: nothing is learned from what was deleted for good.
        An imported model takes only its contract from the window, so its labels need not be mature. A model of snapshots
        learns from the snapshot that it serves first: what it holds is known when it is taken.
        """
        if serving_start not in self._windows:
            self._windows[serving_start] = self._window(serving_start)
        return [partition for partition in self._windows[serving_start] if partition.key not in dropped]

    def _window(self, serving_start: datetime) -> list[Partition]:
        calendar, model = self.calendar, self.spec.model
        if self.spec.partitions.snapshot:
            snapshot = calendar.holding(serving_start)
            return [] if snapshot is None else [snapshot]
        length = model.train.window_length
        start = calendar.first_start if length is None else self._whole(length).before(serving_start, calendar.zone)
        inside = calendar.within(max(start, calendar.first_start), serving_start)
        if model.import_ is not None:
            return [partition for partition in inside if partition.end <= serving_start]
        # A later partition never matures earlier.
        return inside[: bisect_right(inside, serving_start, key=self.matures)]

    def evaluation_start(self, window: Sequence[Partition]) -> datetime:
        """The start of the part of a training window that is kept for evaluation."""
        return self._evaluated.before(window[-1].end, self.calendar.zone)

    def can_train(self, window: Sequence[Partition]) -> bool:
        """Tell whether a window is long enough: one partition for an imported model.

        For any other, as much data before the evaluation data as these, and of them at least one partition whose labels were
        known when the evaluation data begin.
        """
        if not window or self.spec.model.import_ is not None or self.spec.partitions.snapshot:
            return bool(window)
        boundary = self.evaluation_start(window)
        begins = self._evaluated.before(boundary, self.calendar.zone)
        return window[0].start <= begins and self.matures(window[0]) <= boundary

    def _whole(self, length: Duration) -> Duration:
        """Count the length of a window in days or months unless partitions are hours: 24 hours are a day of 23 or 25 hours, too."""
        days = replace(length, months=0).nominal.days
        return length if self.spec.partitions.every == "hour" else Duration(days=days, months=length.months)

    def matures(self, partition: Partition) -> datetime:
        """The time from which on the labels of a partition are known; without labels, its end. A snapshot holds its labels."""
        if self.spec.partitions.snapshot:
            return partition.start
        if self.spec.labels is None:
            return partition.end
        return self.spec.labels.maturity.after(partition.end, self.calendar.zone)

    def deadline(self, partition: Partition) -> datetime:
        """The time by which a partition must be scored: as `monitoring.fresh_by` says, or else once the next partition is due too."""
        calendar, fresh_by = self.calendar, self.spec.monitoring.fresh_by
        due = calendar.due_from(partition)
        if fresh_by is None:
            return calendar.due_from(calendar.around(partition.end))
        declared = parse_deadline(fresh_by)
        if isinstance(declared, Duration):
            return declared.after(due, calendar.zone)
        day = due.astimezone(calendar.zone).date()
        at = datetime.combine(day, declared, calendar.zone).astimezone(UTC)
        return at if at > due else datetime.combine(day + timedelta(days=1), declared, calendar.zone).astimezone(UTC)

    @property
    def oldest_champion(self) -> Duration | None:
        """The time after the start of its serving period for which a model scores without a warning; None for any length."""
        if self.spec.monitoring.max_champion_age is not None:
            return parse_duration(self.spec.monitoring.max_champion_age)
        return None if self.serving is None else Duration(days=max(7, 2 * LONGEST[self.serving.every].days))

    def begun(self, now: datetime) -> list[Partition]:
        """The serving periods that have begun and have a window long enough for training, oldest first."""
        if self.serving is None:
            return []
        begun = [period for period in self.serving.due(now) if period.start <= now]
        return [period for period in begun if self.can_train(self.window(period.start))]

    @cached_property
    def trainable(self) -> Calendar | None:
        """The serving periods whose models have enough to learn from; all of them, where there is none."""
        if self.serving is None or self.first_service is None:
            return self.serving
        return self.serving.starting(self.first_service.start)

    @cached_property
    def served(self) -> Calendar:
        """The partitions that can have predictions: with a model for each serving period, those from the first one on.

        All partitions, where one model serves whatever it is trained for, where snapshots are scored, or where the partitions
        end before the first serving period.
        """
        if self.serving is None or self.first_service is None:
            return self.calendar
        served = self.calendar.starting(self.first_service.start)
        return self.calendar if served.last_end is not None and served.last_end <= served.first_start else served

    @cached_property
    def first_service(self) -> Partition | None:
        """The first serving period whose model has enough to learn from, or the first partition if one model serves all.

        What starts before is warm-up. None if the partitions end before there is such a period, or a window of declared length
        is too short for any.
        """
        calendar, earliest = self.serving or self.calendar, self.calendar.first_start
        if self.spec.model.import_ is None and not self.spec.partitions.snapshot:
            zone, evaluated = self.calendar.zone, self._evaluated
            maturity = Duration() if self.spec.labels is None else self.spec.labels.maturity
            boundary = max(evaluated.after(earliest, zone), maturity.after(earliest, zone))
            earliest = maturity.after(evaluated.after(boundary, zone), zone)
        length, period = self.spec.model.train.window_length, calendar.holding(max(earliest, calendar.first_start))
        # Once a window of declared length is full, only the lengths of months differ, and a year has all of them.
        latest = None if length is None or period is None else period.end + length.nominal + timedelta(days=366)
        while period is not None and not self.can_train(self.window(period.start)):
            period = calendar.holding(period.end) if latest is None or period.start < latest else None
        return period

    def serves_from(self, first: Partition) -> str:
        """Say from which serving period on models serve, and why not from `model.train.start` on, if that is earlier."""
        start, text = self.spec.model.train.start, f"the first model serves from {first.key}"
        if start is None or self.serving is None or first.start <= self.serving.first_start:
            return text
        return f"{text}, since too few labels are known at model.train.start ({start})"
