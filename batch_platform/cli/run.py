"""The `run` command: announce the plan, carry it out in runs that Dagster records, report the outcome."""

import getpass
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import dagster as dg

from batch_platform.cli import summary, terminal
from batch_platform.cli.instance import VARIABLE, own_instance, prepare_instance
from batch_platform.cli.project import Project, find_project
from batch_platform.cli.summary import Outcome, outcome_of
from batch_platform.components.dagster_internals import (
    execute_here,
    open_without_capture,
    quick_event_log,
    was_interrupted,
)
from batch_platform.components.events import log_unknown_commits
from batch_platform.components.jobs import Launch, launch_of, launch_of_all
from batch_platform.components.processes import PROCESS_TAG, TERMINATED, close_dead_runs, this_process
from batch_platform.components.progress import Listener, RunProgress, listening
from batch_platform.components.runs import held
from batch_platform.components.wiring import PIPELINE_TAG, SET_APART, Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    BatchPlatformError,
    NoChampionError,
    RunFailedError,
    WrongUseError,
    counted,
)
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import served_calendar
from batch_platform.pipeline.duration import expected_seconds
from batch_platform.pipeline.former_partitions import require_no_former_partitions
from batch_platform.pipeline.new_label import new_label, retire
from batch_platform.pipeline.plan import Plan, make_plan, remaining
from batch_platform.pipeline.set_apart import error_of
from batch_platform.pipeline.state import State
from batch_platform.pipeline.steps import STEPS, Item, Step, ranges, requests
from batch_platform.pipeline.wanted import PlanRequest

TASKS: dict[Step, tuple[str, str]] = {  # how the plan announces them
    "features": ("build features of", "partition"),
    "model": ("train", "model"),
    "challengers": ("train the challengers of", "serving period"),
    "predictions": ("score", "partition"),
    "performance": ("evaluate", "partition"),
}


@click.command(
    "run", epilog=terminal.examples("run flight_delays", "run flight_delays --from 2013-03-01 --to 2013-03-31")
)
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one a model serves.")
@click.option("--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one that is due.")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option("--model", metavar="VERSION", help="Score with this version instead of each partition's champion.")
@click.option("--force", is_flag=True, help="Build and score partitions again even if nothing has changed.")
@click.option("--recheck", is_flag=True, help="Compare also partitions older than `late` says with their sources.")
@click.option("--retrain", is_flag=True, help="Train the newest model again even if nothing has changed.")
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    first: str | None,
    last: str | None,
    only: str | None,
    model: str | None,
    *,
    force: bool,
    recheck: bool,
    retrain: bool,
) -> None:
    """Bring partitions of PIPELINE up to date, including the features and models they need."""
    with terminal.uncollected():
        project = find_project(folder)
        wiring = project.pipeline(pipeline)
    if retrain and model:
        msg = "--retrain trains a model, and --model scores with a version that exists."
        raise WrongUseError(msg, hint="leave one of the two out.")
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, only)
    named = bool(first or only)
    if model and named:
        _require_servable(wiring, partitions[0], model)
    wanted = PlanRequest(
        now, partitions, force=force, model=model, recheck=recheck or named, retrain=retrain, serve_all=named
    )
    outcome = bring_up_to_date(project, wiring, wanted, named=named)
    terminal.report(outcome)
    if outcome.error:
        raise RunFailedError(outcome.error)


def asked_for(wiring: Wiring, now: datetime, first: str | None, last: str | None, only: str | None) -> list[Partition]:
    """The due partitions that the options of `run` select; without options, all of them.

    Raises:
        WrongUseError: A key is invalid or lies in the future, or the options contradict each other.
    """
    if only and (first or last):
        msg = "--partition selects a single partition and cannot be combined with --from or --to."
        raise WrongUseError(msg, hint="leave --from and --to out, or use them alone.")
    spec = wiring.spec
    due = spec.partitions.calendar.due(now)
    begin, end = (_due(wiring, key, due) if key else None for key in (only or first, only or last))
    if begin is not None and end is not None and begin.start > end.start:
        msg = f"{spec.name}: --from {begin.key} is later than --to {end.key}."
        raise WrongUseError(msg, hint=f"--from {end.key} --to {begin.key}")
    return [
        partition
        for partition in due
        if (begin is None or partition.start >= begin.start) and (end is None or partition.start <= end.start)
    ]


