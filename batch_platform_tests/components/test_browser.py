"""Dagster's UI as people meet it: a real Chromium on real webserver and daemon processes, from lineage to launchpad."""

import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from playwright.sync_api import expect

from batch_platform_tests.browsing import Dagster, browser
from batch_platform_tests.command_line import run_command
from batch_platform_tests.dagster_project import write_dagster_project, write_defs_yaml
from batch_platform_tests.deployment import range_tags
from batch_platform_tests.served import Ui, served
from batch_platform_tests.small_pipeline import small_declaration, small_events

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


@pytest.fixture(scope="module")
def ui(tmp_path_factory) -> Iterator[Ui]:
    """The small pipeline with its first model and five scored days, and both processes on it."""
    folder = write_dagster_project(
        tmp_path_factory.mktemp("browser") / "orders", events=small_events(last=date(2024, 3, 31))
    )
    declared = small_declaration(
        partitions={"end": "2024-04-01"},
        predictions={"schedule": "* * * * *"},
        monitoring={"performance": {"warn_below": 0.6}},
        owners=["team:shop"],
    )
    declared["model"] = {**declared["model"], "params": {**declared["model"]["params"], "max_depth": None}}
    write_defs_yaml(folder, declared)
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


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["tags"]}


def location(ui: Ui) -> str:
    workspace = ui.ask("{workspaceOrError {... on Workspace {locationEntries {name}}}}")
    return workspace["locationEntries"][0]["name"]


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
    dagster.sees("max_leaf_nodes")


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


def test_the_processes_load_without_a_warning(ui):
    lines = [line for line in ui.log.read_text().splitlines() if REPLACED not in line]
    assert not [line for line in lines if re.search("warning|error|traceback|deprecat", line, re.IGNORECASE)]


def test_a_partition_is_materialized_by_its_job(ui, dagster):
    dagster.open("/jobs")
    dagster.link("small_score").click()
    dagster.button("Materialize all").click()
    dagster.choose_partitions("2024-02-06")
    dagster.button("Launch 1 run").click()
    dagster.sees("Launched run", exact=False)
    run = finished_run(ui, tags=[{"key": "dagster/partition", "value": "2024-02-06"}])
    assert (run["status"], run["jobName"]) == ("SUCCESS", "small_score")
    assert ui.published("SELECT count(*) FROM small.predictions WHERE partition_key = '2024-02-06'") == [(40,)]


def test_a_month_is_backfilled_in_one_run(ui, dagster):
    dagster.open(f"/locations/{location(ui)}/jobs/small_score")
    dagster.button("Materialize all").click()
    dagster.choose_partitions("[2024-03-01...2024-03-31]")
    dagster.sees("31 partitions")
    dagster.button("Launch backfill").click()
    run = finished_run(ui, tags=[{"key": RANGE_START, "value": "2024-03-01"}])
    assert (run["status"], tags_of(run)[RANGE_END]) == ("SUCCESS", "2024-03-31")
    dagster.open(f"/runs/b/{tags_of(run)['dagster/backfill']}")
    dagster.sees("Completed", exact=False)
    assert ui.published(
        "SELECT count(*), count(DISTINCT partition_key) FROM small.predictions WHERE partition_key LIKE '2024-03-%'"
    ) == [(31 * 40, 31)]


def test_a_partition_shows_its_numbers_and_a_picture_of_its_scores(dagster):
    page = dagster.open("/assets/small/predictions?view=partitions")
    page.get_by_placeholder("Filter by name").fill(SCORED[0])
    dagster.words(SCORED[0]).first.click()
    dagster.sees("Materialized")
    for name in ("dagster/row_count", "rows_in", "rows_rejected", "model_version", "score_mean", "score_p90"):
        dagster.sees(name)
    dagster.sees("2024-02-01-", exact=False)
    picture = page.get_by_role("img", name="Distribution from 0 to 1")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 100


def test_numbers_are_plotted_partition_by_partition(dagster):
    page = dagster.open("/assets/small/predictions")
    dagster.button("Plots").click()
    dagster.button("Events").click()  # the plot by keys looks for the newest keys beyond the end of the calendar
    for name in ("score_mean", "score_p50", "rows_in", "rows_rejected"):
        dagster.sees(name)
    expect(page.locator("canvas").first).to_be_visible()


