"""Take the pictures of the README: three months of the flights, scored and measured in a folder of their own.

python -m batch_platform_tests.make_pictures
"""

import tempfile
from pathlib import Path

from playwright.sync_api import expect

from batch_platform.home import HOME_VARIABLE
from batch_platform_tests.browsing import Dagster, browser
from batch_platform_tests.checkout import ROOT
from batch_platform_tests.command_line import run_command
from batch_platform_tests.served import Ui, served

PICTURES = ROOT / ".pictures"
FIRST, LAST = "2013-03-01", "2013-05-31"
RUNS = "query ($filter: RunsFilter!) {runsOrError(filter: $filter, limit: 1) {... on Runs {results {status tags {key value}}}}}"


def main() -> None:
    """The graph, the page of the predictions, their checks and a backfill."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        variables = {HOME_VARIABLE: str(home)}
        answer = run_command(ROOT, "run", "flight_delays", "--from", FIRST, "--to", LAST, **variables)
        if answer.code:
            raise SystemExit(answer.err)
        with served(ROOT, home, **variables) as ui, browser(ui.url, width=1500, height=960) as dagster:
            take(ui, dagster)


def take(ui: Ui, dagster: Dagster) -> None:
    """Each picture once its page is drawn."""
    page = dagster.page
    dagster.dismiss_the_greeting()
    dagster.open("/assets/flight_delays/predictions")
    picture = page.get_by_role("img", name="Distribution from 0 to 1")
    expect(picture).to_be_visible()
    dagster.button("Hide navigation").click()
    save(dagster, "predictions")
    dagster.open("/assets/flight_delays/predictions?view=checks")
    dagster.words("score_distribution").first.click()
    expect(page.locator("canvas").nth(1)).to_be_visible()
    save(dagster, "checks")
    dagster.open("/assets/flight_delays/model?view=partitions&partition=2013-05-01")
    expect(page.get_by_role("img", name="3 values")).to_be_visible()
    save(dagster, "model")
    backfill(ui, dagster)
    save(dagster, "backfill")
    page.set_viewport_size({"width": 2100, "height": 900})
    dagster.open("/asset-groups/")
    dagster.sees("Scikit Learn")
    dagster.sees("Latest event")
    save(dagster, "asset_graph")


def backfill(ui: Ui, dagster: Dagster) -> None:
    """Measure May again, as one run, and see it done."""
    dagster.open("/assets/flight_delays/performance")
    dagster.button("Materialize").click()
    dagster.choose_partitions("[2013-05-02...2013-05-31]")
    dagster.button("Launch backfill").click()
    tags = [{"key": "dagster/asset_partition_range_start", "value": "2013-05-02"}]

    def done() -> str | None:
        found = ui.ask(RUNS, filter={"tags": tags})["results"]
        ended = found and found[0]["status"] == "SUCCESS"
        return next(tag["value"] for tag in found[0]["tags"] if tag["key"] == "dagster/backfill") if ended else None

    dagster.open(f"/runs/b/{ui.wait(done)}")
    dagster.sees("Completed", exact=False)


def save(dagster: Dagster, name: str) -> None:
    """Keep what the page shows, once it asks for nothing more."""
    dagster.page.wait_for_load_state("networkidle")
    dagster.page.mouse.move(0, 0)
    dagster.page.screenshot(path=str(PICTURES / f"{name}.png"), animations="disabled")
    print(name, (PICTURES / f"{name}.png").stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
