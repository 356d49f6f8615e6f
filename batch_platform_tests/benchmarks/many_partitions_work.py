"""Tasks on a pipeline of ten thousand partitions, each run and timed in a process of its own.

    python -m batch_platform_tests.benchmarks.many_partitions_work TASK PROJECT

`fill` records all partitions of the project. `tick` evaluates the scoring schedule and prints, as JSON, how many seconds
it took to load the definitions and to evaluate the tick, and how many runs it and the training schedule request.
"""

import json
import sys
import time
from pathlib import Path

import dagster as dg

from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import find_project
from batch_platform_tests.harness import hourly


def tick(folder: Path) -> dict[str, float]:
    """Load the definitions and evaluate one tick after the last partition, as the code server does for the daemon."""
    began = time.perf_counter()
    project = find_project(folder)
    named = project.definitions.get_repository_def().get_schedule_def
    scoring, training = (named(f"{hourly.PIPELINE}_{duty}_when_due") for duty in ("score", "train"))
    loaded = time.perf_counter()
    with (
        dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=hourly.AFTER_ALL) as context,
    ):
        ready = time.perf_counter()
        requests = len(scoring.evaluate_tick(context).run_requests or ())
        seconds = time.perf_counter() - ready
        requests += len(
            training.evaluate_tick(context).run_requests or ()
        )  # without a model nothing is to be scored yet
        return {"load": loaded - began, "tick": seconds, "requests": requests}


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