def test_checks_are_seen_for_each_partition(dagster):
    page = dagster.open("/assets/small/predictions?view=checks")
    dagster.sees("Checks (4)")
    for check in ("rejected_share", "rows_balance", "score_distribution"):
        dagster.words(check).first.click()
        dagster.sees("Passed")
        dagster.tab("Execution history")
        table = page.get_by_role("table").last
        for key in ("2024-03-31", "2024-03-30", "2024-03-29"):
            expect(table.get_by_text(key).first).to_be_visible()
    dagster.words("up_to_date").first.click()
    dagster.sees("31 a newer model is due")  # March was scored by February's
    dagster.open("/assets/small/performance?view=checks")
    dagster.sees("Checks (1)")


def test_a_failed_run_says_in_one_paragraph_what_was_wrong(ui, dagster):
    page = dagster.open(f"/locations/{location(ui)}/jobs/small_score/playground")
    dagster.choose_partition_of_launchpad("2024-01-01")
    editor = page.locator(".CodeMirror").first
    config = "ops: {small__predictions: {config: {model: no-such-version}}}"
    editor.evaluate("(editor, text) => editor.CodeMirror.setValue(text)", config)
    dagster.sees("No errors")
    dagster.button("Launch Run").click()
    run = finished_run(ui, tags=[{"key": "dagster/partition", "value": "2024-01-01"}])
    assert run["status"] == "FAILURE"
    dagster.open(f"/runs/{run['runId']}?logs=type:STEP_FAILURE")  # only the lines in view are on the page
    message = page.get_by_text(
        re.compile(r"small has no version 'no-such-version'; there are 2024-02-01-.* Hint: ")
    ).first
    expect(message).to_be_visible()
    assert "Traceback" not in message.inner_text()


def test_a_training_is_launched_with_other_parameters_from_the_launchpad(ui, dagster):
    page = dagster.open(f"/locations/{location(ui)}/jobs/small_train/playground")
    dagster.choose_partition_of_launchpad("2024-02-01")
    editor = page.locator(".CodeMirror").first
    expect(editor).to_contain_text("max_iter: 5")
    config = editor.evaluate("editor => editor.CodeMirror.getValue()")
    editor.evaluate("(editor, text) => editor.CodeMirror.setValue(text)", config.replace("max_iter: 5", "max_iter: 9"))
    dagster.sees("No errors")
    dagster.button("Launch Run").click()
    run = finished_run(ui, pipelineName="small_train", tags=[{"key": "dagster/partition", "value": "2024-02-01"}])
    assert run["status"] == "SUCCESS"
    query = f"SELECT params FROM batch_platform.model_versions WHERE run_id = '{run['runId']}'"
    ((params,),) = ui.published(query)
    assert json.loads(params) == {"max_iter": 9, "max_leaf_nodes": 7, "early_stopping": False, "max_depth": None}
    dagster.open("/assets/small/model?view=partitions&partition=2024-02-01")
    dagster.sees("max_iter")
    expect(page.get_by_role("img", name="2 values, the last")).to_be_visible()


def test_a_schedule_that_is_switched_on_requests_what_is_due(ui, dagster):
    dagster.open("/automation")
    dagster.sees("small_evaluate_when_due")
    dagster.sees("small_train_when_due")
    dagster.link("small_score_when_due").click()
    dagster.sees("Schedule in", exact=False)
    dagster.switch()
    names = {"repositoryLocationName": location(ui), "repositoryName": "__repository__"}
    selector = {**names, "scheduleName": "small_score_when_due"}

    def ticked() -> list[str] | None:
        state = ui.ask(TICKS, selector=selector)["scheduleState"]
        assert not [tick for tick in state["ticks"] if tick["status"] == "FAILURE"], state
        return next((tick["runIds"] for tick in state["ticks"] if tick["status"] == "SUCCESS"), None)

    run_ids = ui.wait(ticked)
    runs = [finished_run(ui, runIds=[run_id]) for run_id in run_ids]
    assert {run["status"] for run in runs} == {"SUCCESS"}
    due = [f"2024-02-{day:02}" for day in range(1, 30)]
    scored = ui.published(
        "SELECT DISTINCT partition_key FROM small.predictions WHERE partition_key < '2024-03' ORDER BY 1"
    )
    assert scored == [(day,) for day in due]
    dagster.sees("requested", exact=False)
    dagster.switch()


def test_no_page_complains(dagster):
    assert dagster.errors == []
