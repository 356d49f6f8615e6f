"""Metrics of many partitions together: against one reading of the rows, and against scikit-learn's metrics of the same rows.

The rows are those of the benchmark of the report. What is pooled is every metric of all versions together and of each one,
with intervals by resampling whole partitions; scikit-learn measures four metrics of all rows once, without intervals.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import duckdb
import numpy as np

from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.warehouse.home import Home
from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Result, Spent, in_turn, medians, run, spent
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.report import fill

TITLE = "Pooled performance of many predictions"
READ, LIBRARY = "duckdb, one reading", "scikit-learn, four metrics"
ROWS = (
    "SELECT p.score, o.outcome = 'true' AS truth FROM small.predictions AS p "
    "JOIN small.outcomes AS o USING (id, partition_key) WHERE o.outcome IS NOT NULL"
)


def measure(options: Options) -> Iterator[Result]:
    """Measure each contender in turn, in a process of its own each time."""
    rows = fill(options.folder, options.rows)
    yield from in_turn({name: partial(_measured, options, name, rows) for name in CONTENDERS}, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say how many readings of the rows, and how many measurements by the library, pooling takes as long as."""
    seconds = {median.contender: median.seconds for median in medians(results).values()}
    ours = seconds[OURS]
    return f"Pooling takes as long as {ours / seconds[READ]:.0f} readings, and {ours / seconds[LIBRARY]:.1f} times the library's metrics."


def _measured(options: Options, name: str, rows: int) -> Result:
    command = [sys.executable, "-m", "batch_platform_tests.benchmarks.pooling", str(options.folder), name]
    cost = run(command, options.folder, PYTHONPATH=str(ROOT))
    return Spent(**json.loads(cost.output)).result("pooling", name, rows, cost.peak_mib)


def _pooled(con: duckdb.DuckDBPyConnection) -> None:
    assert pooled_performance(con, "small").height


def _read(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(f"SELECT sum(score), count(*) FILTER (truth) FROM ({ROWS})").fetchall()


def _library(con: duckdb.DuckDBPyConnection) -> None:
    from sklearn import metrics

    rows = con.execute(ROWS).fetchnumpy()
    score, truth = np.asarray(rows["score"]), np.asarray(rows["truth"])
    for metric in (metrics.roc_auc_score, metrics.average_precision_score, metrics.log_loss, metrics.brier_score_loss):
        metric(truth, score)


CONTENDERS: dict[str, Callable[[duckdb.DuckDBPyConnection], None]] = {OURS: _pooled, READ: _read, LIBRARY: _library}


def work(folder: Path, contender: str) -> Spent:
    """Measure the rows as a contender does."""
    if contender == LIBRARY:
        importlib.import_module("sklearn.metrics")  # before the time begins
    with duckdb.connect(str(Home(folder / "home").published), read_only=True) as con:
        return spent(lambda: CONTENDERS[contender](con))


if __name__ == "__main__":
    print(json.dumps(asdict(work(Path(sys.argv[1]).absolute(), sys.argv[2]))))
