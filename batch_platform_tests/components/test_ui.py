"""Dagster's UI as people and clients meet it: real webserver and daemon processes, a real Chromium, and GraphQL."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from batch_platform_tests.harness.browsing import Dagster, browser
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.command_line import clean_environment, run_command
from batch_platform_tests.harness.dagster_project import pipeline_folder, write_dagster_project, write_defs_yaml
from batch_platform_tests.harness.deployment import range_tags
from batch_platform_tests.harness.receiver import Receiver, receiver
from batch_platform_tests.harness.served import (
    BACKFILL,
    BACKFILL_STATUS,
    LOCATIONS,
    PATIENCE,
    Ui,
    finished,
    launch,
    repository,
    served,
    session_of,
    tags_of,
)
from batch_platform_tests.harness.small_pipeline import small_declaration, small_events

pytestmark = pytest.mark.full

DOWNSTREAM = """\
import dagster as dg

PREDICTIONS = dg.AssetKey(["small", "predictions"])
EAGER = dg.AutomationCondition.eager()
DAYS = dg.DailyPartitionsDefinition("2024-02-01", end_date="2024-04-01", timezone="Europe/Berlin")


@dg.asset(deps=[PREDICTIONS], group_name="small", automation_condition=EAGER)
def overview(): ...


@dg.asset(deps=[PREDICTIONS], group_name="small", automation_condition=EAGER, partitions_def=DAYS)
def letters(): ...


