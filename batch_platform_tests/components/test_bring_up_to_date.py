"""The job that follows the whole plan: one run over a range makes features, models, predictions and performance where due."""

from threading import Event, Thread

import dagster as dg
import polars as pl
import pytest

from batch_platform.components.jobs import announcing
from batch_platform.components.wiring import stamp_of
from batch_platform.models.promotion import Maker, promote
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.lock import folder_locked
from batch_platform_tests.components.bringing import JOB, bring, keys
from batch_platform_tests.harness.deployment import deploy, deploy_trained, range_tags
from batch_platform_tests.harness.served import RETRY
from batch_platform_tests.harness.small_pipeline import small_events
from batch_platform_tests.harness.ticks import AFTER_ALL, at
from batch_platform_tests.harness.workspace import REPOSITORY, workspace


def test_one_run_from_an_empty_home_makes_all_that_is_due_and_the_next_makes_nothing(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, partitions={"start": "2024-01-17"})
    result = bring(deployment, "2024-02-01", "2024-02-03")
    assert result.success
    window = deployment.days("2024-01-17", "2024-01-30")
    scored = deployment.days("2024-02-01", "2024-02-03")
    assert sorted(keys(deployment, "features", result.run_id)) == window + scored
    assert keys(deployment, "model", result.run_id) == ["2024-02-01"]
    assert keys(deployment, "predictions", result.run_id) == keys(deployment, "performance", result.run_id) == scored
    checked = deployment.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    names = {record.dagster_event.asset_check_evaluation_data.check_name for record in checked}
    assert {"gate", "rows_balance"} <= names
    provenance = deployment.materializations("model", result.run_id)[0].asset_materialization.tags
    assert "dagster/input_data_version/small/features" in provenance

    before = deployment.pipeline.state()
    again = bring(deployment, "2024-02-01", "2024-02-03")
    assert again.success
    assert keys(deployment, "features", again.run_id) == keys(deployment, "model", again.run_id) == []
    assert keys(deployment, "predictions", again.run_id) == scored, (
        "up to date, and Dagster takes what is not logged as failed"
    )
    assert keys(deployment, "performance", again.run_id) == scored
    after = deployment.pipeline.state()
    assert (after.scores, after.evaluations) == (before.scores, before.evaluations)

    forced = bring(deployment, "2024-02-02", "2024-02-02", force=True)
    assert (
        keys(deployment, "features", forced.run_id) == keys(deployment, "predictions", forced.run_id) == ["2024-02-02"]
    )
    assert deployment.pipeline.state().scores["2024-02-02"].seq > after.scores["2024-02-02"].seq
    retrained = bring(deployment, "2024-02-03", "2024-02-03", retrain=True)
    assert keys(deployment, "model", retrained.run_id) == ["2024-02-01"]


