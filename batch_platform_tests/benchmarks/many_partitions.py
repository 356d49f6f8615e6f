"""A pipeline of ten thousand hourly partitions: `status` as a process, a schedule's tick, and the definitions' loading.

All is done and recorded, so that a tick finds nothing due; or nothing is, and it finds everything.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.benchmarks.measuring import COMMAND, OURS, ROOT, Cost, Result, in_turn, run
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.hourly import MADE, PARTITIONS, PIPELINE, write_hourly_project

TITLE = "Ten thousand partitions: status, a tick, loading"
FLOOR = "import dagster"


@dataclass(frozen=True)
class Ticked:
    """One tick.

    Args:
        load: Seconds that the definitions took.
        tick: Seconds that the tick took.
        requests: Runs that it asked for.
        peak_mib: Memory of its process.
    """

    load: float
    tick: float
    requests: int
    peak_mib: float


def measure(options: Options) -> Iterator[Result]:
    """Each of them, and how long Python takes to import Dagster."""
    project = write_hourly_project(options.folder / "orders")
    filled, empty = project / ".batch_platform", project / "empty"
    run([COMMAND, "--project", str(project), "run", PIPELINE, "--partition", MADE], project)
    work(project, "fill", filled)
    contenders = {
        "status": partial(_status, project, filled),
        "floor": partial(_floor, project),
        "tick": partial(_tick, project, filled, "tick"),
        "first": partial(_tick, project, empty, "first tick"),
        "load": partial(_load, project, filled),
    }
    yield from in_turn(contenders, options.repeat)


def conclude(_: Sequence[Result]) -> str:
    """What the figures are of."""
    return (
        "Rows are partitions here. Status is a whole process; a tick and the loading of the definitions are timed from "
        "inside of one, as in Dagster's server of code, which loads once and evaluates many ticks."
    )


def work(project: Path, task: str, home: Path) -> Cost:
    """Let a process do something with the project in a home."""
    module = "batch_platform_tests.benchmarks.many_partitions_work"
    variables = {"PYTHONPATH": str(ROOT), HOME_VARIABLE: str(home)}
    return run([sys.executable, "-m", module, task, str(project)], project, **variables)


def _status(project: Path, home: Path) -> Result:
    cost = run([COMMAND, "--project", str(project), "status", PIPELINE], project, **{HOME_VARIABLE: str(home)})
    return Result("status", OURS, cost.seconds, PARTITIONS, cost.peak_mib)


def _floor(project: Path) -> Result:
    cost = run([sys.executable, "-c", FLOOR], project)
    return Result(FLOOR, "python", cost.seconds, PARTITIONS, cost.peak_mib)


def tick(project: Path, home: Path) -> Ticked:
    """Let a process load the definitions and evaluate one tick."""
    cost = work(project, "tick", home)
    return Ticked(**json.loads(cost.output), peak_mib=cost.peak_mib)


def _tick(project: Path, home: Path, workload: str) -> Result:
    found = tick(project, home)
    return Result(workload, OURS, found.tick, PARTITIONS, found.peak_mib)


def _load(project: Path, home: Path) -> Result:
    found = tick(project, home)
    return Result("load", OURS, found.load, PARTITIONS, found.peak_mib)
