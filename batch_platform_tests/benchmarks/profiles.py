"""Measure the profiles of features, score and estimates against all of scoring.

The profiles are timed alone, on one core, in batches as a run has them, with the compiled code that trees have loaded; in a run
they are made on all cores.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from batch_platform_tests.benchmarks import part_of_scoring
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.measuring import OURS, Result, Spent, spent
from batch_platform_tests.benchmarks.options import Options

TITLE = "Profiling every feature and score"
SCORING, PROFILES = "scoring, with profiles", "the profiles alone"
SEGMENTS = {"carrier": "'carrier ' || id % 12", "route": "'a route of the network ' || id % 300"}
BY_SEGMENT = ", by two columns of segments"


def measure(options: Options) -> Iterator[Result]:
    """Score and only profile one partition, in turn."""
    assert kernels.numba  # what a large partition of trees has loaded
    for segments, suffix in ({}, ""), (SEGMENTS, BY_SEGMENT):
        inside = replace(options, folder=options.folder / f"segments-{len(segments)}")
        work = partial(_profiled, segments=list(segments), suffix=suffix)
        yield from part_of_scoring.measure(inside, 1, SCORING + suffix, PROFILES + suffix, work, segments)
        shutil.rmtree(inside.folder)


def conclude(results: Sequence[Result]) -> str:
    """Say which share of the core-seconds the profiles take."""
    plain, by_segment = (
        part_of_scoring.share(results, SCORING + suffix, PROFILES + suffix) for suffix in ("", BY_SEGMENT)
    )
    return f"The profiles take {plain:.1%} of the core-seconds of scoring{BY_SEGMENT} {by_segment:.1%}."


def _profiled(job: Job, options: Options, *, segments: Sequence[str], suffix: str) -> Result:
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
                took += spent(partial(profiled, reference, (kept, matrix), raw, bundle.signature, {}, segments))
    return took.result(PROFILES + suffix, OURS, options.rows)
