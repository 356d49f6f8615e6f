"""Where the partitions of a pipeline stand, and why; computed from what is recorded and from the plan."""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from batch_platform.declaration.spec import Challenger, PipelineSpec
from batch_platform.models.registry import Registry
from batch_platform.pipeline.plan import Plan, State, Step

Condition = Literal["scored", "stale", "failed", "missing", "blocked"]


@dataclass(frozen=True)
class PartitionStatus:
    """Where one partition stands; what a commit records is None if it is not scored."""

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
    version: str | None  # scores beside the champion; None before it is trained
    metrics: dict[str, float]
    failure: str | None  # why there is no newer version


@dataclass(frozen=True)
class PipelineStatus:
    """Where a pipeline stands at a time."""

    pipeline: str
    at: datetime
    counts: dict[Condition, int]  # partitions in each condition
    champion: str | None
    champion_metrics: dict[str, float]
    challengers: list[ChallengerStatus]
    last_commit: datetime | None
    last_run: str | None
    due: dict[Step, int]  # partitions for which each step is due
    only_in_dagster: list[str]  # partitions of predictions that Dagster holds done and the ledger does not
    only_in_ledger: list[str]  # committed partitions that Dagster was never told of
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
        failed: Partitions whose last attempt failed, with the id of that run.
        materialized: Partitions whose predictions Dagster holds done; None compares nothing with the ledger.
    """
    due = {item.partition.key for item in plan.of("predictions")}
    troubles: dict[str, tuple[Condition, str]] = {item.partition.key: ("blocked", item.reason) for item in plan.blocked}
    troubles |= {key: ("stale", reason) for key, reason in plan.stale.items()}
    troubles |= {key: ("failed", f"run {run} failed") for key, run in failed.items() if key in due}
    partitions = [
        _partition_status(state, plan, partition.key, troubles.get(partition.key))
        for partition in spec.partitions.calendar.due(now)
    ]
    keys = {partition.partition for partition in partitions}
    committed = keys & state.scores.keys()
    done = committed if materialized is None else keys & materialized
    last = max(state.scores.values(), key=lambda run: run.seq, default=None)
    champion = state.registry.champion(now)
    return PipelineStatus(
        pipeline=spec.name,
        at=now,
        counts=dict(Counter(partition.condition for partition in partitions)),
        champion=champion.version if champion else None,
        champion_metrics=champion.metric_values if champion else {},
        challengers=[_challenger_status(state.registry, challenger, now) for challenger in spec.challengers],
        last_commit=last.committed_at if last else None,
        last_run=last.run_id if last else None,
        due=dict(Counter(item.step for item in plan.items)),
        only_in_dagster=sorted(done - committed),
        only_in_ledger=sorted(committed - done),
        partitions=partitions,
    )


def _challenger_status(registry: Registry, challenger: Challenger, now: datetime) -> ChallengerStatus:
    if challenger.version is None:
        trainings = [training for training in registry.challenger_trainings if training.challenger == challenger.name]
        version = registry.challenger_at(challenger.name, now)
        failure = trainings[-1].failure if trainings else None
    else:
        version = next((version for version in registry.versions if version.version == challenger.version), None)
        failure = None if version else f"version {challenger.version} does not exist"
    return ChallengerStatus(
        name=challenger.name,
        version=version.version if version else None,
        metrics=version.metric_values if version else {},
        failure=failure,
    )


def _partition_status(state: State, plan: Plan, key: str, trouble: tuple[Condition, str] | None) -> PartitionStatus:
    run = state.scores.get(key)
    condition, reason = trouble or ("scored" if run else "missing", plan.remarks.get(key, ""))
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
