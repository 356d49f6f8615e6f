"""Score a month of daily partitions with four kinds of models: features are present, scores are written.

Every contender first scores the first day once. That run is not counted; it leaves compiled code, bytecode caches and
environments in place.
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.agreement import require_same
from batch_platform_tests.benchmarks.contenders import CONTENDERS, Job, require_peers
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, Days, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import Result, in_turn
from batch_platform_tests.benchmarks.options import Options

TITLE = "Scoring, features present"
DAYS = 30


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model, with its contenders in turn."""
    folder = options.folder / "scoring"
    require_peers(options.chosen(CONTENDERS), options.environments)
    days = days_of(spread(options.rows, DAYS), datetime.now(UTC).date())
    write_days(folder / "data", days, min(TRAINING_ROWS, options.rows))
    for kind in options.chosen(list(project.KINDS)):
        yield from _measure_kind(options, folder / kind, kind, folder / "data", days)
        shutil.rmtree(folder / kind)


def _measure_kind(options: Options, folder: Path, kind: str, data: Path, days: Days) -> Iterator[Result]:
    served = project.generated_project(folder, kind, data, days)
    project.make_ready(served, days)
    job = Job(served, days.keys, served.export_model(folder / "model.joblib"), options.environments)
    contenders = options.chosen(CONTENDERS)
    first_day = Job(served, days.keys[:1], job.model, options.environments)
    for contender in contenders:
        _score(first_day, kind, contender, folder, days)
    yield from in_turn(
        {contender: partial(_score, job, kind, contender, folder, days) for contender in contenders}, options.repeat
    )


def _score(job: Job, kind: str, contender: str, folder: Path, days: Days) -> Result:
    """Score with one contender, check its scores, and remove them."""
    rows = sum(count for day, count in days.measured.items() if day.isoformat() in job.keys)
    cost, scores = job.score(contender, folder / "run")
    reference = folder / f"reference-{len(job.keys)}.parquet"
    require_same(contender, scores, rows, reference, project.KINDS[kind].tolerance)
    shutil.rmtree(folder / "run")
    return Result(kind, contender, cost.seconds, rows, cost.peak_mib)
