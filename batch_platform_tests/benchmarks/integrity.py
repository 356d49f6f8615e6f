"""Measure the check of every byte of the feature files against all of scoring.

The check is timed alone, on one core; in a run it happens while rows are read and scored.
"""

import resource
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from time import perf_counter

from batch_platform.features.lake import open_recorded
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.scoring import DAYS

TITLE = "Checking every byte of the features"
KIND, SCORING, CHECK = "trees", "scoring, with the check", "the check alone"


def measure(options: Options) -> Iterator[Result]:
    """Score and only check a month of partitions, in turn."""
    days = days_of(spread(options.rows, DAYS), datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", days)
    project.make_ready(served, days)
    job = Job(served, days.keys, options.folder / "none", options.environments)
    _scored(job, options)
    yield from in_turn(
        {SCORING: partial(_scored, job, options), CHECK: partial(_checked, job, options)}, options.repeat
    )


def conclude(results: Sequence[Result]) -> str:
    """Say which share of the time the check takes."""
    seconds = {median.workload: median.seconds for median in medians(results).values()}
    return f"The check takes {seconds[CHECK] / seconds[SCORING]:.1%} of the time of scoring."


def _scored(job: Job, options: Options) -> Result:
    cost, _ = job.score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return Result(SCORING, OURS, cost.seconds, options.rows, cost.peak_mib)


def _checked(job: Job, options: Options) -> Result:
    home, pipeline = job.project.ready, job.project.pipeline
    builds = Warehouse(home).latest(FeatureBuild, pipeline)
    began = perf_counter()
    for key in job.keys:
        build = builds[key]
        file = home.feature_file(pipeline, key, build.sha256)
        with open_recorded(file, build.sha256, build.xxh3, pipeline=pipeline, partition_key=key) as recorded:
            recorded.require_unchanged()
    seconds = perf_counter() - began
    return Result(CHECK, OURS, seconds, options.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
