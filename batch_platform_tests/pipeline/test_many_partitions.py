"""Ten thousand hourly partitions, recorded as done: what the command, a schedule and the UI make of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.benchmarks import growth
from batch_platform_tests.harness import hourly
from batch_platform_tests.harness.browsing import Dagster, browser
from batch_platform_tests.harness.command_line import run_command
from batch_platform_tests.harness.served import served

pytestmark = pytest.mark.release

BEFORE_ITS_MODEL = 7 * 24


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = hourly.write_hourly_project(tmp_path_factory.mktemp("hourly") / "orders")
    answer = run_command(folder, "run", hourly.PIPELINE, "--partition", hourly.MADE)
    assert answer.code == 0, answer.err
    growth.work(folder, "fill", folder / ".batch_platform")
    return folder


@pytest.fixture
def dagster(project) -> Iterator[Dagster]:
    home = project / ".batch_platform"
    with served(project, home, **{HOME_VARIABLE: str(home)}) as ui, browser(ui.url, width=2300, height=1400) as opened:
        yield opened


def test_status_counts_all_of_them(project):
    (report,) = run_command(project, "status", hourly.PIPELINE, "--json").json
    scored = hourly.PARTITIONS - BEFORE_ITS_MODEL
    assert report["counts"] == {"scored": scored, "warm-up": BEFORE_ITS_MODEL}
    assert (report["due"], report["only_in_dagster"], report["only_in_ledger"]) == ({}, [], [])


def test_a_tick_requests_nothing_when_all_is_done_and_a_first_run_when_nothing_is(project):
    home = project / ".batch_platform"
    assert growth.tick(project, home).requests == 0
    assert growth.tick(project, project / "empty").requests > 0


def test_the_graph_and_the_partitions_of_an_asset_open(dagster):
    page = dagster.open("/asset-groups/")
    dagster.sees(f"{hourly.PARTITIONS:,} partitions")
    expect(dagster.words("% filled", exact=False)).to_have_count(3)
    dagster.open(f"/assets/{hourly.PIPELINE}/predictions?view=partitions")
    dagster.sees(f"{hourly.PARTITIONS:,} Partitions Selected")
    expect(page.get_by_text(re.compile(r"Materialized \(9,?84\d\)"))).to_be_visible()
    page.get_by_placeholder("Filter by name").fill(hourly.MADE)
    dagster.words(hourly.MADE).first.click()
    dagster.sees("█", exact=False)
    assert dagster.errors == []