def _require_servable(wiring: Wiring, first: Partition, version: str) -> None:
    """Refuse to score what lies before the first serving period: raises WrongUseError."""
    spec, calendar = wiring.spec, served_calendar(wiring.spec)
    begin = calendar.holding(calendar.first_start)
    if begin is not None and first.start < begin.start:
        msg = (
            f"{spec.name}, partition {first.key}: it cannot be scored, since predictions begin with {begin.key}, in the first "
            "serving period that has enough history before it."
        )
        hint = f"batch-platform backtest {spec.name} --from {first.key} --to {first.key} --model {version} measures it there."
        raise WrongUseError(msg, hint=hint)


def _due(wiring: Wiring, key: str, due: Sequence[Partition]) -> Partition:
    partition = wiring.spec.partitions.calendar.named(key)
    if not due or partition.start > due[-1].start:
        newest = f"the newest partition that is due is {due[-1].key!r}" if due else "no partition is due yet"
        msg = f"{wiring.spec.name}: partition {key!r} lies in the future; {newest}."
        hint = "a partition is due when it ends; with partitions.end_offset: 1 it is due when it starts."
        raise WrongUseError(msg, hint=hint)
    return partition


def bring_up_to_date(project: Project, wiring: Wiring, wanted: PlanRequest, *, named: bool) -> Outcome:
    """Bring the requested partitions up to date, with whatever upstream they lack; announce the plan and sum up.

    What fails on its own does not hold up the rest. The outcome's error names it, and the partition that no model serves if
    the user `named` the first partition, or if nothing is served.

    Raises:
        RunFailedError: A run failed as a whole; what was committed before stays.
        WrongUseError: The requested version does not exist, or predictions hold partitions that are no longer declared.
    """
    with open_instance(project) as instance, wiring.pipeline().carrying(uuid4().hex):
        if own := own_instance(project.home):
            terminal.say(f"Runs are recorded in {own}, which {VARIABLE} names.")
        state = wiring.pipeline().state(recheck=wanted.recheck)
        require_no_former_partitions(wiring.spec, state.scores.values())
        wiring.pipeline().publish()  # what a killed run had no time to publish, and a home that was upgraded
        log_unknown_commits(wiring, instance, state, held(wiring, instance))
        state = _with_label_as_declared(wiring, state, wanted, named=named)
        if not (named and len(wanted.named) == 1):
            wanted = _without_dropped(wiring, wanted, state)
        plan = make_plan(wiring.spec, state, wanted)
        _announce(wiring, wanted, plan, expected_seconds(state, plan.items, partial(_began, instance)))
        totals = Counter[str](item.step for item in plan.items)
        with terminal.progress(totals) as listener:
            runs = Runs(wiring, project, instance, listener)
            runs.carry_out(wanted, plan)
        state = wiring.pipeline().state(recheck=wanted.recheck)
        left = remaining(wiring.spec, state, wanted, runs.run_ids) if plan.items else plan
        error = error_of(wiring.spec, state, runs.run_ids) or _unserved(state, wanted, left, named=named)
        outcome = outcome_of(
            wiring,
            instance,
            state,
            wanted.named,
            left,
            runs.run_ids,
            runs.findings,
            None if error is None else str(error),
        )
    summary.show(outcome, wiring.spec.partitions.calendar)
    return outcome


def _with_label_as_declared(wiring: Wiring, state: State, wanted: PlanRequest, *, named: bool) -> State:
    """Announce that predictions start anew, and retire the models of another type of label.

    Raises:
        WrongUseError: Only some partitions are asked for, or a version is named.
    """
    pipeline = wiring.pipeline()
    if (change := new_label(pipeline, state)) is None:
        return state
    if named or wanted.model:
        msg = f"{change.reason}. Its predictions have to start anew, not only those of some partitions or of a named version."
        raise WrongUseError(msg, hint=f"batch-platform run {wiring.spec.name}")
    terminal.say(str(change))
    stamp = Stamp(f"run-{uuid4().hex[:12]}", wanted.now, clock=lambda: datetime.now(UTC))
    retire(pipeline, state, change, getpass.getuser(), stamp)
    return pipeline.state(recheck=wanted.recheck)


