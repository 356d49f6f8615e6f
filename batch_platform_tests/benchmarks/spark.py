"""Score on a standalone cluster of Spark: the Spark engine, on one worker and on two, against plain Spark code on two.

Plain Spark code reads the same feature files with `spark.read.parquet`, calls `predict_proba` of the same estimator in
`mapInArrow`, and writes Parquet. A worker gives an application one core. Each contender has a driver of its own, which lives as
long as a kind of model is measured and scores everything a few times before anything counts: Java compiles meanwhile what it does
often. The commit into the warehouse is not measured: plain code has none.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import require_same
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, Days, days_of, spread, write_days
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.launch import descendants
from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Result, in_turn, inherited, medians
from batch_platform_tests.benchmarks.spark_work import Answer, Request

TITLE = "Scoring on a cluster of Spark"
MEASURED = ["trees", "linear"]
PLAIN, ON_ONE_WORKER = "plain Spark", f"{OURS}, one worker"
SHARE, DAYS = 4, 8  # a quarter of the rows is enough: nothing else is timed
WARM_UPS = 4
CORES, MEMORY = 3, "4g"  # of a worker, which has room for an executor of every contender


@dataclass(frozen=True)
class Driver:
    """A driver of Spark, in a process of its own that answers requests."""

    process: "subprocess.Popen[str]"
    errors: Path

    def answer(self, request: Request | None = None) -> Answer:
        """Send a request and wait for the answer; the first answer needs no request.

        Raises:
            SystemExit: The driver has ended; the message holds the end of its errors.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if request is not None:
            print(json.dumps(asdict(request)), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"A driver of Spark has ended:\n{self.errors.read_text(encoding='utf-8')[-4000:]}")
        return Answer(**json.loads(line))


@dataclass(frozen=True)
class Prepared:
    """A model and the partitions that it scores."""

    kind: str
    served: project.Project
    model: Path  # the exported estimator
    days: Days
    scores: list[pl.DataFrame] = field(default_factory=list[pl.DataFrame])  # at most one: of the first contender

    def score(self, contender: str, driver: Driver, folder: Path) -> Result:
        """Score all partitions, check the scores, and remove them."""
        output = folder / "scores"
        output.mkdir()
        before = _core_seconds()
        model = str(self.model) if contender == PLAIN else ""
        home = self.served.ready.root
        answer = driver.answer(Request(str(self.served.folder), str(home), self.days.keys, str(output), model))
        used = _core_seconds() - before
        scores = scores_in(output)
        if not self.scores:
            self.scores.append(scores)
        require_same(contender, scores, self.scores[0], project.KINDS[self.kind].tolerance)
        shutil.rmtree(output)
        return Result(self.kind, contender, answer.seconds, scores.height, answer.python_mib, used)


def measure(options: Options) -> Iterator[Result]:
    """Measure each kind of model with its contenders in turn."""
    from batch_platform_tests.harness.spark_cluster import (
        spark_cluster,  # needs pyspark, which the other workloads do not
    )

    rows = max(DAYS, options.rows // SHARE)
    days = days_of(spread(rows, DAYS), datetime.now(UTC).date())
    write_days(options.folder / "data", days, min(TRAINING_ROWS, rows))
    prepared = [_prepared(kind, options.folder, days) for kind in options.chosen(MEASURED)]
    (options.folder / "cluster").mkdir()
    with spark_cluster(options.folder / "cluster", cores=CORES, memory=MEMORY) as cluster, ExitStack() as stack:
        drivers = {
            contender: stack.enter_context(_driver(cluster.master, options.folder, *work))
            for contender, work in ((OURS, ["2"]), (PLAIN, ["2", "plain"]), (ON_ONE_WORKER, ["1"]))
        }
        for job in prepared:
            contenders = {name: partial(job.score, name, driver, options.folder) for name, driver in drivers.items()}
            for warm_up in [*contenders.values()] * WARM_UPS:
                warm_up()
            yield from in_turn(contenders, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say what was aimed at and what was reached."""
    middle = medians(results)
    seconds = {(workload, contender): median.seconds for (workload, _, contender), median in middle.items()}
    sentences = [
        f"{kind}: plain Spark code takes {seconds[kind, PLAIN] / seconds[kind, OURS]:.2f} times as long, "
        f"and the second worker makes the engine {seconds[kind, ON_ONE_WORKER] / seconds[kind, OURS]:.2f} times as fast."
        for kind in MEASURED
        if (kind, OURS) in seconds
    ]
    return " ".join(sentences)


def scores_in(folder: Path) -> pl.DataFrame:
    """The scores that a contender wrote, in order of the key."""
    return pl.read_parquet(folder / "*.parquet", columns=["id", "score", "prediction"]).sort("id")


def _prepared(kind: str, folder: Path, days: Days) -> Prepared:
    served = project.generated_project(folder / kind, kind, folder / "data", days)
    project.make_ready(served, days)
    return Prepared(kind, served, served.export_model(folder / f"{kind}.joblib"), days)


def _core_seconds() -> float:
    """Core-seconds so far of the cluster and of all drivers, of which one works at a time."""
    return sum(descendants(os.getpid()).values())


@contextmanager
def _driver(master: str, folder: Path, *work: str) -> Iterator[Driver]:
    """A driver that has its executors, one on each worker; `work` is the number of workers, and `plain` for plain Spark code."""
    errors = folder / "driver.log"
    command = [sys.executable, "-m", "batch_platform_tests.benchmarks.spark_work", master, *work]
    variables = inherited() | {"PYTHONPATH": str(ROOT)}
    with (
        errors.open("ab") as log,
        subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        driver = Driver(process, errors)
        driver.answer()
        yield driver
