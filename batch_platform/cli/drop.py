"""The commands that remove: `drop` partitions, `erase` a subject, and `gc` what nothing refers to."""

import getpass
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import click
import dagster as dg
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.instance import own_instance, prepare_instance
from batch_platform.cli.project import Project, asked_for, find_project
from batch_platform.cli.running import open_instance
from batch_platform.components.dagster_records import OldRecords, compact, forget_runs, wipe_partitions
from batch_platform.components.runs import held
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, counted, listed, named
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import (
    HeldPartitions,
    drop_partitions,
    drop_pipelines,
    find_garbage,
    find_orphans,
    held_partitions,
    remove_garbage,
    remove_old_rows,
)
from batch_platform.operations.erase import erase_subject, held_subject
from batch_platform.operations.subjects import HeldSubject
from batch_platform.pipeline.former_partitions import former_partitions
from batch_platform.planning.steps import ranges
from batch_platform.warehouse.deletion import HeldPipeline
from batch_platform.warehouse.home import HOME_VARIABLE

_PARTITIONED = ("features", "predictions", "drift", "performance")


@terminal.command(
    "drop", "drop flight_delays --partition 2013-03-01", "drop flight_delays --from 2013-03-01 --to 2013-03-31 --yes"
)
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition, together with --to.")
@click.option("--to", "last", metavar="KEY", help="Last partition (inclusive).")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option("--former", is_flag=True, help="All partitions that have predictions and are no longer declared.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def drop_command(  # noqa: PLR0913 - the options of the command
    folder: Path | None,
    pipeline: str,
    first: str | None,
    last: str | None,
    only: str | None,
    *,
    former: bool,
    yes: bool,
) -> None:
    """Delete partitions of PIPELINE for good, after saying what that is.

    Their rows leave every table and the published copy, their feature files are removed, and Dagster forgets their
    materializations; the table dropped_partitions tells who deleted them and when. Schedules and `run` leave them out
    until one is named: batch-platform run PIPELINE --partition KEY makes it again. Models stay as they are. Names the
    assets of yours whose automation condition waits for every partition, and so from now on for ever.
    """
    project, now = find_project(folder), datetime.now(UTC)
    wiring = project.pipeline(pipeline)
    if former and (only or first or last):
        msg = f"{pipeline}: --former selects the partitions that are no longer declared, and no others."
        raise WrongUseError(msg, hint="leave --partition, --from and --to out.")
    if not former and only is None and (first is None or last is None):
        msg = f"{pipeline}: no partition is named."
        hint = (
            "name one with --partition, or a range with both --from and --to. To delete the whole pipeline, remove its "
            f"declaration and call batch-platform gc --drop {pipeline}."
        )
        raise WrongUseError(msg, hint=hint)
    if former:
        asked = former_partitions(wiring.spec, wiring.pipeline().published_ledgers().scores.values())
    else:
        asked = asked_for(wiring.spec, now, first, last, only)
    keys = [partition.key for partition in asked]
    if not project.home.root.exists():
        msg = f"{pipeline}: {project.home.root} does not exist, so there is nothing to delete."
        raise WrongUseError(msg, hint=f"{HOME_VARIABLE} names the home.")
    holding = held_partitions(wiring.pipeline(), keys)
    _announce(pipeline, asked, holding)
    refusal = f"{pipeline}: nothing is deleted"
    if holding.partitions and not yes and not terminal.require_confirmed(refusal, "Delete all of it?"):
        terminal.say("Nothing is deleted.")
        return
    with open_instance(project) as instance:
        _require_free(wiring, instance, keys)
        stamp = Stamp(f"drop-{uuid4().hex[:12]}", now, clock=lambda: datetime.now(UTC))
        # Dagster forgets them first: if this process is killed in between, the next run tells Dagster of them again.
        for asset in _PARTITIONED:
            wipe_partitions(instance, wiring.key(asset), keys)
        drop_partitions(wiring.pipeline(), keys, getpass.getuser(), stamp)
    waiting = _silenced(project, wiring)
    terminal.report({"pipeline": pipeline, "run_id": stamp.run_id, "dropped": holding, "silenced": waiting})
    if holding.partitions:
        terminal.say("Deleted.")
    if waiting:
        terminal.say(
            f"{listed(waiting)}: its automation condition waits until no partition is missing, and the deleted ones stay "
            "missing. Leave that out: AutomationCondition.eager().without(~AutomationCondition.any_deps_missing())"
        )


def _silenced(project: Project, wiring: Wiring) -> list[str]:
    """The project's assets without partitions that follow a partitioned asset of the pipeline only while none of its partitions is missing."""
    keys, nothing_missing = set(wiring.keys(_PARTITIONED)), ~dg.AutomationCondition.any_deps_missing()
    return sorted(
        spec.key.to_user_string()
        for spec in project.definitions.resolve_all_asset_specs()
        if spec.partitions_def is None
        and keys.intersection(dep.asset_key for dep in spec.deps)
        and spec.automation_condition is not None
        and nothing_missing in spec.automation_condition.children
    )


