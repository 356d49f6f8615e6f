"""Measure the profiles of features, score and estimates against all of scoring.

The profiles are timed alone, on one core, in batches as a run has them, with the compiled code that trees have loaded; in a run
they are made on all cores.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import polars as pl

from batch_platform.features.lake import BATCH_ROWS
from batch_platform.models.bundle import open_bundle
from batch_platform.models.forest import kernels
from batch_platform.models.native_threads import one_thread
from batch_platform.models.reference import profiled
from batch_platform.models.registry import read_registry
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, Spent, in_turn, medians, spent
from batch_platform_tests.benchmarks.options import Options

TITLE = "Profiling every feature and score"
KIND = "trees"
SCORING, PROFILES = "scoring, with profiles", "the profiles alone"


def measure(options: Options) -> Iterator[Result]:
    """Score and only profile one partition, in turn."""
    assert kernels.numba  # what a large partition of trees has loaded
    days = days_of(spread(options.rows, 1), datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", days)
    project.make_ready(served, days)
    job = Job(served, days.keys, options.folder / "none", options.environments)
    _scored(job, options)
    yield from in_turn(
        {SCORING: partial(_scored, job, options), PROFILES: partial(_profiled, job, options)}, options.repeat
    )


def conclude(results: Sequence[Result]) -> str:
    """Say which share of the core-seconds the profiles take; in scoring they are made on all cores, alone on one."""
    seconds = {median.workload: median.core_seconds for median in medians(results).values()}
    return f"The profiles take {seconds[PROFILES] / seconds[SCORING]:.1%} of the core-seconds of scoring."


def _scored(job: Job, options: Options) -> Result:
    cost, _ = job.score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return cost.result(SCORING, OURS, options.rows)


def _profiled(job: Job, options: Options) -> Result:
    home, pipeline = job.project.ready, job.project.pipeline
    with Warehouse(home).open() as con:
        (version,) = read_registry(con, pipeline).versions
    bundle = open_bundle(home.bundle(pipeline, version.version), version.sha256)
    builds, took, reference = Warehouse(home).latest(FeatureBuild, pipeline), Spent(), bundle.reference
    if reference is None or reference.basis is None:
        msg = "the version has no reference profile"
        raise SystemExit(msg)
    for key in job.keys:
        rows = pl.scan_parquet(home.feature_file(pipeline, key, builds[key].sha256))
        for first in range(0, builds[key].rows, BATCH_ROWS):
            kept = bundle.contract.split(rows.slice(first, BATCH_ROWS).collect()).kept
            matrix = bundle.contract.encode(kept)
            with one_thread():
                raw = bundle.predictor.predict(matrix)
                took += spent(partial(profiled, reference, (kept, matrix), raw, bundle.signature, {}, as_wholes=True))
    return took.result(PROFILES, OURS, options.rows)
