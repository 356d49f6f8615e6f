"""The `restore` command: a backup into an empty home, or a lost or damaged warehouse from the published copy."""

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.instance import prepare_instance, records_elsewhere
from batch_platform.cli.project import Project, find_project
from batch_platform.declaration.errors import WrongUseError, counted
from batch_platform.operations.archive import Archive
from batch_platform.operations.backup import backup_to_restore, restore_backup
from batch_platform.warehouse.recovery import restore_from_published


@click.command(
    "restore",
    epilog=terminal.examples(
        "restore s3://backup/scores", "restore /mnt/backup --backup 20260301T050000Z", "restore --from-published"
    ),
)
@click.argument("place", metavar="[DEST]", required=False)
@click.option("--backup", "name", help="Name of the backup. Default: the newest one.")
@click.option("--from-published", is_flag=True, help="Make the warehouse from the newest published copy.")
@click.option("--yes", is_flag=True, help="Replace the warehouse without asking.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, place: str | None, name: str | None, *, from_published: bool, yes: bool) -> None:
    """Restore a backup in DEST into an empty home, or a lost or damaged warehouse from the home's own published copy.

    Nothing that is there is removed: a backup needs an empty home, and --from-published sets the file of the warehouse aside,
    after asking.
    What was committed and is in neither is done again by the next run.
    """
    if from_published == (place is not None):
        msg = "restore takes either the place of backups or --from-published."
        raise WrongUseError(msg, hint="batch-platform restore DEST, or batch-platform restore --from-published")
    project = find_project(folder)
    if place is not None:
        _restore_backup(project, Archive.at(place), name)
    else:
        warehouse = project.home.warehouse
        question = f"Set {warehouse} aside, and what it holds that was not published?"
        if warehouse.exists() and not yes and not terminal.require_confirmed(f"{warehouse} is not replaced", question):
            terminal.say("Nothing is replaced.")
            return
        restored = restore_from_published(project.home, datetime.now(UTC))
        terminal.report(restored)
        terminal.say(f"{restored.warehouse} is restored from {restored.copy.name}.")
        if restored.set_aside is not None:
            terminal.say(f"The file that was there is kept as {restored.set_aside.name}.")
    terminal.say("Next: batch-platform status shows what is missing; batch-platform run does it again.")


def _restore_backup(project: Project, archive: Archive, name: str | None) -> None:
    backup = archive.backup(name) if name else backup_to_restore(archive, project.home)
    if backup is None:
        msg = f"{archive.root} holds no complete backup."
        raise WrongUseError(msg, hint="batch-platform backup DEST makes one.")
    restore_backup(archive, backup, project.home)
    ended, elsewhere = 0, records_elsewhere(project.home)
    if elsewhere is None and (project.home.dagster / "dagster.yaml").exists():
        import dagster as dg

        from batch_platform.components.processes import cancel_unfinished_runs

        with dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance:
            ended = cancel_unfinished_runs(instance, f"It was in progress when the backup {backup.name} was made.")
    terminal.report({"backup": backup.name, "files": len(backup.files), "size": backup.size, "canceled_runs": ended})
    size = f"{counted(len(backup.files), 'file')}, {decimal(backup.size)}"
    terminal.say(f"{project.home.root} is restored from the backup {backup.name}: {size}.")
    if ended:
        terminal.say(f"{counted(ended, 'run')} recorded as in progress {'is' if ended == 1 else 'are'} now canceled.")
    if elsewhere:
        terminal.say(f"Dagster's records are not in it: {elsewhere}. The next tick tells them what is done.")
