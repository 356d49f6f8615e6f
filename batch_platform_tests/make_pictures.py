"""Take the pictures of the README and the guide: a month of the flights in which all is well, scored and measured in a folder of its own, and reports.

python -m batch_platform_tests.make_pictures [--demos FOLDER]

With --demos only those of the demos: their reports are left in the folder, with a picture of each for wide and narrow windows.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Locator, expect

from batch_platform.cli.project import project_files
from batch_platform.defs import flight_delays
from batch_platform.pipeline.shipped import FLIGHTS, shipped
from batch_platform.warehouse.home import HOME_VARIABLE
from batch_platform_tests.harness.browsing import Dagster, browser
from batch_platform_tests.harness.checkout import ROOT
from batch_platform_tests.harness.command_line import run_command
from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder, write_defs_yaml
from batch_platform_tests.harness.served import Ui, served

PICTURES = ROOT / ".pictures"
FIRST, LAST, END = "2013-03-01", "2013-03-31", "2013-04-01"
HOME = ".batch_platform"
WIDTH, HEIGHT, SCALE = 1280, 1400, 1.25  # a README is about 900 wide
NARROW, DEMO = 390, {"width": 1000, "height": 900}
WINDOWS_SHOWN: dict[str, list[str]] = {  # a report shows the newest month, unless more is asked for
    "credit_default": ["--from", "1974-01-01", "--to", "1974-08-01"],
    "market_risk": ["--from", "2008-07-01", "--to", "2008-12-31"],
    "repeat_buyers": ["--from", "1997-11-01", "--to", "1998-04-01"],
    "customer_segments": ["--from", "1997-10-01", "--to", "1998-06-01"],
    "patient_risk": ["--from", "1983-01-01", "--to", "1986-12-01"],
    "student_grades": ["--from", "1989-07-03", "--to", "1990-02-05"],
}
MARGIN = 20
NODE, NAME = 300, 46  # how far an asset reaches to the right of its first line, and above it
GRAPH = {"width": 1480, "height": 1230}  # drawn from above to below, which keeps its words large
IN_KILOMETRES = "2013-03-20"  # the last day that is scored for the picture of drift
BROKEN_SOURCE = """\
from datetime import UTC, datetime

import polars as pl

from batch_platform.defs.flight_delays import sources


def flights():
    is_broken = pl.col("scheduled_departure") >= datetime({year}, {month}, {day}, 4, tzinfo=UTC)
    return sources.flights().with_columns(distance=pl.col("distance") * pl.when(is_broken).then(1.609344).otherwise(1))
"""
BACKFILLS = "{partitionBackfillsOrError(limit: 1) {... on PartitionBackfills {results {id status}}}}"


def main() -> None:
    """All pictures, or those of the demos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--demos", type=Path, metavar="FOLDER", help="the pictures of the demos alone; reports go there"
    )
    folder = parser.parse_args().demos
    if folder is not None:
        demos(folder)
        return
    flights()
    with tempfile.TemporaryDirectory() as temporary:
        demos(Path(temporary))


def demos(folder: Path) -> None:
    """Run each demo, and take the beginning of its report; whole reports go to the folder, wide and narrow."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    variables = {HOME_VARIABLE: str(folder / "home")}
    names = [name for name in shipped() if name != FLIGHTS]
    for name in names:
        for arguments in (
            ["demo", name],
            ["report", name, *WINDOWS_SHOWN.get(name, ()), "--out", str(folder / f"{name}.html")],
        ):
            answer = run_command(folder, *arguments, **variables)
            if answer.code:
                raise SystemExit(answer.err)
    with served(ROOT, folder / "home", "--demos", **variables) as ui, browser(ui.url, WIDTH, HEIGHT) as dagster:
        page = dagster.page
        for name in names:
            for width in (NARROW, WIDTH):
                page.set_viewport_size({"width": width, "height": HEIGHT})
                page.goto((folder / f"{name}.html").as_uri())
                page.wait_for_load_state()
                page.screenshot(path=str(folder / f"{name}_{width}.png"), full_page=True, animations="disabled")
            page.set_viewport_size(DEMO)
            page.screenshot(path=str(PICTURES / f"demo_{name}.png"), animations="disabled")
            print(name, (PICTURES / f"demo_{name}.png").stat().st_size // 1024, "KB")


def flights() -> None:
    """The graph, the page of the predictions, their checks, a model, a backfill, and the check on drift."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, declared = Path(temporary) / "flights", flights_declared()
        declared["partitions"]["end"] = END  # nothing is due after the last day that is scored
        scored_project(folder, declared, LAST)
        with served(folder, folder / HOME) as ui, browser(ui.url, WIDTH, HEIGHT, SCALE) as dagster:
            take(ui, dagster)
        drift(Path(temporary) / "drift")


