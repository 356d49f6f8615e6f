"""Assets of a user beside the pipelines."""

OF_A_USER = """\
import dagster as dg
import polars as pl

PREDICTIONS = dg.AssetKey(["small", "predictions"])


@dg.asset(
    ins={"predictions": dg.AssetIn(PREDICTIONS)},
    required_resource_keys={"batch_platform_warehouse"},
    io_manager_key="batch_platform_io_manager",
)
def counts(predictions: pl.LazyFrame) -> pl.LazyFrame:
    return predictions.select(pl.len())


follow = dg.AutomationConditionSensorDefinition("follow", target=dg.AssetSelection.assets(PREDICTIONS))
days = dg.DailyPartitionsDefinition("2024-02-01", end_date="2024-03-01", timezone="Europe/Berlin")


@dg.asset(
    partitions_def=days,
    deps=[dg.AssetDep(PREDICTIONS, partition_mapping=dg.TimeWindowPartitionMapping())],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def dashboard() -> None: ...


both = dg.define_asset_job("both", selection=[PREDICTIONS, dashboard.key])
features = dg.define_asset_job("features", selection=[dg.AssetKey(["small", "features"])])


@dg.asset_sensor(asset_key=PREDICTIONS, job=both)
def when_scored(): ...


@dg.sensor(job_name="small_bring_up_to_date")
def when_asked(): ...


@dg.schedule(job_name="small_train", cron_schedule="0 0 * * *")
def train_now(): ...


@dg.schedule(job_name="small_remove_old_runs", cron_schedule="0 0 * * *")
def tidy(): ...
"""
