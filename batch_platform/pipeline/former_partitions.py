"""Partitions that have predictions and are no longer declared, since the calendar was declared differently.

Once the partitions declared now were scored too, predictions would hold the same rows twice.
"""

from collections.abc import Iterable, Sequence

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, counted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.ledger import ScoreRun


def former_partitions(spec: PipelineSpec, runs: Iterable[ScoreRun]) -> list[Partition]:
    """Select the scored partitions whose key names no window of the calendar, however far it reached; oldest first."""
    former = [run for run in runs if not spec.partitions.calendar.has_window(run.partition_key)]
    partitions = (Partition(run.partition_key, run.partition_start, run.partition_end) for run in former)
    return sorted(partitions, key=lambda partition: partition.start)


def require_no_former_partitions(spec: PipelineSpec, runs: Iterable[ScoreRun]) -> None:
    """Raise WrongUseError if predictions hold partitions that are no longer declared."""
    if former := [partition.key for partition in former_partitions(spec, runs)]:
        msg = f"{spec.name}: {former_partitions_line(former)}; nothing is scored beside them, or the same rows would be there twice."
        hint = (
            "declare the partitions as they were (weeks begin on the weekday of partitions.start), or delete the former "
            f"ones for good: batch-platform drop {spec.name} --former"
        )
        raise WrongUseError(msg, hint=hint)


def former_partitions_line(keys: Sequence[str]) -> str:
    """Say which scored partitions, by their keys, are no longer declared."""
    span = keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
    are = "is" if len(keys) == 1 else "are"
    return f"predictions hold {counted(len(keys), 'partition')} ({span}) that {are} no longer declared"
