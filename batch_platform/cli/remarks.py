"""Remarks of `check` on a pipeline without problems: partitions that no model will serve, a key by place, awaited labels."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from batch_platform.cli import terminal
from batch_platform.declaration.errors import BatchPlatformError, counted, listed
from batch_platform.declaration.inputs import ROW_IN_FILE
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.steps import ranges


def remarks_on(pipeline: Pipeline, now: datetime) -> Iterator[str]:
    """Say what no run fails of, and what predictions or their evaluation wait for."""
    spec = pipeline.spec
    yield from filter(None, (_never_served(spec), _by_place(spec)))
    mature = [partition for partition in spec.partitions.calendar.due(now) if spec.periods.matures(partition) <= now]
    with suppress(BatchPlatformError):  # labels that cannot be read are a problem, and told as one
        if awaiting := [partition for partition in mature if pipeline.builder.awaited_label_sources(partition)]:
            names = listed(map(repr, pipeline.builder.awaited_label_sources(awaiting[-1])))
            yield f"evaluation waits: source {names} has no file of labels yet for {terminal.spans(ranges(awaiting))}"


def _never_served(spec: PipelineSpec) -> str | None:
    """Say which partitions no model will ever serve, and why; None if each of them can have one."""
    calendar, first = spec.partitions.calendar, spec.periods.first_service
    if first is None and calendar.last_end is None:
        window, evaluate = spec.model.train.window, spec.model.train.evaluate
        return f"no model will ever be trained: model.train.window ({window}) is too short for model.train.evaluate ({evaluate}) and labels.delay"
    end = calendar.last_end if first is None else first.start
    if first is not None and (begun := calendar.holding(first.start)) and begun.start < first.start:
        end = begun.end
    never = [] if end is None else calendar.within(calendar.first_start, end)
    if not never:
        return None
    span = never[0].key if len(never) == 1 else f"{never[0].key} to {never[-1].key}"
    if first is not None and spec.periods.serving is None:
        reason = f"warm-up, no model has enough to learn from before {first.key}"
    elif first is not None:
        reason = f"warm-up, {spec.periods.serves_from(first)}"
    else:
        every, delay = spec.model.train.every, "" if spec.labels is None else " plus labels.delay"
        begins = "no partition" if every is None else f"no serving period (model.train.every: {every})"
        reason = (
            f"{begins} begins before {calendar.end_key} with twice model.train.evaluate{delay} of partitions before it"
        )
    return f"no model will ever serve {counted(len(never), 'partition')} ({span}): {reason}"


def _by_place(spec: PipelineSpec) -> str | None:
    """Warn of a key that names other rows once a file holds new rows above them; None if there is none."""
    grows = any(not source.by_partition for source in spec.sources.values()) and not spec.partitions.snapshot
    if not grows or ROW_IN_FILE not in spec.features.key:
        return None
    return (
        f"features.key: {ROW_IN_FILE} names rows by their place, so new rows above others give them the labels of other rows; "
        "batch-platform guide sources shows how to name rows by what they hold"
    )
