"""Score on one core and on two: which core-seconds are serial, and what more cores would give.

Serial is what a run of one small partition takes: start, commit and publishing follow each other in it. By Amdahl's law the rest
is divided by the number of cores. Two cores check the model; the threads that read, write and commit are one each, so that with
many cores it is too hopeful.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import COMMAND, OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options

TITLE = "Scoring by the number of cores"
KIND, DAYS, SMALL_ROWS = "trees", 29, 1000
MEASURED, MODELLED = (1, 2), (2, 4, 8, 16)  # cores


def measure(options: Options) -> Iterator[Result]:
    """Score a small partition and a month on each number of cores, in turn; a machine with one core measures one."""
    days = days_of([min(SMALL_ROWS, options.rows), *spread(options.rows, DAYS)], datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", days)
    project.make_ready(served, days)
    allowed = sorted(os.sched_getaffinity(0))
    for keys in ([days.keys[0]], days.keys[1:]):
        rows = sum(count for day, count in days.measured.items() if day.isoformat() in keys)
        job = Job(served, keys, options.folder / "none", options.environments)
        _scored(job, rows, allowed[:1], options)  # not counted: compiled code and bytecode are in place afterwards
        held = {f"{cores}": allowed[:cores] for cores in MEASURED if cores <= len(allowed)}
        yield from in_turn({cores: partial(_scored, job, rows, held[cores], options) for cores in held}, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say what the model gives, and how far it is from what was measured."""
    middle = medians(results)
    small, large = sorted({result.rows for result in results})
    serial, whole = (middle[KIND, rows, _named(1)].core_seconds for rows in (small, large))
    modelled = ", ".join(f"{serial + (whole - serial) / cores:.1f} on {cores}" for cores in MODELLED)
    measured = middle.get((KIND, large, _named(MEASURED[-1])))
    checked = "" if measured is None else f" {measured.seconds:.1f} s were measured on {MEASURED[-1]}."
    return f"Of {whole:.1f} core-seconds on one core, {serial:.1f} are serial: {modelled} cores, in seconds, by the model.{checked}"


def _named(cores: int) -> str:
    return f"{OURS}, cores: {cores}"


def _scored(job: Job, rows: int, cores: Sequence[int], options: Options) -> Result:
    held = ("taskset", "--cpu-list", ",".join(map(str, cores)), COMMAND)
    cost, _ = replace(job, project=replace(job.project, command=held)).score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return cost.result(KIND, _named(len(cores)), rows)
