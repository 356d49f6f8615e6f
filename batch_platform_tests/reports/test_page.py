"""The page: its words at the top, every value escaped, and nothing needed but a browser."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest
from playwright.sync_api import sync_playwright

from batch_platform.declaration.predictions import Decide
from batch_platform.monitoring.measure import Health
from batch_platform.pipeline.status import status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.reports.charts import charts_of
from batch_platform.reports.drift import Drifted
from batch_platform.reports.figures import Figures, read_decided, read_figures
from batch_platform.reports.measures import read_further_measures
from batch_platform.reports.report import html, in_words
from batch_platform.reports.wording import percent, reworded
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.browsing import installed_browser
from batch_platform_tests.reports.february import BERLIN, FIRST, HOSTILE, LAST, NOW, STRANGE, said, shown

WIDTHS = {"a laptop": 1280, "a tablet": 768, "a phone": 360}


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.full
def test_a_browser_shows_it_without_the_network_and_runs_nothing_that_data_say(page, figures, charts, width):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(installed_browser()), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        asked, complaints = list[str](), list[str]()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(page.as_uri())
        assert tab.title() == f"small: {figures.window.dates}"
        assert HOSTILE in (tab.text_content("header") or "")
        assert HOSTILE in (tab.text_content("body") or "")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        visible = (
            "[...document.querySelectorAll('figure svg.marks')].filter(svg => svg.getBoundingClientRect().width > 0)"
        )
        assert tab.evaluate(f"{visible}.length") == len(charts), "each chart in one of its two widths"
        assert tab.evaluate("document.querySelectorAll('main > section').length") > 3
        assert tab.evaluate(
            "[...document.querySelectorAll('table')].every(table => table.caption && table.querySelector('th[scope]'))"
        )
        assert asked == [page.as_uri()]
        assert complaints == []
        browser.close()


def test_the_same_numbers_give_the_same_bytes(page, figures):
    assert html(figures, charts_of(figures, BERLIN), BERLIN) == page.read_text(encoding="utf-8")


def test_every_chart_says_in_words_what_it_shows(page, charts):
    text = page.read_text(encoding="utf-8")
    assert {"volume", "scores", "performance", "estimates", "calibration", "drift"} <= charts.keys()
    for name, chart in charts.items():
        assert f'<div id="chart-{name}" role="img" aria-label="{chart.title}. {chart.text}{chart.extremes}">' in text
        assert f"<figcaption>{chart.text}</figcaption>" in text


def test_the_page_needs_no_javascript_and_is_small(page, charts):
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2 * len(charts), "for wide and for narrow windows"
    assert "<script>" not in text
    assert text.count('<div class="scroll" tabindex="0" role="region" aria-label="') == text.count("<table>") > 3
    assert "<img" not in text
    assert len(text) < 1_000_000


@pytest.mark.full
def test_the_command_writes_the_file_and_says_where(cli, project):
    summary = json.loads(cli(project, "report", "small", "--json").out)
    assert Path(summary["file"]) == project / ".batch_platform" / "reports" / "small" / f"{summary['last']}.html"
    assert "<h2>The models</h2>" in Path(summary["file"]).read_text(encoding="utf-8")
    out = project / "for the boss.html"
    answer = cli(project, "report", "small", "--from", summary["last"], "--out", str(out))
    assert f"The report on {summary['last']} is written to {out}" in answer.out
    missing = cli(project, "report", "small", "--out", str(project / "nowhere" / "for the boss.html"))
    assert f"nowhere is not a folder. Hint: mkdir -p {project / 'nowhere'}" in missing.error
    assert not (project / "nowhere").exists()
    too_long = cli(project, "report", "small", "--out", str(project / f"{'r' * 250}.html"))
    assert "cannot be written (File name too long). Hint: name a file elsewhere with --out" in too_long.error
    for option, ours in (("--out", "must end with .html"), ("--to", "names the last partition")):
        refused = cli(project, "report", "small", option, "for the boss.xlsx")
        assert ours in refused.err
        assert refused.err.endswith("Hint: --out for the boss.html\n")
        assert not (project / "for the boss.xlsx").exists()


def test_the_values_of_a_column_are_drawn_then_and_otherwise_and_never_become_markup(figures):
    shares = [(HOSTILE, 0.5, 0.1), ("b", 0.5, 0.9)]
    item = Drifted("shop", STRANGE, "", "", [STRANGE], None, shares)
    chart = charts_of(replace(figures, drift=replace(figures.drift, worst=[item])), BERLIN)["column-0"]
    for picture in (chart.wide, chart.narrow):
        assert "document.title" in picture
        assert "<script" not in picture
        assert "<img" not in picture


def with_rule(figures: Figures, rule: Decide | None) -> Figures:
    predictions = figures.spec.predictions.model_copy(update={"decide": rule})
    return replace(figures, spec=figures.spec.model_copy(update={"predictions": predictions}))


def test_the_paragraph_at_the_top_says_what_broke_and_what_is_needed_of_the_reader(figures):
    assert [*in_words(figures)] == ["Results", "Data", "System"]
    text = " ".join(said(figures))
    headline = next(item for item in figures.headlines if item.label == "roc_auc")
    assert (
        "From 12 to 22 February 2024, of one row where returned is true and one where it is not, picked at random, the first had the higher "
        f"score in {headline.value:.0%} of cases (chance alone: 50%; ROC AUC "
    ) in text
    assert "items was unusual on 20 February 2024 (its mean is " in text
    assert "2024-02-20" not in text, "the date is written once"
    assert ", and as usual again from 21 February 2024." in text
    assert f"{figures.unusual[0].text}." in text


def test_the_paragraph_at_the_top_leads_with_who_was_chosen_and_how_many_of_them_rightly(figures):
    with duckdb.connect() as con:
        con.execute("CREATE SCHEMA small; CREATE TABLE small.predictions (partition_key TEXT)")
        assert read_decided(con, "small", [LAST]) == {}, "no rule is declared"
        con.execute("ALTER TABLE small.predictions ADD COLUMN decision BOOLEAN")
        rows = [(LAST, True)] * 31 + [(LAST, False)] * 19 + [(FIRST, True), (LAST, None)]
        con.executemany("INSERT INTO small.predictions VALUES (?, ?)", rows)
        decided = read_decided(con, "small", [LAST])
    counts = {(decided, true): rows for decided, true, rows in figures.confusion.iter_rows()}
    chosen = counts["true", "true"] + counts["true", "false"]
    real = counts["true", "true"] + counts["false", "true"]
    without, *shares = said(figures)
    assert without == (
        "No rule of decision is declared; a score above one half would choose "
        f"{chosen} of the {sum(counts.values())} rows whose outcome is known."
    )
    assert shares[0].startswith(f"Of the {chosen} chosen from 12 to 22 February 2024 whose outcome is known, ")
    assert f"{percent(counts['true', 'true'] / chosen)} were right (returned is true, 95% interval " in shares[0]
    assert shares[0].endswith(f", against {percent(real / sum(counts.values()))} of all rows.")
    missed = f"{percent(counts['true', 'true'] / real)} were chosen and {counts['false', 'true']} were missed."
    assert shares[1] == f"Of the {real} rows where returned is true, {missed}"
    of_top = with_rule(replace(figures, decided=decided), Decide(top=500))
    assert said(of_top)[0] == (
        "From 12 to 22 February 2024, 31 of 50 rows were chosen (rule: act on the 500 rows of each day with the highest scores)."
    )
    cost = {"metric": "decision_cost", "value": 0.62, "low": 0.52, "high": 0.74}
    costs = pl.DataFrame(
        [cost, cost | {"metric": "decision_cost_always", "value": 0.69}, cost | {"metric": "decision_cost_never"}]
    )
    pooled = pl.concat([figures.pooled, costs], how="diagonal")
    assert (
        "The decisions cost 0.62 a row, 95% interval 0.52 to 0.74; the cheaper of always and never acting (never) would have "
        "cost 0.62."
    ) in said(replace(figures, pooled=pooled))


def test_the_report_and_status_never_disagree(pipeline, figures):
    """Both are of one source, and nothing that `status` warns of is left out; what has one cause stands in one line."""
    quiet = replace(figures.status, health=Health.of([]))
    (good,) = in_words(replace(figures, status=quiet, issues=[]))["System"]
    assert good.startswith("Everything ran: all that is due has been scored")
    assert good.endswith("and no check of the newest day warns.")
    later = status_at(pipeline, PlanRequest(NOW + timedelta(days=2)))
    with open_published(pipeline.home) as con:
        late = read_figures(con, pipeline.spec, FIRST, LAST, status=later)
    assert later.counts["missing"] == 2
    fresh, *others = later.health.alarms
    missing, *rest = late.issues
    assert (missing.what, missing.where) == ("2 days not yet scored", "25 to 26 February 2024")
    assert missing.why.endswith(fresh.text), "the same cause"
    assert [issue.why for issue in rest] == [alarm.text for alarm in others]
    (text, remedy), page = in_words(late)["System"], shown(late)
    assert remedy.endswith(": batch-platform run small.")
    assert text.startswith("Action needed: 2 days not yet scored (25 to 26 February 2024)")
    for issue in late.issues:
        assert issue.what in text
        assert reworded(issue.why, "day") in page
    assert page.count("2 days not yet scored") == 2, "at the top, and in the table"


def test_intervals_are_judged_by_all_outcomes_together_and_listed_by_month(figures):
    keys = figures.window.keys[:3]
    with duckdb.connect() as con:
        con.execute("""
            CREATE SCHEMA small; CREATE TABLE small.interval_coverage (partition_key TEXT, challenger TEXT, segment_column TEXT,
            rows BIGINT, covered BIGINT, coverage DOUBLE, low DOUBLE, high DOUBLE, expected DOUBLE, mean_width DOUBLE, in_sample BOOLEAN)
        """)
        rows = [(keys[0], None, 2, 1, 0.95), (keys[1], None, 198, 151, 0.82), (keys[1], "shop", 100, 0, 0.1)]
        values = [
            (key, column, n, inside, inside / n, 0.0, high, 0.9, 1.5, False) for key, column, n, inside, high in rows
        ]
        learned = (keys[2], None, 100, 0, 0.0, 0.0, 0.1, 0.9, 1.5, True)
        con.executemany(
            "INSERT INTO small.interval_coverage VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [*values, learned]
        )
        (measure,) = read_further_measures(con, "small", figures.window)
    assert measure.together == "76% of 200 outcomes lay inside; 90% were promised."
    assert measure.rows == [("February 2024", "200", "76%", "90%", "1.5")]
    told = replace(figures, measures=[measure])
    assert measure.together in shown(told)
    finding = (
        "Only 76% of the outcomes on 13 February 2024 lay inside their intervals: fewer than the 90% that were promised, by more "
        "than chance."
    )
    assert in_words(told)["Results"][-1] == finding
