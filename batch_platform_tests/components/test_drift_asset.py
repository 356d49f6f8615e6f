"""The asset of the drift: made by the step that scores, told again from what is recorded, never made alone."""

from datetime import timedelta

import dagster as dg
import polars as pl
import pytest

from batch_platform_tests.components.bringing import bring, keys
from batch_platform_tests.components.previews import launched_by_the_ui, preview
from batch_platform_tests.harness.deployment import QUIET, Deployment, deploy_trained
from batch_platform_tests.harness.small_pipeline import small_events
from batch_platform_tests.harness.ticks import at, look
from batch_platform_tests.harness.workspace import workspace

CHECK = dg.AssetCheckKey(dg.AssetKey(["small", "drift"]), "drift")
BROKEN = "2024-02-03"


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> Deployment:
    """February's model, with a day whose amounts are all missing."""
    deployed = deploy_trained(tmp_path, monkeypatch, monitoring={"drift": {}})
    of_day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d") == BROKEN
    broken = small_events().with_columns(amount=pl.when(~of_day).then("amount"))
    broken.write_parquet(deployed.pipeline.folder / "events.parquet")
    return deployed


def results(deployment: Deployment, run_id: str) -> dict[str | None, bool]:
    """Whether the check of the drift passed, by partition, in a run; None stands for the run as a whole."""
    logged = deployment.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluated = [entry.dagster_event.asset_check_evaluation_data for entry in logged]
    return {it.partition: it.passed for it in evaluated if it.asset_check_key == CHECK}


def test_the_step_that_scores_makes_the_drift_of_each_partition(deployment):
    graph = deployment.definitions.resolve_asset_graph()
    parents = {key.path[-1] for key in graph.get(CHECK.asset_key).parent_keys}
    assert parents == {"features", "predictions"}

    alone = deployment.run("features", "predictions", first="2024-02-01", last="2024-02-02")
    days = ["2024-02-01", "2024-02-02"]
    assert keys(deployment, "predictions", alone.run_id) == keys(deployment, "drift", alone.run_id) == days
    assert results(deployment, alone.run_id) == {"...".join(days): True}

    whole = bring(deployment, "2024-02-02", "2024-02-04")
    assert whole.success, [event.event_specific_data for event in whole.all_events if event.is_failure]
    assert keys(deployment, "drift", whole.run_id) == ["2024-02-02", BROKEN, "2024-02-04"]
    assert results(deployment, whole.run_id) == {"2024-02-02": True, BROKEN: False, "2024-02-04": True, None: False}
    healthy, broken, last = (it.asset_materialization for it in deployment.materializations("drift", whole.run_id))
    shown = {name: value.value for name, value in broken.metadata.items()}
    assert (shown["columns_over_fail"], shown["worst_psi"] > 1) == (1, True)
    assert shown["the_worst"].splitlines()[2].startswith("| amount |")
    assert shown["dagster/partition_row_count"] > 0
    assert healthy.metadata["columns_over_fail"].value == 0
    assert {"dagster/row_count", "dagster/column_schema"} <= last.metadata.keys()
    again = deployment.run(
        "drift", first="2024-02-04"
    )  # Dagster then takes the version of the predictions from its records
    (told,) = (it.asset_materialization for it in deployment.materializations("drift", again.run_id))
    version = "dagster/input_data_version/small/predictions"
    assert last.tags[version] == told.tags[version], "the predictions of the same step, not those before it"


@pytest.mark.full
def test_a_run_that_scores_nothing_gives_no_verdict_and_the_last_one_stands(deployment):
    assert bring(deployment, BROKEN, BROKEN).success
    source, fifth = deployment.pipeline.folder / "events.parquet", at("2024-02-05T00:00")
    events = pl.read_parquet(source)
    of_day = events.filter(pl.col("ts").is_between(fifth, fifth + timedelta(days=1), closed="left"))
    pl.concat([events, of_day]).write_parquet(source)
    failed = bring(deployment, "2024-02-05", "2024-02-05")
    assert not failed.success
    logged = deployment.instance.all_logs(failed.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    judged = {entry.dagster_event.asset_check_evaluation_data.check_name for entry in logged}
    assert judged <= {"rows_balance", "up_to_date"}, (
        "no row is neither scored nor rejected, and nothing else is measured"
    )
    summary = deployment.instance.event_log_storage.get_asset_check_summary_records([CHECK])[CHECK]
    newest = summary.last_check_execution_record
    assert (newest.run_id != failed.run_id, newest.event.asset_check_evaluation.passed) == (True, False)


@pytest.mark.full
def test_the_drift_and_its_check_are_told_again_from_what_is_recorded(deployment):
    assert deployment.run("features", "predictions", first="2024-02-02", last=BROKEN).success
    seqs = {key: run.seq for key, run in deployment.pipeline.state().scores.items()}
    told = deployment.run("drift", first="2024-02-02", last=BROKEN)
    assert told.success
    assert (keys(deployment, "drift", told.run_id), keys(deployment, "predictions", told.run_id)) == (
        ["2024-02-02", BROKEN],
        [],
    )
    versions = [it.asset_materialization.tags["dagster/data_version"] for it in deployment.materializations("drift")]
    assert versions[:2] == versions[2:]
    job = deployment.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={CHECK})
    checked = job.execute_in_process(instance=deployment.instance, run_config={"loggers": QUIET})
    assert results(deployment, checked.run_id) == {None: False}
    assert {key: run.seq for key, run in deployment.pipeline.state().scores.items()} == seqs

    unscored = deployment.run("drift", first="2024-02-09")
    (failure,) = [event.step_failure_data for event in unscored.all_events if event.is_step_failure]
    hint = "launch the job small_bring_up_to_date, which scores it first."
    assert failure.user_failure_data.description == f"small: partition 2024-02-09 is not scored yet. Hint: {hint}"


def test_a_tick_requests_the_drift_with_the_predictions_and_tells_of_what_dagster_never_heard(deployment):
    deployment.score("2024-02-01", "2024-02-02")
    (request,), _ = look(deployment, "predictions", at("2024-02-04T05:00"))
    assert {key.path[-1] for key in request.asset_selection} == {"predictions", "drift"}
    assert CHECK in request.asset_check_keys
    assert deployment.instance.get_materialized_partitions(CHECK.asset_key) == {"2024-02-01", "2024-02-02"}
    with workspace(deployment) as location:
        (shown,) = preview(location, "score")
        run = location.launch(launched_by_the_ui("score", shown))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert keys(deployment, "drift", run.run_id) == keys(deployment, "predictions", run.run_id)
    assert results(deployment, run.run_id)[BROKEN] is False
