"""The schedules that keep a pipeline up to date: one scores, one trains, one evaluates. A tick asks `plan.py` what is due, and requests it.

A tick requests every partition that is due, oldest first, in ranges without gaps, up to a limit, and leaves out what a
run in progress holds. So down-time, failures and a first start from an empty home need no manual work. A partition that
fails on its own does not hold up its range. A range stops where a run ends early, for lack of memory for example; the next
tick requests that partition alone.

A tick reads the published copy and never waits for a writer: what a run has committed is published when the run ends,
and until then the tick sees that the run holds it. It also closes the runs whose process died, and tells Dagster of their
commits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock

import dagster as dg

from batch_platform.components import runs
from batch_platform.components.events import log_unknown_commits
from batch_platform.components.jobs import DUTY_OF, MAKES, SCHEDULED, AssetJob, Duty, launch_of, schedule_name
from batch_platform.components.processes import close_dead_runs
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.errors import listed
from batch_platform.planning.plan import Plan, make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.planning.steps import STEPS, Item, Request, Step, requests
from batch_platform.warehouse.files import current_copy

_GAPS = "If nothing is due, the tick is skipped and says why. What was missed while the schedule was off is caught up."
_DEFAULT_CRONS = {"hour": "5 * * * *", "day": "0 5 * * *", "week": "0 5 * * {weekday}", "month": "0 5 1 * *"}
MOST_BYTES = 1 << 30  # limit for a source that a tick reads anew to find late rows: a tick has a minute
_OTHERS_WAIT_FOR: frozenset[Step] = frozenset({"model", "predictions"})  # each builds the features that it needs


def build_schedules(wiring: Wiring, jobs: Mapping[Duty, AssetJob]) -> list[dg.ScheduleDefinition]:
    """The schedules of a pipeline, stopped until they are switched on."""
    looks = _Looks(wiring)
    return [_schedule(looks, duty, jobs[duty]) for duty in SCHEDULED]


def _schedule(looks: "_Looks", duty: Duty, job: AssetJob) -> dg.ScheduleDefinition:
    spec = looks.wiring.spec
    calendar = spec.partitions.calendar
    cron = spec.predictions.schedule or _DEFAULT_CRONS[calendar.every].format(weekday=calendar.cron_weekday)
    known = f"labels are known ({spec.labels.delay} after its end)" if spec.labels else "end has passed"
    changes = "estimator, parameters or features change"
    again = f", and of the newest one again when {changes}" if spec.model.train.retrain == "when_changed" else ""
    description = {
        "score": "Builds, scores and delivers every partition that is missing, failed or stale, oldest first.",
        "train": f"Trains the model of every serving period that has none{again}, and builds the features that it learns from.",
        "evaluate": f"Evaluates every scored partition once its {known}.",
    }[duty]
    due_items = {"score": _to_score, "train": _to_train, "evaluate": _to_evaluate}[duty]

    @dg.schedule(
        name=schedule_name(spec.name, duty),
        job=job,
        cron_schedule=spec.model.train.schedule if duty == "train" else cron,
        execution_timezone=spec.partitions.timezone,
        description=f"{description} {_GAPS}",
        tags={PIPELINE_TAG: spec.name},
    )
    def tick(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        look = _look_at(looks, duty, context)
        ranges = requests(due_items(look), limit=spec.predictions.limit, failed=look.failed)
        due = [part for request in ranges for part in _parts(request, spec.dagster.max_partitions_per_run)]
        for error in look.unread if due else ():
            context.log.warning("Not looked at: %s", error)
        for request in due:
            yield _run_request(look, request, context)
        if not due:
            yield dg.SkipReason(" ".join([_skip_reason(duty, look), *(f"Not looked at: {it}" for it in look.unread)]))

    return tick


@dataclass(frozen=True)
class _Tick:
    """One look at a pipeline: what is due, and what is under way."""

    wiring: Wiring
    plan: Plan  # without the models whose training failed
    retried: Plan  # plan that trains those models again
    dropped: frozenset[str]  # partitions that were deleted for good
    unread: Sequence[str]  # why sources could not be looked at
    held: frozenset[runs.Target]  # targets of runs that are queued or in progress
    failed: frozenset[runs.Target]  # targets that failed in their newest finished run
    evaluated_at: str


class _Looks:
    """The newest look at a published copy and the files of sources, which serves each schedule of a pipeline once.

    Schedules that tick at the same time wait for one look, which takes most of a tick. It is made anew once another copy is
    published, and for a schedule that has used it.
    """

    def __init__(self, wiring: Wiring) -> None:
        """Begin without a look at the pipeline."""
        self.wiring, self._lock = wiring, Lock()
        self._of: object = None  # copy and time of the look
        self._seen: tuple[State, Plan] | None = None
        self._served = set[Duty]()

    def at(self, duty: Duty, now: datetime) -> tuple[State, Plan, bool]:
        """The state and the plan by it for a schedule at a time, and whether the look was made for this schedule."""
        with self._lock:
            pipeline = self.wiring.pipeline()
            of = (current_copy(pipeline.home), now)
            seen = None if of != self._of or duty in self._served else self._seen
            if is_new := seen is None:
                self._seen, self._served = None, set()
                state = pipeline.published_state(most_bytes=MOST_BYTES)
                seen = state, make_plan(self.wiring.spec, state, PlanRequest(now))
            self._served.add(duty)
            self._of, self._seen = of, None if self._served == {*SCHEDULED} else seen
            return *seen, is_new


def _look_at(looks: _Looks, duty: Duty, context: dg.ScheduleEvaluationContext) -> _Tick:
    """Look at what is due at a tick's own time.

    A model whose training failed is requested again by the schedule of training. The predictions do not wait for it:
    the previous model serves.
    """
    wiring, now = looks.wiring, context.scheduled_execution_time
    close_dead_runs(context.instance)
    held = runs.held(wiring, context.instance)  # before the state: a run that ends in between is then seen as done
    failed = frozenset(runs.failures(wiring, context.instance))
    state, retried, is_new = looks.at(duty, now)
    if is_new:
        log_unknown_commits(wiring, context.instance, state, held)
    failed_models = frozenset(key for asset, key in failed if asset == "model") | _without_history(
        wiring, state, retried
    )
    return _Tick(
        wiring=wiring,
        plan=make_plan(wiring.spec, state, PlanRequest(now, failed_models=failed_models)) if failed_models else retried,
        retried=retried,
        dropped=frozenset(state.dropped),
        unread=[str(error) for error in state.seen.unread.values()],
        held=held,
        failed=failed,
        evaluated_at=now.isoformat(),
    )


def _without_history(wiring: Wiring, state: State, plan: Plan) -> set[str]:
    """The due models that cannot be trained, since features of their training window cannot be built or labels are not there."""
    broken = {failure.partition_key for failure in state.standing_failures if failure.step == "features"}
    return {
        item.partition.key
        for item in plan.of("model")
        if any(
            partition.key in broken
            or (
                wiring.spec.periods.matures(partition) <= item.partition.start
                and state.seen.awaited_label_sources(partition)
            )
            for partition in wiring.spec.periods.window(item.partition.start, state.dropped)
        )
    }


def _parts(request: Request, most: int | None) -> Iterator[Request]:
    """Divide a request into runs of at most so many partitions."""
    size = most or len(request.partitions)
    for at in range(0, len(request.partitions), size):
        yield replace(request, partitions=request.partitions[at : at + size])


def _run_request(tick: _Tick, request: Request, context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """A run of the job; it names every check on its assets, without which a preview launched in the UI would run none."""
    launch, all_checks = launch_of(tick.wiring, request), set[dg.AssetCheckKey]()
    with suppress(dg.DagsterInvariantViolationError):  # a context of `build_schedule_context` may have no repository
        all_checks = context.repository_def.asset_graph.asset_check_keys
    return dg.RunRequest(
        run_key=f"{tick.evaluated_at} {'+'.join(request.steps)} {request.first}..{request.last}",
        asset_selection=launch.assets,
        asset_check_keys=sorted((key for key in all_checks if key.asset_key in launch.assets), key=str) or None,
        tags={**launch.tags, runs.PARTITIONS_TAG: runs.shown_range(request.first, request.last)}
        if launch.tags
        else None,
        run_config={"ops": launch.ops} if launch.ops else None,
    )


def _skip_reason(duty: Duty, tick: _Tick) -> str:
    """Say why a schedule requests nothing: what its own work waits for, and which schedule does that."""
    if tick.held:
        return f"Under way: {listed({key or asset for asset, key in tick.held})}; nothing else can be done here yet."
    due: dict[Step, str] = {step: f"{len(items)} of {step}" for step in STEPS if (items := tick.retried.of(step))}
    own: list[Step] = [step for step in due if step in MAKES[duty]]
    others: list[Step] = [step for step in due if step in _OTHERS_WAIT_FOR and step not in own]
    if own:
        first: list[Step] = [step for step in others if STEPS.index(step) < STEPS.index(own[-1])]
        waiting = ", ".join(due[step] for step in own)
        return f"Nothing can be done here yet: {waiting}, waiting for {_by_schedule(tick, first, due)}."
    if others:
        return f"Nothing is due here; elsewhere: {_by_schedule(tick, others, due)}."
    return f"Nothing is due{_nothing_due(duty, tick)}."


def _nothing_due(duty: Duty, tick: _Tick) -> str:
    """Name what is left where nothing is due: partitions that no model serves, and those whose labels are awaited."""
    if unserved := [item.partition.key for item in tick.plan.blocked if not item.warm_up]:
        return f"; no model serves {len(unserved)} partitions, the last {unserved[-1]}"
    if duty == "evaluate" and (awaiting := tick.plan.awaiting):
        return f"; the evaluation of {listed(awaiting)} waits: {awaiting[max(awaiting)]}"
    if warm_up := tick.plan.blocked:
        return f"; {len(warm_up)} partitions are warm-up: {warm_up[0].reason}"
    return ", as far as the sources could be looked at." if tick.unread else ": every partition is up to date"


def _by_schedule(tick: _Tick, steps: Iterable[Step], due: Mapping[Step, str]) -> str:
    return ", ".join(f"{due[step]} ({schedule_name(tick.wiring.spec.name, DUTY_OF[step])})" for step in steps)


def _to_score(tick: _Tick) -> list[Item]:
    """Predictions that wait for no model, and whose features no run is about to build, and deliveries."""
    own = {"predictions", *tick.wiring.deliveries}
    busy = {key for asset, key in tick.held if asset in own} | _being_built(tick)
    due = [item for item in tick.plan.of("predictions", "deliveries") if not item.awaits_model]
    return [item for item in due if item.partition.key not in busy]


def _being_built(tick: _Tick) -> set[str]:
    """The partitions whose features are due and held by a run."""
    due = {item.partition.key for plan in (tick.plan, tick.retried) for item in plan.of("features")}
    return due & {key for asset, key in tick.held if asset == "features"}


def _to_train(tick: _Tick) -> list[Item]:
    """The serving periods that no run trains for, and whose features no run is about to build."""
    being_built = _being_built(tick)
    busy = {key for asset, key in tick.held if asset == "model"}
    if busy and tick.wiring.serving_periods is None:
        return []
    return [
        item
        for item in tick.retried.of("model", "challengers")
        if item.partition.key not in busy
        and not any(
            partition.key in being_built
            for partition in tick.wiring.spec.periods.window(item.partition.start, tick.dropped)
        )
    ]


def _to_evaluate(tick: _Tick) -> list[Item]:
    """Partitions that are neither scored nor evaluated first."""
    busy = {item.partition.key for item in tick.plan.of("predictions")}
    busy |= {key for asset, key in tick.held if asset in ("predictions", "performance")}
    return [item for item in tick.plan.of("performance") if item.partition.key not in busy]
