"""The commands on rejected rows: `rejected` lists them, `replay` scores their partitions again after a fix."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from batch_platform.cli import terminal
from batch_platform.cli.execution import RunFailedError, RunOptions, Runs, open_instance, plan_run
from batch_platform.cli.project import Project
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.pipeline.plan import Item
from batch_platform.scoring.rejected_rows import RejectedRow, rejections


@dataclass(frozen=True)
class Replay:
    """What a replay changed in the partitions that had rejected rows."""

    pipeline: str
    partitions: int  # committed by the replay
    rows_scored: int  # how many more rows are scored than before
    rows_gone: int  # how many fewer rows the features have than before
    rows_rejected: int  # rows that are still rejected


def show_rejected(wiring: Wiring, partition_key: str | None, most: int, *, as_json: bool) -> None:
    """Show the rejected rows of a pipeline.

    Raises:
        WrongUseError: The partition does not exist.
    """
    if partition_key is not None:
        wiring.spec.partitions.calendar.named(partition_key)
    name, home = wiring.spec.name, wiring.pipeline().home
    rejected = rejections(name, home, partition_key=partition_key, most=None if as_json else most)
    if as_json:
        terminal.show_json(rejected)
        return
    where = f", partition {partition_key}" if partition_key else ""
    if not rejected.rows:
        terminal.say(f"{name}{where}: no rejected rows.")
        return
    terminal.say(f"{name}{where}: {rejected.rows:,} rejected rows")
    terminal.show_table(("rows", "reason"), [(count, reason) for reason, count in rejected.reasons.items()])
    terminal.say()
    columns = ("partition", "key", "column", "value", "reason")
    terminal.show_table(columns, [_line(row) for row in rejected.listed])
    if rejected.rows > len(rejected.listed):
        more = rejected.rows - len(rejected.listed)
        terminal.say(f"and {more:,} more rows. Hint: --limit N lists more, --json lists all of them with every value.")
    terminal.say(f"Hint: after a fix, batch-platform replay {name} scores these partitions again.")


def replay_rejected(
    project: Project, wiring: Wiring, partitions: Sequence[Partition], now: datetime, *, as_json: bool
) -> None:
    """Score the partitions that have rejected rows again, and evaluate them again where their labels are known.

    Raises:
        RunFailedError: A run failed, or some partitions were refused; all others are committed.
    """
    name, pipeline = wiring.spec.name, wiring.pipeline()
    scores = pipeline.state().scores
    due = [partition for partition in partitions if (run := scores.get(partition.key)) and run.rows_rejected]
    before = [scores[partition.key] for partition in due]
    if not as_json:
        rejected = sum(run.rows_rejected for run in before)
        terminal.say(f"{name}: replaying {len(due)} partitions with {rejected:,} rejected rows")
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
    scores = pipeline.state().scores
    after = [scores[partition.key] for partition in due]
    done = Replay(
        pipeline=name,
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


def _line(row: RejectedRow) -> tuple[object, ...]:
    key = " ".join(f"{name}={value}" for name, value in row.key.items())
    value = "" if row.column is None else repr(row.row.get(row.column))
    return row.partition, key, row.column, value, row.reason
