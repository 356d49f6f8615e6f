"""Tasks on a pipeline of many hourly partitions, each run and timed in a process of its own.

    python -m batch_platform_tests.benchmarks.hourly_work TASK PROJECT

`fill` records all partitions of the project. `tick` evaluates the scoring schedule and prints, as JSON, what it
took to load the definitions and to evaluate the tick, and how many runs it and the training schedule request.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import find_project
from batch_platform_tests.benchmarks.measuring import clocks
from batch_platform_tests.harness import hourly


def tick(folder: Path) -> dict[str, Any]:
    """Load the definitions and evaluate one tick after the last partition, as the code server does for the daemon."""
    began = clocks()
    project = find_project(folder)
    named = project.definitions.get_repository_def().get_schedule_def
    scoring, training = (named(f"{hourly.PIPELINE}_{duty}_when_due") for duty in ("score", "train"))
    loaded = clocks()
    with (
        dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=hourly.AFTER_ALL) as context,
    ):
        ready = clocks()
        requests = len(scoring.evaluate_tick(context).run_requests or ())
        ticked = clocks() - ready
        requests += len(
            training.evaluate_tick(context).run_requests or ()
        )  # without a model nothing is to be scored yet
        return {"load": asdict(loaded - began), "tick": asdict(ticked), "requests": requests}


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
