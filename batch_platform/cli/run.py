"""The `run` command: announce the plan, carry it out, report the outcome."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.execution import RunOptions, Runs, carry_out, open_instance, plan_run
from batch_platform.cli.options import reports, uncollected
from batch_platform.cli.project import Project, find_project
from batch_platform.components.events import tell_committed
from batch_platform.components.runs import held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError
from batch_platform.pipeline.plan import STEPS, Item, Plan, Step, ranges

TASKS: dict[Step, tuple[str, str]] = {  # how the plan announces them
    "features": ("build features of", "partition"),
    "model": ("train", "model"),
    "challengers": ("train the challengers of", "serving period"),
    "predictions": ("score", "partition"),
    "performance": ("evaluate", "partition"),
}


@dataclass(frozen=True)
class Outcome:
    """The state of the requested partitions after a run."""

    pipeline: str
    partitions: int
    scored: int
    unserved: int  # partitions that no model serves
    rows_in: int
    rows_scored: int
    rows_rejected: int
    versions: list[str]
    published: str


@click.command("run")
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one a model serves.")
@click.option("--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one that is due.")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option("--model", metavar="VERSION", help="Score with this version instead of each partition's champion.")
@click.option("--force", is_flag=True, help="Build and score partitions again even if nothing has changed.")
@reports
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
    as_json: bool,
) -> None:
    """Bring partitions of PIPELINE up to date, including the features and models they need."""
    with uncollected():
        project = find_project(folder)
        wiring = project.pipeline(pipeline)
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, only)
    options = RunOptions(partitions=partitions, now=now, force=force, model=model, named=bool(first or only))
    outcome = bring_up_to_date(project, wiring, options, quiet=as_json)
    if as_json:
        terminal.show_json(outcome)


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


def bring_up_to_date(project: Project, wiring: Wiring, options: RunOptions, *, quiet: bool = False) -> Outcome:
    """Bring the requested partitions up to date, with whatever upstream they lack; announce and sum up unless quiet.

    Raises:
        RunFailedError: A run failed; what was committed before stays.
        NoChampionError: No model serves a partition that the user named, or any partition; all others are done.
    """
    with open_instance(project) as instance:
        busy = held(wiring, instance)
        tell_committed(wiring, instance, wiring.pipeline().state(), busy)
        plan = plan_run(wiring, options)
        if not quiet:
            _announce(wiring, options, plan)
        totals = Counter[str](item.step for item in plan.items)
        with terminal.progress(totals, quiet=quiet) as listener:
            left = carry_out(Runs(wiring, project, instance, options, listener), plan)
    outcome = _outcome(wiring, project, options, left)
    if not quiet:
        _conclude(outcome)
    if left.blocked and (options.named or not outcome.scored):
        first = left.blocked[0].partition
        wiring.pipeline().state().registry.require_champion(first.start, first.key)
    return outcome


def _due(wiring: Wiring, key: str, due: Sequence[Partition]) -> Partition:
    partition = wiring.spec.partitions.calendar.named(key)
    if not due or partition.start > due[-1].start:
        newest = f"the newest partition that is due is {due[-1].key!r}" if due else "no partition is due yet"
        msg = f"{wiring.spec.name}: partition {key!r} lies in the future; {newest}."
        hint = "a partition is due when it ends; with partitions.end_offset: 1 it is due when it starts."
        raise WrongUseError(msg, hint=hint)
    return partition


def _announce(wiring: Wiring, options: RunOptions, plan: Plan) -> None:
    name = wiring.spec.name
    if not options.partitions:
        terminal.say(f"{name}: no partition is due yet.")
    elif plan.items:
        terminal.say(f"{name}: to do")
    elif len(plan.blocked) == len(options.partitions):
        terminal.say(f"{name}: nothing can be scored")
    else:
        terminal.say(f"{name}: everything asked for is up to date.")
    for step in STEPS:
        verb, noun = TASKS[step]
        for count, span in _spans(plan.of(step)):
            terminal.say(f"  {verb} {count} {noun}{'s' if count > 1 else ''} ({span})")
    for count, span in _spans(plan.blocked):
        terminal.say(f"  no model serves {count} partition{'s' if count > 1 else ''} ({span})")


def _spans(items: Sequence[Item]) -> list[tuple[int, str]]:
    """The length and the first and last key of each range without gaps."""
    joined = ranges(item.partition for item in items)
    return [(len(span), span[0].key if len(span) == 1 else f"{span[0].key} to {span[-1].key}") for span in joined]


def _outcome(wiring: Wiring, project: Project, options: RunOptions, left: Plan) -> Outcome:
    scores = wiring.pipeline().state().scores
    runs = [scores[partition.key] for partition in options.partitions if partition.key in scores]
    return Outcome(
        pipeline=wiring.spec.name,
        partitions=len(options.partitions),
        scored=len(runs),
        unserved=len(left.blocked),
        rows_in=sum(run.rows_in for run in runs),
        rows_scored=sum(run.rows_scored for run in runs),
        rows_rejected=sum(run.rows_rejected for run in runs),
        versions=sorted({run.model_version for run in runs}),
        published=str(project.home.published),
    )


def _conclude(outcome: Outcome) -> None:
    if not outcome.scored:
        return
    terminal.say(
        f"{outcome.scored} of {outcome.partitions} partitions scored: {outcome.rows_in:,} rows in, "
        f"{outcome.rows_scored:,} scored, {outcome.rows_rejected:,} rejected."
    )
    terminal.say(f"Read them in {outcome.published}, table {outcome.pipeline}.predictions.")
