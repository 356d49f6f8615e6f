"""Run the year of flights with `batch-platform run` and with a plain in-memory script, in turn on the same machine.

    python -m batch_platform_tests.benchmarks.full_year [--repeat K] [--json FILE]

Both build the features of 365 days, train ten models and score March to December. The command starts from an empty home
and does all of its work: it writes files and ledgers, checks hashes, records every partition in Dagster, evaluates the
predictions and publishes the copy for readers.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import duckdb
import polars as pl
from sklearn.metrics import roc_auc_score

from batch_platform.defs.flight_delays import sources
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.benchmarks.measuring import COMMAND, ROOT, Cost, run
from batch_platform_tests.benchmarks.reporting import machine, versions

PIPELINE = "flight_delays"


def measure_command(folder: Path) -> dict[str, object]:
    """Measure the command in an empty home."""
    home = folder / "home"
    cost = run([COMMAND, "run", PIPELINE, "--json"], folder, **{HOME_VARIABLE: str(home)})
    return {
        "contender": "batch_platform",
        **_time_of(cost),
        "rows_scored": json.loads(cost.output)["rows_scored"],
        "roc_auc": area(home / "published.duckdb"),
    }


def measure_script(folder: Path) -> dict[str, object]:
    """Measure the plain script."""
    command = [sys.executable, "-m", "batch_platform_tests.benchmarks.year_script", str(folder / "scores.duckdb")]
    cost = run(command, folder, PYTHONPATH=str(ROOT))
    return {"contender": "script", **_time_of(cost), **json.loads(cost.output)}


def _time_of(cost: Cost) -> dict[str, object]:
    return {"seconds": cost.seconds, "core_seconds": cost.core_seconds, "peak_mib": cost.peak_mib}


def area(published: Path) -> float:
    """ROC AUC of all scored flights whose outcome is known, over all months together."""
    with duckdb.connect(str(published.resolve()), read_only=True) as con:
        scores = con.sql(f"SELECT flight_id, score FROM {PIPELINE}.predictions").pl()
    known = (
        sources.flights()
        .filter(pl.col("arr_delay").is_not_null())
        .select("flight_id", late=pl.col("arr_delay") >= 30)
        .collect()
    )
    joined = scores.join(known, on="flight_id")
    return float(roc_auc_score(joined["late"], joined["score"]))


def main() -> None:
    """Measure both in turn; print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[dict[str, object]] = []
    for _ in range(options.repeat):
        for measure in (measure_script, measure_command):
            with tempfile.TemporaryDirectory() as folder:
                results.append(measure(Path(folder)))
    print(f"{machine()}; {options.repeat} repeats. {versions([])}\n")
    print("| contender | median s | core-s | peak MiB | rows scored | AUC |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    medians: dict[str, dict[str, float]] = {}
    for contender in ("script", "batch_platform"):
        mine = [result for result in results if result["contender"] == contender]
        medians[contender] = {
            clock: statistics.median(result[clock] for result in mine) for clock in ("seconds", "core_seconds")
        }
        peak = max(result["peak_mib"] for result in mine)
        first = mine[0]
        print(
            f"| {contender} | {medians[contender]['seconds']:.1f} | {medians[contender]['core_seconds']:.1f} "
            f"| {peak:.0f} | {first['rows_scored']:,} | {first['roc_auc']:.4f} |"
        )
    ours, peer = medians["batch_platform"], medians["script"]
    print(
        f"\nbatch_platform takes {ours['seconds'] / peer['seconds']:.2f} times as long as the script, and "
        f"{ours['core_seconds'] / peer['core_seconds']:.2f} times the core-seconds."
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
