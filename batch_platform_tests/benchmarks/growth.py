"""One pipeline with more and more hourly partitions of 10 rows: what grows with its history.

For each number of partitions, one run makes all of them but the last, from an empty home. Then are measured: the last partition,
`status`, loading the definitions, a tick of the schedules that finds nothing to do, a tick in an empty home, where everything is
due, and a training on the whole history. The backfill and the training are measured once.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import dagster as dg
import polars as pl

from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import find_project
from batch_platform.components import wiring  # noqa: F401 - imported before the clock starts
from batch_platform.pipeline import pipeline  # noqa: F401 - imported before the clock starts
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import (
    COMMAND,
    OURS,
    ROOT,
    Cost,
    Result,
    Spent,
    clocks,
    in_turn,
    medians,
    run,
)
from batch_platform_tests.harness.dagster_project import write_dagster_project, write_defs_yaml
from batch_platform_tests.harness.small_pipeline import small_declaration, small_events

TITLE = "Growth with history; rows are partitions"
START, ROWS = datetime(2020, 1, 1, tzinfo=UTC), 10
PIPELINE, AFTER_ALL = "small", datetime(2025, 3, 1, tzinfo=UTC)
BEFORE_ITS_MODEL = 7 * 24  # hours without predictions
BACKFILL, ONE, TRAINING, TICK = "backfill", "one partition", "training", "tick"
SLOPES = (BACKFILL, ONE, "status", TICK, TRAINING)


@dataclass(frozen=True)
class Grown(Result):
    """What a number of partitions costs; of the backfill also what lies on the disk afterwards."""

    records_mib: float = 0.0  # Dagster's
    data_mib: float = 0.0  # all else


@dataclass(frozen=True)
class Tick:
    """One tick.

    Args:
        load: Time to load the definitions.
        tick: Time to evaluate the tick.
        requests: Number of runs that the tick requested.
        peak_mib: Peak memory of the process.
    """

    load: Spent
    tick: Spent
    requests: int
    peak_mib: float


def measure(options: Options) -> Iterator[Result]:
    """Measure each number of partitions, the smallest first."""
    for partitions in sorted(options.partitions):
        folder = options.folder / str(partitions)
        yield from _measured(folder, partitions, options.repeat)
        rmtree(folder)


def conclude(results: Sequence[Result]) -> str:
    """A table of core-seconds by number of partitions, and what each further partition costs."""
    middle = {(median.workload, median.rows): median.core_seconds for median in medians(results).values()}
    sizes = sorted({result.rows for result in results})
    steps = list(pairwise(sizes))
    names = [f"{size:,}" for size in sizes]
    head = ["core-seconds at", *names, *(f"ms for each more, {less:,} to {more:,}" for less, more in steps)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name in SLOPES:
        figures = [f"{middle[name, size]:.2f}" for size in sizes]
        slopes = [f"{1000 * (middle[name, more] - middle[name, less]) / (more - less):.2f}" for less, more in steps]
        lines.append(f"| {' | '.join([name, *figures, *slopes])} |")
    on_disk = {result.rows: result for result in results if isinstance(result, Grown)}
    for name, mib in (
        ("MiB of Dagster's records", {size: grown.records_mib for size, grown in on_disk.items()}),
        ("MiB of all else", {size: grown.data_mib for size, grown in on_disk.items()}),
    ):
        slopes = [f"{1024 * (mib[more] - mib[less]) / (more - less):.1f} KiB" for less, more in steps]
        lines.append(f"| {' | '.join([name, *(f'{mib[size]:.1f}' for size in sizes), *slopes])} |")
    return "\n".join(lines)


def write_project(folder: Path, partitions: int) -> Path:
    """Write a project with so many partitions to score after those that only its model learns from. Runs nothing."""
    hours = BEFORE_ITS_MODEL + partitions
    days = -(-hours // 24)
    events = small_events(START.date(), (START + timedelta(days=days - 1)).date(), 24 * ROWS)
    at = START + pl.duration(minutes=pl.int_range(pl.len()) * (60 // ROWS))
    return write_dagster_project(
        folder, events=events.with_columns(ts=at.cast(events.schema["ts"])), **_declared(hours, every=None)
    )


def tick(project: Path, home: Path) -> Tick:
    """Load the definitions and evaluate one tick in a process of its own."""
    variables = {"PYTHONPATH": str(ROOT), HOME_VARIABLE: str(home)}
    cost = run([sys.executable, "-m", "batch_platform_tests.benchmarks.growth", str(project)], project, **variables)
    printed = json.loads(cost.output)
    return Tick(Spent(**printed["load"]), Spent(**printed["tick"]), printed["requests"], cost.peak_mib)


def _declared(hours: int, every: str | None) -> dict[str, object]:
    end = START + timedelta(hours=hours)
    return {
        "partitions": {"every": "hour", "start": _key(START), "end": _key(end), "timezone": "UTC"},
        "labels": {"delay": "1 hour"},
        "model": {"train": {"every": every, "evaluate": "1 day"}},
    }


def _key(hour: datetime) -> str:
    return f"{hour:%Y-%m-%d-%H:00}"


def _measured(folder: Path, partitions: int, repeat: int) -> Iterator[Result]:
    project, hours = write_project(folder / "orders", partitions), BEFORE_ITS_MODEL + partitions
    home, ready, empty = (folder / name for name in ("home", "ready", "empty"))
    first, before, last = (_key(START + timedelta(hours=at)) for at in (BEFORE_ITS_MODEL, hours - 2, hours - 1))

    def command(name: str, *options: str) -> Cost:
        return run(
            [COMMAND, "--project", str(project), name, PIPELINE, *options], project, **{HOME_VARIABLE: str(home)}
        )

    backfill = command("run", "--from", first, "--to", before).result(BACKFILL, OURS, partitions)
    records = _mib(home / "dagster")
    yield Grown(**vars(backfill), records_mib=records, data_mib=_mib(home) - records)
    home.rename(ready)

    def one() -> Result:
        if home.exists():
            rmtree(home)
        copytree(ready, home, symlinks=True)
        return command("run", "--partition", last).result(ONE, OURS, partitions)

    def ticked(workload: str, home: Path) -> Result:
        measured = tick(project, home)
        return replace(measured.tick.result(workload, OURS, partitions), peak_mib=measured.peak_mib)

    def loaded() -> Result:
        measured = tick(project, home)
        return replace(measured.load.result("load", OURS, partitions), peak_mib=measured.peak_mib)

    yield from in_turn(
        {
            ONE: one,
            "status": lambda: command("status").result("status", OURS, partitions),
            TICK: partial(ticked, TICK, home),
            "first tick": partial(ticked, "first tick", empty),
            "load": loaded,
        },
        repeat,
    )
    write_defs_yaml(project, small_declaration(**_declared(hours, every="day")))
    yield command("train").result(TRAINING, OURS, partitions)


def _mib(folder: Path) -> float:
    """Size of the files below a folder; those behind links do not count."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_size for file in files) / 2**20


def evaluated_tick(folder: Path) -> dict[str, Any]:
    """Load the definitions and evaluate one tick after the last partition, as the code server does for the daemon."""
    began = clocks()
    project = find_project(folder)
    named = project.definitions.get_repository_def().get_schedule_def
    scoring, training = (named(f"{PIPELINE}_{duty}_when_due") for duty in ("score", "train"))
    loaded = clocks()
    with (
        dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=AFTER_ALL) as context,
    ):
        ready = clocks()
        requests = len(scoring.evaluate_tick(context).run_requests or ())
        ticked = clocks() - ready
        requests += len(
            training.evaluate_tick(context).run_requests or ()
        )  # without a model nothing is to be scored yet
        return {"load": asdict(loaded - began), "tick": asdict(ticked), "requests": requests}


if __name__ == "__main__":  # prints, as JSON, what a tick takes, and what it requests
    print(json.dumps(evaluated_tick(Path(sys.argv[1]))))