def _without_dropped(wiring: Wiring, wanted: PlanRequest, state: State) -> PlanRequest:
    """What is wanted without the partitions that were deleted for good, which come back only if each is named."""
    dropped = [partition for partition in wanted.named if partition.key in state.dropped]
    if dropped:
        again = f"batch-platform run {wiring.spec.name} --partition {dropped[0].key}"
        how = "To make it again" if len(dropped) == 1 else "To make them again, name each of them"
        terminal.say(f"{wiring.spec.name}: left out {terminal.spans(ranges(dropped))}: dropped. {how}: {again}")
    return replace(wanted, only=[it for it in wanted.named if it.key not in state.dropped])


def _unserved(state: State, wanted: PlanRequest, left: Plan, *, named: bool) -> BatchPlatformError | None:
    """The error that no model serves a partition if the user named it, or if nothing is scored though warm-up is over."""
    blocked = [item.partition for item in left.blocked if named or not item.warm_up]
    if not blocked or not (named or not any(item.key in state.scores for item in wanted.named)):
        return None
    first = blocked[0]
    try:
        state.registry.require_champion(first.start, first.key)
    except NoChampionError as error:
        return error
    return None


@contextmanager
def open_instance(project: Project) -> Generator[dg.DagsterInstance]:
    """The Dagster instance of a project's home, created on first use; runs of killed processes are marked as failed.

    What the runs print goes to the terminal. Dagster does not capture it too, which would start processes for every step.
    """
    with open_without_capture(prepare_instance(project.home)) as instance:
        close_dead_runs(instance)
        with quick_event_log(instance):
            yield instance


@dataclass(frozen=True)
class Runs:
    """Dagster runs in this process."""

    wiring: Wiring
    project: Project
    instance: dg.DagsterInstance
    listener: Listener
    run_ids: set[str] = field(default_factory=set[str])  # of the runs so far
    findings: dict[str, Sequence[str]] = field(  # what is odd about the sources, by partition of features
        default_factory=dict[str, Sequence[str]]
    )

    def carry_out(self, wanted: PlanRequest, plan: Plan) -> None:
        """Carry out a plan with the job that brings partitions up to date, each range of partitions in one run.

        Where a model is due, the run gets all wanted partitions, since it plans anew what the model changes. The job has no
        partitions that no model can serve: their features are built by a job of their own.
        """
        begin, asked = served_calendar(self.wiring.spec).first_start, set(wanted.named)
        served = [partition for partition in wanted.named if partition.start >= begin]
        unserved = [item for item in plan.of("features") if item.partition in asked and item.partition.start < begin]
        self.bring(unserved, {"features": {"force": wanted.force}})
        models = plan.of("model", "challengers")
        if models and not served:
            self.bring(models)
        due = {item.partition for item in plan.of("features", "predictions", "performance")}
        for partitions in ranges(served if models else due & set(served)):
            self._run(launch_of_all(self.wiring, partitions, wanted))

    def error(self) -> RunFailedError | None:
        """One error that names everything that failed; None if nothing did."""
        return error_of(self.wiring.spec, self.wiring.pipeline().state(), self.run_ids)

    def bring(self, items: Sequence[Item], config: Mapping[Step, Mapping[str, Any]] | None = None) -> None:
        """Do due items of steps that one run can do, each range of partitions in a run of its own."""
        for request in requests(items):
            self._run(launch_of(self.wiring, request, config))

    def _hear(self, progress: RunProgress) -> None:
        """Take note of what was found in sources, and pass the progress on."""
        if progress.findings:
            self.findings[progress.partition_key] = progress.findings
        self.listener(progress)

    def _run(self, launch: Launch) -> None:
        """Do what is launched in one run.

        Raises:
            RunFailedError: The run stopped before it had done all it could.
        """
        run_id = str(uuid4())
        log_level = "DEBUG" if terminal.debugging() else "CRITICAL"
        self.run_ids.add(run_id)
        try:
            with listening(self._hear):
                result = execute_here(
                    self.project.definitions.resolve_job_def(launch.job),
                    self.project.code_location,
                    self.instance,
                    assets=launch.assets,
                    tags={PIPELINE_TAG: self.wiring.spec.name, PROCESS_TAG: this_process()} | launch.tags,
                    run_config={"loggers": {"console": {"config": {"log_level": log_level}}}, "ops": launch.ops},
                    raise_on_error=terminal.debugging(),
                    run_id=run_id,
                )
        except dg.DagsterExecutionInterruptedError as interruption:
            raise self._termination(run_id) or KeyboardInterrupt from interruption
        except dg.Failure as failure:  # raised only for debugging
            if SET_APART not in failure.metadata:
                raise
            return
        if not result.success and (error := self._termination(run_id) or _failure(result)) is not None:
            raise error

    def _termination(self, run_id: str) -> RunFailedError | None:
        """The error that a run was terminated in Dagster; None if it was not."""
        run = self.instance.get_run_by_id(run_id)
        if run is None or run.status not in TERMINATED:
            return None
        msg = f"{self.wiring.spec.name}: run {run_id} was terminated in Dagster. What it committed before stays."
        return RunFailedError(msg, hint="the same command goes on with the rest.")


