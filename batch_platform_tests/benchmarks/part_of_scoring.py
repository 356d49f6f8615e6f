"""Measure a part of scoring, done alone, against all of scoring: the share of the core-seconds that it takes."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options

KIND = "trees"
Part = Callable[[Job, Options], Result]


def measure(  # noqa: PLR0913 - two workloads, and what they work on
    options: Options, days: int, scoring: str, part: str, work: Part, segments: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Score some days with trees and do only the part, in turn; `scoring` and `part` name the two workloads.

    `segments` are kept columns by which the predictions are broken down, as SQL by name.
    """
    written = days_of(spread(options.rows, days), datetime.now(UTC).date())
    write_days(options.folder / "data", written, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", written, segments)
    project.make_ready(served, written)
    job = Job(served, written.keys, options.folder / "none", options.environments)
    _scored(scoring, job, options)
    yield from in_turn(
        {scoring: partial(_scored, scoring, job, options), part: partial(work, job, options)}, options.repeat
    )


def share(results: Sequence[Result], scoring: str, part: str) -> float:
    """The core-seconds of the part as a share of those of scoring, which is on all cores where the part is alone on one."""
    spent = {median.workload: median.core_seconds for median in medians(results).values()}
    return spent[part] / spent[scoring]


def _scored(name: str, job: Job, options: Options) -> Result:
    cost, _ = job.score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return cost.result(name, OURS, options.rows)
