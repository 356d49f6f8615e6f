"""The report on many predictions: a small pipeline whose scored rows and labels are repeated until there are as many as asked for.

A month of days is scored and measured, so that every table of the report is there; then the rows of predictions and outcomes are
multiplied in the warehouse, each with a key of its own, and published. Building the report is measured as the command does it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.reports.report import write_report
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import note_partitions
from batch_platform.warehouse.published import publish
from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Result, Spent, run, spent
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline, small_spec

TITLE = "The report on many predictions"
NOW = datetime(2024, 3, 3, 12, tzinfo=UTC)
MONITORED = {"segments": ["shop"], "drift": {}}


def measure(options: Options) -> Iterator[Result]:
    """Measure the report on all rows, in a process of its own each time."""
    rows = fill(options.folder, options.rows)
    command = [sys.executable, "-m", "batch_platform_tests.benchmarks.report", str(options.folder)]
    for _ in range(options.repeat):
        cost = run(command, options.folder, PYTHONPATH=str(ROOT))
        yield Spent(**json.loads(cost.output)).result("report", OURS, rows, cost.peak_mib)


def fill(folder: Path, rows: int) -> int:
    """Make a home with about so many predictions; returns how many."""
    pipeline = small_pipeline(folder, monitoring=MONITORED)
    carry_out(pipeline, NOW)
    with pipeline.warehouse.transaction() as con:
        keys = [key for (key,) in con.execute("SELECT DISTINCT partition_key FROM small.predictions").fetchall()]
        ((scored, last),) = con.execute("SELECT count(*), max(id) FROM small.predictions").fetchall()
        times = max(1, rows // scored)
        for table in ("predictions", "outcomes"):
            copies = f"small.{table} AS known, range(1, {times}) AS copy(number)"
            con.execute(f"INSERT INTO small.{table} SELECT known.* REPLACE (id + number * {last} AS id) FROM {copies}")
            note_partitions(con, "small", table, keys)  # by which it is published
    publish(pipeline.home)
    return scored * times


def work(folder: Path) -> Spent:
    """Write the report."""
    pipeline = Pipeline(small_spec(monitoring=MONITORED), folder / "project", Home(folder / "home"))
    return spent(lambda: write_report(pipeline, datetime.now(UTC)))


if __name__ == "__main__":
    print(json.dumps(asdict(work(Path(sys.argv[1]).absolute()))))
