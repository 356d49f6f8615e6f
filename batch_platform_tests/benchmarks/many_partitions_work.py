"""Tasks on a pipeline of ten thousand partitions, each run and timed in a process of its own.

    python -m batch_platform_tests.benchmarks.many_partitions_work TASK PROJECT

`fill` records all partitions of the project. `tick` evaluates the scoring schedule and prints, as JSON, how many seconds
it took to load the definitions and to evaluate the tick.
"""

import json
import sys
import time
from pathlib import Path

import dagster as dg

from batch_platform.cli.project import find_project
from batch_platform.components.instance import prepare_instance
from batch_platform_tests import hourly


def tick(folder: Path) -> dict[str, float]:
    """Load the definitions and evaluate one tick after the last partition, as the code server does for the daemon."""
    began = time.perf_counter()
    project = find_project(folder)
    schedule = project.definitions.get_repository_def().get_schedule_def(f"{hourly.PIPELINE}_score_when_due")
    loaded = time.perf_counter()
    with (
        dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=hourly.AFTER_ALL) as context,
    ):
        ready = time.perf_counter()
        requests = len(schedule.evaluate_tick(context).run_requests or ())
        return {"load": loaded - began, "tick": time.perf_counter() - ready, "requests": requests}


def main(task: str, project: str) -> None:
    """Run one task and print its result."""
    match task:
        case "fill":
            hourly.fill(Path(project))
        case "tick":
            print(json.dumps(tick(Path(project))))
        case _:
            sys.exit(f"unknown task {task}; choose fill or tick")


if __name__ == "__main__":
    main(*sys.argv[1:])
