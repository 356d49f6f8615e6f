"""Dagster's own ways to read and write assets outside of a run, as users write them in notebooks and tests."""

import dagster as dg
import polars as pl
import pytest

from batch_platform.components.resources import IO_MANAGER
from batch_platform_tests.components.stores import LAST, score_ten_days, stored
from batch_platform_tests.harness.deployment import SCORED_FROM, Deployment, deploy_after

DAYS = dg.DailyPartitionsDefinition(start_date="2024-02-01", end_date="2024-03-01", timezone="Europe/Berlin")
PREDICTIONS = dg.AssetKey(["small", "predictions"])


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    """Ten days of the small pipeline, scored and published."""
    return deploy_after(score_ten_days, tmp_path, monkeypatch, name="ten days scored", trained=True)


@pytest.mark.parametrize("asset", ["features", "predictions"])
def test_the_rows_of_an_asset_are_loaded_by_its_key(deployment: Deployment, asset: str):
    day = deployment.definitions.load_asset_value(
        ["small", asset], python_type=pl.DataFrame, instance=deployment.instance, partition_key=SCORED_FROM
    )
    assert day.height > 0
    with deployment.instance as instance, deployment.definitions.get_asset_value_loader(instance) as loader:
        lazy = loader.load_asset_value(["small", asset], partition_key=SCORED_FROM)
        assert lazy.collect().equals(day)


def test_an_io_manager_is_called_with_contexts_that_are_built_by_hand(deployment: Deployment):
    context = dg.build_input_context(asset_key=PREDICTIONS, partition_key=SCORED_FROM, asset_partitions_def=DAYS)
    assert set(IO_MANAGER.load_input(context).collect()["partition_key"]) == {SCORED_FROM}
    whole = IO_MANAGER.load_input(dg.build_input_context(asset_key=PREDICTIONS)).collect()
    assert set(whole["partition_key"]) >= {SCORED_FROM, LAST}
    of_range = dg.build_input_context(
        asset_key=PREDICTIONS,
        asset_partitions_def=DAYS,
        asset_partition_key_range=dg.PartitionKeyRange(SCORED_FROM, LAST),
    )
    assert IO_MANAGER.load_input(of_range).collect().height == whole.height
    written = dg.build_output_context(asset_key=dg.AssetKey(["reports", "notes"]), run_id="by-hand")
    IO_MANAGER.handle_output(written, pl.DataFrame({"note": ["a", "b"]}))
    day = dg.build_output_context(
        asset_key=dg.AssetKey(["reports", "daily"]), run_id="by-hand", partition_key=LAST, asset_partitions_def=DAYS
    )
    IO_MANAGER.handle_output(day, pl.DataFrame({"note": ["c"]}))
    assert stored(deployment, "SELECT note FROM reports.notes ORDER BY ALL") == [("a",), ("b",)]
    assert stored(deployment, "FROM reports.daily") == [("c", LAST)]
    assert written.get_logged_metadata()["dagster/row_count"].value == 2


def test_assets_of_the_users_own_are_tested_in_memory_with_the_predictions(deployment: Deployment):
    @dg.asset(partitions_def=DAYS, ins={"predictions": dg.AssetIn(PREDICTIONS, input_manager_key="of_pipelines")})
    def late(predictions: pl.DataFrame) -> int:
        return predictions.height

    spec = dg.AssetSpec(PREDICTIONS, partitions_def=DAYS)
    done = dg.materialize_to_memory([late, spec], partition_key=SCORED_FROM, resources={"of_pipelines": IO_MANAGER})
    assert done.success
    query = f"SELECT count(*) FROM small.predictions WHERE partition_key = '{SCORED_FROM}'"
    assert [(done.output_for_node("late"),)] == stored(deployment, query)
    assert late(pl.DataFrame({"score": [0.5]})) == 1


def test_the_pipelines_own_assets_are_materialized_without_a_job_and_commit_as_ever(deployment: Deployment):
    predictions = deployment.definitions.resolve_assets_def(PREDICTIONS)
    options = {"instance": deployment.instance, "raise_on_error": False}
    runs = [dg.materialize([predictions], partition_key=day, **options) for day in (LAST, "2024-02-18")]
    assert [run.success for run in runs] == [True, False], "of the second day no features are built"
