"""The `replay` command: score the partitions that have rejected rows again, after a fix."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.project import find_project
from batch_platform.cli.run import asked_for
from batch_platform.cli.running import Runs, open_instance
from batch_platform.declaration.errors import RunFailedError, counted
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.steps import Item
from batch_platform.pipeline.wanted import PlanRequest


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

    Partitions whose labels are known are evaluated again as well.
    """
    project = replace(find_project(folder), only=pipeline)
    wiring = project.pipeline(pipeline)
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, only)
    scores = wiring.pipeline().state().scores
    due = [partition for partition in partitions if (run := scores.get(partition.key)) and run.rows_rejected]
    before = [scores[partition.key] for partition in due]
    if not due:
        terminal.report({"pipeline": pipeline, "partitions": 0, "rows_scored": 0, "rows_gone": 0, "rows_rejected": 0})
        terminal.say(f"{pipeline}: no rejected rows: there is nothing to replay.")
        return
    rejected = sum(run.rows_rejected for run in before)
    terminal.say(f"{pipeline}: replaying {counted(len(due), 'partition')} with {counted(rejected, 'rejected row')}")
    with open_instance(project) as instance, terminal.progress({}) as listener:
        runs = Runs(wiring, project, instance, listener)
        failure: RunFailedError | None = None
        try:
            items = [Item("predictions", partition, "replay") for partition in due]
            runs.bring(items, {"predictions": {"replay": True}})
        except RunFailedError as error:
            failure = error
        runs.bring(make_plan(wiring.spec, wiring.pipeline().state(), PlanRequest(now, due)).of("performance"))
    if failure is not None:
        raise failure
    if error := runs.error():
        raise error
    scores = wiring.pipeline().state().scores
    after = [scores[partition.key] for partition in due]
    committed = sum(new.seq != old.seq for new, old in zip(after, before, strict=True))
    more = sum(run.rows_scored for run in after) - sum(run.rows_scored for run in before)
    gone = sum(run.rows_in for run in before) - sum(run.rows_in for run in after)
    rejected = sum(run.rows_rejected for run in after)
    counts = {"partitions": committed, "rows_scored": more, "rows_gone": gone, "rows_rejected": rejected}
    terminal.report({"pipeline": pipeline, **counts})
    terminal.say(
        f"{counted(committed, 'partition')} committed: {more:,} more rows scored, {gone:,} fewer rows in the features, "
        f"{rejected:,} rows still rejected."
    )
