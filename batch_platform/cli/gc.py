"""The `gc` command: list the files of a home that nothing refers to, and remove them."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.cleanup import find_garbage, remove_garbage


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option(
    "--keep", default="30 days", show_default=True, help="How long to keep versions that were never promoted."
)
@terminal.reports
@click.pass_obj
def command(folder: Path | None, keep: str, *, dry_run: bool) -> None:
    """Remove files that nothing refers to.

    These are bundles that were never promoted, feature files of partitions that no longer exist, and what killed runs
    left behind.
    """
    project, now = find_project(folder), datetime.now(UTC)
    try:
        trained_before = parse_duration(keep).before(now, ZoneInfo("UTC"))
    except ValueError as error:
        msg = f"--keep: {error}."
        raise WrongUseError(msg, hint="for example --keep '60 days'") from error
    specs = [wiring.spec for wiring in project.pipelines.values()]
    garbage = find_garbage(specs, project.home, now, trained_before=trained_before)
    if not dry_run:
        garbage = remove_garbage(garbage, project.home, Stamp(run_id="gc", at=now))
    size = sum(item.size for item in garbage)
    terminal.report({"removed": not dry_run, "size": size, "found": garbage})
    for item in garbage:
        terminal.say(f"{item.path.relative_to(project.home.root)}  {decimal(item.size)}  {item.reason}")
    verb = "could be removed" if dry_run else "removed"
    terminal.say(f"{len(garbage)} {verb}, {decimal(size)}." if garbage else "Nothing to remove.")
