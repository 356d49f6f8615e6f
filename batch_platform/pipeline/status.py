"""The status of a pipeline and its partitions, with reasons; computed from the state and the plan.

The command, the checks and the schedules compute the answer when they are asked. The table
`batch_platform.partition_status` holds it as of the last end of a step. A model whose labels were
corrected does not make its predictions stale, since scoring them again would change nothing; a remark says so.
"""

from collections import Counter
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from batch_platform.declaration.errors import in_short
from batch_platform.declaration.model import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Registry, Version
from batch_platform.monitoring.catalogue import FailedCheck
from batch_platform.monitoring.measure import Health
from batch_platform.pipeline.former_partitions import former_partitions
from batch_platform.pipeline.health import health_of
from batch_platform.pipeline.measured import Measured, newest_measured
from batch_platform.planning.plan import Plan, make_plan
from batch_platform.planning.request import PlanRequest, open_partitions
from batch_platform.planning.state import State
from batch_platform.planning.steps import Step
from batch_platform.planning.trainings import differences, is_declared_now, training_asked_for, trainings_of
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.ledger import as_record

if TYPE_CHECKING:
    from batch_platform.pipeline.pipeline import Pipeline

Condition = Literal["scored", "stale", "failed", "missing", "blocked", "warm-up", "dropped", "expired"]


@dataclass(frozen=True)
class PartitionStatus:
    """The status of one partition; what a commit records is None if it is not scored."""

    partition: str
    condition: Condition
    reason: str
    model_version: str | None = None
    rows_in: int | None = None
    rows_scored: int | None = None
    rows_rejected: int | None = None
    committed_at: datetime | None = None
    run_id: str | None = None
    evaluated: bool = False


@dataclass(frozen=True)
class ChallengerStatus:
    """The status of a declared challenger at a time."""

    name: str
    version: str | None  # scores beside the champion; None before it is trained
    metrics: dict[str, float]
    failure: str | None  # why there is no newer version


@dataclass(frozen=True)
class DeclarationChange:
    """A declaration that differs from what the champion was trained with."""

    version: str
    differs: list[str]
    note: str  # what comes of it


@dataclass(frozen=True)
class PipelineStatus:
    """The status of a pipeline at a time."""

    pipeline: str
    at: datetime
    counts: dict[Condition, int]  # partitions in each condition
    champion: str | None
    champion_metrics: dict[str, float]
    champion_rows_trained: int
    champion_days_trained: float | None  # None for a snapshot
    champion_leaks: list[str]  # suspected leaks
    champion_remarks: list[str]  # remarks on its declared refinements, such as the reason why one is not applied
    waiting: dict[str, str]  # newer versions that wait for a decision, with the reason
    # Why the models of serving periods were refused, or could not be trained, since the champion was trained, newest first.
    refused: dict[str, str]
    declaration_change: DeclarationChange | None
    outdated: dict[str, str]  # why models that are declared as before are to be trained again, by serving period
    challengers: list[ChallengerStatus]
    last_commit: datetime | None
    last_run: str | None
    due: dict[Step, int]  # partitions for which each step is due
    models_ahead: list[str]  # serving periods whose model is due before any of their partitions: `run` leaves it out
    ended: str | None  # `partitions.end` as a key, if it has passed: no partition will follow
    only_in_dagster: list[str]  # partitions of predictions that Dagster holds done and the ledger does not
    only_in_ledger: list[str]  # committed partitions that Dagster was never told of
    failures: list[Failure]  # newest attempts that failed at what is still due, models and evaluations included
    former_partitions: list[str]  # predictions of theirs are stored, and they are no longer declared
    partitions: list[PartitionStatus]
    health: Health
    failed_checks: list[
        FailedCheck
    ]  # checks that partitions failed as they are scored and evaluated now, oldest partition first


def status_at(
    pipeline: "Pipeline", request: PlanRequest, state: State | None = None, materialized: AbstractSet[str] | None = None
) -> PipelineStatus:
    """Say where a pipeline stands by its published state, as the command `status` does and the report."""
    spec, known = pipeline.spec, pipeline.published_state() if state is None else state
    plan, measured = make_plan(spec, known, request), newest_measured(pipeline.home, spec, known)
    measured = replace(measured, gone=pipeline.builder.sources.gone())
    return status_of(spec, known, plan, request.now, materialized, measured)


