"""Real `dagster-webserver` and `dagster-daemon` processes on a project of somebody else's, driven as the UI drives them."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from batch_platform_tests.command_line import run_command
from batch_platform_tests.dagster_project import write_dagster_project
from batch_platform_tests.deployment import range_tags
from batch_platform_tests.served import PATIENCE, Ui, served, session_of
from batch_platform_tests.small_pipeline import small_events

RANGE_START, RANGE_END = range_tags("first", "last")


@pytest.fixture(scope="module")
def ui(tmp_path_factory) -> Iterator[Ui]:
    folder = write_dagster_project(
        tmp_path_factory.mktemp("somebodys") / "project",
        events=small_events(last=date(2024, 3, 31)),
        partitions={"end": "2024-04-01"},
        predictions={"schedule": "* * * * *"},
    )
    run_command(folder, "run", "small", "--partition", "2024-02-01")
    with served(folder, folder / ".batch_platform") as running:
        yield running


SELECTION = [{"path": ["small", "features"]}, {"path": ["small", "predictions"]}]
LOCATIONS = """
{workspaceOrError {... on Workspace {locationEntries {
  name loadStatus
  locationOrLoadError {
    __typename
    ... on PythonError {message}
    ... on RepositoryLocation {repositories {name schedules {name} assetGroups {groupName}}}
  }
}}}}"""
LAUNCH = """
mutation ($executionParams: ExecutionParams!) {launchPipelineExecution(executionParams: $executionParams) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on PythonError {message}
  ... on RunConfigValidationInvalid {errors {message}}
}}"""
RUN = "query ($id: ID!) {runOrError(runId: $id) {... on Run {status tags {key value} assetSelection {path}}}}"
MATERIALIZATIONS = """
query ($asset: AssetKeyInput!) {assetOrError(assetKey: $asset) {... on Asset {
  assetMaterializations(limit: 1000) {partition runId metadataEntries {label ... on IntMetadataEntry {intValue}}}
}}}"""
BACKFILL = """
mutation ($backfillParams: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $backfillParams) {
  __typename
  ... on LaunchBackfillSuccess {backfillId}
  ... on PythonError {message}
}}"""
BACKFILL_STATUS = """
query ($id: String!) {partitionBackfillOrError(backfillId: $id) {
  __typename
  ... on PartitionBackfill {status runs(limit: 100) {runId status tags {key value}} error {message}}
}}"""
START_SCHEDULE = """
mutation ($selector: ScheduleSelector!) {startSchedule(scheduleSelector: $selector) {
  __typename
  ... on ScheduleStateResult {scheduleState {id status}}
  ... on PythonError {message}
}}"""
STOP_SCHEDULE = "mutation ($id: String!) {stopRunningSchedule(id: $id) {__typename}}"
TICKS = """
query ($selector: ScheduleSelector!) {scheduleOrError(scheduleSelector: $selector) {... on Schedule {
  scheduleState {ticks(limit: 10) {status runIds skipReason error {message}}}
}}}"""


def repository(ui: Ui) -> dict[str, str]:
    (location,) = ui.ask(LOCATIONS)["locationEntries"]
    return {"repositoryLocationName": location["name"], "repositoryName": "__repository__"}


def finished(ui: Ui, run_id: str) -> dict[str, Any] | None:
    run = ui.ask(RUN, id=run_id)
    return run if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["tags"]}


def materialized(ui: Ui, asset: str, run_id: str) -> list[str]:
    events = ui.ask(MATERIALIZATIONS, asset={"path": ["small", asset]})["assetMaterializations"]
    return sorted(event["partition"] for event in events if event["runId"] == run_id)


def test_the_code_location_loads(ui):
    def loaded() -> list[dict[str, Any]] | None:
        entries = ui.ask(LOCATIONS)["locationEntries"]
        return entries if entries and all(entry["loadStatus"] == "LOADED" for entry in entries) else None

    (entry,) = ui.wait(loaded)
    location = entry["locationOrLoadError"]
    assert location["__typename"] == "RepositoryLocation", location
    (only,) = location["repositories"]
    assert [group["groupName"] for group in only["assetGroups"]] == ["small"]
    assert {schedule["name"] for schedule in only["schedules"]} == {
        "small_score_when_due",
        "small_train_when_due",
        "small_evaluate_when_due",
    }


def test_a_partition_materialized_from_the_ui_is_scored(ui):
    launched = ui.ask(
        LAUNCH,
        executionParams={
            "mode": "default",
            "runConfigData": "{}",
            "selector": {**repository(ui), "pipelineName": "__ASSET_JOB", "assetSelection": SELECTION},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "2024-02-02"}]},
        },
    )
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    assert ui.wait(lambda: finished(ui, run_id))["status"] == "SUCCESS"
    assert materialized(ui, "predictions", run_id) == ["2024-02-02"]
    query = f"SELECT count(*) FROM small.predictions WHERE partition_key = '2024-02-02' AND run_id = '{run_id}'"
    assert ui.published(query) == [(40,)]


def test_a_backfill_of_31_partitions_from_the_ui_is_one_run(ui):
    days = [f"2024-03-{day:02}" for day in range(1, 32)]
    launched = ui.ask(BACKFILL, backfillParams={"assetSelection": SELECTION, "partitionNames": days, "tags": []})
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def ended() -> dict[str, Any] | None:
        backfill = ui.ask(BACKFILL_STATUS, id=launched["backfillId"])
        return backfill if backfill["status"] not in ("REQUESTED", "CANCELING", "FAILING") else None

    backfill = ui.wait(ended)
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    (run,) = backfill["runs"]
    assert (tags_of(run)[RANGE_START], tags_of(run)[RANGE_END]) == (days[0], days[-1])
    assert materialized(ui, "features", run["runId"]) == days
    assert materialized(ui, "predictions", run["runId"]) == days
    query = "SELECT count(*), count(DISTINCT partition_key) FROM small.predictions WHERE partition_key LIKE '2024-03-%'"
    assert ui.published(query) == [(31 * 40, 31)]


def test_a_schedule_that_is_switched_on_requests_what_is_due(ui):
    selector = {**repository(ui), "scheduleName": "small_score_when_due"}
    started = ui.ask(START_SCHEDULE, selector=selector)
    assert started["__typename"] == "ScheduleStateResult", started

    def ticked() -> list[str] | None:
        ticks = ui.ask(TICKS, selector=selector)["scheduleState"]["ticks"]
        assert not [tick for tick in ticks if tick["status"] == "FAILURE"], ticks
        return next((tick["runIds"] for tick in ticks if tick["status"] == "SUCCESS"), None)

    run_ids = ui.wait(ticked)
    assert ui.ask(STOP_SCHEDULE, id=started["scheduleState"]["id"])["__typename"] == "ScheduleStateResult"
    runs = {run_id: ui.wait(lambda run_id=run_id: finished(ui, run_id)) for run_id in run_ids}
    assert {run["status"] for run in runs.values()} == {"SUCCESS"}
    days = [f"2024-02-{day:02}" for day in range(1, 30)]
    scored = [day for run_id in runs for day in materialized(ui, "predictions", run_id)]
    assert sorted(scored) == sorted(set(scored))
    assert set(scored) <= set(days)
    assert ui.published(
        "SELECT DISTINCT partition_key FROM small.predictions WHERE partition_key < '2024-03' ORDER BY 1"
    ) == [(day,) for day in days]


LINEAGE = """
query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { metadataEntries {
  label
  ... on TableColumnLineageMetadataEntry { lineage { columnName columnDeps { assetKey { path } columnName } } }
  ... on MarkdownMetadataEntry { mdStr }
  ... on CodeReferencesMetadataEntry { codeReferences { ... on LocalFileCodeReference { filePath } } }
} } } }
"""
CHECKS = """
query($key: AssetKeyInput!) { assetCheckExecutions(assetKey: $key, checkName: "rows_balance", limit: 500) {
  status evaluation { success partition metadataEntries { label ... on IntMetadataEntry { intValue } } }
} }
"""


def test_clients_read_where_columns_come_from(ui):
    node = ui.ask(LINEAGE, key={"path": ["small", "features"]})
    entries = {entry["label"]: entry for entry in node["metadataEntries"]}
    read = {item["columnName"]: item["columnDeps"] for item in entries["dagster/column_lineage"]["lineage"]}
    assert read["amount"] == [{"assetKey": {"path": ["small", "events"]}, "columnName": "amount"}]
    assert "| `amount` | `events`: `amount` unchanged |" in entries["where_columns_come_from"]["mdStr"]
    linked = [Path(item["filePath"]).name for item in entries["dagster/code_references"]["codeReferences"]]
    assert linked == ["features.sql", "defs.yaml"]


def test_clients_read_the_check_of_each_partition(ui):
    done = ui.ask(CHECKS, key={"path": ["small", "predictions"]})
    results = {execution["evaluation"]["partition"]: execution["evaluation"] for execution in done}
    assert results["2024-02-01"]["success"]
    values = {entry["label"]: entry.get("intValue") for entry in results["2024-02-01"]["metadataEntries"]}
    assert (values["rows_in"], values["rows_scored"], values["rows_rejected"]) == (40, 40, 0)


UP_TO_DATE = """
query($key: AssetKeyInput!) { assetCheckExecutions(assetKey: $key, checkName: "up_to_date", limit: 100) {
  status runId evaluation { success severity description partition }
} }
"""


def test_a_check_executed_alone_from_the_ui_says_what_is_stale_and_scores_nothing(ui):
    key = {"path": ["small", "predictions"]}
    chosen = {"assetSelection": [], "assetCheckSelection": [{"assetKey": key, "name": "up_to_date"}]}
    before = ui.published("FROM batch_platform.score_runs")
    launched = ui.ask(
        LAUNCH,
        executionParams={
            "mode": "default",
            "runConfigData": "{}",
            "selector": {**repository(ui), "pipelineName": "__ASSET_JOB", **chosen},
        },
    )
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    assert ui.wait(lambda: finished(ui, run_id))["status"] == "SUCCESS"
    executions = ui.ask(UP_TO_DATE, key=key)
    (result,) = [execution["evaluation"] for execution in executions if execution["runId"] == run_id]
    assert (result["severity"], result["partition"]) == ("WARN", None)
    assert result["success"] == (result["description"] == "none is stale")
    assert {execution["status"] for execution in executions} <= {"SUCCEEDED", "FAILED"}, "no run left one open"
    assert ui.published("FROM batch_platform.score_runs") == before


def test_an_interrupt_ends_every_process(ui):
    assert len(session_of(ui.process.pid)) >= 3
    os.kill(ui.process.pid, signal.SIGINT)
    assert ui.process.wait(PATIENCE) == 0
    deadline = time.monotonic() + PATIENCE
    while session_of(ui.process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert session_of(ui.process.pid) == []
