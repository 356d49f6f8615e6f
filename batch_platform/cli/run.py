"""The commands that bring partitions up to date, in runs that Dagster records: `run` and `replay`."""

import getpass
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import click
import dagster as dg

from batch_platform.cli import summary, terminal
from batch_platform.cli.instance import VARIABLE, own_instance
from batch_platform.cli.project import Project, asked_for, find_project
from batch_platform.cli.running import Runs, open_instance
from batch_platform.cli.summary import RunSummary, summary_of
from batch_platform.components.events import log_unknown_commits
from batch_platform.components.runs import held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import RunFailedError, WrongUseError, counted
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.duration import expected_seconds
from batch_platform.pipeline.former_partitions import require_no_former_partitions
from batch_platform.pipeline.new_label import new_label, retire
from batch_platform.planning.holds import unserved_error
from batch_platform.planning.plan import Plan, make_plan, remaining
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.planning.steps import STEPS, TASKS, Item, Step, ranges


@terminal.command("run", "run flight_delays", "run flight_delays --from 2013-03-01 --to 2013-03-31")
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one a model serves.")
@click.option("--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one that is due.")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option("--model", metavar="VERSION", help="Score with this version instead of each partition's champion.")
@click.option("--force", is_flag=True, help="Build and score partitions again even if nothing has changed.")
@click.option("--recheck", is_flag=True, help="Compare also partitions older than `late` says with their sources.")
@click.option("--retrain", is_flag=True, help="Train the newest model again even if nothing has changed.")
def run_command(  # noqa: PLR0913 - the options of the command
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
        project = replace(find_project(folder), only=pipeline)
        wiring = project.pipeline(pipeline)
    outcome = run(project, wiring, (first, last, only), model=model, force=force, recheck=recheck, retrain=retrain)
    terminal.report(outcome)
    if outcome.error:
        raise RunFailedError(outcome.error)


def run(  # noqa: PLR0913 - the options of the command
    project: Project,
    wiring: Wiring,
    asked: tuple[str | None, str | None, str | None],
    *,
    model: str | None,
    force: bool,
    recheck: bool,
    retrain: bool,
) -> RunSummary:
    """Bring partitions up to date: those between the first and the last that are asked for, or the single one; see `bring_up_to_date`."""
    if retrain and model:
        msg = "--retrain trains a model, and --model scores with a version that exists."
        raise WrongUseError(msg, hint="leave one of the two out.")
    now = datetime.now(UTC)
    partitions = asked_for(wiring.spec, now, *asked)
    named = bool(asked[0] or asked[2])
    if model and named:
        _require_servable(wiring, partitions[0], model)
    request = PlanRequest(
        now, partitions, force=force, model=model, recheck=recheck or named, retrain=retrain, serve_all=named
    )
    return bring_up_to_date(project, wiring, request, named=named)


def _require_servable(wiring: Wiring, first: Partition, version: str) -> None:
    """Refuse to score what lies before the first serving period: raises WrongUseError."""
    spec, calendar = wiring.spec, wiring.spec.periods.served
    begin = calendar.holding(calendar.first_start)
    if begin is not None and first.start < begin.start:
        msg = (
            f"{spec.name}, partition {first.key}: it cannot be scored, since predictions begin with {begin.key}, in the first "
            "serving period that has enough history before it."
        )
        hint = f"batch-platform backtest {spec.name} --from {first.key} --to {first.key} --model {version} measures it there."
        raise WrongUseError(msg, hint=hint)


def bring_up_to_date(project: Project, wiring: Wiring, request: PlanRequest, *, named: bool) -> RunSummary:
    """Bring the requested partitions up to date, with whatever upstream they lack; announce the plan and sum up.

    What fails on its own does not hold up the rest. The outcome's error names it, and the partition that no model serves if
    the user `named` the first partition, or if nothing is served.

    Raises:
        RunFailedError: A run failed as a whole; what was committed before stays.
        WrongUseError: The requested version does not exist, or predictions hold partitions that are no longer declared.
    """
    pipeline, spec = wiring.pipeline(), wiring.spec
    with open_instance(project) as instance, pipeline.carrying(uuid4().hex):
        if own := own_instance(project.home):
            terminal.say(f"Runs are recorded in {own}, which {VARIABLE} names.")
        state = _prepared(wiring, instance, request, named=named)
        if not (named and len(request.named) == 1):
            request = _without_dropped(wiring, request, state)
        plan = make_plan(spec, state, request)
        _announce(wiring, request, state, plan, expected_seconds(state, plan.items, partial(_began, instance)))
        with terminal.progress(Counter(item.name for item in plan.items)) as listener:
            runs = Runs(wiring, project, instance, listener)
            runs.carry_out(request, plan)
        if plan.items:
            state = pipeline.state(recheck=request.recheck)
            plan = remaining(spec, state, request, runs.run_ids)
        error = runs.error(state) or unserved_error(state, request.named, plan.blocked, named=named)
        if request.recheck and error is None:
            error = state.unread_error
        if request.retrain and error is None:
            error = state.registry.refusal({it.version for it in state.registry.of_model if it.run_id in runs.run_ids})
        outcome = summary_of(
            wiring,
            instance,
            state,
            request.now,
            request.named,
            plan,
            runs.run_ids,
            runs.findings,
            None if error is None else str(error),
        )
    summary.show(outcome, spec.partitions.calendar)
    return outcome


def _prepared(wiring: Wiring, instance: dg.DagsterInstance, request: PlanRequest, *, named: bool) -> State:
    """The state, once what a killed run left undone is published and logged, and models of another type of label are retired."""
    pipeline = wiring.pipeline()
    state = pipeline.state(recheck=request.recheck)
    require_no_former_partitions(wiring.spec, state.scores.values())
    for key in sorted(state.seen.gone)[:1]:
        partition = wiring.spec.partitions.calendar.named(key)
        pipeline.builder.sources.require_reachable(partition, pipeline.builder.feature_sources)
    pipeline.publish()
    log_unknown_commits(wiring, instance, state, held(wiring, instance))
    return _with_label_as_declared(wiring, state, request, named=named)


def _with_label_as_declared(wiring: Wiring, state: State, request: PlanRequest, *, named: bool) -> State:
    """Announce that predictions start anew, and retire the models of another type of label.

    Raises:
        WrongUseError: Only some partitions are asked for, or a version is named.
    """
    pipeline = wiring.pipeline()
    if (change := new_label(pipeline, state)) is None:
        return state
    if named or request.model:
        msg = f"{change.reason}. Its predictions have to start anew, not only those of some partitions or of a named version."
        raise WrongUseError(msg, hint=f"batch-platform run {wiring.spec.name}")
    terminal.say(str(change))
    stamp = Stamp(f"run-{uuid4().hex[:12]}", request.now, clock=lambda: datetime.now(UTC))
    retire(pipeline, state, change, getpass.getuser(), stamp)
    return pipeline.state(recheck=request.recheck)


def _without_dropped(wiring: Wiring, request: PlanRequest, state: State) -> PlanRequest:
    """Leave out the partitions that were deleted for good, which come back only if each is named."""
    dropped = [partition for partition in request.named if partition.key in state.dropped]
    if dropped:
        again = f"batch-platform run {wiring.spec.name} --partition {dropped[0].key}"
        how = "To make it again" if len(dropped) == 1 else "To make them again, name each of them"
        terminal.say(f"{wiring.spec.name}: left out {terminal.spans(ranges(dropped))}: dropped. {how}: {again}")
    return replace(request, only=[it for it in request.named if it.key not in state.dropped])


def _began(instance: dg.DagsterInstance, run_id: str) -> datetime | None:
    record = instance.get_run_record_by_id(run_id)
    return datetime.fromtimestamp(record.start_time, UTC) if record and record.start_time else None


def _announce(wiring: Wiring, request: PlanRequest, state: State, plan: Plan, seconds: float | None) -> None:
    """Say what is due, and how long it will take if that is known."""
    name = wiring.spec.name
    if not request.named:
        terminal.say(f"{name}: no partition is due yet.")
    elif plan.items:
        terminal.say(f"{name}: to do")
    elif len(plan.blocked) == len(request.named):
        terminal.say(f"{name}: nothing can be scored")
    else:
        unserved = any(not item.warm_up for item in plan.blocked)
        known = ", as far as its sources could be looked at" if state.seen.unread else ""
        terminal.say(f"{name}: everything {'that a model serves' if unserved else 'asked for'} is up to date{known}.")
        if request.named[-1].end == wiring.spec.partitions.calendar.last_end:
            end = wiring.spec.partitions.calendar.end_key
            terminal.say(f"  the partitions end on {end} (partitions.end): newer rows are not scored")
    for error in state.seen.unread.values():
        terminal.say(f"  not looked at: {error}")
    for step in STEPS:
        _say_items(step, plan.of(step))
        for item in plan.of(step):
            if item.again:
                terminal.say(f"    {item.partition.key} again: {item.reason}")
    _say_blocked(plan.blocked)
    if plan.items and seconds is not None:
        terminal.say(f"  this takes {terminal.roughly(seconds)}, going by earlier runs")


def _say_blocked(blocked: Sequence[Item]) -> None:
    """Say which partitions no model serves, and why."""
    unserved, warm_up = ([item for item in blocked if item.warm_up is early] for early in (False, True))
    for reason in dict.fromkeys(item.reason for item in unserved):
        _say_ranges("leave out", "partition", [item for item in unserved if item.reason == reason], f": {reason}")
    if warm_up:
        terminal.say(f"  {warm_up_line(warm_up)}")


def warm_up_line(items: Sequence[Item]) -> str:
    """Say in advance which partitions no model will score, since they are what the first one learns from."""
    count, span = len(items), terminal.ends([item.partition.key for item in items])
    return f"{count:,} partition{' is' if count == 1 else 's are'} warm-up ({span}): {items[0].reason}"


def _say_items(step: Step, items: Sequence[Item]) -> None:
    """Say which items of a step are due; deliveries by their receiver."""
    verb, noun = TASKS[step]
    for delivery in dict.fromkeys(item.delivery and item.delivery.name for item in items):
        to = f" to {delivery!r}:" if delivery else ""
        _say_ranges(verb + to, noun, [item for item in items if delivery == (item.delivery and item.delivery.name)])


def _say_ranges(verb: str, noun: str, items: Sequence[Item], reason: str = "") -> None:
    for partitions in ranges(item.partition for item in items):
        keys = [partition.key for partition in partitions]
        terminal.say(f"  {verb} {counted(len(keys), noun)} ({terminal.ends(keys)}){reason}")


@terminal.command("replay", "replay flight_delays", "replay flight_delays --from 2013-03-01 --to 2013-03-31")
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one with rejected rows.")
@click.option(
    "--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one with rejected rows."
)
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
def replay_command(folder: Path | None, pipeline: str, first: str | None, last: str | None, only: str | None) -> None:
    """Score partitions of PIPELINE with rejected rows again, after the sources or the rules were fixed.

    It is `run --force` for these partitions alone: their features are built again, and those whose labels are known are
    evaluated again as well.
    """
    project = replace(find_project(folder), only=pipeline)
    wiring, now = project.pipeline(pipeline), datetime.now(UTC)
    runs = wiring.pipeline().state().scores
    asked = asked_for(wiring.spec, now, first, last, only)
    due = [partition for partition in asked if (run := runs.get(partition.key)) and run.rows_rejected]
    if not due:
        terminal.report({"pipeline": pipeline, "partitions": 0})
        terminal.say(f"{pipeline}: no rejected rows: there is nothing to replay.")
        return
    rejected = sum(runs[partition.key].rows_rejected for partition in due)
    terminal.say(f"{pipeline}: replaying {counted(len(due), 'partition')} with {counted(rejected, 'rejected row')}")
    request = PlanRequest(now, due, force=True, recheck=True, serve_all=True)
    outcome = bring_up_to_date(project, wiring, request, named=True)
    terminal.report(outcome)
    if outcome.error:
        raise RunFailedError(outcome.error)
