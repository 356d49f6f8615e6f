"""The `gc` command: list the files of a home that nothing refers to, and remove them."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import WrongUseError, counted, named
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.cleanup import find_garbage, remove_garbage
from batch_platform.pipeline.rename import drop_pipelines, find_orphans


@click.command("gc", epilog=terminal.examples("gc --dry-run", "gc --keep '90 days' --drop former_pipeline"))
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option(
    "--keep", default="30 days", show_default=True, help="How long to keep versions that were never promoted."
)
@click.option(
    "--drop",
    "dropped",
    multiple=True,
    metavar="NAME",
    help="Pipeline to remove that nothing declares any more; repeatable.",
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, keep: str, dropped: tuple[str, ...], *, dry_run: bool) -> None:
    """Remove files that nothing refers to.

    These are bundles that were never promoted, feature files of partitions that no longer exist, and what killed runs
    left behind. Pipelines that nothing declares any more are listed, and removed only if --drop names them: their tables,
    ledgers, features and models.
    """
    project, now = find_project(folder), datetime.now(UTC)
    try:
        trained_before = parse_duration(keep).before(now, ZoneInfo("UTC"))
    except ValueError as error:
        msg = f"--keep: {error}."
        raise WrongUseError(msg, hint="for example --keep '60 days'") from error
    if not project.home.root.exists():
        terminal.report({"removed": not dry_run, "size": 0, "found": [], "orphans": []})
        terminal.say(f"Nothing to remove: {project.home.root} does not exist.")
        return
    specs = [wiring.spec for wiring in project.pipelines.values()]
    orphans = find_orphans({*project.pipelines, *(item.name for item in project.broken)}, project.home)
    for name in dropped:
        named(name, orphans, f"No undeclared pipeline is called {name!r}; there are")
    garbage = find_garbage(specs, project.home, now, trained_before=trained_before)
    if not dry_run:
        garbage = remove_garbage(garbage, project.home, Stamp(run_id="gc", at=now))
        drop_pipelines(project.home, dropped)
    size = sum(item.size for item in garbage)
    terminal.report({"removed": not dry_run, "size": size, "found": garbage, "orphans": list(orphans.values())})
    for item in garbage:
        terminal.say(f"{item.path.relative_to(project.home.root)}  {decimal(item.size)}  {item.reason}")
    verb = "could be removed" if dry_run else "removed"
    terminal.say(f"{len(garbage)} {verb}, {decimal(size)}." if garbage else "Nothing to remove.")
    for name, orphan in orphans.items():
        last = f", the last of {orphan.last_commit:%Y-%m-%d}" if orphan.last_commit else ""
        gone = " removed" if name in dropped and not dry_run else ""
        terminal.say(
            f"{name}: no pipeline of this project;{gone} {counted(orphan.partitions, 'partition')} with "
            f"{counted(orphan.rows, 'prediction')}{last}, {counted(orphan.versions, 'model')}"
        )
    if kept := [name for name in orphans if name not in dropped]:
        terminal.say(
            f"If one was renamed: batch-platform rename {kept[0]} NEW_NAME carries it over; batch-platform gc --drop "
            f"{kept[0]} removes it for good."
        )
