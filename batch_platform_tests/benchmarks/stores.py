"""Score one very large partition with its predictions in DuckDB and in files, and publish it, by the command that users run."""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import yaml

from batch_platform_tests.benchmarks import project
from batch_platform_tests.benchmarks.contenders import Job
from batch_platform_tests.benchmarks.data import TRAINING_ROWS, days_of, spread, write_days
from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians
from batch_platform_tests.benchmarks.options import Options

TITLE = "Where predictions are kept"
KIND = "linear"  # the quickest model, so that storing is most of the work
STORES = ("duckdb", "parquet")


def measure(options: Options) -> Iterator[Result]:
    """Score one partition into each store, in turn."""
    written = days_of(spread(options.rows, 1), datetime.now(UTC).date())
    write_days(options.folder / "data", written, min(TRAINING_ROWS, options.rows))
    served = project.generated_project(options.folder / KIND, KIND, options.folder / "data", written)
    project.make_ready(served, written)
    job = Job(served, written.keys, options.folder / "none", options.environments)
    yield from in_turn({store: partial(_scored, store, job, options) for store in STORES}, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Say what DuckDB costs against files."""
    seconds = {median.workload: median.seconds for median in medians(results).values()}
    return f"With predictions in DuckDB a run takes {seconds['duckdb'] / seconds['parquet']:.2f} times as long."


def _scored(store: str, job: Job, options: Options) -> Result:
    declared = yaml.safe_load((job.project.folder / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    job.project.declare(declared | {"predictions": {"store": store}})
    cost, _ = job.score(OURS, options.folder / "run")
    databases = [file for file in (options.folder / "run").glob("*.duckdb") if not file.is_symlink()]
    size = sum(file.stat().st_size for file in databases) / 1e6
    files = sum(file.stat().st_size for file in (options.folder / "run" / "lake").glob("*/predictions/*/*")) / 1e6
    print(f"{store}: databases of {size:.0f} MB, files of predictions of {files:.0f} MB", flush=True)
    shutil.rmtree(options.folder / "run")
    return cost.result(store, OURS, options.rows)
