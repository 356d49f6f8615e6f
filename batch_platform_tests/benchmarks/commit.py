"""Commit staged partitions: how long the warehouse is locked, and the longest wait among many writers.

One commit of a fifth of the rows is compared with a plain insert into an empty file. Then eight processes commit ten
partitions each, a fiftieth of the rows in each; no commit may be lost.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb

from batch_platform.warehouse.home import Home
from batch_platform_tests.benchmarks.environments import Options
from batch_platform_tests.benchmarks.measuring import OURS, ROOT, Cost, Result, Spent, in_turn, run
from batch_platform_tests.benchmarks.warehouse_work import PIPELINE

TITLE = "Commit: seconds that the warehouse is locked, and the longest wait of 8 writers"
PEER, WRITERS, COMMITS = "plain_insert", 8, 10


def measure(options: Options) -> Iterator[Result]:
    """Measure the lock of one large commit, the plain insert, and the wait of many writers."""
    large, small = max(1, options.rows // 5), max(1, options.rows // 50)
    work(options.folder / "warm-up", "commit", 0, 1, 1000)
    contenders = {
        OURS: partial(_held, options.folder / "held", large),
        PEER: partial(_inserted, options.folder / "inserted", large),
        "many": partial(_waited, options.folder / "waited", small),
    }
    yield from in_turn(contenders, options.repeat)


def work(home: Path, task: str, *arguments: object) -> tuple[dict[str, Spent], Cost]:
    """Run a task on a warehouse in a process of its own; returns the longest time of each thing it measured, and its cost."""
    home.mkdir(parents=True, exist_ok=True)
    module = "batch_platform_tests.benchmarks.warehouse_work"
    command = [sys.executable, "-m", module, task, str(home), *(str(argument) for argument in arguments)]
    cost = run(command, home, PYTHONPATH=str(ROOT))
    took = json.loads(cost.output).items()
    return {name: max((Spent(**time) for time in times), key=lambda time: time.seconds) for name, times in took}, cost


def conclude(results: Sequence[Result]) -> str:
    """Say how many commits were counted."""
    waits = [result for result in results if result.workload == "commit_wait"]
    return f"Of {WRITERS * COMMITS * len(waits)} commits by {WRITERS} writers at once, 0 were lost."


def _held(home: Path, rows: int) -> Result:
    took, cost = work(home, "commit", 0, 1, rows)
    shutil.rmtree(home)
    return took["held"].result("commit", OURS, rows, cost.peak_mib)


def _inserted(home: Path, rows: int) -> Result:
    took, cost = work(home, "plain_insert", home / "plain.duckdb", rows)
    shutil.rmtree(home)
    return took["held"].result("commit", PEER, rows, cost.peak_mib)


def _waited(home: Path, rows: int) -> Result:
    """Run eight writers at once, then check that every commit is there."""
    with ThreadPoolExecutor(WRITERS) as pool:
        done = list(pool.map(lambda writer: work(home, "commit", writer, COMMITS, rows), range(WRITERS)))
    with duckdb.connect(str(Home(home).warehouse), read_only=True) as con:
        commits = con.execute("SELECT count(DISTINCT partition_key) FROM batch_platform.score_runs").fetchall()[0][0]
        stored = con.execute(f"SELECT count(*) FROM {PIPELINE}.predictions").fetchall()[0][0]
    if (commits, stored) != (WRITERS * COMMITS, WRITERS * COMMITS * rows):
        sys.exit(f"{WRITERS * COMMITS - commits} commits were lost, and {WRITERS * COMMITS * rows - stored} rows.")
    shutil.rmtree(home)
    longest = max((took["waited"] for took, _ in done), key=lambda waited: waited.seconds)
    return longest.result("commit_wait", OURS, rows, max(cost.peak_mib for _, cost in done))
