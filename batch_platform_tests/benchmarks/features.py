"""Build the features of one large partition from `features.sql`, against DuckDB's own COPY of the same query.

This project also sorts rows by key, checks that keys are unique and times are inside the partition, and hashes and
records the file. Dagster's command builds the features, because `batch-platform run` would go on and score.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import pyarrow.parquet as pq

from batch_platform_tests.benchmarks.contenders import PEERS
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Cost, Result, in_turn, run
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.benchmarks.project import Project, generated_project

TITLE = "Features of one partition"
WORKLOAD, KIND, PEER = "features", "trees", "duckdb_copy"
WARM_UP_ROWS = 100_000


def measure(options: Options) -> Iterator[Result]:
    """Measure both contenders in turn, each in a fresh folder."""
    folder, data = options.folder, options.folder / "data"
    days = days_of([min(WARM_UP_ROWS, options.rows), options.rows], datetime.now(UTC).date())
    write_days(data, days, min(TRAINING_ROWS, options.rows))
    built = generated_project(folder / KIND, KIND, data, days)
    built.run(built.ready, "--partition", days.first.isoformat())

    def copied(key: str) -> Cost:
        query = (built.folder / "features.sql").read_text(encoding="utf-8")
        command = [sys.executable, str(PEERS / "duckdb_copy.py"), query, str(data / f"{key}.parquet"), key]
        (folder / "run").mkdir()
        return run([*command, str(folder / "run" / "features.parquet")], folder)

    def written(build: Callable[[str], Cost], contender: str, key: str, rows: int) -> Result:
        cost = build(key)
        (file,) = (folder / "run").glob(f"**/{key}.*.parquet" if contender == OURS else "features.parquet")
        if (count := pq.read_metadata(file).num_rows) != rows:
            sys.exit(f"{contender} wrote {count} rows instead of {rows}.")
        shutil.rmtree(folder / "run")
        return cost.result(WORKLOAD, contender, rows)

    contenders: dict[str, Callable[[str], Cost]] = {OURS: partial(_built, built, options), PEER: copied}
    warm_up, measured = days.measured.items()
    for contender, build in contenders.items():
        written(build, contender, warm_up[0].isoformat(), warm_up[1])
    yield from in_turn(
        {
            contender: partial(written, build, contender, measured[0].isoformat(), measured[1])
            for contender, build in contenders.items()
        },
        options.repeat,
    )


def _built(project: Project, options: Options, key: str) -> Cost:
    return project.materialize(project.copy_ready(options.folder / "run"), "features", key, key)