def _announce(pipeline: str, asked: Sequence[Partition], holding: HeldPartitions) -> None:
    if not holding.partitions:
        which = f" of {terminal.spans(ranges(asked))}" if asked else ""
        terminal.say(f"{pipeline}: nothing is held{which}.")
        return
    held_ranges = ranges(partition for partition in asked if partition.key in holding.partitions)
    terminal.say(f"{pipeline}: to delete for good, {terminal.spans(held_ranges)}")
    for table, rows in holding.rows.items():
        terminal.say(f"  {counted(rows, 'row')} of {table}")
    if holding.files:
        terminal.say(f"  {counted(len(holding.files), 'feature file')}, {decimal(holding.size)}")


def _require_free(wiring: Wiring, instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Raise WrongUseError if a run is working on some partitions."""
    if running := [f"{asset} {key}" for asset, key in sorted(held(wiring, instance)) if key in keys]:
        msg = f"{wiring.spec.name}: a run is working on {listed(running)}; nothing is deleted."
        raise WrongUseError(msg, hint="drop them when the run has ended.")


@terminal.command(
    "erase",
    "erase orders customer=C-1024 --dry-run",
    "erase orders customer=C-1024",
    "erase orders order_id=7 shop=Bonn --json",
)
@click.argument("pipeline")
@click.argument("values", nargs=-1, metavar="KEY=VALUE...", required=True)
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
def erase_command(folder: Path | None, pipeline: str, values: tuple[str, ...], *, dry_run: bool) -> None:
    """Erase the rows of a subject, such as a customer, from everything that PIPELINE holds.

    The subject is named by key columns or kept columns. Its rows leave the feature files, every table, the published copy
    and the deliveries; no partition is stale because of it, and later builds leave the subject out. The table
    batch_platform.erasures proves the erasure by a keyed hash. Models stay: those that learned from the rows are listed.
    """
    project, now = find_project(folder), datetime.now(UTC)
    wiring = project.pipeline(pipeline)
    subject = dict(value.split("=", 1) for value in values if "=" in value)
    if len(subject) < len(values):
        msg = f"{listed(value for value in values if '=' not in value) or 'a column twice'} is not KEY=VALUE."
        raise WrongUseError(msg, hint=f"batch-platform erase {pipeline} {wiring.spec.features.key[0]}=…")
    if not project.home.root.exists():
        msg = f"{pipeline}: {project.home.root} does not exist, so there is nothing to erase."
        raise WrongUseError(msg, hint=f"{HOME_VARIABLE} names the home.")
    run_id = f"erase-{uuid4().hex[:12]}"
    if dry_run:
        holding = held_subject(wiring.pipeline(), subject)
    else:
        with open_instance(project) as instance:
            if running := {asset for asset, _ in held(wiring, instance)}:
                msg = f"{pipeline}: a run is working on {listed(running)}; nothing is erased."
                raise WrongUseError(msg, hint="erase the subject when the run has ended.")
            stamp = Stamp(run_id, now, clock=lambda: datetime.now(UTC))
            holding = erase_subject(wiring.pipeline(), subject, getpass.getuser(), stamp)
    terminal.report({"pipeline": pipeline, "run_id": run_id, "erased": not dry_run, "held": holding})
    _show_erased(pipeline, listed(values), holding, dry_run=dry_run)


def _show_erased(pipeline: str, subject: str, holding: HeldSubject, *, dry_run: bool) -> None:
    verb = "to erase" if dry_run else "erased"
    if holding.rows:
        terminal.say(f"{pipeline}: {verb} from {counted(len(holding.partitions), 'partition')}")
    elif holding.erased_at is not None:
        terminal.say(f"{pipeline}: {subject} was erased at {holding.erased_at:%Y-%m-%d %H:%M:%S} UTC; no row is left.")
    else:
        terminal.say(f"{pipeline}: no row has {subject}; there is nothing to erase.")
    for table, rows in holding.rows.items():
        terminal.say(f"  {counted(rows, 'row')} of {table}")
    if holding.versions:
        terminal.say(f"models trained on these partitions, which stay: {listed(holding.versions)}")
    if holding.rows:
        terminal.say("the sources are not changed: later builds leave these rows out, but delete them there too")
        terminal.say(
            "earlier backups keep the rows, and restoring one brings them back: remove them, or erase again after a restore"
        )
    if delivered := [receiver for receiver in holding.receivers if receiver not in holding.to_tell]:
        terminal.say(f"{'to deliver' if dry_run else 'delivered'} again to: {listed(delivered)}")
    for receiver, reason in holding.to_tell.items():
        terminal.say(f"tell the receiver {receiver!r}: {reason}")
    if holding.remains:
        terminal.say(f"texts that only the erased rows had are still in: {listed(holding.remains)}")
    if any(place.startswith("models/") for place in holding.remains):
        terminal.say(f"a bundle keeps its categories: batch-platform train {pipeline} --force trains one without them")


@terminal.command("gc", "gc --dry-run", "gc --runs-older-than '30 days'", "gc --keep '90 days' --drop former_pipeline")
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
def gc_command(  # noqa: PLR0913 - the options of the command
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
    if left := [name for name in orphans if name not in dropped]:
        terminal.say(f"batch-platform gc --drop {left[0]} removes it for good.")


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
