"""Score the same rows without and with each refinement: the core-seconds that it adds.

`DECLARED` names what is declared for each case; a case that needs another kind of model says so.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options

TITLE = "Refining scores"
NONE = "no refinement"
DECLARED: dict[str, dict[str, dict[str, Any]]] = {  # blocks of the declaration by case
    NONE: {},
    "isotonic": {"model": {"calibrate": "isotonic"}},
    "sigmoid": {"model": {"calibrate": "sigmoid"}},
}
KIND = "trees"
DAYS = 4


def measure(options: Options) -> Iterator[Result]:
    """Score some days with each case in turn."""
    days = days_of(spread(options.rows, DAYS), datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    jobs: dict[str, Job] = {}
    for case in options.chosen(list(DECLARED)):
        served = project.generated_project(options.folder / case.replace(" ", "-"), KIND, options.folder / "data", days)
        attributes = yaml.safe_load((served.folder / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
        for block, keys in {**DECLARED[case], "model": {**DECLARED[case].get("model", {}), **_DIVIDED}}.items():
            attributes[block] = {**attributes.get(block, {}), **keys}
        served.declare(attributes)
        project.make_ready(served, days)
        jobs[case] = Job(served, days.keys, options.folder / "none", options.environments)
        _scored(case, jobs[case], options)
    yield from in_turn({case: partial(_scored, case, job, options) for case, job in jobs.items()}, options.repeat)


_DIVIDED = {"train": {"evaluate": "2 days"}}  # the least that can be divided; the same for every case


def conclude(results: Sequence[Result]) -> str:
    """Say how many core-seconds each refinement adds."""
    spent = {median.workload: median.core_seconds for median in medians(results).values()}
    added = [f"{case} {seconds / spent[NONE] - 1:+.1%}" for case, seconds in spent.items() if case != NONE]
    return f"Core-seconds beside {NONE}: {', '.join(added)}." if NONE in spent and added else ""


def _scored(case: str, job: Job, options: Options) -> Result:
    cost, _ = job.score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return cost.result(case, OURS, options.rows)