def flights_declared() -> dict[str, Any]:
    """The attributes of the shipped pipeline."""
    text = Path(flight_delays.__path__[0], "defs.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["attributes"]


def scored_project(folder: Path, declared: dict[str, Any], last: str, **modules: str) -> None:
    """Make a project of the shipped SQL, a declaration, and Python modules, and score it."""
    ignored = shutil.ignore_patterns("*.py", "data")
    shutil.copytree(flight_delays.__path__[0], pipeline_folder(folder, declared["name"]), ignore=ignored)
    for path, text in project_files(PACKAGE).items():
        (folder / path).write_text(text, encoding="utf-8")
    for name, text in modules.items():
        (folder / PACKAGE / f"{name}.py").write_text(text, encoding="utf-8")
    write_defs_yaml(folder, declared, declared["name"])
    answer = run_command(folder, "run", declared["name"], "--from", FIRST, "--to", last)
    if answer.code:
        raise SystemExit(answer.err)


def take(ui: Ui, dagster: Dagster) -> None:
    """Each picture once its page is drawn."""
    dagster.button("Hide navigation").click()
    dagster.open("/assets/flight_delays/predictions")
    dagster.words("Columns").first.click()  # which are described elsewhere
    expect(dagster.words("█", exact=False).first).to_be_visible()
    save(dagster, "predictions", until=dagster.words("score_p90"))
    dagster.open("/assets/flight_delays/predictions?view=checks")
    dagster.words("score_distribution").first.click()  # of partitions that pass alike no plot is drawn
    dagster.sees("Passed")
    save(dagster, "checks", until=dagster.words("one_score_for_all_rows"))
    dagster.open(f"/assets/flight_delays/model?view=partitions&partition={FIRST}")
    save(dagster, "model", until=dagster.words("trained_until"))
    backfill(ui, dagster)
    save(dagster, "backfill", until=dagster.words("100% completed").last)
    graph(dagster)


def drift(folder: Path) -> None:
    """What the check on drift says of the day from which on the distance is in kilometres instead of miles."""
    declared = flights_declared()
    declared["sources"]["flights"] = {"python": f"{PACKAGE}.sources.flights"}
    declared["monitoring"]["drift"] = {}
    year, month, day = map(int, IN_KILOMETRES.split("-"))
    scored_project(folder, declared, IN_KILOMETRES, sources=BROKEN_SOURCE.format(year=year, month=month, day=day))
    with served(folder, folder / HOME) as ui, browser(ui.url, WIDTH, HEIGHT, SCALE) as dagster:
        dagster.button("Hide navigation").click()
        dagster.open(f"/assets/{declared['name']}/drift?view=checks")
        dagster.tab("Execution history")
        dagster.page.get_by_role("row").filter(has_text=IN_KILOMETRES).first.get_by_role("button").last.click()
        worst = dagster.page.get_by_role("dialog").get_by_text("distance").first
        expect(worst).to_be_visible()
        save(dagster, "drift", until=dagster.page.get_by_role("dialog").get_by_text("psi_carrier", exact=True))


def backfill(ui: Ui, dagster: Dagster) -> None:
    """Ask for the month again, as one run, and see it done."""
    dagster.open("/assets/flight_delays/predictions")
    dagster.button("Materialize").click()
    dagster.choose_partitions(f"[{FIRST}...{LAST}]")
    dagster.button("Launch backfill").click()

    def done() -> str | None:
        backfills = ui.ask(BACKFILLS)["results"]
        return backfills[0]["id"] if backfills and backfills[0]["status"] == "COMPLETED_SUCCESS" else None

    dagster.open(f"/runs/b/{ui.wait(done)}")
    dagster.sees("100% completed")


def graph(dagster: Dagster) -> None:
    """All assets, without the list of them."""
    page = dagster.page
    page.set_viewport_size(GRAPH)
    dagster.open("/asset-groups/")
    dagster.sees("performance")
    expect(page.get_by_role("slider")).to_be_visible()
    page.get_by_role("button", name="settings").last.click()
    dagster.words("Change graph to vertical orientation", exact=False).first.click()
    dagster.open("/asset-groups/")
    expect(dagster.words("% filled", exact=False)).to_have_count(4)
    expect(dagster.words("Loading", exact=False)).to_have_count(0)
    save(dagster, "asset_graph", of=dagster.words("Latest event").or_(dagster.words("DuckDB")))


def save(dagster: Dagster, name: str, *, until: Locator | None = None, of: Locator | None = None) -> None:
    """Keep what the page shows down to a line, or the part of it that holds some words, once it asks for nothing more."""
    page = dagster.page
    if page.url.startswith(dagster.url):  # a file asks for nothing
        page.wait_for_load_state("networkidle")
    expect((until or of or page.locator("body")).first).to_be_visible()
    page.mouse.move(0, 0)
    boxes = [box for element in (until or of or page.locator("body")).all() if (box := element.bounding_box())]
    window = page.viewport_size or {"width": WIDTH, "height": HEIGHT}
    left, top, right = 0.0, 0.0, float(window["width"])
    bottom = max(box["y"] + box["height"] for box in boxes) + MARGIN
    if of:
        left, top = min(box["x"] for box in boxes) - MARGIN, min(box["y"] for box in boxes) - NAME
        right = max(box["x"] for box in boxes) + NODE
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.screenshot(path=str(PICTURES / f"{name}.png"), animations="disabled", clip=clip)
    print(name, (PICTURES / f"{name}.png").stat().st_size // 1024, "KB")


if __name__ == "__main__":
    main()
