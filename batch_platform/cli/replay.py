"""The `replay` command: build and score the partitions that have rejected rows again, after a fix."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.cli.run import asked_for, bring_up_to_date
from batch_platform.declaration.errors import RunFailedError, counted
from batch_platform.planning.request import PlanRequest


@click.command(
    "replay", epilog=terminal.examples("replay flight_delays", "replay flight_delays --from 2013-03-01 --to 2013-03-31")
)
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one with rejected rows.")
@click.option(
    "--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one with rejected rows."
)
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@terminal.reports
@click.pass_obj
def command(folder: Path | None, pipeline: str, first: str | None, last: str | None, only: str | None) -> None:
    """Score partitions of PIPELINE with rejected rows again, after the sources or the rules were fixed.

    It is `run --force` for these partitions alone: their features are built again, and those whose labels are known are
    evaluated again as well.
    """
    project = replace(find_project(folder), only=pipeline)
    wiring, now = project.pipeline(pipeline), datetime.now(UTC)
    runs = wiring.pipeline().state().scores
    asked = asked_for(wiring, now, first, last, only)
    due = [partition for partition in asked if (run := runs.get(partition.key)) and run.rows_rejected]
    if not due:
        terminal.report({"pipeline": pipeline, "partitions": 0})
        terminal.say(f"{pipeline}: no rejected rows: there is nothing to replay.")
        return
    rejected = sum(runs[partition.key].rows_rejected for partition in due)
    terminal.say(f"{pipeline}: replaying {counted(len(due), 'partition')} with {counted(rejected, 'rejected row')}")
    request = PlanRequest(now, due, force=True, recheck=True, serve_all=True)
    outcome = bring_up_to_date(project, wiring, request, named=True)
    terminal.report(outcome)
    if outcome.error:
        raise RunFailedError(outcome.error)
