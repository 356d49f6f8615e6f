"""Records of old runs go, and what Dagster shows of partitions and checks stays; on a real instance."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from batch_platform.components.dagster_records import EMPTY_BYTES, OldRecords, compact, forget_runs
from batch_platform.components.events import log_unknown_commits
from batch_platform.components.wiring import PIPELINE_TAG
from batch_platform_tests.harness.deployment import Deployment, deploy_trained

ASSETS = ("features", "predictions")
FIRST, LAST, ALONE = "2024-02-01", "2024-02-03", "2024-02-04"


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Deployment:
    return deploy_trained(tmp_path, monkeypatch, known=True)


def later() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def forget(deployment: Deployment, before: datetime, *, dry_run: bool = False) -> OldRecords:
    return forget_runs(deployment.instance, PIPELINE_TAG, ["small"], before, dry_run=dry_run)


def shown(deployment: Deployment) -> dict[str, dict[str | None, Any]]:
    """The newest materialization of each partition, and whether the newest result of each check passed."""
    newest = {
        asset: {entry.asset_materialization.partition: entry for entry in deployment.materializations(asset)}
        for asset in ASSETS
    }
    keys = [*deployment.definitions.resolve_asset_graph().asset_check_keys]
    found = deployment.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return {**newest, "checks": {str(key): (it.run_id, it.status) for key, it in found.items()}}


def bytes_of_logs(deployment: Deployment) -> dict[str, int]:
    """The bytes of the log of each run that has one."""
    folder = deployment.pipeline.home.dagster / "history" / "runs"
    return {file.name.partition(".")[0]: file.stat().st_size for file in folder.iterdir() if file.name != "index.db"}


def test_what_the_ui_shows_of_partitions_and_checks_outlives_the_records_of_their_runs(trained):
    force = {"features": {"force": True}, "predictions": {"force": True}}
    superseded = trained.run(*ASSETS, first=FIRST, last=LAST)
    newest = trained.run(*ASSETS, first=FIRST, last=LAST, config=force)
    alone = trained.run(*ASSETS, first=ALONE)
    failed = trained.run("predictions", first="2024-02-05", config={"predictions": {"model": "no-such-version"}})
    assert [it.success for it in (superseded, newest, alone, failed)] == [True, True, True, False]
    going_on = trained.instance.create_run_for_job(
        trained.definitions.resolve_job_def("small_score"), tags={PIPELINE_TAG: "small"}
    )
    trained.instance.report_run_canceling(going_on)
    before, events = shown(trained), len(trained.instance.all_logs(newest.run_id))
    assert forget(trained, datetime.now(UTC) - timedelta(days=1)) == OldRecords(0, 0), "none is so old"

    would = forget(trained, later(), dry_run=True)
    assert (would.runs, would.size > 100_000) == (4, True)
    assert shown(trained) == before
    assert len(trained.instance.all_logs(newest.run_id)) == events
    done = forget(trained, later())
    assert (done.runs, done.size) == (would.runs, would.size)
    assert shown(trained) == before
    runs = {run.run_id for run in trained.instance.get_runs()}
    assert runs == {newest.run_id, alone.run_id, failed.run_id, going_on.run_id}, "a run that shows nothing is gone"
    logs = bytes_of_logs(trained)
    assert superseded.run_id not in logs
    assert all(logs[it.run_id] <= EMPTY_BYTES for it in (newest, alone, failed))
    assert trained.instance.all_logs(newest.run_id) == [], "also for a webserver that has read the log before"
    with dg.DagsterInstance.from_config(str(trained.pipeline.home.dagster)) as another:
        assert another.all_logs(alone.run_id) == []
    assert trained.instance.all_logs(going_on.run_id)
    planned = trained.instance.event_log_storage.get_latest_planned_materialization_info(
        trained.key("predictions"), "2024-02-05"
    )
    assert planned.run_id == failed.run_id, "a partition that failed is still shown as failed"
    assert forget(trained, later()).size <= done.size / 2, "reading the log of a run makes an empty one"
    log_unknown_commits(trained.wiring, trained.instance, trained.pipeline.state(), ())
    assert shown(trained) == before, "nothing looks as if it had never been told"


def test_f57_nothing_is_removed_of_a_run_with_a_step_of_the_users(trained):
    predictions = trained.key("predictions")

    @dg.asset(key=trained.key("dashboard"), deps=[predictions], partitions_def=trained.wiring.served)
    def dashboard(context: dg.AssetExecutionContext) -> None:
        context.log.info("in the user's words")

    @dg.asset_check(asset=predictions)
    def plausible() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    ours = trained.run(*ASSETS, first=FIRST)
    with_asset = dg.Definitions.merge(trained.definitions, dg.Definitions([dashboard]))
    with_check = dg.Definitions.merge(trained.definitions, dg.Definitions(asset_checks=[plausible]))
    theirs = [
        replace(trained, definitions=with_asset).run("predictions", "dashboard", first=FIRST),
        replace(trained, definitions=with_check).run("predictions", first=FIRST),
    ]
    logs = [trained.instance.all_logs(run.run_id) for run in theirs]
    assert forget(trained, later()).runs == 1
    assert trained.instance.all_logs(ours.run_id) == []
    assert [trained.instance.all_logs(run.run_id) for run in theirs] == logs
    assert {run.run_id for run in theirs} <= {run.run_id for run in trained.instance.get_runs()}


@pytest.mark.full
def test_the_index_of_events_shrinks_unless_a_run_is_in_progress(trained):
    for _ in range(2):
        assert trained.run(*ASSETS, first=FIRST, last="2024-02-20", config={"features": {"force": True}}).success
    assert forget(trained, later()).runs == 2
    run = trained.instance.create_run_for_job(trained.definitions.resolve_job_def("small_score"))
    assert compact(trained.instance) == 0
    trained.instance.delete_run(run.run_id)
    before = shown(trained)
    assert compact(trained.instance) > 0
    assert shown(trained) == before


def test_the_job_of_a_pipeline_removes_what_is_older_than_it_keeps(trained):
    assert trained.run(*ASSETS, first=FIRST, last=LAST).success
    result = trained.definitions.resolve_job_def("small_remove_old_runs").execute_in_process(instance=trained.instance)
    assert result.success
    (line,) = [
        entry.user_message
        for entry in trained.instance.all_logs(result.run_id)
        if entry.user_message.startswith("Removed")
    ]
    assert line == "Removed the records of 0 runs: 0.0 MiB."


def test_old_rows_are_removed_by_the_same_job_whose_schedule_is_off_until_it_is_switched_on(tmp_path, monkeypatch):
    deployment = deploy_trained(tmp_path, monkeypatch, retention={"predictions": "1 day"})
    deployment.score(FIRST, LAST)
    assert deployment.run("performance", first=FIRST, last="2024-02-02").success
    schedule = deployment.definitions.resolve_schedule_def("small_remove_old_runs_every_week")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    job = deployment.definitions.resolve_job_def("small_remove_old_runs")
    result = job.execute_in_process(instance=deployment.instance)
    assert result.success
    assert set(deployment.pipeline.state().scores) == {LAST}, "what was not measured yet stays"
    logged = [entry.user_message for entry in deployment.instance.all_logs(result.run_id)]
    assert any(line.startswith("Removed predictions of 2 partitions: ") for line in logged)
