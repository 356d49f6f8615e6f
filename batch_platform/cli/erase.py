"""The `erase` command: remove the rows of a subject, such as a customer, from a pipeline for good."""

import getpass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.cli.running import open_instance
from batch_platform.components.runs import held
from batch_platform.declaration.errors import WrongUseError, counted, listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.operations.erase import erase_subject, held_subject
from batch_platform.operations.subjects import HeldSubject
from batch_platform.warehouse.home import HOME_VARIABLE


@click.command(
    "erase",
    epilog=terminal.examples(
        "erase orders customer=C-1024 --dry-run",
        "erase orders customer=C-1024",
        "erase orders order_id=7 shop=Bonn --json",
    ),
)
@click.argument("pipeline")
@click.argument("values", nargs=-1, metavar="KEY=VALUE...", required=True)
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, values: tuple[str, ...], *, dry_run: bool) -> None:
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
    _show(pipeline, listed(values), holding, dry_run=dry_run)


def _show(pipeline: str, subject: str, holding: HeldSubject, *, dry_run: bool) -> None:
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
