"""Score a month of daily partitions with four kinds of models: features are present, scores are written.

Every contender first scores the first day once. That run is not counted; it leaves compiled code, bytecode caches and
environments in place.
"""

import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import CONTENDERS, Job, require_same
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, Days, days_of, spread, write_days
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import Result, in_turn

TITLE = "Scoring, features present"
DAYS = 30
SMALL, LARGE, HUGE = SIZES = ("small", "large", "huge")
SMALL_ROWS = 1000
TIMES_MORE = 5  # how many times the rows of the large case the huge one has


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model, with its contenders in turn."""
    folder = options.folder / "scoring"
    for rows, count in sizes(options):
        days = days_of(spread(rows, count), datetime.now(UTC).date())
        write_days(folder / "data", days, min(TRAINING_ROWS, options.rows))
        for kind in options.chosen(list(project.KINDS)):
            yield from _measure_kind(options, folder / kind, kind, folder / "data", days)
            shutil.rmtree(folder / kind)
        shutil.rmtree(folder / "data")


def sizes(options: Options) -> list[tuple[int, int]]:
    """Rows and days of each case: one small partition and a month, and a huge month if it is named by --only."""
    known = {
        SMALL: (min(SMALL_ROWS, options.rows), 1),
        LARGE: (options.rows, DAYS),
        HUGE: (TIMES_MORE * options.rows, DAYS),
    }
    named = options.only & known.keys() or {SMALL, LARGE}
    return [size for name, size in known.items() if name in named]


def _measure_kind(options: Options, folder: Path, kind: str, data: Path, days: Days) -> Iterator[Result]:
    served = project.generated_project(folder, kind, data, days)
    project.make_ready(served, days)
    job = Job(served, days.keys, served.export_model(folder / "model.joblib"))
    contenders = options.chosen(CONTENDERS)
    first_day = Job(served, days.keys[:1], job.model)
    for contender in contenders:
        _score(first_day, kind, contender, folder, days)
    yield from in_turn(
        {contender: partial(_score, job, kind, contender, folder, days) for contender in contenders}, options.repeat
    )


def _score(job: Job, kind: str, contender: str, folder: Path, days: Days) -> Result:
    """Score with one contender, check its scores, and remove them."""
    rows = sum(count for day, count in days.measured.items() if day.isoformat() in job.keys)
    cost, scores = job.score(contender, folder / "run")
    reference, written = folder / f"reference-{len(job.keys)}.parquet", scores.rows()
    if written.height != rows:
        sys.exit(f"{contender} scored {written.height} rows instead of {rows}.")
    if reference.exists():
        require_same(contender, written, pl.read_parquet(reference), project.KINDS[kind].tolerance)
    else:
        written.write_parquet(reference)
    shutil.rmtree(folder / "run")
    return cost.result(kind, contender, rows)
