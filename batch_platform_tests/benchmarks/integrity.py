"""Measure the check of every byte of the feature files against all of scoring.

The check is timed alone, on one core; in a run it happens while rows are read and scored.
"""

from collections.abc import Iterator, Sequence

from batch_platform.features.lake import open_recorded
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks import part_of_scoring
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.measuring import OURS, Result, clocks
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.scoring import DAYS

TITLE = "Checking every byte of the features"
SCORING, CHECK = "scoring, with the check", "the check alone"


def measure(options: Options) -> Iterator[Result]:
    """Score and only check a month of partitions, in turn."""
    return part_of_scoring.measure(options, DAYS, SCORING, CHECK, _checked)


def conclude(results: Sequence[Result]) -> str:
    """Say which share of the core-seconds the check takes."""
    return f"The check takes {part_of_scoring.share(results, SCORING, CHECK):.1%} of the core-seconds of scoring."


def _checked(job: Job, options: Options) -> Result:
    home, pipeline = job.project.ready, job.project.pipeline
    builds = Warehouse(home).latest(FeatureBuild, pipeline)
    began = clocks()
    for key in job.keys:
        build = builds[key]
        file = home.feature_file(pipeline, key, build.sha256)
        with open_recorded(file, build.sha256, build.xxh3, pipeline=pipeline, partition_key=key) as recorded:
            recorded.require_unchanged()
    return (clocks() - began).result(CHECK, OURS, options.rows)