by_itself = dg.AutomationConditionSensorDefinition(
    "by_itself", target=dg.AssetSelection.assets("overview", "letters"), default_status=dg.DefaultSensorStatus.RUNNING
)
"""
SCORED = [f"2024-02-0{day}" for day in range(1, 6)]
RANGE_START, RANGE_END = range_tags("first", "last")
REPLACED = "No heartbeat received in 20 seconds"  # said by a server of code that the daemon has replaced by a fresh one
RUNS = """
query ($filter: RunsFilter!) {runsOrError(filter: $filter, limit: 20) {... on Runs {results {
  runId status jobName tags {key value} assetSelection {path}
}}}}"""
TICKS = """
query ($selector: ScheduleSelector!) {scheduleOrError(scheduleSelector: $selector) {... on Schedule {
  scheduleState {status ticks(limit: 20) {status runIds error {message}}}
}}}"""


MATERIALIZATIONS = """
query ($asset: AssetKeyInput!) {assetOrError(assetKey: $asset) {... on Asset {
  assetMaterializations(limit: 1000) {partition runId metadataEntries {label ... on IntMetadataEntry {intValue}}}
}}}"""


START_SENSOR = """
mutation ($selector: SensorSelector!) {startSensor(sensorSelector: $selector) {__typename ... on Sensor {sensorState {status}}}}"""
SENSOR_TICKS = """
query ($selector: SensorSelector!) {sensorOrError(sensorSelector: $selector) {... on Sensor {
  sensorState {ticks(limit: 20) {status skipReason error {message}}}
}}}"""


@pytest.fixture(scope="module")
def hook() -> Receiver:
    """Where alerts go; it is down at first."""
    return receiver()


@pytest.fixture(scope="module")
def ui(tmp_path_factory, hook) -> Iterator[Ui]:
    """The small pipeline with its first model and five scored days, and both processes on it."""
    folder = write_dagster_project(
        tmp_path_factory.mktemp("browser") / "orders", events=small_events(last=date(2024, 3, 31))
    )
    declared = small_declaration(
        partitions={"end": "2024-04-01"},
        predictions={"schedule": "* * * * *"},
        monitoring={"performance": {"warn_below": 0.6}, "notify": [hook.url]},
        owners=["team:shop"],
    )
    declared["model"] = {**declared["model"], "params": {**declared["model"]["params"], "max_depth": None}}
    write_defs_yaml(folder, declared)
    (pipeline_folder(folder).parent / "downstream.py").write_text(DOWNSTREAM)
    answer = run_command(folder, "run", "small", "--from", SCORED[0], "--to", SCORED[-1])
    assert answer.code == 0, answer.err
    with served(folder, folder / ".batch_platform") as running:
        yield running


@pytest.fixture(scope="module")
def session(ui) -> Iterator[Dagster]:
    with browser(ui.url) as opened:
        yield opened


@pytest.fixture
def dagster(session, tmp_path_factory, request) -> Iterator[Dagster]:
    """The one tab; where a test fails, what it showed is kept beside the other temporary files."""
    failed = request.session.testsfailed
    yield session
    if request.session.testsfailed > failed:
        session.page.screenshot(path=str(tmp_path_factory.getbasetemp() / f"{request.node.name}.png"))


def finished_run(ui: Ui, **wanted: Any) -> dict[str, Any]:
    """The newest run of such a filter, once it has ended."""

    def look() -> dict[str, Any] | None:
        runs = ui.ask(RUNS, filter=wanted)["results"]
        return runs[0] if runs and runs[0]["status"] in ("SUCCESS", "FAILURE", "CANCELED") else None

    return ui.wait(look)


def materialized(ui: Ui, asset: str, run_id: str) -> list[str]:
    """The partitions of an asset that a run materialized."""
    events = ui.ask(MATERIALIZATIONS, asset={"path": ["small", asset]})["assetMaterializations"]
    return sorted(event["partition"] for event in events if event["runId"] == run_id)


def test_the_graph_shows_every_asset_and_says_what_each_is(dagster):
    page = dagster.open("/asset-groups/")
    for asset in ("events", "features", "model", "predictions", "performance"):
        dagster.sees(asset)
    dagster.words("predictions").first.click()
    dagster.sees("Whether an order comes back.", exact=False)
    for check in ("rows_balance", "rejected_share", "score_distribution"):
        expect(page.get_by_role("link", name=check)).to_be_visible()
    dagster.words("model").first.click()
    dagster.sees("A HistGradientBoostingClassifier for each month.", exact=False)
    dagster.sees("params.max_leaf_nodes")


def test_lineage_leads_from_a_raw_source_to_the_predictions(dagster):
    page = dagster.open("/assets/small/events")
    dagster.sees("External Asset")
    dagster.sees("Read from the Parquet files", exact=False)
    dagster.link("small / features").click()
    expect(page).to_have_url(re.compile("/assets/small/features"))
    dagster.sees("SELECT", exact=False)
    dagster.link("small / predictions").click()
    expect(page).to_have_url(re.compile("/assets/small/predictions"))
    for upstream in ("small / features", "small / model"):
        expect(dagster.link(upstream)).to_be_visible()
    dagster.tab("Lineage")
    for asset in ("features", "model", "predictions", "performance"):
        dagster.sees(asset)


def test_a_hostile_page_in_the_same_browser_changes_nothing(ui, session):
    """A page of another port of this machine, which for a browser is the same site: the closest a hostile page can come."""
    mutation = 'mutation {setConcurrencyLimit(concurrencyKey: "planted", limit: 3)}'
    page = f"""<!doctype html><title>hostile</title>
        <img src='{ui.url}/graphql?query={quote(mutation)}'>
        <iframe src='{ui.url}/runs'></iframe>
        <iframe name=target></iframe>
        <form target=target method=post enctype=text/plain action='{ui.url}/graphql?query={quote(mutation)}'></form>
        <script>document.forms[0].submit();
        fetch('{ui.url}/graphql?query={quote(mutation)}', {{method: 'POST', mode: 'no-cors'}});
        const body = JSON.stringify({{query: {json.dumps(mutation)}}});
        const sent = fetch('{ui.url}/graphql', {{method: 'POST', headers: {{'Content-Type': 'application/json'}}, body}});
        const socket = new WebSocket('{ui.url.replace("http", "ws")}/graphql', 'graphql-ws');
        const opened = new Promise(done => {{socket.onopen = () => done('open'); socket.onerror = () => done('refused')}});
        </script>""".encode()

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server, closing(session.page.context.new_page()) as tab:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        statuses: dict[str, int] = {}
        tab.on("response", lambda answer: statuses.update({f"{answer.request.method} {answer.url}": answer.status}))
        tab.goto(f"http://127.0.0.1:{server.server_port}/", wait_until="load")
        assert tab.evaluate("opened") == "refused"
        assert tab.evaluate("sent.then(answer => 'read', error => 'refused')") == "refused"
        tab.wait_for_load_state("networkidle")
        server.shutdown()
    sent = {request: status for request, status in statuses.items() if ui.url in request}
    assert len(sent) >= 2, statuses  # Chromium keeps what it blocks itself from the tab
    assert set(sent.values()) <= {403, 405}, sent
    assert ui.ask("{instance {concurrencyLimits {concurrencyKey}}}") == {"concurrencyLimits": []}


def test_f48_a_second_ui_is_refused_and_a_read_only_one_comes_and_goes_beside_the_first(ui):
    folder = ui.home.parent
    second = run_command(folder, "ui", "--port", "3001")
    assert second.code == 2
    assert re.match(
        rf"batch-platform ui already serves {re.escape(str(ui.home))} at {ui.url} \(process \d+\)\. Hint: ",
        second.error,
    )

    def loaded(served_by: Ui) -> bool | None:
        entries = served_by.ask(LOCATIONS)["locationEntries"]
        return (entries and {entry["loadStatus"] for entry in entries} == {"LOADED"}) or None

    with served(folder, ui.home, "--read-only") as reader:
        assert reader.wait(lambda: loaded(reader))
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in session_of(reader.process.pid)]
        assert not [words for words in commands if "dagster._daemon" in words], "which would do each tick a second time"
    location = repository(ui)["repositoryLocationName"]
    assert ui.ask(RELOAD, location=location)["loadStatus"] == "LOADED", "the first has its own workspace file"
    assert loaded(ui)
    assert not list(ui.home.glob("dagster/workspace-*"))


def test_the_processes_load_without_a_warning(ui):
    lines = [line for line in ui.log.read_text().splitlines() if REPLACED not in line]
    assert not [line for line in lines if re.search("warning|error|traceback|deprecat", line, re.IGNORECASE)]


def test_a_partition_is_materialized_by_its_job(ui, dagster):
    dagster.open("/jobs")
    dagster.link("small_score").click()
    dagster.button("Materialize").click()
    dagster.choose_partitions("2024-02-06")
    dagster.button("Launch 1 run").click()
    dagster.sees("Launched run", exact=False)
    run = finished_run(ui, tags=[{"key": "dagster/partition", "value": "2024-02-06"}])
    assert (run["status"], run["jobName"]) == ("SUCCESS", "small_score")
    assert ui.published("SELECT count(*) FROM small.predictions WHERE partition_key = '2024-02-06'") == [(40,)]


def backfilled(ui, dagster, job: str, chosen: str, partitions: int):
    """Launch a job for a range of partitions, such as `[2024-03-01...2024-03-31]`, on its page, and wait for its run."""
    dagster.open(f"/locations/{repository(ui)['repositoryLocationName']}/jobs/{job}")
    dagster.button("Materialize").click()
    dagster.choose_partitions(chosen)
    dagster.sees(f"{partitions} partitions")
    dagster.button("Launch backfill").click()
    return finished_run(ui, tags=[{"key": RANGE_START, "value": chosen.strip("[]").split("...")[0]}])


def test_a_month_is_backfilled_in_one_run(ui, dagster):
    run = backfilled(ui, dagster, "small_score", "[2024-03-01...2024-03-31]", 31)
    assert (run["status"], tags_of(run)[RANGE_END]) == ("SUCCESS", "2024-03-31")
    days = [f"2024-03-{day:02}" for day in range(1, 32)]
    assert materialized(ui, "features", run["runId"]) == materialized(ui, "predictions", run["runId"]) == days
    dagster.open(f"/runs/b/{tags_of(run)['dagster/backfill']}")
    dagster.sees("Completed", exact=False)
    assert ui.published(
        "SELECT count(*), count(DISTINCT partition_key) FROM small.predictions WHERE partition_key LIKE '2024-03-%'"
    ) == [(31 * 40, 31)]


def test_a_range_is_brought_up_to_date_in_one_run(ui, dagster, tmp_path_factory):
    run = backfilled(ui, dagster, "small_bring_up_to_date", "[2024-02-10...2024-02-12]", 3)
    assert (run["status"], run["jobName"]) == ("SUCCESS", "small_bring_up_to_date")
    days = [f"2024-02-{day}" for day in (10, 11, 12)]
    assets = ("features", "predictions", "performance")
    assert [materialized(ui, asset, run["runId"]) for asset in assets] == [days] * 3
    page = dagster.open(f"/runs/{run['runId']}")
    dagster.sees("small__performance", exact=False)
    page.screenshot(path=str(tmp_path_factory.getbasetemp() / "brought_up_to_date.png"))


def test_a_partition_shows_its_numbers_and_the_shape_of_its_scores(dagster):
    page = dagster.open("/assets/small/predictions?view=partitions")
    page.get_by_placeholder("Filter by name").fill(SCORED[1])  # the first one also stands below the bar
    dagster.words(SCORED[1]).first.click()
    dagster.sees("Materialized")
    for name in ("dagster/partition_row_count", "rows_in", "rows_rejected", "model_version", "score_mean", "score_p90"):
        dagster.sees(name)
    dagster.sees("2024-02-01-", exact=False)
    dagster.sees("█", exact=False)


def test_numbers_are_plotted_partition_by_partition(dagster):
    page = dagster.open("/assets/small/predictions")
    dagster.button("Plots").click()
    dagster.button("Events").click()  # the plot by keys looks for the newest keys beyond the end of the calendar
    for name in ("score_mean", "score_p50", "rows_in", "rows_rejected"):
        dagster.sees(name)
    expect(page.locator("canvas").first).to_be_visible()


def test_checks_are_seen_for_each_partition(dagster):
    page = dagster.open("/assets/small/predictions?view=checks")
    dagster.sees("Checks (7)")
    for check in ("rejected_share", "rows_balance", "score_distribution"):
        dagster.words(check).first.click()
        dagster.sees("Passed")
        dagster.tab("Execution history")
        table = page.get_by_role("table").last
        expect(table.get_by_text("2024-03-31").first).to_be_visible()  # partitions that pass share a result
    dagster.words("up_to_date").first.click()
    dagster.sees("31 partitions: a newer model is due")  # March was scored by February's
    dagster.open("/assets/small/performance?view=checks")
    dagster.sees("Checks (2)")


@pytest.fixture(scope="module")
def receiving(ui, hook) -> Iterator[Receiver]:
    """The receiver, which comes up once the sensor has tried in vain to tell it what is stale."""
    selector = {**repository(ui), "sensorName": "small_alerts"}
    assert ui.ask(START_SENSOR, selector=selector)["sensorState"] == {"status": "RUNNING"}

    def tried() -> bool | None:
        ticks = ui.ask(SENSOR_TICKS, selector=selector)["sensorState"]["ticks"]
        assert not [tick for tick in ticks if tick["status"] == "FAILURE"], ticks
        return any("waiting: receiver 1 (json)" in (tick["skipReason"] or "") for tick in ticks) or None

    assert ui.wait(tried)
    assert hook.messages == []
    with hook.up():
        yield hook


STALE = "small: the check up_to_date on predictions gives a warning"


def test_a_daemon_tells_a_receiver_that_was_down_what_is_stale(ui, receiving):
    (message,) = ui.wait(lambda: [it for it in receiving.messages if it["title"] == STALE] or None)
    assert "31 partitions: a newer model is due" in message["message"]
    assert f"See: {ui.url}/assets/small/predictions?view=checks&checkDetail=up_to_date" in message["message"]


def test_a_failed_run_says_in_one_paragraph_what_was_wrong(ui, dagster):
    page = dagster.open(f"/locations/{repository(ui)['repositoryLocationName']}/jobs/small_score/playground")
    dagster.choose_partition_of_launchpad("2024-02-03")
    editor = page.locator(".CodeMirror").first
    config = "ops: {small__predictions: {config: {model: no-such-version}}}"
    dagster.writes(editor, config)
    dagster.button("Launch Run").click()
    run = finished_run(ui, tags=[{"key": "dagster/partition", "value": "2024-02-03"}])
    assert run["status"] == "FAILURE"
    dagster.open(f"/runs/{run['runId']}?logs=type:STEP_FAILURE")  # only the lines in view are on the page
    message = page.get_by_text(
        re.compile(r"small has no version 'no-such-version'; there (is only|are) 2024-02-01-.* Hint: ")
    ).first
    expect(message).to_be_visible()
    assert "Traceback" not in message.inner_text()


def test_a_training_is_launched_with_other_parameters_from_the_launchpad(ui, dagster):
    page = dagster.open(f"/locations/{repository(ui)['repositoryLocationName']}/jobs/small_train/playground")
    dagster.choose_partition_of_launchpad("2024-02-01")
    editor = page.locator(".CodeMirror").first
    expect(editor).to_contain_text("max_iter: 5")
    config = editor.evaluate("editor => editor.CodeMirror.getValue()")
    dagster.writes(editor, config.replace("max_iter: 5", "max_iter: 9"))
    dagster.button("Launch Run").click()
    run = finished_run(ui, pipelineName="small_train", tags=[{"key": "dagster/partition", "value": "2024-02-01"}])
    assert run["status"] == "SUCCESS"
    query = f"SELECT params FROM batch_platform.model_versions WHERE run_id = '{run['runId']}'"
    ((params,),) = ui.published(query)
    assert json.loads(params) == {"max_iter": 9, "max_leaf_nodes": 7, "early_stopping": False, "max_depth": None}
    dagster.open("/assets/small/model?view=partitions&partition=2024-02-01")
    dagster.sees("max_iter")


def test_a_schedule_that_is_switched_on_requests_what_is_due(ui, dagster):
    dagster.open("/automation")
    dagster.sees("small_evaluate_when_due")
    dagster.sees("small_train_when_due")
    dagster.link("small_score_when_due").click()
    dagster.sees("Schedule in", exact=False)
    dagster.switch()
    selector = {**repository(ui), "scheduleName": "small_score_when_due"}

    def ticked() -> list[str] | None:
        state = ui.ask(TICKS, selector=selector)["scheduleState"]
        assert not [tick for tick in state["ticks"] if tick["status"] == "FAILURE"], state
        return next((tick["runIds"] for tick in state["ticks"] if tick["status"] == "SUCCESS"), None)

    run_ids = ui.wait(ticked)
    runs = [finished_run(ui, runIds=[run_id]) for run_id in run_ids]
    assert {run["status"] for run in runs} == {"SUCCESS"}
    due = [f"2024-02-{day:02}" for day in range(1, 30)]
    requested = [day for run_id in run_ids for day in materialized(ui, "predictions", run_id)]
    assert sorted(requested) == due, "each day once: the first week has a newer model, the others have no scores"
    scored = ui.published(
        "SELECT DISTINCT partition_key FROM small.predictions WHERE partition_key < '2024-03' ORDER BY 1"
    )
    assert scored == [(day,) for day in due]
    dagster.sees("requested", exact=False)
    dagster.switch()


def test_the_command_of_the_guide_switches_on_the_schedule_that_the_daemon_runs(ui):
    name = "small_remove_old_runs_every_week"
    (block,) = [block for block in blocks("bash", GUIDE["scheduling"]) if "schedule start" in block]

    def status() -> str:
        return ui.ask(TICKS, selector={**repository(ui), "scheduleName": name})["scheduleState"]["status"]

    for word, then in (("start", "RUNNING"), ("stop", "STOPPED")):
        command = block.replace("flight_delays_score_when_due", name).replace("schedule start", f"schedule {word}")
        environment = {**clean_environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(["bash", "-euc", command], cwd=ui.home.parent, env=environment, check=True)
        assert status() == then


def test_assets_downstream_follow_by_themselves_after_a_backfill_and_after_a_schedule(ui):
    """One for each day, the last of which a backfill of March has brought, and one that needs every day."""

    def followed(asset: str) -> list[Any] | None:
        events = ui.ask(MATERIALIZATIONS, asset={"path": [asset]})["assetMaterializations"]
        return [event["partition"] for event in events] or None

    assert set(ui.wait(lambda: followed("letters"))) == {"2024-03-31"}
    assert set(ui.wait(lambda: followed("overview"))) == {None}


def test_materialize_all_of_everything_ends_green(ui):
    """Features begin before the models, and the models before the predictions: nothing is asked for that cannot be."""
    chosen = [{"path": ["small", asset]} for asset in ("features", "model", "predictions", "performance")]
    answer = ui.ask(BACKFILL, backfillParams={"assetSelection": chosen, "allPartitions": True})
    assert answer["__typename"] == "LaunchBackfillSuccess", answer

    def ended() -> dict[str, Any] | None:
        backfill = ui.ask(BACKFILL_STATUS, id=answer["backfillId"])
        return backfill if backfill["status"] not in ("REQUESTED", "CANCELING") else None

    backfill = ui.wait(ended)
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert {run["status"] for run in backfill["runs"]} == {"SUCCESS"}
    scored = {version[:10] for (version,) in ui.published("SELECT DISTINCT model_version FROM small.predictions")}
    assert scored == {"2024-02-01", "2024-03-01"}, "each month by its own model"


def test_no_page_complains(dagster):
    assert dagster.errors == []


UP_TO_DATE = """
query($key: AssetKeyInput!) { assetCheckExecutions(assetKey: $key, checkName: "up_to_date", limit: 100) {
  status runId evaluation { success severity description partition }
} }
"""


def test_a_check_executed_alone_from_the_ui_says_what_is_stale_and_scores_nothing(ui):
    key = {"path": ["small", "predictions"]}
    chosen = {"assetSelection": [], "assetCheckSelection": [{"assetKey": key, "name": "up_to_date"}]}
    before = ui.published("FROM batch_platform.score_runs")
    run_id = launch(ui, "__ASSET_JOB", chosen)
    assert ui.wait(lambda: finished(ui, run_id))["status"] == "SUCCESS"
    executions = ui.ask(UP_TO_DATE, key=key)
    (result,) = [execution["evaluation"] for execution in executions if execution["runId"] == run_id]
    assert (result["severity"], result["partition"]) == ("WARN", None)
    assert result["success"] == (result["description"] == "none is stale")
    ended = {"SUCCEEDED", "FAILED", "EXECUTION_FAILED"}  # the last of a run that failed before it came to the check
    assert {execution["status"] for execution in executions} <= ended, "no run left one open"
    assert ui.published("FROM batch_platform.score_runs") == before


RELOAD = """
mutation ($location: String!) {reloadRepositoryLocation(repositoryLocationName: $location) {
  __typename
  ... on WorkspaceLocationEntry {loadStatus}
}}"""
DESCRIPTION = "query ($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {description}}}"


def test_webserver_and_daemon_share_one_server_of_code_that_a_reload_reaches(ui):
    def servers() -> list[int]:
        pids = list[int]()
        for pid in session_of(ui.process.pid):
            with suppress(FileNotFoundError):  # it has just ended
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"api" in words and b"grpc" in words:
                    pids.append(pid)
        return pids

    (before,) = servers()
    file = pipeline_folder(ui.home.parent) / "defs.yaml"
    file.write_text(file.read_text().replace("Whether an order comes back.", "Whether it is sent back."))
    location = repository(ui)["repositoryLocationName"]
    assert ui.ask(RELOAD, location=location) == {"__typename": "WorkspaceLocationEntry", "loadStatus": "LOADED"}
    node = ui.ask(DESCRIPTION, key={"path": ["small", "predictions"]})
    assert "Whether it is sent back." in node["description"]
    (after,) = ui.wait(lambda: running if len(running := servers()) == 1 else None)
    assert after != before


def test_an_interrupt_ends_every_process(ui):
    assert len(session_of(ui.process.pid)) >= 3
    os.kill(ui.process.pid, signal.SIGINT)
    assert ui.process.wait(PATIENCE) == 0
    deadline = time.monotonic() + PATIENCE
    while session_of(ui.process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert session_of(ui.process.pid) == []
