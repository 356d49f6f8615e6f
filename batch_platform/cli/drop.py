"""The `drop` command: delete partitions of a pipeline for good."""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click
import dagster as dg
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.project import Project, find_project
from batch_platform.cli.run import asked_for
from batch_platform.cli.running import open_instance
from batch_platform.components.dagster_records import wipe_partitions
from batch_platform.components.runs import held
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError, counted, listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.cleanup import HeldPartitions, drop_partitions, held_partitions
from batch_platform.pipeline.former_partitions import former_partitions
from batch_platform.planning.steps import ranges
from batch_platform.warehouse.home import HOME_VARIABLE

_PARTITIONED = ("features", "predictions", "drift", "performance")


@click.command(
    "drop",
    epilog=terminal.examples(
        "drop flight_delays --partition 2013-03-01", "drop flight_delays --from 2013-03-01 --to 2013-03-31 --yes"
    ),
)
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition, together with --to.")
@click.option("--to", "last", metavar="KEY", help="Last partition (inclusive).")
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@click.option("--former", is_flag=True, help="All partitions that have predictions and are no longer declared.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@terminal.reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
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
        asked = asked_for(wiring, now, first, last, only)
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