def _failure(result: dg.JobExecutionResult) -> BaseException | None:
    """The error of the failed step, without Dagster's own words if it is an error of this project.

    None if only partitions failed that were set apart, while all others were done.
    """
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failures:
        msg = f"Run {result.run_id} failed before its first step."
        return RunFailedError(msg, hint="batch-platform ui shows the run.")
    failure = failures[0]
    if was_interrupted(failure):
        return KeyboardInterrupt()
    raised = failure.user_failure_data
    if raised is not None and SET_APART in raised.metadata:
        return None
    if raised is not None and raised.description:
        return RunFailedError(raised.description)
    error = failure.error.cause or failure.error if failure.error else None
    message = " ".join(error.message.split()).rstrip(".") if error else "a step failed"
    return RunFailedError(f"Run {result.run_id} failed: {message}.", hint=terminal.DEBUG_HINT)


def _began(instance: dg.DagsterInstance, run_id: str) -> datetime | None:
    record = instance.get_run_record_by_id(run_id)
    return datetime.fromtimestamp(record.start_time, UTC) if record and record.start_time else None


def _announce(wiring: Wiring, wanted: PlanRequest, plan: Plan, seconds: float | None) -> None:
    """Say what is due, and how long it will take if that is known."""
    name = wiring.spec.name
    if not wanted.named:
        terminal.say(f"{name}: no partition is due yet.")
    elif plan.items:
        terminal.say(f"{name}: to do")
    elif len(plan.blocked) == len(wanted.named):
        terminal.say(f"{name}: nothing can be scored")
    else:
        terminal.say(f"{name}: everything asked for is up to date.")
        if wanted.named[-1].end == wiring.spec.partitions.calendar.last_end:
            end = wiring.spec.partitions.calendar.end_key
            terminal.say(f"  the partitions end on {end} (partitions.end): newer rows are not scored")
    for step in STEPS:
        _say_ranges(*TASKS[step], plan.of(step))
        for item in plan.of(step):
            if item.again:
                terminal.say(f"    {item.partition.key} again: {item.reason}")
    warm_up = [item for item in plan.blocked if item.warm_up]
    _say_ranges("no model serves", "partition", [item for item in plan.blocked if not item.warm_up])
    if warm_up:
        terminal.say(f"  {warm_up_line(warm_up)}")
    if plan.items and seconds is not None:
        terminal.say(f"  this takes {terminal.roughly(seconds)}, going by earlier runs")


def warm_up_line(items: Sequence[Item]) -> str:
    """Say in advance which partitions no model will score, since they are what the first one learns from."""
    count = len(items)
    first, last = items[0].partition.key, items[-1].partition.key
    span = first if count == 1 else f"{first} to {last}"
    return f"{count:,} partition{' is' if count == 1 else 's are'} warm-up ({span}): {items[0].reason}"


def _say_ranges(verb: str, noun: str, items: Sequence[Item]) -> None:
    for partitions in ranges(item.partition for item in items):
        keys = [partition.key for partition in partitions]
        span = keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"
        terminal.say(f"  {verb} {counted(len(keys), noun)} ({span})")
