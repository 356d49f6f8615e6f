"""The `gc` command: list the files of a home that nothing refers to, and remove them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
import dagster as dg
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.instance import own_instance, prepare_instance
from batch_platform.cli.project import Project, find_project
from batch_platform.components.dagster_records import OldRecords, compact, forget_runs
from batch_platform.components.wiring import PIPELINE_TAG
from batch_platform.declaration.errors import WrongUseError, counted, named
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import (
    drop_pipelines,
    find_garbage,
    find_orphans,
    remove_garbage,
    remove_old_rows,
)
from batch_platform.warehouse.deletion import HeldPipeline


@click.command(
    "gc",
    epilog=terminal.examples(
        "gc --dry-run", "gc --runs-older-than '30 days'", "gc --keep '90 days' --drop former_pipeline"
    ),
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option(
    "--keep", default="30 days", show_default=True, help="How long to keep versions that were never promoted."
)
@click.option(
    "--runs-older-than",
    "kept_runs",
    metavar="AGE",
    help="Age from which Dagster's records of a run go. Default: dagster.keep_runs of each pipeline.",
)
@click.option(
    "--drop",
    "dropped",
    multiple=True,
    metavar="NAME",
    help="Pipeline to remove that nothing declares any more; repeatable.",
)
@click.option("--yes", is_flag=True, help="Remove the pipelines of --drop without asking.")
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None, keep: str, kept_runs: str | None, dropped: tuple[str, ...], *, dry_run: bool, yes: bool
) -> None:
    """Remove files that nothing refers to, rows older than their retention, and Dagster's records of old runs.

    The files are bundles that were never promoted, feature files of partitions that no longer exist, and what killed runs
    left behind. Of an old run the newest materialization of each partition and the newest result of each check stay.
    Of a run with steps of your own everything stays.
    Pipelines that nothing declares any more are listed, and removed for good only if --drop names them: their tables,
    ledgers, features and models.
    """
    project, now = find_project(folder), datetime.now(UTC)
    trained_before = _before(now, "--keep", keep)
    wirings = project.pipelines.values()
    ages = {it.spec.name: _before(now, "--runs-older-than", kept_runs or it.spec.dagster.keep_runs) for it in wirings}
    if not project.home.root.exists():
        terminal.report({"removed": not dry_run, "size": 0, "found": [], "orphans": [], "old_rows": []})
        terminal.say(f"Nothing to remove: {project.home.root} does not exist.")
        return
    specs = [wiring.spec for wiring in project.pipelines.values()]
    orphans = find_orphans({*project.pipelines, *(item.name for item in project.broken)}, project.home)
    if not _confirmed(dropped, orphans, asks=not (dry_run or yes)):
        terminal.say("Nothing is removed.")
        return
    garbage = find_garbage(specs, project.home, now, trained_before=trained_before)
    stamp = Stamp(run_id="gc", at=now)
    if not dry_run:
        garbage = remove_garbage(garbage, project.home, stamp)
        drop_pipelines(project.home, dropped)
    old_rows = [old for wiring in wirings for old in remove_old_rows(wiring.pipeline(), stamp, dry_run=dry_run)]
    size, old = sum(item.size for item in garbage), _old_runs(project, ages, dry_run=dry_run)
    report = {"removed": not dry_run, "size": size, "found": garbage, "orphans": list(orphans.values())}
    terminal.report({**report, "old_runs": old, "old_rows": old_rows})
    for item in garbage:
        terminal.say(f"{item.path.relative_to(project.home.root)}  {decimal(item.size)}  {item.reason}")
    verb = "could be removed" if dry_run else "removed"
    for rows in old_rows:
        span = terminal.span(rows.partitions)
        terminal.say(f"{rows.pipeline}: {rows.kind} of {span} {verb}, older than retention.{rows.kind}.")
    if garbage or not (old.runs or old_rows):
        terminal.say(f"{len(garbage)} {verb}, {decimal(size)}." if garbage else "Nothing to remove.")
    if old.runs:
        terminal.say(f"Records of {counted(old.runs, 'old run')} {verb}, {decimal(old.size)}.")
    for name, orphan in orphans.items():
        gone = " removed" if name in dropped and not dry_run else ""
        terminal.say(f"{name}: no pipeline of this project;{gone} {_held(orphan)}")
    if kept := [name for name in orphans if name not in dropped]:
        terminal.say(f"batch-platform gc --drop {kept[0]} removes it for good.")


def _confirmed(dropped: Sequence[str], orphans: Mapping[str, HeldPipeline], *, asks: bool) -> bool:
    """Return whether to remove pipelines; raises WrongUseError if one is declared, or where there is no terminal to ask on."""
    held = {name: named(name, orphans, f"No undeclared pipeline is called {name!r}; there are") for name in dropped}
    if not held or not asks:
        return True
    for name, orphan in held.items():
        terminal.say(f"{name}: to remove for good, {_held(orphan)}")
    return terminal.require_confirmed("Nothing is removed", "Remove all of it?")


def _held(orphan: HeldPipeline) -> str:
    last = f", the last of {orphan.last_commit:%Y-%m-%d}" if orphan.last_commit else ""
    partitions, rows = counted(orphan.partitions, "partition"), counted(orphan.rows, "prediction")
    return f"{partitions} with {rows}{last}, {counted(orphan.versions, 'model')}"


def _before(now: datetime, option: str, age: str) -> datetime:
    try:
        return parse_duration(age).before(now, ZoneInfo("UTC"))
    except ValueError as error:
        msg = f"{option}: {error}."
        raise WrongUseError(msg, hint=f"for example {option} '60 days'") from error


def _old_runs(project: Project, ages: Mapping[str, datetime], *, dry_run: bool) -> OldRecords:
    """Remove the records of the runs of pipelines that ended before a time each; nothing where no run was recorded."""
    made = (project.home.dagster / "dagster.yaml").exists()
    if not project.home.is_writable or (own_instance(project.home) is None and not made):
        return OldRecords(0, 0)
    with dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance:
        cleared = [
            forget_runs(instance, PIPELINE_TAG, [name], before, dry_run=dry_run) for name, before in ages.items()
        ]
        if any(old.runs for old in cleared) and not dry_run:
            compact(instance)
    return OldRecords(sum(old.runs for old in cleared), sum(old.size for old in cleared))
