"""The `status` command: where pipelines stand, partition by partition."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.failed_checks import show_failed
from batch_platform.cli.instance import materialized_partitions
from batch_platform.cli.project import Project, find_project
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import (
    BatchPlatformError,
    WarehouseError,
    alike,
    all_of,
    counted,
    in_short,
    listed,
)
from batch_platform.declaration.explaining import are_dagsters_records, explained
from batch_platform.monitoring.divergence import Level
from batch_platform.monitoring.metrics import without_details
from batch_platform.operations.backup import damaged_files
from batch_platform.pipeline.former_partitions import former_partitions_line
from batch_platform.pipeline.status import ChallengerStatus, PartitionStatus, PipelineStatus, status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform.planning.steps import TASKS
from batch_platform.warehouse.database import require_not_lost
from batch_platform.warehouse.published import anew
from batch_platform.warehouse.recovery import Verified, behind_since, cut_short, verify

UNHEALTHY = 3  # exit code
MOST_REFUSED = 3  # serving periods whose refusal is shown
# Where all is well.
_SHOWN = ("fresh", "drift", "performance", "estimated_performance", "champion_age")


@click.command("status", epilog=terminal.examples("status", "status flight_delays --fail-on warn"))
@click.argument("pipeline", required=False)
@click.option(
    "--all", "every", is_flag=True, help="Show one line per partition instead of one per range of partitions."
)
@click.option("--recheck", is_flag=True, help="Compare also partitions older than `late` says with their sources.")
@click.option(
    "--verify",
    "verified",
    is_flag=True,
    help="Read the warehouse and its published copy as a whole, and compare them; read all feature files and the models that serve.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["warn", "fail"]),
    help=f"End with exit code {UNHEALTHY} if the health of a pipeline is so bad, or worse, and with 1 if that is not known.",
)
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options
    folder: Path | None, pipeline: str | None, *, every: bool, recheck: bool, verified: bool, fail_on: Level | None
) -> None:
    """Show which partitions are scored, missing, failed or stale, and why, and how healthy a pipeline is.

    Without PIPELINE, shows every pipeline of the project, in short if there are several.
    """
    with terminal.uncollected():
        project, now = find_project(folder), datetime.now(UTC)
        pipelines = [project.declared_as(pipeline)] if pipeline else list(project.declared.values())
        broken = [] if pipeline else project.broken
        untouched = not project.home.root.exists()
        states = [item.published_state(recheck=recheck) for item in pipelines]
        by_name = {item.spec.name: state for item, state in zip(pipelines, states, strict=True)}
        # A report creates no home.
        materialized = {} if untouched else _materialized_in_dagster(project, by_name)
        statuses = [
            status_at(item, PlanRequest(now, recheck=recheck), state, materialized.get(item.spec.name))
            for item, state in zip(pipelines, states, strict=True)
        ]
    try:
        require_not_lost(project.home)
    except WarehouseError as error:
        terminal.warn(f"{error} What follows is as last published.")
    left_out = [{"pipeline": item.name, "error": item.error.message, "hint": item.error.hint} for item in broken]
    readings = [verify(project.home)] if verified and not untouched else []
    terminal.report([*statuses, *left_out, *readings])
    _say_if_behind(project)
    briefly = len(statuses) + len(broken) > 1 and not every
    for item, status in zip(pipelines, statuses, strict=True):
        if briefly:
            _show_in_short(status, item.spec.partitions.calendar)
        else:
            _show_pipeline(status, item.spec.partitions.calendar, every=every)
    if broken and not statuses:
        raise all_of([item.error for item in broken])
    for item in broken:
        terminal.warn(f"{item.name} cannot be loaded: {item.error}")
    for reading in readings:
        _show_reading(reading)
        _show_files(
            [error for item, state in zip(pipelines, states, strict=True) for error in damaged_files(item, state)]
        )
    if not statuses:
        terminal.say(f"{project.root} declares no pipeline.")
    if untouched and project.is_shipped:
        terminal.say(
            f"{project.examples_note}, and nothing was run here. batch-platform demo runs it; batch-platform new NAME --from FILE makes a pipeline of your own."
        )
    unread = [state.unread_error for state in states if recheck or fail_on]
    _require_known([error for error in unread if error is not None])
    if fail_on is not None and (broken or any(status.health.reaches(fail_on) for status in statuses)):
        raise click.exceptions.Exit(UNHEALTHY)


def _materialized_in_dagster(project: Project, states: Mapping[str, State]) -> dict[str, set[str]]:
    """The predictions that Dagster has as materialized; none if only it can tell and the home may only be read, or its records do not answer."""
    recorded = materialized_partitions(project.home, [*states])
    if recorded is not None:
        return recorded
    if not project.home.is_writable:  # Dagster cannot open its records without writing beside them
        return {}
    from batch_platform.cli.running import materialized_now

    try:
        return materialized_now(project, states)
    except Exception as error:
        if not are_dagsters_records(error):
            raise
        terminal.warn(str(explained(error)))
        return {}


def _require_known(unread: list[BatchPlatformError]) -> None:
    """Raise the errors about sources that could not be looked at: no answer about them is known."""
    if unread:
        raise all_of(unread)


def _say_if_behind(project: Project) -> None:
    if (published := behind_since(project.home)) is not None:
        terminal.say(
            f"As published at {published:%Y-%m-%d %H:%M:%S} UTC. What was done since then, by a run that goes on or was killed, is "
            "shown once that run ends or the next one begins."
        )
    for done in cut_short(project.home):
        terminal.say(f"{done} is under way or was cut short; the next run or publication completes it.")


def _show_in_short(status: PipelineStatus, calendar: Calendar) -> None:
    """Show a pipeline in about four lines, so that several fit on a screen."""
    _show_counts(status)
    _show_health(status)
    _show_due(status)
    show_failed([check for check in status.failed_checks if check.doubtful], calendar)
    apart = [
        line for line in _ranges(status) if not line.endswith((": scored", ": missing")) and ": warm-up" not in line
    ]
    if apart:
        more = f"; {len(apart) - 1} more: batch-platform status {status.pipeline}" if len(apart) > 1 else ""
        terminal.say(f"  {apart[-1]}{more}")


def _show_counts(status: PipelineStatus) -> None:
    named = {"blocked": "blocked (no model serves them)"}
    counts = ", ".join(f"{count} {named.get(name, name)}" for name, count in sorted(status.counts.items()))
    terminal.say(f"{status.pipeline}: {counts or 'no partition is due yet'}")


def _show_health(status: PipelineStatus) -> None:
    """Show in one line what is wrong, the worst first, and what else is known."""
    health = status.health
    others = [aspect for aspect in health.aspects if aspect.passed and aspect.name in _SHOWN]
    texts = "; ".join(aspect.text for aspect in (*health.alarms, *others))
    terminal.say(f"  health: {'good' if health.level == 'none' else health.level}: {texts}")


def _show_due(status: PipelineStatus) -> None:
    """Show what is due in the words in which `run` announces it, and the models that `run` leaves out."""
    nothing = "nothing" if status.ended is None else f"nothing; the partitions end on {status.ended} (partitions.end)"
    tasks = [f"{verb} {counted(status.due[step], noun)}" for step, (verb, noun) in TASKS.items() if step in status.due]
    terminal.say(f"  due now: {', '.join(tasks) or nothing}")
    for period in status.models_ahead:
        terminal.say(
            f"  model {period} serves no partition that is due yet: run leaves it out, batch-platform train {status.pipeline} trains it"
        )


def _show_pipeline(status: PipelineStatus, calendar: Calendar, *, every: bool) -> None:
    last = f"{status.last_commit:%Y-%m-%d %H:%M:%S} UTC by run {status.last_run}" if status.last_commit else "none"
    _show_counts(status)
    _show_health(status)
    _show_models(status)
    terminal.say(f"  last commit: {last}")
    _show_due(status)
    show_failed(status.failed_checks, calendar)
    if status.former_partitions:
        terminal.say(f"  {former_partitions_line(status.former_partitions)}; batch-platform check says what to do")
    for failure in status.failures:
        if failure.step == "model":
            terminal.say(f"  model {failure.partition_key}: failed, {in_short(status.pipeline, failure.reason)}")
            if failure.hint:
                terminal.say(f"    Hint: {failure.hint}")
    if status.only_in_dagster:
        keys = listed(status.only_in_dagster)
        terminal.say(f"  {keys}: materialized in Dagster, but not in the ledger; the next run scores them again")
    if status.only_in_ledger:
        keys = listed(status.only_in_ledger)
        terminal.say(f"  {keys}: in the ledger, but not materialized in Dagster; the next run records them there")
    if every:
        columns = ("partition", "condition", "reason", "model", "scored", "rejected")
        rows = [
            (line.partition, line.condition, line.reason, line.model_version, line.rows_scored, line.rows_rejected)
            for line in status.partitions
        ]
        terminal.show_table(columns, rows)
        return
    for line in _ranges(status):
        terminal.say(f"  {line}")


def _ranges(status: PipelineStatus) -> Iterator[str]:
    """A line for each range of partitions that stand alike, oldest first."""
    for (condition, _), members in groupby(status.partitions, key=_alike):
        lines = list(members)
        reason = f", {lines[0].reason}" if lines[0].reason else ""
        yield f"{terminal.span([line.partition for line in lines])}: {condition}{reason}"


def _show_reading(reading: Verified) -> None:
    """Say what was read; raises WarehouseError if the published copy is not what the warehouse holds."""
    terminal.say(f"The warehouse was read as a whole: {reading.rows:,} rows in {reading.tables} tables.")
    if reading.copy is None:
        terminal.say("Nothing is published yet.")
    elif reading.differing:
        msg = f"The published copy {reading.copy} holds other rows than the warehouse in {listed(reading.differing)}."
        raise WarehouseError(msg, hint=anew(reading.copy))
    else:
        terminal.say(
            "The published copy holds the same."
            if reading.is_newest
            else "The published copy can be read as a whole; it is older, and the next run brings it up to date."
        )


def _show_files(damaged: Sequence[BatchPlatformError]) -> None:
    """Say that feature files and models were read; raises what is damaged of them."""
    if not damaged:
        terminal.say("All feature files, and the models that serve, are as they were recorded.")
        return
    raise all_of([*damaged])


def _show_models(status: PipelineStatus) -> None:
    learned = terminal.learned_from(status.champion_rows_trained, status.champion_days_trained)
    terminal.say(
        f"  champion: {status.champion or 'none'}{_in_brackets(status.champion_metrics)}{learned and ', '}{learned}"
    )
    if status.champion_leaks:
        terminal.say(f"  a leak is suspected: {'; '.join(status.champion_leaks)}")
    for remark in status.champion_remarks:
        terminal.say(f"  {status.champion}: {remark}")
    for version, reason in status.waiting.items():
        terminal.say(f"  {version}: {reason}; batch-platform models {status.pipeline} promote {version}")
    if (change := status.declaration_change) is not None:
        terminal.say(f"  {listed(change.differs)} changed in the declaration since {change.version}: {change.note}")
    for period, reason in list(status.refused.items())[:MOST_REFUSED]:
        terminal.say(f"  model {period}: {reason}")
    if (more := len(status.refused) - MOST_REFUSED) > 0:
        terminal.say(f"  {counted(more, 'earlier model')} likewise; batch-platform models {status.pipeline} lists them")
    for period, reason in status.outdated.items():
        terminal.say(f"  model {period}: {reason}")
    for challenger in status.challengers:
        terminal.say(f"  challenger {challenger.name}: {_challenger_line(challenger)}")


def _alike(line: PartitionStatus) -> tuple[str, str]:
    """The part of a status that partitions shown in one line have in common."""
    return line.condition, alike(line.partition, line.reason) if line.condition == "failed" else line.reason


def _challenger_line(challenger: ChallengerStatus) -> str:
    if challenger.version is None:
        return challenger.failure or "no version yet"
    failure = f"; could not be trained again: {challenger.failure}" if challenger.failure else ""
    return f"{challenger.version}{_in_brackets(challenger.metrics)}{failure}"


def _in_brackets(metrics: Mapping[str, float]) -> str:
    text = ", ".join(f"{name} {value:.4f}" for name, value in without_details(metrics).items())
    return f" ({text} of its judged fit on its evaluation rows)" if text else ""
