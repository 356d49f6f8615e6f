"""Measure the profiles of features, score and estimates against all of scoring.

The profiles are timed alone, on one core, in batches as a run has them, with the compiled code that trees have loaded; in a run
they are made on all cores.
"""

import resource
from collections.abc import Iterator, Sequence
from time import perf_counter

import polars as pl

from batch_platform.features.lake import BATCH_ROWS
from batch_platform.models.bundle import open_bundle
from batch_platform.models.forest import kernels
from batch_platform.models.native_threads import one_thread
from batch_platform.models.registry import read_registry
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.benchmarks import part_of_scoring
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.measuring import OURS, Result
from batch_platform_tests.benchmarks.options import Options

TITLE = "Profiling every feature and score"
SCORING, PROFILES = "scoring, with profiles", "the profiles alone"


def measure(options: Options) -> Iterator[Result]:
    """Score and only profile one partition, in turn."""
    assert kernels.numba  # what a large partition of trees has loaded
    return part_of_scoring.measure(options, 1, SCORING, PROFILES, _profiled)


def conclude(results: Sequence[Result]) -> str:
    """Say which share of the time the profiles take."""
    return f"The profiles take {part_of_scoring.share(results, SCORING, PROFILES):.1%} of the time of scoring."


def _profiled(job: Job, options: Options) -> Result:
    home, pipeline = job.project.ready, job.project.pipeline
    with Warehouse(home).open() as con:
        (version,) = read_registry(con, pipeline).versions
    bundle = open_bundle(home.bundle(pipeline, version.version), version.sha256)
    builds, seconds, reference = Warehouse(home).latest(FeatureBuild, pipeline), 0.0, bundle.reference
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
                began = perf_counter()
                reference.profiled((kept, matrix), raw, bundle.signature, {})
                seconds += perf_counter() - began
    return Result(PROFILES, OURS, seconds, options.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
