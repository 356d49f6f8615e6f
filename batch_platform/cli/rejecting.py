"""The commands on rows that were kept aside: `rejected` lists them, `replay` scores them again after a fix."""

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
from batch_platform.warehouse.ledger import ScoreRun


@dataclass(frozen=True)
class Replay:
    """What became of the rejected rows of some partitions."""

    pipeline: str
    partitions: int  # that were committed anew
    rows_scored: int  # that were rejected and are predictions now
    rows_gone: int  # that were rejected and are no longer among the features
    rows_rejected: int  # that still are


def show_rejected(wiring: Wiring, partition_key: str | None, most: int, *, as_json: bool) -> None:
    """The rejected rows of a pipeline.

    Raises:
        WrongUseError: There is no such partition.
    """
    if partition_key is not None:
        wiring.spec.partitions.calendar.named(partition_key)
    name, home = wiring.spec.name, wiring.pipeline().home
    found = rejections(name, home, partition_key=partition_key, most=None if as_json else most)
    if as_json:
        terminal.show_json(found)
        return
    where = f", partition {partition_key}" if partition_key else ""
    if not found.rows:
        terminal.say(f"{name}{where}: no row is rejected.")
        return
    terminal.say(f"{name}{where}: {found.rows:,} rejected rows")
    terminal.show_table(("rows", "reason"), [(count, reason) for reason, count in found.reasons.items()])
    terminal.say()
    columns = ("partition", "key", "column", "value", "reason")
    terminal.show_table(columns, [_line(row) for row in found.listed])
    if found.rows > len(found.listed):
        terminal.say(f"and {found.rows - len(found.listed):,} more; --limit lists more, --json all with every value.")
    terminal.say(f"After a fix: batch-platform replay {name}")


def replay_rejected(
    project: Project, wiring: Wiring, partitions: Sequence[Partition], now: datetime, *, as_json: bool
) -> None:
    """Score the rejected rows of partitions again; measure anew what had been measured.

    Raises:
        RunFailedError: A run failed, or partitions could not be replayed; what could be is committed.
    """
    name, pipeline = wiring.spec.name, wiring.pipeline()
    before = _with_rejected(pipeline.state().scores, partitions)
    due = [partition for partition in partitions if partition.key in before]
    if not as_json:
        terminal.say(
            f"{name}: replay {sum(run.rows_rejected for run in before.values()):,} rows of {len(due)} partitions"
        )
    options = RunOptions(partitions=due, now=now, replay=True)
    with open_instance(project) as instance, terminal.progress({}, quiet=as_json) as listener:
        runs = Runs(wiring, project, instance, options, listener)
        failure: RunFailedError | None = None
        try:
            runs.bring([Item("predictions", partition, "replay") for partition in due], "predictions")
        except RunFailedError as error:
            failure = error
        runs.bring(plan_run(wiring, options).of("performance"), "performance")
    if failure is not None:
        raise failure
    done = _outcome(name, before, pipeline.state().scores)
    if as_json:
        terminal.show_json(done)
        return
    terminal.say(
        f"{done.partitions} partitions committed: {done.rows_scored:,} rows scored, {done.rows_gone:,} no longer there, "
        f"{done.rows_rejected:,} still rejected."
    )


def _with_rejected(scores: dict[str, ScoreRun], partitions: Sequence[Partition]) -> dict[str, ScoreRun]:
    found = {partition.key: scores[partition.key] for partition in partitions if partition.key in scores}
    return {key: run for key, run in found.items() if run.rows_rejected}


def _outcome(pipeline: str, before: dict[str, ScoreRun], scores: dict[str, ScoreRun]) -> Replay:
    after = {key: scores[key] for key in before}
    return Replay(
        pipeline=pipeline,
        partitions=sum(after[key].seq != run.seq for key, run in before.items()),
        rows_scored=sum(after[key].rows_scored - run.rows_scored for key, run in before.items()),
        rows_gone=sum(run.rows_in - after[key].rows_in for key, run in before.items()),
        rows_rejected=sum(run.rows_rejected for run in after.values()),
    )


def _line(row: RejectedRow) -> tuple[object, ...]:
    key = " ".join(f"{name}={value}" for name, value in row.key.items())
    value = "" if row.column is None else repr(row.row.get(row.column))
    return row.partition, key, row.column, value, row.reason
