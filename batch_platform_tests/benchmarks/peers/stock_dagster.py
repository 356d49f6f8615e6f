"""Stock Dagster as its documentation shows it: partitioned assets, a single-run backfill, the DuckDB Polars IO manager.

    python stock_dagster.py MODEL OUTPUT.duckdb FILE…                 predictions only
    python stock_dagster.py MODEL OUTPUT.duckdb FILE… --with-features   features as an asset of their own, then predictions

The IO manager deletes the range and then inserts it, in two transactions, with the whole range in memory.
"""

import os
import sys
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
from dagster_duckdb_polars import DuckDBPolarsIOManager
from served import day_of, load

WITH_FEATURES = "--with-features"


def main(model: str, output: str, *files: str) -> None:
    """Materialize the range of days in one run; the Dagster instance lies beside the model."""
    paths = {day_of(file): file for file in files if file != WITH_FEATURES}
    first, last = min(paths), max(paths)
    shared = {
        "partitions_def": dg.DailyPartitionsDefinition(first, str(date.fromisoformat(last) + timedelta(days=1))),
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "metadata": {"partition_expr": "CAST(day AS TIMESTAMP)"},
        "key_prefix": "main",
    }

    served = load(model)

    def read(day: str) -> pl.DataFrame:
        return pl.scan_parquet(paths[day]).select(served.columns).collect()

    @dg.asset(**shared)
    def features(context: dg.AssetExecutionContext) -> pl.DataFrame:
        return pl.concat([read(day).with_columns(day=pl.lit(day)) for day in context.partition_keys])

    @dg.asset(**shared, name="scores")
    def from_features(features: pl.DataFrame) -> pl.DataFrame:
        return served.with_score(features, served.score(features)).with_columns(features["day"])

    @dg.asset(**shared, name="scores")
    def from_files(context: dg.AssetExecutionContext) -> pl.DataFrame:
        return pl.concat([served.scored(read(day), day) for day in context.partition_keys])

    assets = [features, from_features] if WITH_FEATURES in files else [from_files]
    home = Path(model).absolute().with_name("stock_dagster")
    home.mkdir(exist_ok=True)
    os.environ["DAGSTER_HOME"] = str(home)
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    with dg.DagsterInstance.get() as instance:
        dg.materialize(
            assets,
            instance=instance,
            resources={"io_manager": DuckDBPolarsIOManager(database=output)},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
