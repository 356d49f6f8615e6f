"""Score the same rows without and with each refinement: the core-seconds and the memory that it adds."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians

TITLE = "Refining scores"
NONE, NONE_OF_REGRESSION, REASONS = "no refinement", "no refinement of a regression", "reasons"
KIND = "trees"
DAYS = 4
_REGRESSION = {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor"}


@dataclass(frozen=True)
class Case:
    """A declaration, and the case that it is compared with."""

    model: dict[str, Any] = field(default_factory=dict[str, Any])  # keys of these blocks
    predictions: dict[str, Any] = field(default_factory=dict[str, Any])
    beside: str = NONE


CASES = {
    NONE: Case(),
    "isotonic": Case({"calibrate": "isotonic"}),
    "sigmoid": Case({"calibrate": "sigmoid"}),
    "threshold": Case(predictions={"decide": {"threshold": 0.3}}),
    "top": Case(predictions={"decide": {"top": "5%"}}),
    REASONS: Case(predictions={"reasons": 3}),
    NONE_OF_REGRESSION: Case(_REGRESSION, beside=NONE_OF_REGRESSION),
    "interval": Case(_REGRESSION, {"interval": "90%"}, beside=NONE_OF_REGRESSION),
}


def measure(options: Options) -> Iterator[Result]:
    """Score some days with each case in turn."""
    days = days_of(
        spread(options.rows, DAYS), datetime.now(UTC).date(), DAYS + 1, divided=True
    )  # also where nothing needs that
    write_days(options.folder / "data", days, min(TRAINING_ROWS, options.rows))
    measured = dict[str, Callable[[], Result]]()
    for name in options.chosen([*CASES]):
        served = project.generated_project(options.folder / name.replace(" ", "-"), KIND, options.folder / "data", days)
        _declare(served, CASES[name])
        project.make_ready(served, days)
        measured[name] = partial(_scored, name, Job(served, days.keys), options)
        measured[name]()
    yield from in_turn(measured, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say how many core-seconds and how much memory each refinement adds, and how many rows get reasons in a core-second."""
    ours = {median.workload: median for median in medians(results).values() if median.contender == OURS}
    lines = ["| refinement | core-seconds added | memory added |", "| --- | ---: | ---: |"]
    for name, median in ours.items():
        base = ours.get(CASES[name].beside, median)
        if base is not median:
            seconds, memory = (median.core_seconds / base.core_seconds - 1, median.peak_mib / base.peak_mib - 1)
            lines.append(f"| {name} | {seconds:+.1%} | {memory:+.1%} |")
    if not {NONE, REASONS} <= ours.keys():
        return "\n".join(lines)
    added = max(ours[REASONS].core_seconds - ours[NONE].core_seconds, 1e-9)
    return "\n".join([*lines, "", f"{ours[REASONS].rows / added:,.0f} rows get reasons in a core-second."])


def _declare(served: project.Project, case: Case) -> None:
    declared = yaml.safe_load((served.folder / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    declared["model"] |= case.model
    declared["predictions"] = case.predictions
    served.declare(declared)
    if case.beside == NONE_OF_REGRESSION:
        labels = served.folder / "labels.sql"
        labels.write_text(labels.read_text(encoding="utf-8").replace("label\n", "label::DOUBLE AS label\n"), "utf-8")


def _scored(name: str, job: Job, options: Options) -> Result:
    cost, _ = job.score(OURS, options.folder / "run")
    shutil.rmtree(options.folder / "run")
    return cost.result(name, OURS, options.rows)
