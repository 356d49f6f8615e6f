"""The `backup` command: a consistent copy of the home while runs go on."""

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.filesize import decimal

from batch_platform.cli import terminal
from batch_platform.cli.instance import records_elsewhere
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import counted
from batch_platform.operations.archive import Archive
from batch_platform.operations.backup import back_up, read_backup
from batch_platform.warehouse.lock import staging_folder


@click.command(
    "backup",
    epilog=terminal.examples(
        "backup /mnt/backup/scores", "backup s3://backup/scores --keep 30", "backup DEST --verify"
    ),
)
@click.argument("place", metavar="DEST")
@click.option("--keep", type=click.IntRange(min=1), help="Number of backups to keep. Default: all.")
@click.option("--verify", "verified", is_flag=True, help="Read the backup back as a whole, and open its databases.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, place: str, keep: int | None, *, verified: bool) -> None:
    """Back the home up to a folder or an address such as s3://bucket/folder, while runs go on.

    Only what earlier backups do not hold is copied. A backup that is killed leaves the earlier ones as they are.
    """
    home, archive = find_project(folder).home, Archive.at(place)
    made = back_up(home, archive, datetime.now(UTC), keep=keep)
    terminal.say(
        f"Backup {made.backup} of {home.root} is in {archive.root}: {counted(made.files, 'file')}, {decimal(made.size)}; "
        f"{decimal(made.written)} of it new."
    )
    if made.removed:
        terminal.say(f"{counted(len(made.removed), 'earlier backup')} removed.")
    if elsewhere := records_elsewhere(home):
        terminal.say(f"Dagster's records are not in it: {elsewhere}. Back them up there.")
    read = None
    if verified:
        with staging_folder(home, "verify") as aside:
            read = read_backup(archive, archive.backup(made.backup), aside)
        terminal.say(
            f"It was read as a whole: {read.rows:,} rows in {read.tables} tables of the warehouse, {read.records:,} records "
            f"in {read.databases} databases of Dagster."
        )
    terminal.report({"made": made, "read": read, "records_elsewhere": elsewhere})
