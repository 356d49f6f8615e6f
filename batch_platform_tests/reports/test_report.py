"""The report: every number is that of the published tables, every value is escaped, and it needs nothing but a browser."""

import json
import re
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl
import pytest
from playwright.sync_api import sync_playwright
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.deciding import Decide
from batch_platform.declaration.errors import DataError
from batch_platform.declaration.model import ModelCard
from batch_platform.declaration.reporting import Report
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.wording import number
from batch_platform.models.gate import BY_LESS
from batch_platform.monitoring.health import Health
from batch_platform.monitoring.metrics import METRICS
from batch_platform.pipeline.drop import drop_partitions
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import PipelineStatus, status_at
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.reports.charts import Chart, charts_of
from batch_platform.reports.drift import Drifted, read_drift_figures
from batch_platform.reports.estimates import read_estimate_figures
from batch_platform.reports.figures import Figures, Headline, read_decided, read_figures
from batch_platform.reports.groups import read_groups
from batch_platform.reports.issues import OpenIssue, open_issues
from batch_platform.reports.measures import read_further_measures
from batch_platform.reports.performance import LEAST_OF_A_CLASS, is_vague, measured, shown_of, thin_together
from batch_platform.reports.report import html
from batch_platform.reports.segments import RATES, comparable, gaps_of, ordered, segment_drift
from batch_platform.reports.span import Span
from batch_platform.reports.summary import in_words
from batch_platform.reports.wording import PLAIN, alike, between, ends, figure, percent, plain, reworded
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.browsing import installed_browser
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
    small_spec,
)

