"""The `replay` command: score the partitions that have rejected rows again, after a fix."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.cli.execution import RunFailedError, RunOptions, Runs, open_instance, plan_run
from batch_platform.cli.options import reports
from batch_platform.cli.project import find_project
from batch_platform.cli.run import asked_for
from batch_platform.pipeline.plan import Item


@dataclass(frozen=True)
class Replay:
    """What a replay changed in the partitions that had rejected rows."""

    pipeline: str
    partitions: int  # committed by the replay
    rows_scored: int  # how many more rows are scored than before
    rows_gone: int  # how many fewer rows the features have than before
    rows_rejected: int  # rows that are still rejected


@click.command("replay")
@click.argument("pipeline")
@click.option("--from", "first", metavar="KEY", help="First partition. Default: the first one with rejected rows.")
@click.option(
    "--to", "last", metavar="KEY", help="Last partition (inclusive). Default: the last one with rejected rows."
)
@click.option("--partition", "only", metavar="KEY", help="A single partition.")
@reports
@click.pass_obj
def command(  # noqa: PLR0913 - the options of the command
    folder: Path | None, pipeline: str, first: str | None, last: str | None, only: str | None, *, as_json: bool
) -> None:
    """Score partitions of PIPELINE with rejected rows again, after the sources or the rules were fixed.

    Partitions whose labels are known are evaluated again as well.
    """
    project = find_project(folder)
    wiring = project.pipeline(pipeline)
    now = datetime.now(UTC)
    partitions = asked_for(wiring, now, first, last, only)
    scores = wiring.pipeline().state().scores
    due = [partition for partition in partitions if (run := scores.get(partition.key)) and run.rows_rejected]
    before = [scores[partition.key] for partition in due]
    if not as_json:
        rejected = sum(run.rows_rejected for run in before)
        terminal.say(f"{pipeline}: replaying {len(due)} partitions with {rejected:,} rejected rows")
    options = RunOptions(partitions=due, now=now, replay=True)
    with open_instance(project) as instance, terminal.progress({}, quiet=as_json) as listener:
        runs = Runs(wiring, project, instance, options, listener)
        failure: RunFailedError | None = None
        try:
            runs.bring([Item("predictions", partition, "replay") for partition in due])
        except RunFailedError as error:
            failure = error
        runs.bring(plan_run(wiring, options).of("performance"))
    if failure is not None:
        raise failure
    scores = wiring.pipeline().state().scores
    after = [scores[partition.key] for partition in due]
    done = Replay(
        pipeline=pipeline,
        partitions=sum(new.seq != old.seq for new, old in zip(after, before, strict=True)),
        rows_scored=sum(run.rows_scored for run in after) - sum(run.rows_scored for run in before),
        rows_gone=sum(run.rows_in for run in before) - sum(run.rows_in for run in after),
        rows_rejected=sum(run.rows_rejected for run in after),
    )
    if as_json:
        terminal.show_json(done)
        return
    terminal.say(
        f"{done.partitions} partitions committed: {done.rows_scored:,} more rows scored, "
        f"{done.rows_gone:,} fewer rows in the features, {done.rows_rejected:,} rows still rejected."
    )
