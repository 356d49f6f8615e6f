"""The `gc` command: list what nothing refers to in a home, and remove it."""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.project import Project
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.notation import parse_duration
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.cleanup import Garbage, find_garbage, remove_garbage


@dataclass(frozen=True)
class Cleaning:
    """What was found, and whether it is gone."""

    removed: bool
    size: int  # bytes
    found: list[Garbage]


def clean(project: Project, now: datetime, keep: str, *, dry_run: bool, as_json: bool) -> None:
    """Remove what nothing refers to, or only list it.

    Raises:
        WrongUseError: `keep` is no duration.
    """
    try:
        before = parse_duration(keep).before(now, ZoneInfo("UTC"))
    except ValueError as error:
        msg = f"--keep: {error}."
        raise WrongUseError(msg) from error
    specs = [wiring.spec for wiring in project.pipelines.values()]
    found = find_garbage(specs, project.home, now, trained_before=before)
    if not dry_run:
        remove_garbage(found, project.home, Stamp(run_id="gc", at=now))
    report = Cleaning(removed=not dry_run, size=sum(one.size for one in found), found=found)
    if as_json:
        terminal.show_json(report)
        return
    for one in found:
        terminal.say(f"{one.path.relative_to(project.home.root)}  {decimal(one.size)}  {one.reason}")
    verb = "could be removed" if dry_run else "removed"
    terminal.say(f"{len(found)} {verb}, {decimal(report.size)}." if found else "Nothing to remove.")
