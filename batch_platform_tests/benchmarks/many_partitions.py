"""Ten thousand hourly partitions: time `status` as a process, a tick of a schedule, and loading the definitions.

One home has every partition recorded, so that a tick finds nothing due. The other home is empty, so that everything is due.
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
from batch_platform_tests.harness.hourly import MADE, PARTITIONS, PIPELINE, write_hourly_project

TITLE = "Ten thousand partitions: status, a tick, loading"
FLOOR = "import dagster"


@dataclass(frozen=True)
class Tick:
    """One tick.

    Args:
        load: Seconds to load the definitions.
        tick: Seconds to evaluate the tick.
        requests: Number of runs that the tick requested.
        peak_mib: Peak memory of the process.
    """

    load: float
    tick: float
    requests: int
    peak_mib: float


def measure(options: Options) -> Iterator[Result]:
    """Measure each task, and how long Python takes to import Dagster."""
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
    """Say what the figures measure."""
    return (
        "Rows are partitions here. `status` is timed as a whole process. The tick and loading the definitions are timed "
        "inside a process, since Dagster's code server loads once and evaluates many ticks."
    )


def work(project: Path, task: str, home: Path) -> Cost:
    """Run a task on the project in a process of its own."""
    module = "batch_platform_tests.benchmarks.many_partitions_work"
    variables = {"PYTHONPATH": str(ROOT), HOME_VARIABLE: str(home)}
    return run([sys.executable, "-m", module, task, str(project)], project, **variables)


def _status(project: Path, home: Path) -> Result:
    cost = run([COMMAND, "--project", str(project), "status", PIPELINE], project, **{HOME_VARIABLE: str(home)})
    return Result("status", OURS, cost.seconds, PARTITIONS, cost.peak_mib)


def _floor(project: Path) -> Result:
    cost = run([sys.executable, "-c", FLOOR], project)
    return Result(FLOOR, "python", cost.seconds, PARTITIONS, cost.peak_mib)


def tick(project: Path, home: Path) -> Tick:
    """Load the definitions and evaluate one tick in a process of its own."""
    cost = work(project, "tick", home)
    return Tick(**json.loads(cost.output), peak_mib=cost.peak_mib)


def _tick(project: Path, home: Path, workload: str) -> Result:
    measured = tick(project, home)
    return Result(workload, OURS, measured.tick, PARTITIONS, measured.peak_mib)


def _load(project: Path, home: Path) -> Result:
    measured = tick(project, home)
    return Result("load", OURS, measured.load, PARTITIONS, measured.peak_mib)
