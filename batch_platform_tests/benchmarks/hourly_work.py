"""A tick of the schedules of a pipeline of many hourly partitions, timed in a process of its own.

    python -m batch_platform_tests.benchmarks.hourly_work PROJECT

Prints, as JSON, what it took to load the definitions and to evaluate the tick of the scoring schedule, and how many runs
it and the training schedule request.
"""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import find_project
from batch_platform.components import wiring  # noqa: F401 - imported before the clock starts
from batch_platform.pipeline import pipeline  # noqa: F401 - imported before the clock starts
from batch_platform_tests.benchmarks.measuring import clocks

PIPELINE = "small"
AFTER_ALL = datetime(2025, 3, 1, tzinfo=UTC)


def tick(folder: Path) -> dict[str, Any]:
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


if __name__ == "__main__":
    print(json.dumps(tick(Path(sys.argv[1]))))