def status_of(  # noqa: PLR0913 - what a status is made of
    spec: PipelineSpec,
    state: State,
    plan: Plan,
    now: datetime,
    materialized: AbstractSet[str] | None = None,
    measured: Measured = Measured(),  # noqa: B008 - immutable
) -> PipelineStatus:
    """Say where every partition stands that is due at a time, by the plan for that time.

    A failure stands as long as its step is due. `materialized` holds the partitions whose predictions Dagster holds done;
    None to compare nothing with the ledger. `measured` is what was measured of the newest partitions.
    """
    troubles: dict[str, tuple[Condition, str]] = {
        item.partition.key: ("warm-up" if item.warm_up else "blocked", item.reason) for item in plan.blocked
    }
    troubles |= {key: ("stale", reason) for key, reason in plan.stale.items()}
    troubles |= {key: ("dropped", str(drop)) for key, drop in state.dropped.items()}
    troubles |= {key: ("expired", reason) for key, reason in plan.expired.items() if key not in state.scores}
    failures = _standing_failures(state, plan)
    for failure in failures:
        key, reason = failure.partition_key, in_short(spec.name, failure.reason)
        if failure.step in ("features", "predictions"):
            troubles[key] = ("failed", reason)
        elif failure.step == "performance":
            troubles.setdefault(key, ("scored", f"its evaluation failed: {reason}"))
        elif failure.of_delivery and troubles.get(key, ("scored",))[0] == "scored":
            others = f"{troubles[key][1]}; " if key in troubles else ""
            troubles[key] = ("scored", f"{others}{failure.step} failed: {reason}")
    ended = open_partitions(spec, state, now)
    partitions = [_partition_status(state, plan, partition.key, troubles.get(partition.key)) for partition in ended]
    keys = {partition.partition for partition in partitions}
    committed = keys & state.scores.keys()
    in_dagster = committed if materialized is None else keys & materialized
    last = max(state.scores.values(), key=lambda run: run.seq, default=None)
    champion, calendar = state.registry.champion(now), spec.partitions.calendar
    return PipelineStatus(
        pipeline=spec.name,
        at=now,
        counts=dict(Counter(partition.condition for partition in partitions)),
        champion=champion.version if champion else None,
        champion_metrics=champion.metric_values if champion else {},
        champion_rows_trained=champion.rows_trained if champion else 0,
        champion_days_trained=champion.days_trained if champion and not spec.partitions.snapshot else None,
        champion_leaks=list(map(str, state.registry.suspected_leaks(champion.version))) if champion else [],
        champion_remarks=state.registry.refinements(champion.version).get("remarks", []) if champion else [],
        waiting=state.registry.waiting(champion),
        refused=_refused(spec, state, champion, {it.partition_key for it in failures if it.step == "model"}),
        declaration_change=None if champion is None else _declaration_change(spec, state, plan, champion, now),
        outdated=_outdated(spec, plan),
        challengers=[_challenger_status(state.registry, challenger, now) for challenger in spec.challengers],
        last_commit=last.committed_at if last else None,
        last_run=last.run_id if last else None,
        due=dict(Counter(item.step for item in plan.items)),
        models_ahead=[]
        if spec.periods.serving is None
        else [item.partition.key for item in plan.of("model") if not ended or item.partition.start > ended[-1].start],
        ended=calendar.end_key if calendar.ended(now) else None,
        only_in_dagster=sorted(in_dagster - committed - plan.expired.keys()),
        only_in_ledger=sorted(committed - in_dagster),
        failures=failures,
        former_partitions=[partition.key for partition in former_partitions(spec, state.scores.values())],
        partitions=partitions,
        health=health_of(spec, state, now, measured, failures),
        failed_checks=[check for check in measured.failed if check.partition_key in committed],
    )


def _standing_failures(state: State, plan: Plan) -> list[Failure]:
    """The failures at what is still due, oldest first; without features a partition cannot be scored."""
    due = {(item.name, item.partition.key) for item in plan.items}
    return sorted(
        (
            failure
            for failure in state.standing_failures
            if (failure.step, failure.partition_key) in due
            or (failure.step == "features" and ("predictions", failure.partition_key) in due)
        ),
        key=lambda failure: failure.failed_at,
    )


def _refused(spec: PipelineSpec, state: State, champion: Version | None, failing: Collection[str]) -> dict[str, str]:
    """Say why the models trained after the champion do not serve, by serving period.

    Left out are those that fail at what is due. A failure of a declaration that was changed since says nothing of an earlier version.
    """
    reasons, registry = dict[str, str](), state.registry
    for training in registry.model_trainings:
        if training.failure is not None and not is_declared_now(spec, state, training):
            continue
        decision = None if training.version is None else registry.last_decision(training.version)
        reasons.pop(training.serving_period, None)
        if (champion is not None and training.seq <= champion.seq) or training.serving_period in failing:
            continue
        if training.failure is not None:
            reasons[training.serving_period] = f"could not be trained: {training.failure}"
        elif decision is not None and decision.action == "refused":
            promote = f"batch-platform models {registry.pipeline} promote {training.version} lets it serve all the same"
            reasons[training.serving_period] = f"{training.version} is refused: {decision.reason}; {promote}"
    return dict(reversed(reasons.items()))


def _declaration_change(
    spec: PipelineSpec, state: State, plan: Plan, champion: Version, now: datetime
) -> DeclarationChange | None:
    """Compare the declaration with what the champion was trained with; None if they agree."""
    differs = differences(spec, state, champion)
    if not differs:
        return None
    period, reason = training_asked_for(spec, state, now, force=False)  # the training that `train` would start
    trainings = [] if period is None else trainings_of(spec, state.registry, period.key)
    last = trainings[-1] if trainings else None
    newest = state.registry.named(last.version) if last is not None and last.version is not None else None
    decision = None if newest is None else state.registry.last_decision(newest.version)
    if any(item.partition.start >= champion.serving_start for item in plan.of("model")):
        note = "a training is due"
    elif last is not None and last.failure is not None and is_declared_now(spec, state, last):
        note = "the training with them failed"
    elif newest is not None and newest != champion and decision is not None and not differences(spec, state, newest):
        is_listed = decision.action in ("refused", "waiting")  # such decisions are listed with their reasons
        note = f"{newest.version}, trained with them, is {decision.action}{'' if is_listed else f': {decision.reason}'}"
    elif reason is not None:
        note = f"batch-platform train {spec.name} trains with them"
    else:
        note = f"batch-platform train {spec.name} --force trains with them"
    return DeclarationChange(champion.version, differs, note)


def _outdated(spec: PipelineSpec, plan: Plan) -> dict[str, str]:
    """Say why models are to be trained again although their declaration is the same, and what comes of it, by serving period."""
    due = {item.partition.key for item in plan.of("model")}
    return {
        key: f"{reason}: {'a training is due' if key in due else f'batch-platform train {spec.name} --period {key}'}"
        for key, reason in plan.outdated.items()
    }


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
    status = PartitionStatus(key, condition, reason, evaluated=key in state.evaluations)
    return status if run is None else as_record(PartitionStatus, status, run)
