"""Runs of `batch-platform run` as the rest of Dagster sees them: the timeline, the jobs, *Re-execute*, and sensors."""

import dagster as dg
import pytest

from batch_platform_tests.harness.dagster_project import PACKAGE
from batch_platform_tests.harness.served import RETRY, RUNS_OF_LOCATION
from batch_platform_tests.harness.workspace import workspace_of

SENSOR = """\
from pathlib import Path

import dagster as dg


@dg.run_failure_sensor(minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def alert(context: dg.RunFailureSensorContext):
    with (Path(__file__).parent / "alerts.txt").open("a") as file:
        file.write(f"{context.dagster_run.job_name} {context.dagster_run.run_id}\\n")


@dg.definitions
def defs():
    return dg.Definitions(sensors=[alert])
"""
RUNS_OF_JOB = """
query ($selector: PipelineSelector!) {pipelineOrError(params: $selector) {... on Pipeline {
  pipelineSnapshotId runs {runId pipelineSnapshotId}
}}}"""


@pytest.mark.full
def test_a_run_belongs_to_its_location_and_job_is_executed_again_and_heard_of_by_sensors(project, cli, monkeypatch):
    (project / PACKAGE / "defs" / "alert.py").write_text(SENSOR)
    assert cli(project, "run", "small", "--partition", "2024-02-02", "--force").code == 0
    with workspace_of(project, monkeypatch) as location:
        location.evaluate_sensors()  # a sensor hears of what ends after its first look
    events = project / PACKAGE / "defs" / "small" / "events.parquet"
    content = events.read_bytes()
    events.unlink()
    assert cli(project, "run", "small", "--partition", "2024-02-03", "--force").code == 1
    events.write_bytes(content)
    with workspace_of(project, monkeypatch) as location:
        runs = location.ask(RUNS_OF_LOCATION, location="__repository__@project")["results"]
        shown = [(run["jobName"], run["status"]) for run in runs]
        assert shown == [("small_bring_up_to_date", "FAILURE"), ("small_bring_up_to_date", "SUCCESS")]
        assert all(run["hasReExecutePermission"] for run in runs)
        job = location.ask(RUNS_OF_JOB, selector={**location.selector, "pipelineName": "small_bring_up_to_date"})
        assert [run["runId"] for run in job["runs"]] == [run["runId"] for run in runs]

        failed = runs[0]["runId"]
        params = {"parentRunId": failed, "strategy": "FROM_FAILURE"}
        again = location.execute(location.ask(RETRY, params=params)["run"]["runId"])
        assert (again.status, again.parent_run_id) == (dg.DagsterRunStatus.SUCCESS, failed)
        location.evaluate_sensors()
    alerts = (project / PACKAGE / "defs" / "alerts.txt").read_text().splitlines()
    assert alerts == [f"small_bring_up_to_date {failed}"]
