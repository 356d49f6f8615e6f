"""The `restore` command: make a lost or damaged warehouse again from the published copy."""

from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import WrongUseError
from batch_platform.warehouse.restore import restore_from_published


@click.command("restore", epilog=terminal.examples("restore --from-published", "restore --from-published --json"))
@click.option("--from-published", is_flag=True, help="Make the warehouse from the newest published copy.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, *, from_published: bool) -> None:
    """Make the warehouse again after its file was lost, damaged or replaced by another one.

    A file that is there is set aside, never removed. What was committed and not yet published is done again by the next run.
    """
    if not from_published:
        msg = (
            "restore makes the warehouse from the published copy; a backup is restored by copying the whole home back."
        )
        raise WrongUseError(msg, hint="batch-platform restore --from-published")
    restored = restore_from_published(find_project(folder).home, datetime.now(UTC))
    terminal.report(restored)
    terminal.say(f"{restored.warehouse} is restored from {restored.copy.name}.")
    if restored.set_aside is not None:
        terminal.say(f"The file that was there is kept as {restored.set_aside.name}.")
    terminal.say("Next: batch-platform status shows what is missing; batch-platform run does it again.")
