"""Score ten months of daily flights again with one model, features present, against stock Dagster's single-run range.

In `backfill` both materialize two assets of 306 partitions: here predictions and their evaluation; there features, read
from the same files, and predictions. In `backfill_scores` both materialize the predictions alone. This project replaces
each partition together with its ledger row. Stock Dagster deletes the whole range and then inserts it, in two commits.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from batch_platform.defs.flight_delays import sources
from batch_platform.warehouse.home import partition_of
from batch_platform_tests.benchmarks.agreement import Scores, require_same
from batch_platform_tests.benchmarks.contenders import Job, require_peers
from batch_platform_tests.benchmarks.measuring import OURS, Cost, Result, in_turn
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.project import Project

TITLE = "Ten months of daily flights, scored again"
SHIPPED = Path(sources.__file__).parent
PIPELINE, KEY = "flight_delays", "flight_id"
CARRIED = (KEY, "scheduled_departure", "carrier", "origin", "dest")
FIRST, LAST = "2013-03-01", "2013-12-31"  # the shipped pipeline serves from the first on
PEER = "stock_dagster"


def measure(options: Options) -> Iterator[Result]:
    """Prepare the months, then let both contenders score it again, in turn."""
    require_peers(options.chosen([OURS, PEER]), options.environments)
    served = Project(options.folder / "project", PIPELINE)
    declared = yaml.safe_load((SHIPPED / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    served.write(
        declared, {name: (SHIPPED / name).read_text(encoding="utf-8") for name in ("features.sql", "labels.sql")}
    )
    served.run(served.ready, "--partition", LAST)
    (version,) = (folder.name for folder in (served.ready.models / PIPELINE).iterdir())
    served.run(served.ready, "--model", version, "--from", FIRST, "--to", LAST)
    built = (served.ready.lake / PIPELINE / "features").glob("*.parquet")
    keys = sorted(key for file in built if (key := partition_of(file.name)) >= FIRST)
    model = served.export_model(options.folder / "model.joblib", version, CARRIED)
    job = Job(served, keys, model, options.environments)
    turns = {}
    for workload, flags, changed in (
        ("backfill", ("--with-features",), _stale(declared)),
        ("backfill_scores", (), _outcomes_unknown(_stale(declared))),
    ):
        for contender in options.chosen([OURS, PEER]):
            folder = options.folder / f"{workload}-{contender}"
            if contender == OURS:
                turns[folder.name] = partial(_ours, job, workload, changed, version, folder)
            else:
                folder.mkdir()
                turns[folder.name] = partial(_peers, job, workload, flags, folder)
    for warm_up in turns.values():
        warm_up()
    yield from in_turn(turns, options.repeat)


def _stale(declared: dict[str, Any]) -> dict[str, Any]:
    """Change a rule on rows that no row breaks, so that every partition has to be scored again and gets the same scores."""
    changed = deepcopy(declared)
    changed["features"]["columns"]["distance"] = {"min": -1}
    return changed


def _outcomes_unknown(declared: dict[str, Any]) -> dict[str, Any]:
    """Delay the labels, so that nothing can be evaluated."""
    changed = deepcopy(declared)
    changed["labels"]["delay"] = "36500 days"
    return changed


def _ours(job: Job, workload: str, declared: dict[str, Any], version: str, folder: Path) -> Result:
    served = job.project
    served.declare(declared)
    home = served.copy_ready(folder)
    cost = served.run(home, "--model", version, "--from", job.keys[0], "--to", job.keys[-1])
    if json.loads(cost.output)["scored_now"] != len(job.keys):
        sys.exit(f"{OURS} did not score every partition again: {cost.output}")
    result = _checked(job, workload, OURS, cost, Scores(home.published, f"{PIPELINE}.predictions", job.keys, KEY))
    shutil.rmtree(folder)
    return result


def _peers(job: Job, workload: str, flags: tuple[str, ...], folder: Path) -> Result:
    """Write into the same file each time, so that every run after the warm-up replaces rows."""
    cost, scores = job.score_by_peer(PEER, folder, *flags)
    return _checked(job, workload, PEER, cost, replace(scores, key=KEY))


def _checked(job: Job, workload: str, contender: str, cost: Cost, scores: Scores) -> Result:
    built = (job.project.ready.lake / PIPELINE / "features").glob("*.parquet")
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in built if partition_of(file.name) in job.keys)
    require_same(contender, scores, rows, job.model.with_name("reference.parquet"), 0.0)
    return cost.result(workload, contender, rows)
