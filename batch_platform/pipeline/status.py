"""What is scored, missing, stale and why; and what produced a score.

Reads what is recorded and asks `plan.py`; changes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from batch_platform.declaration.learners import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Registry
from batch_platform.pipeline.plan import Item, Plan, State, Step
from batch_platform.pipeline.staleness import Staleness, staleness_of

Condition = Literal["scored", "stale", "failed", "missing", "blocked"]


@dataclass(frozen=True)
class PartitionStatus:
    """Where one partition stands."""

    partition: str
    condition: Condition
    reason: str
    model_version: str | None
    rows_in: int | None
    rows_scored: int | None
    rows_rejected: int | None
    committed_at: datetime | None
    run_id: str | None
    evaluated: bool


@dataclass(frozen=True)
class ChallengerStatus:
    """Where a declared challenger stands at a time."""

    name: str
    version: str | None  # that scores beside the champion; None where there is none yet
    metrics: dict[str, float]
    failure: str | None  # why there is no newer one


@dataclass(frozen=True)
class PipelineStatus:
    """Where a pipeline stands at a time."""

    pipeline: str
    at: datetime
    counts: dict[Condition, int]  # how many partitions are in each condition
    champion: str | None
    champion_metrics: dict[str, float]
    challengers: list[ChallengerStatus]
    last_commit: datetime | None
    last_run: str | None
    due: dict[Step, int]  # how many partitions of each step are to be brought up to date
    only_in_dagster: list[str]  # partitions of predictions that it thinks done and the ledger does not hold
    only_in_ledger: list[str]  # and the reverse: committed, but Dagster never heard of it
    partitions: list[PartitionStatus]


def status_of(  # noqa: PLR0913 - each is one record of the pipeline
    spec: PipelineSpec,
    state: State,
    plan: Plan,
    now: datetime,
    failed: Mapping[str, str],
    materialized: AbstractSet[str] | None = None,
) -> PipelineStatus:
    """Say where every partition stands that is due at a time.

    Args:
        spec: The pipeline.
        state: What is recorded.
        plan: What is due at `now`.
        now: The time.
        failed: Run by partition key where the last attempt failed.
        materialized: Keys of the predictions that Dagster thinks done; None: they are not held against the ledger.
    """
    due = {item.partition.key: item for item in plan.of("predictions")}
    blocked = {item.partition.key: item for item in plan.blocked}
    out_of_date = staleness_of(state, plan)
    partitions = [
        _partition_status(state, partition.key, due, blocked, failed, out_of_date)
        for partition in spec.partitions.calendar.due(now)
    ]
    keys = {partition.partition for partition in partitions}
    told, committed = keys & (state.scores.keys() if materialized is None else materialized), keys & state.scores.keys()
    last = max(state.scores.values(), key=lambda run: run.seq, default=None)
    champion = state.registry.champion(now)
    return PipelineStatus(
        pipeline=spec.name,
        at=now,
        counts=dict(Counter(partition.condition for partition in partitions)),
        champion=champion.version if champion else None,
        champion_metrics=champion.metric_values if champion else {},
        challengers=[_challenger_status(state.registry, one, now) for one in spec.challengers],
        last_commit=last.committed_at if last else None,
        last_run=last.run_id if last else None,
        due=dict(Counter(item.step for item in plan.items)),
        only_in_dagster=sorted(told - committed),
        only_in_ledger=sorted(committed - told),
        partitions=partitions,
    )


def _challenger_status(registry: Registry, one: Challenger, now: datetime) -> ChallengerStatus:
    tried = [training for training in registry.challenger_trainings if training.challenger == one.name]
    if one.version is None:
        version = registry.challenger_at(one.name, now)
        failure = tried[-1].failure if tried else None
    else:
        version = next((known for known in registry.versions if known.version == one.version), None)
        failure = None if version else f"there is no version {one.version}"
    return ChallengerStatus(
        name=one.name,
        version=version.version if version else None,
        metrics=version.metric_values if version else {},
        failure=failure,
    )


def _partition_status(  # noqa: PLR0913 - each is one record of the pipeline
    state: State,
    key: str,
    due: Mapping[str, Item],
    blocked: Mapping[str, Item],
    failed: Mapping[str, str],
    found: Staleness,
) -> PartitionStatus:
    run = state.scores.get(key)
    condition: Condition = "scored" if run else "missing"
    reason = found.remarks.get(key, "")
    if key in due and key in failed:
        condition, reason = "failed", f"run {failed[key]} failed"
    elif key in found.stale:
        condition, reason = "stale", found.stale[key]
    elif key in blocked:
        condition, reason = "blocked", blocked[key].reason
    return PartitionStatus(
        partition=key,
        condition=condition,
        reason=reason,
        model_version=run.model_version if run else None,
        rows_in=run.rows_in if run else None,
        rows_scored=run.rows_scored if run else None,
        rows_rejected=run.rows_rejected if run else None,
        committed_at=run.committed_at if run else None,
        run_id=run.run_id if run else None,
        evaluated=key in state.evaluations,
    )
