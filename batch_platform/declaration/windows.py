"""Serving periods, training windows and label maturity of a pipeline, from its declaration alone."""

from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from batch_platform.declaration.calendar import LONGEST, Calendar, Duration, Partition
from batch_platform.declaration.notation import parse_deadline, parse_duration
from batch_platform.declaration.spec import PipelineSpec


def serving_calendar(spec: PipelineSpec) -> Calendar | None:
    """The serving periods of the models of a pipeline; None for a single model, and for the models of snapshots."""
    train = spec.model.train
    if train.every is None or spec.partitions.snapshot:
        return None
    partitions = spec.partitions
    start = datetime.fromisoformat(train.start or partitions.start)
    end = None if partitions.end is None else datetime.fromisoformat(partitions.end)
    return Calendar(every=train.every, zone=ZoneInfo(partitions.timezone), start=start, end=end, end_offset=1)


def training_window(spec: PipelineSpec, serving_start: datetime, dropped: Container[str] = ()) -> list[Partition]:
    """The partitions a model may learn from: wholly before its serving period, with labels mature at its start.

    The partitions whose keys are `dropped` are left out: nothing is learned from what was deleted for good.
    An imported model takes only its contract from the window, so its labels need not be mature. A model of snapshots learns
    from the snapshot that it serves first: what it holds is known when it is taken.
    """
    calendar = spec.partitions.calendar
    if spec.partitions.snapshot:
        snapshot = calendar.holding(serving_start)
        return [] if snapshot is None or snapshot.key in dropped else [snapshot]
    length = spec.model.train.window_length
    start = calendar.first_start if length is None else _whole(spec, length).before(serving_start, calendar.zone)
    inside = calendar.within(max(start, calendar.first_start), serving_start)
    inside = [partition for partition in inside if partition.key not in dropped]
    if spec.model.import_ is not None:
        return [partition for partition in inside if partition.end <= serving_start]
    # A later partition never matures earlier.
    return inside[: bisect_right(inside, serving_start, key=lambda partition: matures(spec, partition))]


def evaluation_start(spec: PipelineSpec, window: Sequence[Partition]) -> datetime:
    """The start of the part of a training window that is kept for evaluation."""
    return _whole(spec, spec.model.train.evaluation_length).before(window[-1].end, spec.partitions.calendar.zone)


def can_train(spec: PipelineSpec, window: Sequence[Partition]) -> bool:
    """Tell whether a window is long enough: one partition for an imported model.

    For any other, as much data before the evaluation data as these, and of them at least one partition whose labels were known
    when the evaluation data begin.
    """
    if not window or spec.model.import_ is not None or spec.partitions.snapshot:
        return bool(window)
    evaluation, boundary = _whole(spec, spec.model.train.evaluation_length), evaluation_start(spec, window)
    begins = evaluation.before(boundary, spec.partitions.calendar.zone)
    return window[0].start <= begins and matures(spec, window[0]) <= boundary


def _whole(spec: PipelineSpec, length: Duration) -> Duration:
    """Count the length of a window in days or months unless partitions are hours: 24 hours are a day of 23 or 25 hours, too."""
    days = replace(length, months=0).nominal.days
    return length if spec.partitions.every == "hour" else Duration(days=days, months=length.months)


def matures(spec: PipelineSpec, partition: Partition) -> datetime:
    """The time from which on the labels of a partition are known; without labels, its end. A snapshot holds its labels."""
    if spec.partitions.snapshot:
        return partition.start
    if spec.labels is None:
        return partition.end
    return spec.labels.maturity.after(partition.end, spec.partitions.calendar.zone)


def deadline(spec: PipelineSpec, partition: Partition) -> datetime:
    """The time by which a partition must be scored: as `monitoring.fresh_by` says, or else once the next partition is due too."""
    calendar, fresh_by = spec.partitions.calendar, spec.monitoring.fresh_by
    due = calendar.due_from(partition)
    if fresh_by is None:
        return calendar.due_from(calendar.around(partition.end))
    declared = parse_deadline(fresh_by)
    if isinstance(declared, Duration):
        return declared.after(due, calendar.zone)
    day = due.astimezone(calendar.zone).date()
    at = datetime.combine(day, declared, calendar.zone).astimezone(UTC)
    return at if at > due else datetime.combine(day + timedelta(days=1), declared, calendar.zone).astimezone(UTC)


def oldest_champion(spec: PipelineSpec) -> Duration | None:
    """The time after the start of its serving period for which a model scores without a warning; None for any length."""
    if spec.monitoring.max_champion_age is not None:
        return parse_duration(spec.monitoring.max_champion_age)
    calendar = serving_calendar(spec)
    return None if calendar is None else Duration(days=max(7, 2 * LONGEST[calendar.every].days))


def serving_periods(spec: PipelineSpec, now: datetime) -> list[Partition]:
    """The serving periods that have begun and have a window long enough for training, oldest first."""
    calendar = serving_calendar(spec)
    if calendar is None:
        return []
    begun = [period for period in calendar.due(now) if period.start <= now]
    return [period for period in begun if can_train(spec, training_window(spec, period.start))]


def trainable_calendar(spec: PipelineSpec) -> Calendar | None:
    """The serving periods whose models have enough to learn from; all of them, where there is none."""
    calendar, first = serving_calendar(spec), first_service(spec)
    return calendar if calendar is None or first is None else calendar.starting(first.start)


def served_calendar(spec: PipelineSpec) -> Calendar:
    """The partitions that can have predictions: with a model for each serving period, those from the first one on.

    All partitions, where one model serves whatever it is trained for, where snapshots are scored, or where the partitions end
    before the first serving period.
    """
    calendar = spec.partitions.calendar
    if serving_calendar(spec) is None or (first := first_service(spec)) is None:
        return calendar
    served = calendar.starting(first.start)
    return calendar if served.last_end is not None and served.last_end <= served.first_start else served


def first_service(spec: PipelineSpec) -> Partition | None:
    """The first serving period whose model has enough to learn from, or the first partition if one model serves all.

    What starts before is warm-up. None if the partitions end before there is such a period, or a window of declared length is
    too short for any.
    """
    calendar = serving_calendar(spec) or spec.partitions.calendar
    earliest = spec.partitions.calendar.first_start
    if spec.model.import_ is None and not spec.partitions.snapshot:
        zone, evaluation = spec.partitions.calendar.zone, _whole(spec, spec.model.train.evaluation_length)
        maturity = Duration() if spec.labels is None else spec.labels.maturity
        boundary = max(evaluation.after(earliest, zone), maturity.after(earliest, zone))
        earliest = maturity.after(evaluation.after(boundary, zone), zone)
    length, period = spec.model.train.window_length, calendar.holding(max(earliest, calendar.first_start))
    # Once a window of declared length is full, only the lengths of months differ, and a year has all of them.
    latest = None if length is None or period is None else period.end + length.nominal + timedelta(days=366)
    while period is not None and not can_train(spec, training_window(spec, period.start)):
        period = calendar.holding(period.end) if latest is None or period.start < latest else None
    return period


def serves_from(spec: PipelineSpec, first: Partition) -> str:
    """Say from which serving period on models serve, and why not from `model.train.start` on, if that is earlier."""
    calendar, text = serving_calendar(spec), f"the first model serves from {first.key}"
    if spec.model.train.start is None or calendar is None or first.start <= calendar.first_start:
        return text
    return f"{text}, since too few labels are known at model.train.start ({spec.model.train.start})"