@pytest.mark.full
def test_a_run_that_scores_nothing_since_its_model_waits_fails_as_the_command_and_the_asset_do(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, model={"promote": "manual"}, partitions={"start": "2024-01-17"})
    result = bring(deployment, "2024-02-01", "2024-02-02")
    assert deployment.pipeline.state().scores == {}
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    version = deployment.pipeline.state().registry.versions[0].version
    reason = "small, partition 2024-02-01: no model serves it; no version is approved."
    remedy = f"{version} waits for a decision: batch-platform models small promote {version}"
    assert failure.step_failure_data.user_failure_data.description == f"{reason} Hint: {remedy}"
    checked = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not checked["up_to_date"].passed
    assert remedy in checked["up_to_date"].description
    alone = deployment.run("predictions", first="2024-02-01")
    (failure,) = [event for event in alone.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data.description.endswith(f"or {remedy}")

    made = promote(deployment.pipeline.state().registry, {}, version, Maker("me", AFTER_ALL))
    deployment.pipeline.decide(made.promotion, deployment.pipeline.state())
    assert bring(deployment, "2024-02-01", "2024-02-02").success
    assert sorted(deployment.pipeline.state().scores) == ["2024-02-01", "2024-02-02"]


@pytest.mark.full
def test_what_fails_alone_fails_the_run_once_the_rest_is_done_and_is_done_by_executing_it_again(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch)
    source, events = deployment.pipeline.folder / "events.parquet", small_events()
    second = pl.col("ts").is_between(at("2024-02-02T00:00"), at("2024-02-03T00:00"))
    pl.concat([events, events.filter(second)]).write_parquet(source)
    tags = [{"key": key, "value": value} for key, value in range_tags("2024-02-01", "2024-02-03").items()]
    params = {"selector": {"jobName": JOB, **REPOSITORY}, "mode": "default", "executionMetadata": {"tags": tags}}
    with workspace(deployment) as location:
        run = location.launch(params)
        assert run.status == dg.DagsterRunStatus.FAILURE
        (record,) = deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        failure = record.dagster_event.step_failure_data.user_failure_data
        assert record.step_key == "small__performance"
        assert failure.description.startswith("small, partition 2024-02-02: ")
        assert sorted(deployment.pipeline.state().evaluations) == ["2024-02-01", "2024-02-03"]

        events.write_parquet(source)
        launched = location.ask(RETRY, params={"parentRunId": run.run_id, "strategy": "FROM_FAILURE"})
        again = location.execute(launched["run"]["runId"])
    assert (again.status, again.step_keys_to_execute) == (dg.DagsterRunStatus.SUCCESS, ["small__performance"])
    assert sorted(deployment.pipeline.state().evaluations) == ["2024-02-01", "2024-02-02", "2024-02-03"]


def test_materializing_a_month_from_an_empty_home_names_the_job_in_one_paragraph(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch)
    for asset, first, last, reason in (
        ("model", "2024-02-01", None, "the model is not trained, since the features of"),
        ("predictions", "2024-02-01", "2024-02-29", "no model serves it; no version is approved."),
    ):
        assert asset == "model" or deployment.run("features", first=first, last=last).success
        result = deployment.run(asset, first=first, last=last)
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        message = failure.step_failure_data.user_failure_data.description
        assert reason in message
        assert f"launch the job {JOB}" in message
        assert "\n" not in message
    for asset in ("features", "model", "predictions", "performance"):
        specs = {spec.key: spec for spec in deployment.definitions.resolve_all_asset_specs()}
        assert (specs[deployment.key(asset)].description or "").startswith(f"**Launch the job `{JOB}`**")


def test_a_model_that_another_run_registered_meanwhile_is_not_trained_once_more(tmp_path, monkeypatch):
    deployment = deploy(tmp_path, monkeypatch, partitions={"start": "2024-01-17"})
    pipeline, calendar = deployment.pipeline, deployment.pipeline.spec.partitions.calendar
    list(pipeline.build_features(calendar.due(at("2024-02-02T00:00")), stamp_of("first")))
    request = PlanRequest(at("2024-02-03T00:00"), [calendar.named("2024-02-01")], serve_all=True)
    plan = make_plan(pipeline.spec, pipeline.state(), request)
    assert [item.partition.key for item in plan.of("model")] == ["2024-02-01"]
    version = pipeline.train(calendar.named("2024-02-01"), stamp_of("first")).version
    with announcing(plan):
        assert bring(deployment, "2024-02-01", "2024-02-01").success
    state = pipeline.state()
    assert [it.version for it in state.registry.versions] == [version.version]
    assert state.scores["2024-02-01"].model_version == version.version


def test_a_run_waits_for_another_one_that_trains(tmp_path):
    waited, entered = Event(), list[str]()

    def train(name: str) -> None:
        with folder_locked(tmp_path / "models", waited.set):
            entered.append(name)

    with folder_locked(tmp_path / "models", lambda: None):
        second = Thread(target=train, args=["second"])
        second.start()
        waited.wait()
        entered.append("first")
    second.join()
    assert entered == ["first", "second"]
