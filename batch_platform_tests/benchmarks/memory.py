"""Score one large partition: peak memory and time for a tenth of the rows, all rows, and five times as many.

Memory should not grow with the partition, and a row should not cost more in a larger one. The script holds a whole
partition in memory; it does not score the largest one, which would not fit into many machines.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.agreement import require_same
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options

TITLE = "One partition of growing size"
WORKLOAD, KIND = "memory", "trees"
WARM_UP_ROWS = 100_000


def measure(options: Options) -> Iterator[Result]:
    """Measure each size with each contender, in turn."""
    sizes = [options.rows // 10, options.rows, 5 * options.rows]
    days = days_of([min(WARM_UP_ROWS, sizes[0]), *sizes], datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", days)
    project.make_ready(served, days)
    model = served.export_model(options.folder / "model.joblib")
    jobs = [Job(served, [key], model, options.environments) for key in days.keys]
    rows = list(days.measured.values())
    contenders = options.chosen([OURS, "script"])
    for contender in contenders:
        _score(jobs[0], contender, rows[0], options.folder)
    measured = {
        f"{contender} {size}": partial(_score, job, contender, size, options.folder)
        for job, size in zip(jobs[1:], sizes, strict=True)
        for contender in contenders
        if contender == OURS or size <= options.rows
    }
    yield from in_turn(measured, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say how memory and the cost of a row grow."""
    ours = sorted(
        (median for median in medians(results).values() if median.contender == OURS), key=lambda median: median.rows
    )
    small, middle, large = ours
    begin, end = _million_more(small, middle), _million_more(middle, large)
    return (
        f"Five times the rows take {large.peak_mib / middle.peak_mib:.2f} times the memory. A million rows more cost "
        f"{begin:.2f} s from {small.rows:,} to {middle.rows:,} rows, {end:.2f} s from there to {large.rows:,}."
    )


def _million_more(less: Result, more: Result) -> float:
    """Seconds per additional million rows: the cost of rows without the start of the process."""
    return (more.seconds - less.seconds) / (more.rows - less.rows) * 1e6


def _score(job: Job, contender: str, rows: int, folder: Path) -> Result:
    cost, scores = job.score(contender, folder / "run")
    require_same(contender, scores, rows, folder / f"reference-{job.keys[0]}.parquet", project.KINDS[KIND].tolerance)
    shutil.rmtree(folder / "run")
    return cost.result(WORKLOAD, contender, rows)
