"""Publish after one small partition was replaced, in warehouses of growing size, against a full copy by SQL."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from batch_platform_tests.benchmarks.commit import work
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn
from batch_platform_tests.benchmarks.options import Options

TITLE = "Publishing after a partition of 10,000 rows was replaced"
WORKLOAD, PEER = "publish", "full_copy"


def measure(options: Options) -> Iterator[Result]:
    """Measure each size with both contenders, in turn."""
    contenders = {}
    for rows in (options.rows // 10, options.rows, 5 * options.rows):
        home = options.folder / str(rows)
        work(home, "fill", rows)
        contenders |= {
            f"{OURS} {rows}": partial(_published, home, rows),
            f"{PEER} {rows}": partial(_copied, home, rows),
        }
    yield from in_turn(contenders, options.repeat)


def _published(home: Path, rows: int) -> Result:
    took, cost = work(home, "publish")
    return took["published"].result(WORKLOAD, OURS, rows, cost.peak_mib)


def _copied(home: Path, rows: int) -> Result:
    copy = home / "whole.duckdb"
    took, cost = work(home, "copy", copy)
    copy.unlink()
    return took["copied"].result(WORKLOAD, PEER, rows, cost.peak_mib)
