"""The `rejected` command: list the rows of a pipeline that broke the contract, and why."""

from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.declaration.errors import counted
from batch_platform.scoring.rejected_rows import RejectedRow, Rejections, rejections


@click.command(
    "rejected",
    epilog=terminal.examples("rejected flight_delays --partition 2013-03-01", "rejected flight_delays --limit 100"),
)
@click.argument("pipeline")
@click.option("--partition", "only", metavar="KEY", help="A single partition. Default: all partitions.")
@click.option("--limit", default=20, show_default=True, help="Maximum number of rows to list; --json lists all rows.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, only: str | None, limit: int) -> None:
    """List the rows of PIPELINE that broke the contract, each with its reason.

    If there were too many in a partition, so that it was not published, they are shown until it is scored again.
    """
    declared = find_project(folder).declared_as(pipeline)
    if only is not None:
        declared.spec.partitions.calendar.named(only)
    asked, most = None if only is None else [only], None if terminal.is_json() else limit
    rejected = rejections(pipeline, declared.home, partition_keys=asked, most=most)
    terminal.report(rejected)
    where, refused = f"{pipeline}, partition {only}" if only else pipeline, rejected.refused
    if rejected.rows:
        terminal.say(f"{where}: {counted(rejected.rows, 'rejected row')}")
        _show(rejected)
        terminal.say(f"Hint: after a fix, batch-platform replay {pipeline} scores these partitions again.")
    if refused is not None:
        if rejected.rows:
            terminal.say()
        keys = sorted({row.partition for row in refused.listed})
        budget = declared.spec.features.rejected_budget
        terminal.say(
            f"{where}: {refused.rows:,} rows refused, more than max_rejected ({budget}) allowed when last scored"
        )
        _show(refused)
        again = f"--partition {keys[0]}" if len(keys) == 1 else f"--from {keys[0]} --to {keys[-1]}"
        terminal.say(
            f"Hint: nothing of these attempts is published. Correct the source or the features, or raise "
            f"features.max_rejected; then batch-platform run {pipeline} {again}"
        )
    if not rejected.rows and refused is None:
        terminal.say(f"{where}: no rejected rows.")


def _show(rejected: Rejections) -> None:
    terminal.show_table(("rows", "reason"), [(count, reason) for reason, count in rejected.reasons.items()])
    terminal.say()
    columns = ("partition", "key", "column", "value", "reason")
    terminal.show_table(columns, [_line(row) for row in rejected.listed])
    if rejected.rows > len(rejected.listed):
        more = rejected.rows - len(rejected.listed)
        terminal.say(f"and {more:,} more rows. Hint: --limit N lists more; --json lists all of them with every value.")


def _line(row: RejectedRow) -> tuple[object, ...]:
    key = " ".join(f"{name}={value}" for name, value in row.key.items())
    value = "" if row.column is None else repr(row.row.get(row.column))
    return row.partition, key, row.column, value, row.reason
