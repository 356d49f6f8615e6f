"""The `rejected` command: list the rows of a pipeline that broke the contract, and why."""

from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.scoring.rejected_rows import RejectedRow, rejections


@click.command("rejected")
@click.argument("pipeline")
@click.option("--partition", "only", metavar="KEY", help="A single partition. Default: all partitions.")
@click.option("--limit", default=20, show_default=True, help="Maximum number of rows to list; --json lists all rows.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, only: str | None, limit: int) -> None:
    """List the rows of PIPELINE that broke the contract, each with its reason."""
    wiring = find_project(folder).pipeline(pipeline)
    if only is not None:
        wiring.spec.partitions.calendar.named(only)
    rejected = rejections(
        pipeline, wiring.pipeline().home, partition_key=only, most=None if terminal.is_json() else limit
    )
    if terminal.is_json():
        terminal.report(rejected)
        return
    where = f", partition {only}" if only else ""
    if not rejected.rows:
        terminal.say(f"{pipeline}{where}: no rejected rows.")
        return
    terminal.say(f"{pipeline}{where}: {rejected.rows:,} rejected rows")
    terminal.show_table(("rows", "reason"), [(count, reason) for reason, count in rejected.reasons.items()])
    terminal.say()
    columns = ("partition", "key", "column", "value", "reason")
    terminal.show_table(columns, [_line(row) for row in rejected.listed])
    if rejected.rows > len(rejected.listed):
        more = rejected.rows - len(rejected.listed)
        terminal.say(f"and {more:,} more rows. Hint: --limit N lists more; --json lists all of them with every value.")
    terminal.say(f"Hint: after a fix, batch-platform replay {pipeline} scores these partitions again.")


def _line(row: RejectedRow) -> tuple[object, ...]:
    key = " ".join(f"{name}={value}" for name, value in row.key.items())
    value = "" if row.column is None else repr(row.row.get(row.column))
    return row.partition, key, row.column, value, row.reason