NOW = datetime(2024, 2, 25, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
FIRST, LAST = "2024-02-12", "2024-02-22"
STRANGE = "2024-02-20"  # the day on which a feature has another unit
WIDTHS = {"a laptop": 1280, "a tablet": 768, "a phone": 360}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Three weeks of February scored; a shop has a hostile name, some rows are rejected, and a day is left out."""
    broken, day = pl.col("id") % 50 == 0, pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
    events = small_events().with_columns(
        shop=pl.when(pl.col("shop") == " ").then(pl.lit(HOSTILE)).otherwise("shop"),
        amount=pl.when(broken).then(-1.0).otherwise(pl.col("amount").fill_null(20.0)),
        items=pl.when(day == STRANGE).then(pl.col("items") * 100).otherwise("items").cast(pl.Int32),
    )
    made = small_pipeline(
        tmp_path_factory.mktemp("report"),
        events=events.filter(day != "2024-02-14"),
        description=f"Whether an order comes back. {HOSTILE}",
        features={"columns": {"amount": {"min": 0}}, "max_rejected": "50%"},
        monitoring={"segments": ["shop"], "drift": {}},
        challengers=[{"name": "tree", "estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 2}}],
    )
    carry_out(made, NOW)
    return made


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (89_841.3, "89,841"),
        (-1_384.2, "-1,384"),
        (999.94, "999.9"),
        (0.05344, "0.05344"),
        (1_494, "1,494"),
        (79_120_000.0, "79,120,000"),
        (0.0000123456, "0.00001235"),
        (None, "-"),
    ],
)
def test_numbers_are_written_for_people(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "form", "shown"), [(152.4, ".2g", "152"), (79_120.0, "+.4g", "+79,120"), (0.00001, "+.4g", "+0.00001000")]
)
def test_no_form_of_a_number_has_an_exponent(value, form, shown):
    assert number(value, form) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.009855, 0.004873, 0.01653, ("0.010", "0.005 to 0.017")),
        (0.71234, 0.68, 0.74, ("0.71", "0.68 to 0.74")),
        (12_345.6, 11_900.0, 12_800.0, ("12,346", "11,900 to 12,800")),
        (0.71234, None, None, ("0.712", "-")),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(value, low, high, shown):
    assert (figure(value, low, high), ends(low, high)) == shown


@pytest.mark.parametrize(
    ("first", "last", "monthly", "text"),
    [
        ("1974-01-01", "1974-08-01", True, "January to August 1974"),
        ("1986-12-01", "1986-12-01", True, "December 1986"),
        ("1997-11-01", "1998-04-01", True, "November 1997 to April 1998"),
        ("2013-04-01", "2013-04-30", False, "1 to 30 April 2013"),
        ("2013-05-01", "2013-12-31", False, "1 May to 31 December 2013"),
        ("2013-05-01-04:00", "2013-05-01-05:00", False, "2013-05-01-04:00 to 2013-05-01-05:00"),
    ],
)
def test_times_are_written_as_people_write_them(first, last, monthly, text):
    assert between(first, last, monthly=monthly) == text


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.0448, 0.51, 0.92, 1.0], ["0.04", "0.51", "0.92", "1.00"]), ([576.2, 99.0], ["576", "99"]), ([0.0], ["0"])],
)
def test_numbers_of_a_column_have_as_many_decimals(values, shown):
    assert [number(value, alike(values)) for value in values] == shown


def test_every_metric_has_plain_words_with_its_term_behind():
    assert PLAIN.keys() == METRICS.keys()
    assert plain("roc_auc") == "quality of the ranking (ROC AUC)"
    assert plain("of_my_own") == "of my own"
    assert plain("accuracy") == "share of rows whose most probable class was the true one (accuracy)", (
        "whatever the rule"
    )


@pytest.mark.parametrize(
    ("value", "before", "lower_is_better", "verdict"),
    [
        ((0.75, 0.70, 0.80), (0.70, 0.65, 0.75), False, ""),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), False, "better"),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), True, "worse"),
        ((0.70, 0.68, 0.72), (0.80, 0.78, 0.82), True, "better"),
        ((0.80, None, None), (0.70, None, None), False, ""),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), None, ""),
    ],
)
def test_a_difference_is_a_verdict_only_where_its_interval_says_so(value, before, lower_is_better, verdict):
    (now, low, high), (then, then_low, then_high) = value, before
    headline = Headline(
        "m", now, then, low=low, high=high, before_low=then_low, before_high=then_high, lower_is_better=lower_is_better
    )
    assert headline.verdict == verdict


def status_now(pipeline: Pipeline) -> PipelineStatus:
    return status_at(pipeline, PlanRequest(NOW))


def said(figures: Figures) -> list[str]:
    """The sentences at the top."""
    return [sentence for sentences in in_words(figures).values() for sentence in sentences]


def shown(figures: Figures) -> str:
    """The page in one line, without its charts."""
    return " ".join(html(figures, {}, BERLIN).split())


@pytest.fixture(scope="module")
def figures(pipeline: Pipeline) -> Figures:
    with open_published(pipeline.home) as con:
        return read_figures(con, pipeline.spec, FIRST, LAST, status=status_now(pipeline))


@pytest.fixture(scope="module")
def charts(figures: Figures) -> dict[str, Chart]:
    return charts_of(figures, BERLIN)


@pytest.fixture(scope="module")
def page(figures: Figures, charts: dict[str, Chart], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(figures, charts, BERLIN), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def rows(pipeline: Pipeline) -> pl.DataFrame:
    """The scored rows of the window with their labels, from the source itself."""
    with duckdb.connect(str(pipeline.home.published), read_only=True) as con:
        scored = con.sql(
            f"SELECT id, shop, score, partition_key FROM small.predictions WHERE partition_key BETWEEN '{FIRST}' AND '{LAST}'"
        ).pl()
    events = pl.read_parquet(pipeline.builder.sources.folder / "events.parquet")
    return scored.join(events.select("id", "returned"), on="id").sort("id")


def test_headlines_are_those_of_the_tables(figures, rows):
    headlines = {headline.label: headline for headline in figures.headlines}
    known = rows.drop_nulls("returned")
    assert headlines["rows scored"].value == rows.height
    assert headlines["mean score"].value == pytest.approx(rows["score"].mean(), rel=1e-12)
    auc = headlines["roc_auc"]
    assert auc.value == pytest.approx(roc_auc_score(known["returned"], known["score"]), rel=1e-12)
    assert auc.low < auc.value < auc.high
    rejected = figures.window.total("rows_rejected")
    assert headlines["rows rejected"].value == rejected / (rejected + rows.height) > 0
    assert sum(figures.rejections.values()) == rejected
    assert figures.before is not None
    assert figures.before.keys[-1] < FIRST
    assert len(figures.before.runs) == len(figures.window.runs)
    assert headlines["rows scored"].before == figures.before.total("rows_scored")


def test_performance_calibration_and_segments_are_those_of_the_rows(figures, rows):
    known = rows.drop_nulls("returned").with_columns(truth=pl.col("returned").cast(pl.Float64))
    together = [keys.split(" to ") for keys in figures.performance["keys"]]
    assert 1 < len(together) < len(figures.window.runs), "a day has few rows of a class"
    for (first, *last), value in zip(together, figures.performance["value"], strict=True):
        of_days = known.filter(pl.col("partition_key").is_between(pl.lit(first), pl.lit((last or [first])[0])))
        assert min(of_days["truth"].sum(), of_days.height - of_days["truth"].sum()) >= LEAST_OF_A_CLASS
        assert value == pytest.approx(roc_auc_score(of_days["truth"], of_days["score"]), rel=1e-12)
    binned = known.group_by(bin=(pl.col("score") * 10).floor().clip(upper_bound=9).cast(pl.Int64)).agg(
        pl.len().cast(pl.Int64).alias("rows"), pl.mean("score").alias("mean_score"), pl.mean("truth").alias("outcome")
    )
    for column in ("rows", "mean_score", "outcome"):
        np.testing.assert_allclose(figures.calibration[column], binned.sort("bin")[column], rtol=1e-12)
    bias = figures.overall["bias"]
    assert bias["value"] == pytest.approx((known["score"] - known["truth"]).mean(), rel=1e-9)
    assert bias["low"] < bias["value"] < bias["high"]
    assert figures.overall["precision"]["rows"] == known.height
    segments = {row["segment"]: row for row in figures.segments.iter_rows(named=True)}
    assert set(segments) == set(rows["shop"])
    for shop, row in segments.items():
        of_shop, measured = rows.filter(pl.col("shop") == shop), known.filter(pl.col("shop") == shop)
        assert (row["scored"], row["rows"]) == (of_shop.height, measured.height)
        assert row["mean_score"] == pytest.approx(of_shop["score"].mean(), rel=1e-12)
        assert row["value"] == pytest.approx(roc_auc_score(measured["truth"], measured["score"]), rel=1e-12)


def test_the_rates_of_segments_are_those_of_the_rows(figures, rows):
    """Decided with more than one half; the segments have fewer rows than are compared, but for the two largest."""
    known = rows.drop_nulls("returned").with_columns(held=pl.col("score") > 0.5)
    of_shops = {row["segment"]: row for row in figures.segments.iter_rows(named=True)}
    for shop, row in of_shops.items():
        decided = known.filter(pl.col("shop") == shop)
        assert row["selection_rate"] == pytest.approx(decided["held"].mean(), rel=1e-12)
        assert row["recall"] == pytest.approx(decided.filter("returned")["held"].mean(), rel=1e-12)
        assert row["false_positive_rate"] == pytest.approx(
            decided.filter(~pl.col("returned"))["held"].mean(), rel=1e-12
        )
    confusion = known.group_by(pl.col("held").alias("predicted"), pl.col("returned").alias("came_true")).len()
    assert {(p == "true", t == "true", n) for p, t, n in figures.confusion.iter_rows()} == {*confusion.iter_rows()}


def test_rates_are_compared_between_segments_with_enough_rows_of_both_classes():
    rates = {}
    for rate in RATES:
        rates |= {
            rate: [0.5, 0.2, 0.45, 0.1],
            f"{rate}_low": [0.48, 0.18, 0.4, 0.0],
            f"{rate}_high": [0.52, 0.22, 0.5, 0.3],
        }
    segments = pl.DataFrame(
        {
            "segment_column": ["shop"] * 4,
            "segment": ["a", "b", "c", None],
            "rows": [900, 400, 300, 300],
            "positives": [300, 200, 100, 99],
            **rates,
        }
    )
    assert comparable(segments)["segment"].to_list() == ["a", "b", "c"], "99 positives are too few"
    gaps = gaps_of(segments)
    assert [(gap.rate, gap.segment, gap.beside) for gap in gaps] == [(rate, "b", "a") for rate in RATES.values()]
    assert all(gap.low < gap.ratio < gap.high < 0.8 for gap in gaps)
    assert {round(gap.ratio, 9) for gap in gaps} == {0.4}
    alone = gaps_of(segments.filter(pl.col("segment").is_in(["a", "b"])))
    assert alone[0].high - alone[0].low < gaps[0].high - gaps[0].low, "more segments make wider intervals"
    assert gaps_of(segments.head(1)) == []


def test_the_drift_of_a_segment_is_the_worst_of_the_window_and_is_shown_where_it_was_judged(figures):
    keys = figures.window.keys
    rows = [
        ("a", keys[0], 0.1, "none"),
        ("a", keys[1], 0.5, "fail"),
        ("a", keys[2], 0.3, "warn"),
        ("b", keys[0], 0.04, None),
    ]
    rows += [(None, keys[0], 0.1, "none"), (None, keys[1], 0.2, "warn"), ("b", "2023-02-01", 0.9, "fail")]
    with duckdb.connect() as con:
        assert segment_drift(con, "small", "shop", figures.window).height == 0, "nothing was measured"
        con.execute("CREATE SCHEMA small")
        con.execute(
            "CREATE TABLE small.drift_by_segment (segment TEXT, partition_key TEXT, psi DOUBLE, level TEXT, "
            "psi_by_chance DOUBLE DEFAULT 0.1, psi_usual DOUBLE, segment_column TEXT DEFAULT 'shop')"
        )
        con.executemany(
            "INSERT INTO small.drift_by_segment (segment, partition_key, psi, level) VALUES (?, ?, ?, ?)", rows
        )
        drift = {
            segment: (moved, level)
            for segment, moved, level in segment_drift(con, "small", "shop", figures.window).iter_rows()
        }
    assert drift == {"a": (pytest.approx(0.4), "fail"), "b": (0.0, None), None: (pytest.approx(0.1), "warn")}
    shown = figures.segments.with_columns(level=pl.lit("warn"), moved=pl.lit(0.4))
    page = html(replace(figures, segments=shown), {}, BERLIN)
    assert "<td>warn</td>" in page
    assert "scores moved</th>" in page
    unjudged = figures.segments.with_columns(level=pl.lit(None, pl.String))
    assert '<th scope="col">drift</th>' not in html(replace(figures, segments=unjudged), {}, BERLIN)


def test_drift_is_that_of_its_table_and_the_worst_column_is_explained(figures, pipeline):
    query = f"""
        SELECT column_name AS "column", partition_key AS period, greatest(0, psi - psi_by_chance - 1.25 * coalesce(psi_usual, 0)) AS "index"
        FROM small.drift WHERE baseline = 'reference' AND partition_key BETWEEN '{FIRST}' AND '{LAST}' ORDER BY ALL
    """
    with duckdb.connect(str(pipeline.home.published), read_only=True) as con:
        assert figures.drift.cells.select("column", "period", "index").equals(con.sql(query).pl())
        numbers = "psi, mean, baseline_mean"
        ((_, mean, usual),) = con.execute(
            f"SELECT {numbers} FROM small.drift WHERE baseline = 'reference' AND partition_key = '{STRANGE}' AND column_name = 'items'"
        ).fetchall()
    worst = figures.drift.worst[0]
    assert (worst.column, worst.partition_key) == ("items", STRANGE)
    assert worst.sentence.startswith(f"on 20 February 2024, its mean is {number(mean)} instead of {number(usual)}")
    assert (
        ", and 100.0% of the values lie outside the range seen in training, 0.0% expected: a very strong change (index"
        in worst.sentence
    )
    assert mean > 50 * usual
    assert worst.sentence.endswith(f"an alarm in 1 of {len(figures.window.runs) - 1} days."), "a day has no rows"
    assert (worst.alarms, worst.again) == ([STRANGE], "2024-02-21")
    assert [sum(share) for share in list(zip(*worst.shares, strict=True))[1:]] == pytest.approx([1, 1])
    (beyond,) = (values for values, before, then in worst.shares if then > before)
    assert beyond.startswith("from 8"), "a hundred times as many items lie in the last cell"


def test_the_values_of_a_column_are_drawn_then_and_otherwise_and_never_become_markup(figures):
    shares = [(HOSTILE, 0.5, 0.1), ("b", 0.5, 0.9)]
    item = Drifted("shop", STRANGE, "", "", [STRANGE], None, shares)
    chart = charts_of(replace(figures, drift=replace(figures.drift, worst=[item])), BERLIN)["column-0"]
    for picture in (chart.wide, chart.narrow):
        assert "document.title" in picture
        assert "<script" not in picture
        assert "<img" not in picture


def test_of_a_few_rows_a_partition_no_alarm_tells_nothing(figures):
    quiet = replace(figures, drift=replace(figures.drift, worst=[], drifted=0))
    assert "too few to tell drift from chance" not in shown(quiet)
    assert "A cross marks an alarm" in charts_of(figures, BERLIN)["drift"].text
    assert "A cross" not in charts_of(quiet, BERLIN)["drift"].text
    few = Span(tuple(replace(run, rows_scored=2 * (at % 2)) for at, run in enumerate(figures.window.runs)))
    judged = f"so none of {figures.drift.columns} columns can be judged."
    remark = f"<p>The usual 2 rows a day are too few to tell drift from chance, {judged}</p>"
    assert remark in shown(replace(quiet, window=few)), "partitions without rows do not count"
    assert "drift" not in charts_of(replace(quiet, window=few), BERLIN)
    still = replace(quiet.drift, cells=quiet.drift.cells.with_columns(index=pl.lit(0.0)))
    assert "No column was noticeably far (0.1) from the training data." in shown(replace(quiet, drift=still))
    assert "drift" not in charts_of(replace(quiet, drift=still), BERLIN), "an empty chart"


def test_drift_that_was_not_judged_is_no_alarm(pipeline):
    monitoring = pipeline.spec.monitoring.model_copy(update={"drift": None})
    spec = pipeline.spec.model_copy(update={"monitoring": monitoring})
    with open_published(pipeline.home) as published, duckdb.connect() as con:
        con.execute("CREATE SCHEMA small")
        con.register(
            "measured", published.sql("SELECT * REPLACE (NULL::TEXT AS level) FROM small.drift").to_arrow_table()
        )
        con.execute("CREATE TABLE small.drift AS FROM measured")
        figures = read_figures(published, pipeline.spec, FIRST, LAST)
        drift = read_drift_figures(con, spec, figures.window)
        later = read_drift_figures(con, pipeline.spec, figures.window)
    assert drift is not None
    assert later is not None
    assert (drift.early, later.early) == (0, len(figures.window.keys) - 1), "one day has no rows"
    assert "since no limits are declared (monitoring.drift)" in shown(replace(figures, drift=drift))
    assert "since limits were declared only after these days had been scored" in shown(replace(figures, drift=later))
    some = replace(later, judged=True, early=2)
    assert f"2 of {len(figures.window.keys)} days are not judged: limits" in shown(replace(figures, drift=some))
    assert drift.cells["index"].max() > 1, "the strange day is far from the baseline"
    assert (drift.drifted, drift.worst, drift.cells["alarms"].sum()) == (0, [], 0)


def assert_estimates_are_those_of_the_tables(figures, con, metric):
    """Beside each estimate stands what `performance` holds, and the track record is that of every partition."""
    query = """
        SELECT e.partition_key, e.metric, estimate, e.low, e.high, p.value, e.rows FROM small.estimates AS e
        LEFT JOIN small.performance AS p
            ON p.partition_key = e.partition_key AND p.metric = e.metric AND p.challenger IS NULL AND NOT p.in_sample
        WHERE e.metric = $metric AND e.partition_key BETWEEN $first AND $last ORDER BY e.partition_key
    """
    window = {"first": figures.window.keys[0], "last": figures.window.keys[-1]}
    estimated = con.execute(query, {"metric": metric, **window}).fetchall()
    assert [astuple(row)[:7] for row in figures.estimates.partitions] == estimated != []
    query = """
        SELECT metric, count(*), avg(abs(estimate - p.value)), avg((p.value BETWEEN e.low AND e.high)::INTEGER), sum((p.value BETWEEN e.low AND e.high)::INTEGER)
        FROM small.estimates AS e JOIN small.performance AS p USING (partition_key, metric)
        WHERE metric = $metric AND p.challenger IS NULL AND NOT p.in_sample GROUP BY metric
    """
    ((*numbers, within),) = con.execute(query, {"metric": metric}).fetchall()
    record = figures.estimates.record
    assert astuple(record) == (*numbers[:2], pytest.approx(numbers[2], rel=1e-12), pytest.approx(numbers[3], rel=1e-12))
    assert record.partitions_within == within > 0
    text = " ".join(html(figures, charts_of(figures, BERLIN), BERLIN).split())
    sentence = f"{within} of {record.partitions} values measured later lay within the estimated interval. The estimates were off by "
    assert f"{sentence}{number(numbers[2], '.2g')} on average (mean absolute error)." in text
    assert f"<strong>Estimated, not measured:</strong> the {plain(metric)} that each day" in text


def assert_mean_estimates_are_those_of_the_rows(made, con, metric, of_row):
    """The estimated mean of a whole partition and of each segment is that of its rows, each with its own expectation."""
    version = made.published_state().registry.versions[-1]
    scored = con.sql("FROM small.predictions WHERE model_version = $version", params={"version": version.version}).pl()
    features = pl.concat([made.history.features(build) for build in made.published_state().features.values()])
    rows = scored.join(features.select("id", "amount", "items", "known"), on="id")
    bundle = made.bundle(version)
    rows = rows.with_columns(expected=of_row(rows, bundle.reference.basis, bundle.contract.encode(rows)))
    query = f"SELECT partition_key, segment, estimate FROM small.estimates_by_segment WHERE metric = '{metric}' AND model_version = '{version.version}'"
    estimated = {(key, segment): estimate for key, segment, estimate in con.execute(query).fetchall()}
    by_hand = rows.group_by("partition_key", "shop").agg(pl.mean("expected"))
    assert estimated == {(key, shop): pytest.approx(mean, rel=1e-9) for key, shop, mean in by_hand.iter_rows()} != {}


def test_estimates_are_those_of_their_table_beside_what_came_true(figures, pipeline):
    with open_published(pipeline.home) as con:
        assert_estimates_are_those_of_the_tables(figures, con, "roc_auc")
        query = f"SELECT partition_key, value FROM small.performance WHERE metric = 'roc_auc' AND challenger IS NULL AND partition_key BETWEEN '{FIRST}' AND '{LAST}'"
        measured = dict(con.execute(query).fetchall())
        assert {row.partition_key: row.realised for row in figures.estimates.partitions} == measured
        assert figures.estimates.unmeasured == ()
        learned = Span(tuple(replace(run, in_sample=True) for run in figures.window.runs))
        assert read_estimate_figures(con, pipeline.spec, "roc_auc", learned, ()) is None, (
            "the model has learned from them"
        )


def test_a_partition_without_labels_is_reported_by_its_estimate(pipeline):
    with open_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec, "2024-02-24")
        assert_estimates_are_those_of_the_tables(figures, con, "roc_auc")
    (row,) = figures.estimates.unmeasured
    assert (row.partition_key, row.realised, figures.metric) == ("2024-02-24", None, None)
    assert charts_of(figures, BERLIN) == {}, "a single partition makes no course"
    text = html(figures, {}, BERLIN)
    assert "No labels are known for these days" in text
    numbers = (figure(row.estimate, row.low, row.high), ends(row.low, row.high), number(row.rows))
    cells = (f'<td class="n">{cell}</td>' for cell in numbers)
    assert "".join(['<th scope="row">24 February 2024</th>', *cells]) in text
    assert set(figures.definitions) == {"roc_auc"}


@pytest.mark.parametrize(("within", "falls_short"), [(34, True), (46, False)])
def test_intervals_that_held_fewer_observed_values_than_they_promise_are_said_to(figures, within, falls_short):
    record = replace(figures.estimates.record, partitions=48, within=within / 48)
    page = shown(replace(figures, estimates=replace(figures.estimates, record=record)))
    remark = "lay within the estimated interval: fewer than the 95% that they promise, so trust the estimates less. The estimates"
    assert (remark in page) == falls_short


def test_thin_partitions_are_drawn_as_the_mean_of_their_estimates_beside_the_mean_of_what_came_true(figures, charts):
    estimates = figures.estimates
    drawn = {row.partition_key: row for row in estimates.drawn}
    assert {*drawn} == {*figures.performance["partition_key"]}, "as performance is"
    by_key = {row.partition_key: row for row in estimates.partitions}
    for keys in estimates.measured:
        one, rows = drawn[keys[len(keys) // 2]], [by_key[key] for key in keys]
        shares = np.array([row.rows for row in rows]) / sum(row.rows for row in rows)
        assert one.estimate == pytest.approx(sum(shares * [row.estimate for row in rows]), rel=1e-12)
        assert one.realised == pytest.approx(sum(shares * [row.realised for row in rows]), rel=1e-12)
        assert one.high == pytest.approx(sum(shares * [row.high for row in rows]), rel=1e-12)
    pooled = next(keys for keys in estimates.measured if len(keys) > 1)
    for name in ("performance", "estimates"):
        assert f"<title>{pooled[0]} to {pooled[-1]}, " in charts[name].wide
    together = "Neighbouring days with fewer than 30 rows of a class are measured together: 12 to 1"
    assert together in charts["performance"].text
    assert together in charts["estimates"].text


@pytest.mark.parametrize("days", range(1, 14))
def test_thin_neighbours_are_together_and_no_partition_is_lost_or_counted_twice(figures, days):
    keys = figures.window.keys[:days]
    with duckdb.connect() as con:
        con.execute("CREATE SCHEMA small; CREATE TABLE small.outcomes (id BIGINT)")
        con.execute("""
            CREATE TABLE small.performance (partition_key TEXT, value DOUBLE, low DOUBLE, high DOUBLE, rows BIGINT,
            positives BIGINT, metric TEXT DEFAULT 'brier', challenger TEXT, in_sample BOOLEAN DEFAULT false)
        """)
        con.executemany(
            "INSERT INTO small.performance (partition_key, value, rows, positives) VALUES (?, 0.1, 40, 8)",
            [[key] for key in keys],
        )
        together = thin_together(con, small_spec(), "brier", figures.window)
    assert [row["partition_key"] for rows in together for row in rows] == keys
    assert all(sum(row["positives"] for row in rows) >= LEAST_OF_A_CLASS for rows in together if len(together) > 1)


def test_of_estimates_alone_no_dot_is_drawn(figures):
    estimates = figures.estimates
    open_ones = replace(estimates, partitions=tuple(replace(row, realised=None) for row in estimates.partitions))
    charts = charts_of(replace(figures, estimates=open_ones, metric=None), BERLIN)
    assert "performance" not in charts
    assert charts["estimates"].text.endswith("(grey)."), "nothing came true that a dot could show"


def test_a_measured_partition_is_told_by_numbers_alone(pipeline):
    with open_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec, LAST, LAST)
    assert set(charts_of(figures, BERLIN)) == {"calibration"}
    text = " ".join(html(figures, {}, BERLIN).split())
    assert "<p>These numbers are for 22 February 2024, compared with 21 February 2024.</p>" in text
    rows_in, scored, rejected = (figures.window.total(f"rows_{name}") for name in ("in", "scored", "rejected"))
    assert f"<p>{rows_in} rows came in: {scored} scored, {rejected} rejected.</p>" in text
    assert "Estimated, not measured" not in text


def test_a_model_of_several_classes_is_reported_with_its_estimated_accuracy(tmp_path):
    amount, noise = pl.col("amount").fill_null(0.0), pl.col("id") % 5 == 0
    size = pl.when((amount < 40) | noise).then(pl.lit("low")).when(amount < 90).then(pl.lit("middle"))
    made = small_pipeline(
        tmp_path,
        events=small_events().with_columns(returned=size.otherwise(pl.lit("high"))),
        model={"allow_suspected_leaks": ["*"]},
        monitoring={"segments": ["shop"]},
    )
    carry_out(made, datetime(2024, 2, 6, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        figures = read_figures(con, made.spec)
        assert (figures.task, figures.metric) == ("multiclass", "log_loss")
        assert_estimates_are_those_of_the_tables(figures, con, "accuracy")
        came_true = figures.confusion.select(
            pl.col("rows").filter(pl.col("decided") == pl.col("came_true")).sum()
        ).item()
        rows, classes = (
            figures.confusion["rows"].sum(),
            figures.confusion.group_by("came_true").agg(pl.col("rows").sum()),
        )
        sentence = in_words(figures)["Results"][0]
        assert sentence.startswith(
            f"For {percent(came_true / rows)} of the {rows:,} rows whose outcome is known, the decided"
        )
        assert sentence.endswith(f"would be right for {percent(classes['rows'].max() / rows)}.")

        def right(rows, basis, _):
            confidence = rows.select(pl.max_horizontal(pl.col("^score_.*$"))).to_series().to_numpy()
            cells = np.searchsorted(basis.expectation.bins.edges, confidence, side="right")
            return pl.Series(np.asarray(basis.expectation.means["accuracy"].loss)[cells])

        assert_mean_estimates_are_those_of_the_rows(made, con, "accuracy", right)


def test_a_weekly_report_compares_weeks(pipeline):
    with open_published(pipeline.home) as con:
        weekly = read_figures(con, pipeline.spec, every="week")
    assert weekly.summed_up.keys[0] == "2024-02-19", "a Monday"
    assert len(weekly.summed_up.keys) == 6
    assert weekly.before.keys == [f"2024-02-{day}" for day in range(13, 19)], "as many days"


@pytest.mark.full
def test_a_regression_is_reported_by_groups_of_about_equal_size(tmp_path):
    made = small_pipeline(
        tmp_path,
        events=small_events().with_columns(returned=pl.col("items") * 2.0 + pl.col("id") % 7),
        model={"estimator": "sklearn.linear_model.Ridge", "params": None, "allow_suspected_leaks": ["*"]},
        monitoring={"segments": ["shop"]},
    )
    carry_out(made, datetime(2024, 2, 9, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        figures = read_figures(con, made.spec)
        query = """
            SELECT avg(prediction), avg(outcome_value), count(*)
            FROM small.predictions JOIN small.outcomes USING (partition_key, id)
        """
        ((predicted, true, rows),) = con.execute(query).fetchall()
        assert_estimates_are_those_of_the_tables(figures, con, "mae")

        def errors(rows, basis, matrix):
            return pl.Series(basis.tree.errors(matrix, rows["prediction"].to_numpy()))

        assert_mean_estimates_are_those_of_the_rows(made, con, "mae", errors)
    groups = figures.calibration
    assert groups.height == 10
    assert groups["rows"].sum() == rows
    assert groups["rows"].max() < 2 * rows / 10
    assert (groups["mean_score"] * groups["rows"]).sum() / rows == pytest.approx(predicted, rel=1e-12)
    assert (groups["outcome"] * groups["rows"]).sum() / rows == pytest.approx(true, rel=1e-12)
    assert (figures.gaps, figures.confusion.height) == ([], 0), "nothing was decided"
    assert "Predicted and true" in html(figures, charts_of(figures, BERLIN), BERLIN)


def test_a_clustering_is_reported_without_labels(tmp_path):
    clusters = {"labels": None, "model": {"estimator": "sklearn.cluster.KMeans", "params": None}}
    made = small_pipeline(tmp_path, monitoring={"segments": ["shop"]}, **clusters)
    carry_out(made, datetime(2024, 2, 5, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        figures = read_figures(con, made.spec)
    assert (figures.task, figures.metric, figures.pooled.height) == ("clustering", "silhouette", 0)
    assert set(figures.performance["partition_key"]) == set(figures.window.keys)
    groups, (before, newest) = figures.groups, figures.window.keys[-2:]
    with duckdb.connect(str(made.home.published), read_only=True) as con:
        counted = "SELECT prediction::TEXT, count(*) FROM small.predictions WHERE partition_key = $key GROUP BY ALL"
        assert groups.sizes == dict(con.execute(counted, {"key": newest}).fetchall())
        assert groups.sizes_before == dict(con.execute(counted, {"key": before}).fetchall())
    assert groups.moves == {}, "an order is in one day only"
    charts = charts_of(figures, BERLIN)
    text = html(figures, charts, BERLIN)
    assert charts["scores"].title == "Groups over time"
    assert "95% confidence interval" not in text, "none is shown"
    assert "<b>0%</b>" in text, "no row was rejected"
    assert "<h2>The groups</h2>" in text
    assert "<h2>How good the predictions were</h2>" not in text, "nothing stands below it"
    assert "1 if every row is much nearer to its own group than to any other" in text
    assert "groups are strongly separated above 0.7" in text
    for apart, how in {
        0.71: "strongly",
        0.51: "reasonably well",
        0.39: "weakly",
        0.2: "hardly",
        -0.1: "hardly",
    }.items():
        measured = replace(figures, performance=figures.performance.with_columns(value=pl.lit(apart)))
        assert in_words(measured)["Results"][1] == f"The groups are {how} separated (silhouette {apart:.2f})."
    shown_columns = re.findall(r'<th scope="row">(amount|items|known|shop)</th>', text)
    assert shown_columns == [*groups.typical], "those that distinguish the groups most first"
    assert sorted(shown_columns) == ["amount", "items", "known", "shop"]
    for value in groups.typical["shop"].values():
        assert value in unescape(text)
    assert figures.estimates is None
    assert "stimate" not in text


def test_rows_are_followed_from_one_group_to_another():
    spec = small_spec(labels=None)
    with duckdb.connect() as con:
        con.execute(
            "CREATE SCHEMA small; CREATE TABLE small.predictions (partition_key TEXT, id BIGINT, prediction BIGINT)"
        )
        rows = [
            ("2024-02-01", 1, 0),
            ("2024-02-01", 2, 0),
            ("2024-02-01", 3, 1),
            ("2024-02-02", 1, 0),
            ("2024-02-02", 2, 1),
            ("2024-02-02", 4, 2),
        ]
        con.executemany("INSERT INTO small.predictions VALUES (?, ?, ?)", rows)
        groups = read_groups(con, spec, ["2024-02-01", "2024-02-02"])
        con.execute("UPDATE small.predictions SET prediction = -1 WHERE prediction = 2 OR partition_key = '2024-02-01'")
        odd = read_groups(con, spec, ["2024-02-01", "2024-02-02"], outliers=True)
    assert (groups.names, groups.sizes, groups.sizes_before) == (
        ["0", "1", "2"],
        {"0": 1, "1": 1, "2": 1},
        {"0": 2, "1": 1},
    )
    assert groups.moves == {("0", "0"): 1, ("0", "1"): 1}
    assert (groups.stayed, groups.followed) == (1, 2)
    assert [groups.share_stayed(name) for name in groups.names] == [0.5, None, None]
    assert groups.typical == {}, "the partition was measured before there were typical values"
    moved = "Of 2 rows that were also scored in the day before, 1 (50.0%) moved to another group."
    lost = "Group 0 lost 1 row (-50%), the largest change among the 3 groups of 2 February 2024."
    assert groups.in_words("2 February 2024", outliers=False) == f"{lost} {moved}"
    new = replace(groups, sizes={"0": 2, "1": 1, "2": 4}, moves={})
    gained = "Group 2 gained 4 rows (it is new), the largest change among the 3 groups of May."
    assert new.in_words("May", outliers=False) == gained
    same = replace(groups, sizes=groups.sizes_before, moves={})
    assert same.in_words("May", outliers=False) == "The 3 rows of May are in 2 groups."
    assert replace(new, sizes_before={}).in_words("May", outliers=False) == "The 7 rows of May are in 3 groups."
    assert (odd.sizes, odd.sizes_before) == ({"as usual": 2, "stands out": 1}, {"stands out": 3})
    assert odd.moves == {("stands out", "as usual"): 2}
    other = "2 (100.0%) stand out in only one of the two."
    assert odd.in_words("May", outliers=True).endswith(
        f"1 stand out, after 3 of 3 in the day before. {moved.partition(', ')[0]}, {other}"
    )


def test_a_report_on_outliers_says_how_many_rows_stand_out(tmp_path):
    forest = {"n_estimators": 10, "max_iter": None, "max_leaf_nodes": None, "early_stopping": None}
    made = small_pipeline(
        tmp_path, labels=None, model={"estimator": "sklearn.ensemble.IsolationForest", "params": forest}
    )
    carry_out(made, datetime(2024, 2, 5, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        figures = read_figures(con, made.spec)
        query = "SELECT count(*), sum((prediction = -1)::INTEGER) FROM small.predictions WHERE partition_key = $newest"
        (rows, odd), (rows_before, odd_before) = (
            con.execute(query, {"newest": key}).fetchall()[0] for key in figures.window.keys[:-3:-1]
        )
    before = f"after {odd_before} of {rows_before} in the day before"
    assert said(figures)[0] == f"Of the {rows} rows of 4 February 2024, {odd} stand out, {before}."
    assert "<h2>What stands out</h2>" in shown(figures)
    assert "group" not in shown(figures).partition("<h2>How the numbers")[0].partition("<h2>In short")[2].lower()


def test_models_challengers_and_open_issues_are_told(figures, pipeline):
    (service,) = figures.services
    assert (service.first, service.last, service.partitions) == (FIRST, LAST, len(figures.window.runs))
    assert service.version == pipeline.state().scores[LAST].model_version
    assert set(figures.challengers["challenger"]) == {None, "tree"}
    assert figures.decisions.height >= 1
    assert set(figures.definitions) >= {"roc_auc", "brier", "log_loss"}
    assert "of 100 such intervals, about 95 hold it" in figures.confidence
    assert "Several rows of one entity (same key, times aside) count as one. Where days differ" in shown(figures)
    assert figures.issues == []
    status = replace(status_at(pipeline, PlanRequest(NOW)), refused={"2024-02-01": "it is worse"})
    newest = OpenIssue("the newest model is not in use", "1 February 2024", "it is worse")
    assert newest in open_issues(pipeline.spec, status)
    assert not {"lift_at_5", "precision", "bias"} & {*figures.definitions}, "their plain words define them"
    assert not any("sklearn" in text or "`" in text for text in figures.definitions.values())


def test_the_newest_decision_is_that_on_the_model_in_use_whatever_was_decided_on_others_later(figures):
    in_use, columns = figures.services[-1].version, figures.decisions.columns
    decided = [
        (1, in_use, "approved", "meets the gate"),
        (2, "other", "promoted", "tried"),
        (3, "other", "rolled back", "worse"),
        (4, "tree-1", "challenger", "tree; trained"),
        (5, "tree-2", "challenger", "tree; trained again"),
    ]
    decisions = pl.DataFrame([(NOW + timedelta(at), *row) for at, *row in decided], columns, orient="row")
    newest = replace(figures, decisions=decisions).newest_decisions
    assert newest["version"].to_list() == [in_use, "tree-2"]


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
    bad = replace(figures, missed=["2024-02-12"], no_better_than_guessing=["2024-02-13"])
    assert "On 13 February 2024 the model ranked no better than chance." in said(bad)
    assert "by more than chance, on 12 February 2024." in " ".join(said(bad))


def with_rule(figures: Figures, rule: Decide | None) -> Figures:
    predictions = figures.spec.predictions.model_copy(update={"decide": rule})
    return replace(figures, spec=figures.spec.model_copy(update={"predictions": predictions}))


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


def test_a_table_of_metrics_holds_no_metric_that_misleads_beside_the_rule(pipeline, figures):
    with open_published(pipeline.home) as con:
        pooled = measured(con, pipeline.spec, figures.window, "roc_auc", [], whole=True)
    assert {"accuracy"} <= {*shown_of(pooled, "roc_auc", None)["metric"]}
    of_top = shown_of(pooled, "roc_auc", Decide(top=5))
    assert "accuracy" not in {*of_top["metric"]}
    assert "accuracy" in {*shown_of(pooled, "accuracy", Decide(top=5))["metric"]}, "the one that judges"
    ends = of_top.filter(metric="selection_rate").select("low", "high").row(0)
    assert ends == (None, None), "the rule sets the share"
    of_threshold = shown_of(pooled, "roc_auc", Decide(threshold=0.2)).filter(metric="selection_rate")
    assert None not in of_threshold.select("low", "high").row(0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.03, "too high"),
        (-0.03, -0.01, "too low"),
        (-0.01, 0.03, "neither clearly too high nor too low"),
    ],
)
def test_a_finding_on_the_results_stands_at_the_top_whatever_the_system_does(figures, low, high, verdict):
    bias = pl.DataFrame([{"metric": "bias", "value": 0.01, "low": low, "high": high}])
    pooled = pl.concat([figures.pooled.filter(pl.col("metric") != "bias"), bias], how="diagonal")
    tilted = replace(figures, pooled=pooled)
    sentence = f"On average, scores were {verdict}: "
    assert any(text.startswith(sentence) for text in in_words(tilted)["Results"]) == (not verdict.startswith("neither"))
    assert f"<p>{sentence}" in shown(tilted)


def test_models_that_were_not_better_than_guessing_or_that_only_the_tolerance_lets_pass_are_named_at_the_top(figures):
    (service,) = figures.services
    assert "tolerance" not in " ".join(said(figures))
    reason = (
        f"meets the gate; worse than champion V: mae 0.5 against 0.4, {BY_LESS}0.4; not clearly better than guessing"
    )
    services = [
        replace(service, version=name, first=f"2024-02-{day}") for name, day in (("a", 12), ("b", 19), ("c", 20))
    ]
    actions = {"a": "approved", "b": "approved", "c": "challenger", "d": "approved"}
    decisions = pl.DataFrame(
        [{"version": name, "action": action, "reason": reason} for name, action in actions.items()]
    )
    passed = "approved although worse than the one before, within the tolerance of 0.4."
    assert f"The models that served from 12 February 2024 and 19 February 2024 were {passed}" in said(
        replace(figures, services=services, decisions=decisions)
    )
    assert f"The model that served from 12 February 2024 was {passed}" in said(
        replace(figures, services=services[:1], decisions=decisions)
    )
    guesses = {FIRST: "not clearly better than guessing (last known value): mae 0.3 against 0.4"}
    sentence = "was not clearly better, when approved, than a simple guess (last known value)."
    assert (
        f"The model that served from 12 February 2024 {sentence}"
        in in_words(replace(figures, guesses=guesses))["Results"]
    )


def test_of_many_decisions_the_newest_of_each_model_are_shown_in_plain_words(figures):
    reasons = [
        (
            "approved",
            "meets the gate; better than champion A: roc_auc 0.8 against 0.7 on 90 rows of 14 partitions; 9 rows that the champion learned from",
        ),
        ("challenger", "tree; meets the gate"),
        ("challenger", "forest; would not pass the gate: worse than guessing (mean)"),
    ]
    rows = [
        {"decided_at": NOW + timedelta(days=at), "version": version, "action": name, "reason": reason}
        for at in range(3)
        for name, reason in reasons
        for version in [figures.services[-1].version if name == "approved" else f"{name[0]}{at}"]
    ]
    page = shown(replace(figures, decisions=pl.DataFrame(rows)))
    assert page.count("its acceptance test") == len(reasons)
    assert (
        "meets its acceptance test; better than the model in use A: ROC AUC 0.8 against 0.7 on 90 rows of 14 days; 9 rows that"
        " the model in use learned from" in page
    )
    assert "forest; would not pass its acceptance test: worse than a simple guess (mean)" in page
    assert "All decisions: batch-platform models small." in page


def test_a_period_with_few_rows_of_a_class_is_no_headline(pipeline):
    rows = {"metric": "roc_auc", "value": 0.75, "low": 0.7, "high": 0.8, "rows": 200, "positives": 40}
    assert not is_vague(rows, METRICS["roc_auc"])
    assert is_vague(rows | {"positives": 29}, METRICS["roc_auc"])
    assert is_vague(rows | {"low": 0.5, "high": 0.9}, METRICS["roc_auc"]), "as wide as it is far from chance"
    assert is_vague(rows | {"metric": "mae", "value": 0.3, "low": 0.1, "high": 0.8, "positives": None}, METRICS["mae"])
    assert not is_vague(rows | {"metric": "bias", "value": 0.0, "positives": None}, METRICS["bias"])
    weekly = pipeline.spec
    with open_published(pipeline.home) as con:
        figures = read_figures(con, weekly, "2024-02-05", "2024-02-19", every="week")
    assert figures.summed_up == figures.window, "a Monday alone"
    assert figures.before is None


def test_decisions_are_shown_of_every_segment_and_compared_only_of_large_ones(figures):
    few = shown(replace(figures, segments=figures.segments.with_columns(positives=pl.lit(99))))
    sentence = "Segments are not compared: that takes two of a column with at least 100 measured rows of each class."
    assert sentence in few
    assert few.count(" (99)</td>") == figures.segments.height, "how many were to be found"
    section = few.partition("<h3>Decisions by segment</h3>")[2].partition("</table>")[0]
    assert ">-</td>" not in section, "no columns of rates that no segment of the table has"
    assert "Found is the share" not in few
    enough = shown(replace(figures, segments=figures.segments.with_columns(rows=pl.lit(900), positives=pl.lit(300))))
    assert sentence not in enough
    assert "Guidelines" not in enough, "the law stands in the guide"


def test_segments_that_are_dates_stand_in_their_order():
    of_dates = pl.DataFrame({"segment": ["1997-02", "1997-01"], "scored": [9, 8]})
    assert [row["segment"] for row in ordered(of_dates)] == ["1997-01", "1997-02"]
    assert ordered(of_dates.with_columns(segment=pl.Series(["b", None])))[0]["segment"] == "b"


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
        con.execute("UPDATE small.interval_coverage SET rows = 2000, covered = 1950 WHERE rows = 2")
        (held_in_all,) = read_further_measures(con, "small", figures.window)
    assert measure.together == "76% of 200 outcomes lay inside; 90% were promised."
    assert held_in_all.finding == (
        "96% of all outcomes lay inside their intervals, and 90% were promised; but only 76% of those on 13 February 2024, "
        "fewer by more than chance."
    )
    assert measure.rows == [("February 2024", "200", "76%", "90%", "1.5")]
    told = replace(figures, measures=[measure])
    assert measure.together in shown(told)
    finding = (
        "Only 76% of the outcomes on 13 February 2024 lay inside their intervals: fewer than the 90% that were promised, by more "
        "than chance."
    )
    assert in_words(told)["Results"][-1] == finding


def test_the_limits_of_the_model_stand_beside_its_results(figures):
    assert "Use and limits" not in shown(figures)
    card = ModelCard(intended_use="The desk calls.", limits="Not for diagnosis.")
    model = figures.spec.model.model_copy(update={"card": card})
    limited = replace(figures, spec=figures.spec.model_copy(update={"model": model}))
    assert [*in_words(limited)][:2] == ["Results", "Use and limits"]
    assert "<strong>Use and limits.</strong> The desk calls. Not for diagnosis." in shown(limited)


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


def test_partitions_that_miss_the_declared_performance_by_more_than_chance_are_listed(pipeline, figures):
    ends = dict(figures.performance.drop_nulls("high").select("keys", "high").iter_rows())
    bound = max(ends.values())
    spec = pipeline.spec.model_validate(
        pipeline.spec.model_dump(exclude_unset=True, by_alias=True)
        | {"monitoring": {"performance": {"warn_below": bound}}}
    )
    with open_published(pipeline.home) as con:
        judged = read_figures(con, spec, FIRST, LAST)
    assert judged.missed == sorted(key for key, high in ends.items() if high < bound) != []


def test_failures_for_the_same_reason_are_one_issue_told_in_words(tmp_path):
    days = ["2024-02-05", "2024-02-07"]
    day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
    items = pl.when(day.is_in(days) & (pl.col("id") % 2 == 0)).then(None).otherwise("items").cast(pl.Int32)
    made = small_pipeline(tmp_path, events=small_events().with_columns(items=items))
    with pytest.raises(DataError):
        carry_out(made, datetime(2024, 2, 9, 12, tzinfo=UTC))
    made.conclude(datetime(2024, 2, 9, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        issue, *alarms = read_figures(
            con, made.spec, status=status_at(made, PlanRequest(datetime(2024, 2, 9, 12, tzinfo=UTC)))
        ).issues
    assert not [alarm for alarm in alarms if "fail" in alarm.what + alarm.why], "one cause, one line"
    assert (issue.what, issue.where) == ("predictions failed", "5 February 2024 and 7 February 2024")
    assert issue.why.startswith("2024-02-05: 20 of 40 rows break the contract")
    assert issue.why.endswith("Broken rules: items: no value where training always had one (20 rows).")
    assert "id=" not in issue.why, "no values of rows"


@pytest.mark.full
def test_a_failure_at_a_partition_that_is_up_to_date_again_is_no_open_issue(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    failure = Failure("predictions", "2024-02-14", "The features lack a column.", None, "as then declared", NOW, "run")
    pipeline.warehouse.record_failures("small", "predictions", [failure], refused={}, mended=())
    pipeline.conclude(NOW)
    with open_published(pipeline.home) as con:
        assert read_figures(con, pipeline.spec, FIRST, LAST, status=status_now(pipeline)).issues == []


def test_a_partition_that_was_dropped_is_no_open_issue(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    stamp = Stamp("drop", NOW)
    drop_partitions(pipeline, ["2024-02-14"], "somebody", stamp)
    with open_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec, FIRST, LAST, status=status_now(pipeline))
    assert "2024-02-14" not in figures.window.keys
    assert figures.issues == []


def test_a_window_without_predictions_is_refused(pipeline):
    with (
        open_published(pipeline.home) as con,
        pytest.raises(DataError, match=r"no partition from 2024-01-02 .*is scored"),
    ):
        read_figures(con, pipeline.spec, "2024-01-02", "2024-01-03")


def test_without_a_window_all_that_is_scored_is_reported(pipeline):
    with open_published(pipeline.home) as con:
        whole = read_figures(con, pipeline.spec)
    assert whole.window.keys == sorted(pipeline.state().scores)
    assert whole.summed_up == whole.window, "only months are summed up by the newest"
    assert whole.before is None


def test_a_report_of_groups_that_are_no_course_of_time_compares_nothing(pipeline):
    spec = pipeline.spec.model_copy(update={"report": Report(compare=False)})
    with open_published(pipeline.home) as con:
        whole = read_figures(con, spec, every="week")
    assert whole.summed_up == whole.window
    assert whole.before is None
    assert "lear change" not in shown(whole)
    assert "before:" not in shown(whole)


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


def test_marks_tell_their_values_and_labels_their_year(figures, charts):
    first = figures.window.runs[0]
    assert f"<title>{first.partition_key}, rows {first.rows_scored}, scored</title>" in charts["volume"].wide
    for name, chart in charts.items():
        assert not re.search(r"<title>[^<]*(null|NaN|\d{6,}|: )", chart.wide), name
    assert charts["volume"].wide.count(">2024<") > 3
    mean = figures.performance["value"]
    assert charts["performance"].extremes == " First {}, last {}, lowest {}, highest {}.".format(
        *(number(value, ".3g") for value in (mean[0], mean[-1], mean.min(), mean.max()))
    )
    more = replace(figures, drift=replace(figures.drift, columns=30))
    assert re.search(
        r" Shown are the \d+ of 30 columns that were far \(0\.1 or more\)\.$", charts_of(more, BERLIN)["drift"].text
    )


def test_the_page_needs_no_javascript_and_is_small(page, charts):
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2 * len(charts), "for wide and for narrow windows"
    assert "<script>" not in text
    assert text.count('<div class="scroll" tabindex="0" role="region" aria-label="') == text.count("<table>") > 3
    assert "<img" not in text
    assert len(text) < 1_000_000


@pytest.mark.full
def test_the_page_is_dark_where_the_browser_is(page):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(installed_browser()), args=["--no-sandbox"])
        for scheme, dark in (("light", False), ("dark", True)):
            tab = browser.new_page(color_scheme=scheme)
            tab.goto(page.as_uri())
            ground, words = (
                tab.evaluate(f"getComputedStyle(document.querySelector('{of}')).{what}")
                for of, what in (("body", "backgroundColor"), ("svg text", "fill"))
            )
            brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, words)]
            assert (brightness[0] < brightness[1]) == dark
            assert abs(brightness[0] - brightness[1]) > 500, "words of a chart can be read"
        browser.close()


def test_the_command_writes_the_file_and_says_where(cli, project):
    summary = json.loads(cli(project, "report", "small", "--json").out)
    assert Path(summary["file"]) == project / ".batch_platform" / "reports" / "small" / f"{summary['last']}.html"
    assert "<h2>The models</h2>" in Path(summary["file"]).read_text(encoding="utf-8")
    out = project / "for the boss.html"
    answer = cli(project, "report", "small", "--from", summary["last"], "--out", str(out))
    assert f"The report on {summary['last']} is written to {out}" in answer.out
    refused = cli(project, "report", "small", "--from", "2019-01-01", "--to", "2019-01-02")
    assert refused.code != 0
    assert "Hint:" in refused.err
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
