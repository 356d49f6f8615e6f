"""Retention: which rows are old enough to be removed. A pure function of the declaration, the state and a time.

Nothing that is still needed is old enough: partitions whose labels are not known and measured, and features in the training
window of the newest model. What was removed is not missing: such partitions are left as they are until one is named.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.operating import RetentionKind
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.planning.state import State

Expired = Mapping[RetentionKind, Sequence[Partition]]


def expired(spec: PipelineSpec, state: State, now: datetime) -> Expired:
    """The partitions, oldest first, whose rows of a kind are removed at a time, or were already; by declared kind."""
    if spec.retention is None:
        return {}
    due, zone = spec.partitions.calendar.due(now), spec.partitions.calendar.zone
    old = dict[RetentionKind, list[Partition]]()
    for kind, age in spec.retention.ages.items():
        old[kind] = list(takewhile(lambda partition, age=age: age.after(partition.end, zone) <= now, due))
        if kind != "rejected_rows":
            old[kind] = [partition for partition in old[kind] if not _awaits_labels(spec, state, partition, now)]
    if "features" in old:
        starts = [partition.start for partition in _learned_from(spec, now)]
        old["features"] = [partition for partition in old["features"] if starts and partition.start < starts[0]]
    return old


def why_left(spec: PipelineSpec, old: Expired) -> dict[str, str]:
    """Say why partitions are not scored any more, by key."""
    return {
        partition.key: f"older than retention.{kind} ({getattr(spec.retention, kind)}), left as it is"
        for kind in ("features", "predictions")
        for partition in old.get(kind, ())
    }


def _awaits_labels(spec: PipelineSpec, state: State, partition: Partition, now: datetime) -> bool:
    is_measured = spec.labels is None or partition.key not in state.scores or partition.key in state.evaluations
    return spec.periods.matures(partition) > now or not is_measured


def _learned_from(spec: PipelineSpec, now: datetime) -> list[Partition]:
    """The training window of the newest model, which begins before those of all later ones; empty if there is none yet."""
    if spec.periods.serving is None:
        return spec.periods.window(now)
    periods = spec.periods.begun(now)
    return spec.periods.window(periods[-1].start) if periods else []
