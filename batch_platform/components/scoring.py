"""The steps of the predictions, their drift and their performance: how they score, evaluate and log each partition."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import dagster as dg

from batch_platform.components import checks, commits, describe, lineage
from batch_platform.components.dagster_records import forget_planned
from batch_platform.components.events import PartitionLog, cluster_heard
from batch_platform.components.jobs import PredictionsConfig, name_of_whole
from batch_platform.components.making import RunStep
from batch_platform.components.wiring import now
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, NoChampionError, listed
from batch_platform.pipeline.evaluate import Evaluated
from batch_platform.pipeline.recorded import recorded_evaluations, recorded_predictions
from batch_platform.pipeline.set_apart import failures_of
from batch_platform.planning.holds import unserved_error
from batch_platform.planning.plan import remaining
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.scoring.run import Committed


class ScoringLog:
    """Logs committed predictions and, where it is declared, the drift that was committed with them."""

    def __init__(self, step: RunStep, total: int) -> None:
        """See `PartitionLog`."""
        self._wiring, self._selected = step.wiring, step.context.selected_asset_keys
        self._predictions = step.log("predictions", total)
        self._drift = None if step.wiring.spec.monitoring.drift is None else step.log("drift", total)
        self.on_the_way = self._predictions.on_the_way

    def committed(
        self, scored: Committed, *, last: bool, metadata: Mapping[str, Any] | None = None, retold: bool = False
    ) -> None:
        """Log a partition; with the `last` one, what its tables hold as a whole."""
        commit = commits.predictions(self._wiring, scored)
        whole = commits.stored_table(self._wiring, "predictions") if last else {}
        self._predictions.committed(commit, metadata={**whole, **(metadata or {})}, retold=retold)
        if self._drift is not None:
            self._drift.made_before(self._wiring.key("predictions"), commit)
            commit = commits.drift(self._wiring, scored)
            whole = commits.stored_table(self._wiring, "drift") if last and commit.rows else {}
            self._drift.committed(commit, metadata=whole, retold=True)

    def finish(self) -> Iterator[dg.MaterializeResult | dg.Output[None]]:
        """The outputs of the step that the run asks for."""
        wiring = self._wiring
        if wiring.key("predictions") in self._selected:
            yield from self._predictions.finish(*checks.predictions(wiring))
        if self._drift is not None and wiring.key("drift") in self._selected:
            yield from self._drift.finish(*checks.of_measures(wiring, "drift").values())


def score(step: RunStep, config: PredictionsConfig) -> ScoringLog:
    """Score the partitions of the run with the features that there are."""
    log = ScoringLog(step, len(step.partitions))
    with step.failing_later(later=step.is_followed_by("performance", *step.wiring.deliveries)):
        _score(step, log, step.partitions, config)
    return log


def score_with_features(step: RunStep, config: PredictionsConfig) -> ScoringLog:
    """Build the features that the partitions of the run lack, and score them."""
    step.build_lacking(step.partitions)
    return score(step, config)


def bring_up_to_date(step: RunStep, config: PredictionsConfig) -> ScoringLog:
    """Make what the partitions of the run lack, score those that are due, and log the others as they are recorded."""
    due = step.make_upstream(_request(step, config))
    log = ScoringLog(step, len(due))
    state, keys = _up_to_date(step, due)
    keys = [key for key in keys if key in state.scores]
    for scored in recorded_predictions(step.pipeline, state, keys):
        log.committed(scored, last=not due and scored.partition.key == keys[-1], retold=True)
    followed = step.is_followed_by("performance", *step.wiring.deliveries)
    with step.failing_later(later=followed):
        _score(step, log, due, config)
    if not followed:
        require_all_done(step)
    return log


def require_all_done(step: RunStep) -> None:
    """Raise one error that names everything that failed in the run; of the whole job, also if no model serves what it was to score."""
    step.require_nothing_failed()
    if not step.of_whole_job:
        return
    spec, state, config = step.wiring.spec, step.pipeline.state(), _config(step)
    request = _request(step, config)
    left = remaining(spec, state, request, {step.run_id})
    if error := unserved_error(state, request.named, left.blocked, named=config.serve_all):
        raise error


def _request(step: RunStep, config: PredictionsConfig) -> PlanRequest:
    """What the run of the whole job is asked for."""
    options = {name: getattr(config, name) for name in ("force", "model", "recheck", "retrain", "serve_all")}
    return PlanRequest(now(), step.partitions, **options)


def _config(step: RunStep) -> PredictionsConfig:
    """The options of the run's step of the predictions, for its other steps."""
    ops: Any = step.context.run.run_config.get("ops", {})
    return PredictionsConfig(**ops.get(step.wiring.key("predictions").to_python_identifier(), {}).get("config", {}))


def _score(step: RunStep, log: ScoringLog, partitions: Sequence[Partition], config: PredictionsConfig) -> None:
    """Score partitions and log them; if a model is missing, the error names the job that trains it first.

    Dagster's own *Materialize all* does not, for the same partitions.
    """
    scoring = step.pipeline.score(
        partitions, step.stamp(), force=config.force, version=config.model, watch=log.on_the_way
    )
    try:
        with cluster_heard(step.context, step.wiring), closing(scoring) as results:
            for scored in results:
                read_from = lineage.scored(step.wiring, step.pipeline, scored, partitions[-1])
                last = scored.partition == partitions[-1]
                log.committed(scored, last=last, metadata=read_from | describe.speed(scored))
    except NoChampionError as error:
        job = name_of_whole(step.wiring.spec.name)
        hint = f"launch the job {job}, which first trains the models that are due; or {error.hint}"
        named = NoChampionError(error.message, hint=hint)
        named.set_apart = error.set_apart
        raise named from error


def _up_to_date(step: RunStep, due: Sequence[Partition]) -> tuple[State, list[str]]:
    """The partitions of the run that neither are due nor failed, with the state, which is published before it is shown.

    Dagster takes the partitions that a failed run does not log as failed.
    """
    step.pipeline.publish()
    state = step.pipeline.state()
    left_out = {partition.key for partition in due}
    left_out |= {failure.partition_key for failure in failures_of(state, {step.run_id})}
    return state, [key for key in step.context.partition_keys if key not in left_out]


def told_as_recorded(step: RunStep) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult | dg.Output[None]]:
    """Log the drift of partitions, or the results of checks alone, from what is recorded; nothing is scored.

    A run of checks alone may name no partition: then it is about all of them. Raises DataError if a partition is not scored.
    """
    context, wiring = step.context, step.wiring
    with step.at_work() as pipeline:
        state = pipeline.state()
        asked = context.partition_keys if context.has_partition_key or context.has_partition_key_range else state.scores
        if missing := [name for name in asked if name not in state.scores]:
            msg = f"{wiring.spec.name}: partition {listed(missing)} is not scored yet."
            raise DataError(msg, hint=f"launch the job {name_of_whole(wiring.spec.name)}, which scores it first.")
        recorded = list(recorded_predictions(pipeline, state, sorted(asked)))
        log = step.log("drift", len(recorded))
        if wiring.key("drift") in context.selected_asset_keys:
            for scored in recorded:
                log.committed(commits.drift(wiring, scored))
    if wiring.key("drift") in context.selected_asset_keys:
        yield from log.finish(*checks.of_measures(wiring, "drift").values())
    for check, asset in {
        **dict.fromkeys(checks.predictions(wiring), "predictions"),
        **dict.fromkeys(checks.of_measures(wiring, "drift").values(), "drift"),
    }.items():
        key = wiring.key(asset)
        if key not in context.selected_asset_keys and check.key(key) in context.selected_asset_check_keys:
            made = [(commits.drift if asset == "drift" else commits.predictions)(wiring, it) for it in recorded]
            looked_at = [value for it in made for known, value in it.checked.items() if known.name == check.name]
            if looked_at:
                yield check.result(looked_at, key)
            else:
                forget_planned(context.instance, step.run_id, check.key(key))


def evaluate(step: RunStep) -> PartitionLog:
    """Evaluate the partitions of the run whose labels are known, and fail if something failed in the run."""
    failed = {failure.partition_key for failure in failures_of(step.pipeline.state(), {step.run_id})}
    log, due = _log_of_evaluations(step, [partition for partition in step.partitions if partition.key not in failed])
    with step.failing_later(later=bool(failed)):
        _evaluate(step, log, due)
    step.require_nothing_failed()
    return log


def evaluate_what_is_due(step: RunStep) -> PartitionLog:
    """Evaluate what is due, log the other partitions as they are recorded, and fail if something failed in the run."""
    request = PlanRequest(now(), step.partitions)
    score_what_failed(step, request)
    plan = remaining(step.wiring.spec, step.pipeline.state(recheck=_config(step).recheck), request, {step.run_id})
    log, due = _log_of_evaluations(step, [item.partition for item in plan.of("performance")])
    state, keys = _up_to_date(step, due)
    unknown = [partition for partition in step.partitions if partition.key not in state.evaluations]
    log.leave_out(step.pipeline.awaited_labels(unknown, now()))
    keys = [key for key in keys if key in state.evaluations]
    for evaluated in recorded_evaluations(step.pipeline, state, keys):
        _log_evaluated(step, log, evaluated, last=not due and evaluated.partition.key == keys[-1], retold=True)
    with step.failing_later():
        _evaluate(step, log, due)
    require_all_done(step)
    return log


def score_what_failed(step: RunStep, request: PlanRequest) -> None:
    """Score what an earlier run left out, where a run is executed again from its failure, which is its last step."""
    steps = step.context.run.step_keys_to_execute
    if steps is not None and step.wiring.key("predictions").to_python_identifier() not in steps:
        due = step.make_upstream(request)
        with step.failing_later():
            _score(step, ScoringLog(step, len(due)), due, PredictionsConfig())


def _log_of_evaluations(step: RunStep, partitions: Sequence[Partition]) -> tuple[PartitionLog, list[Partition]]:
    """A log of the partitions that can be evaluated, and these; the labels of the others are awaited."""
    awaited = step.pipeline.awaited_labels(partitions, now())
    due = [partition for partition in partitions if partition.key not in awaited]
    log = step.log("performance", len(due))
    log.leave_out(awaited)
    for partition_key, reason in awaited.items():
        log.waiting(partition_key, reason)
    return log, due


def _evaluate(step: RunStep, log: PartitionLog, partitions: Sequence[Partition]) -> None:
    """Evaluate partitions and log them."""
    for evaluated in step.pipeline.evaluate(partitions, step.stamp(), step.absent_labels()):
        _log_evaluated(step, log, evaluated, last=evaluated.partition == partitions[-1])


def _log_evaluated(step: RunStep, log: PartitionLog, evaluated: Evaluated, *, last: bool, retold: bool = False) -> None:
    commit = commits.performance(step.wiring, evaluated)
    whole = commits.stored_table(step.wiring, "performance") if last else None
    log.committed(commit, metadata=whole, findings=evaluated.findings, retold=retold)
