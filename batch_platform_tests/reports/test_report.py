"""The report: every number is that of the published tables, every value is escaped, and it needs nothing but a browser."""

import json
import re
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars as pl
import pytest
from playwright.sync_api import sync_playwright
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.drop import drop_partitions
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.reports.charts import Chart, charts_of
from batch_platform.reports.drift import read_drift_figures
from batch_platform.reports.estimates import read_estimate_figures
from batch_platform.reports.figures import Figures, read_figures
from batch_platform.reports.report import html
from batch_platform.reports.segments import RATES, gaps_of, segment_drift
from batch_platform.reports.span import Span
from batch_platform.reports.wording import number
from batch_platform.warehouse.failures import Failure
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.browsing import installed_browser
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_events, small_pipeline

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
        (None, "-"),
    ],
)
def test_numbers_are_written_for_people(value, shown):
    assert number(value) == shown


@pytest.fixture(scope="module")
def figures(pipeline: Pipeline) -> Figures:
    with open_published(pipeline.home) as con:
        return read_figures(con, pipeline.spec, FIRST, LAST)


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
    for key, value in figures.performance.select("partition_key", "value").iter_rows():
        of_day = known.filter(pl.col("partition_key") == key)
        assert value == pytest.approx(roc_auc_score(of_day["truth"], of_day["score"]), rel=1e-12)
    binned = known.group_by(bin=(pl.col("score") * 10).floor().clip(upper_bound=9).cast(pl.Int64)).agg(
        pl.len().cast(pl.Int64).alias("rows"), pl.mean("score").alias("mean_score"), pl.mean("truth").alias("outcome")
    )
    for column in ("rows", "mean_score", "outcome"):
        np.testing.assert_allclose(figures.calibration[column], binned.sort("bin")[column], rtol=1e-12)
    distance = (binned["mean_score"] - binned["outcome"]).abs()
    assert figures.calibration_error == pytest.approx((distance * binned["rows"]).sum() / known.height, rel=1e-12)
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


def test_the_ratio_of_rates_is_taken_among_segments_with_enough_rows():
    rates = {rate: [0.2, 0.5, 0.9] for rate in RATES}
    segments = pl.DataFrame(
        {"segment_column": ["shop"] * 3, "segment": ["a", "b", None], "rows": [100, 200, 99], **rates}
    )
    gaps = gaps_of(segments)
    assert [gap.rate for gap in gaps] == list(RATES.values())
    assert {(gap.lowest, gap.highest, gap.ratio, gap.segments) for gap in gaps} == {("a", "b", 0.4, 2)}
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
    assert "<th>drift</th>" not in html(figures, {}, BERLIN)


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
    assert f"its mean is {number(mean)} in {STRANGE}, instead of {number(usual)}" in worst.sentence
    assert "; 100.0% of the values lie outside the range seen in training, 0.0% expected (index" in worst.sentence
    assert mean > 50 * usual
    assert worst.sentence.endswith(f"an alarm in 1 of {len(figures.window.runs) - 1} partitions."), "a day has no rows"


def test_drift_that_was_not_judged_is_no_alarm(pipeline):
    monitoring = pipeline.spec.monitoring.model_copy(update={"drift": None})
    spec = pipeline.spec.model_copy(update={"monitoring": monitoring})
    with open_published(pipeline.home) as published, duckdb.connect() as con:
        con.execute("CREATE SCHEMA small")
        con.register(
            "measured", published.sql("SELECT * REPLACE (NULL::TEXT AS level) FROM small.drift").to_arrow_table()
        )
        con.execute("CREATE TABLE small.drift AS FROM measured")
        window = read_figures(published, pipeline.spec, FIRST, LAST).window
        drift = read_drift_figures(con, spec, window)
    assert drift is not None
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
    text = " ".join(html(figures, {}, BERLIN).split())
    sentence = f"{within} of {record.partitions} estimates with known labels lay within their interval. The estimates were off by "
    assert f"{sentence}{number(numbers[2])} on average (mean absolute error)." in text
    assert f"<strong>Estimated, not measured:</strong> the {metric.replace('_', ' ')} that each partition" in text
    query = """
        SELECT segment, rows, estimate, low, high, realised FROM small.estimates_by_segment
        WHERE partition_key = $last AND metric = $metric AND segment_column = 'shop' ORDER BY rows DESC, segment
    """
    of_segments = con.execute(query, {"metric": metric, "last": window["last"]}).fetchall()
    rows = figures.estimates.by_segment["shop"]
    assert [(row.segment, row.rows, row.estimate, row.low, row.high, row.realised) for row in rows] == of_segments
    assert sum(row.rows for row in rows) == figures.window.runs[-1].rows_scored
    for row in rows:
        of_shop = figures.estimates.segment_records["shop", row.segment]
        cells = (row.rows, row.estimate, f"{number(row.low)} to {number(row.high)}", row.realised)
        so_far = (f"{of_shop.partitions_within} of {of_shop.partitions}", of_shop.mean_error)
        assert "".join(f'<td class="n">{number(cell)}</td>' for cell in (*cells, *so_far)) in text


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
        measured = dict(figures.performance.select("partition_key", "value").iter_rows())
        assert {row.partition_key: row.realised for row in figures.estimates.partitions} == measured
        assert figures.estimates.unmeasured == ()
        learned = Span(tuple(replace(run, in_sample=True) for run in figures.window.runs))
        assert read_estimate_figures(con, "small", "roc_auc", learned) is None, "the model has learned from them"


def test_a_partition_without_labels_is_reported_by_its_estimate(pipeline):
    with open_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec, "2024-02-24")
        assert_estimates_are_those_of_the_tables(figures, con, "roc_auc")
    (row,) = figures.estimates.unmeasured
    assert (row.partition_key, row.realised, figures.metric) == ("2024-02-24", None, None)
    assert charts_of(figures, BERLIN) == {}, "a single partition makes no course"
    text = html(figures, {}, BERLIN)
    assert "No labels are known for these partitions" in text
    numbers = (number(row.estimate), f"{number(row.low)} to {number(row.high)}", number(row.rows))
    assert "".join([f"<td>{row.partition_key}</td>", *(f'<td class="n">{cell}</td>' for cell in numbers)]) in text
    assert set(figures.definitions) == {"roc_auc"}


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
    assert f"<p>These numbers are for {LAST}, compared with 2024-02-21.</p>" in text
    rows_in, scored, rejected = (figures.window.total(f"rows_{name}") for name in ("in", "scored", "rejected"))
    assert f"<p>{rows_in} rows came in: {scored} scored, {rejected} rejected.</p>" in text
    assert "The partitions with the worst" not in text
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

        def right(rows, basis, _):
            confidence = rows.select(pl.max_horizontal(pl.col("^score_.*$"))).to_series().to_numpy()
            cells = np.searchsorted(basis.expectation.bins.edges, confidence, side="right")
            return pl.Series(np.asarray(basis.expectation.means["accuracy"].loss)[cells])

        assert_mean_estimates_are_those_of_the_rows(made, con, "accuracy", right)


def test_a_weekly_report_compares_weeks(pipeline):
    with open_published(pipeline.home) as con:
        weekly = read_figures(con, pipeline.spec, every="week")
    assert weekly.summed_up.keys[0] == "2024-02-19", "a Monday"
    assert weekly.before.keys == [f"2024-02-{day}" for day in range(12, 19)]


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
    text = html(figures, charts_of(figures, BERLIN), BERLIN)
    assert "<h2>How good the predictions were</h2>" in text
    assert figures.estimates is None
    assert "stimate" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_models_challengers_and_open_issues_are_told(figures, pipeline):
    (service,) = figures.services
    assert (service.first, service.last, service.partitions) == (FIRST, LAST, len(figures.window.runs))
    assert service.version == pipeline.state().scores[LAST].model_version
    assert set(figures.challengers["challenger"]) == {None, "tree"}
    assert figures.decisions.height >= 1
    assert set(figures.definitions) >= {"roc_auc", "brier", "log_loss"}
    assert "of 100 such intervals, about 95 hold it" in figures.confidence
    assert "Rows of one entity (with the same key, times aside) count as one." in figures.confidence
    assert figures.issues == []
    shares = {name: text.partition(" with")[0] for name, text in figures.definitions.items() if "lift" in name}
    assert shares == {f"lift_at_{share}": f"Rate of positives among the {share}% of the rows" for share in (1, 5, 10)}


def test_a_report_with_alarms_does_not_say_that_all_is_well(figures):
    quiet = replace(figures, unusual=[], drift=None)
    assert (quiet.issues, quiet.alarms) == ([], [])
    assert "No open issues and no alarms." in html(quiet, {}, BERLIN)
    text = html(figures, {}, BERLIN)
    assert "No open issues" not in text
    assert (
        "<strong>Alarms:</strong> 1 unusual count of rows; drift in 1 column. The sections below explain them." in text
    )
    assert html(replace(quiet, missed=["2024-02-12"]), {}, BERLIN).count("2024-02-12") > html(quiet, {}, BERLIN).count(
        "2024-02-12"
    )


def test_partitions_that_miss_the_declared_performance_by_more_than_chance_are_an_alarm(pipeline, figures):
    ends = dict(figures.performance.select("partition_key", "high").iter_rows())
    bound = sorted(ends.values())[2]
    spec = pipeline.spec.model_validate(
        pipeline.spec.model_dump(exclude_unset=True, by_alias=True)
        | {"monitoring": {"performance": {"warn_below": bound}}}
    )
    with open_published(pipeline.home) as con:
        judged = read_figures(con, spec, FIRST, LAST)
    assert judged.missed == sorted(key for key, high in ends.items() if high < bound) != []
    assert f"performance worse than declared in {len(judged.missed)} partitions" in judged.alarms


def test_failures_for_the_same_reason_are_one_issue_told_in_words(tmp_path):
    days = ["2024-02-05", "2024-02-07"]
    day = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
    items = pl.when(day.is_in(days) & (pl.col("id") % 2 == 0)).then(None).otherwise("items").cast(pl.Int32)
    made = small_pipeline(tmp_path, events=small_events().with_columns(items=items))
    with pytest.raises(DataError):
        carry_out(made, datetime(2024, 2, 9, 12, tzinfo=UTC))
    made.conclude(datetime(2024, 2, 9, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        (issue,) = read_figures(con, made.spec).issues
    assert (issue.what, issue.where) == ("predictions failed", ", ".join(days))
    assert issue.why.startswith("2024-02-05: 20 of 40 rows break the contract")
    assert "Broken rules: items: no value where training always had one (20 rows). For example id=" in issue.why
    assert issue.why.count("(no items)") == 3


def test_a_failure_at_a_partition_that_is_up_to_date_again_is_no_open_issue(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    failure = Failure("predictions", "2024-02-14", "The features lack a column.", None, "as then declared", NOW, "run")
    pipeline.warehouse.record_failures("small", "predictions", [failure], refused={}, mended=())
    pipeline.conclude(NOW)
    with open_published(pipeline.home) as con:
        assert read_figures(con, pipeline.spec, FIRST, LAST).issues == []


def test_a_partition_that_was_dropped_is_no_open_issue(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    stamp = Stamp("drop", NOW)
    drop_partitions(pipeline, ["2024-02-14"], "somebody", stamp)
    with open_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec, FIRST, LAST)
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
        tab.wait_for_selector("#chart-calibration .marks path")
        assert tab.title() == f"small: {figures.window.words}"
        assert HOSTILE in (tab.text_content("header") or "")
        assert HOSTILE in (tab.text_content("body") or "")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.querySelectorAll('figure svg.marks').length") == len(charts)
        assert asked == [page.as_uri()]
        assert complaints == []
        browser.close()


def test_the_same_numbers_give_the_same_bytes(page, figures):
    assert html(figures, charts_of(figures, BERLIN), BERLIN) == page.read_text(encoding="utf-8")


def test_every_chart_says_in_words_what_it_shows(page, charts):
    text = page.read_text(encoding="utf-8")
    assert {"volume", "scores", "performance", "estimates", "calibration", "drift"} <= charts.keys()
    for name, chart in charts.items():
        assert f'<div id="chart-{name}" role="img" aria-label="{chart.title}. {chart.text}">' in text
        assert f"<figcaption>{chart.text}</figcaption>" in text


@pytest.mark.full
def test_without_javascript_there_are_pictures(page, charts):
    text = page.read_text(encoding="utf-8")
    still = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert still.count("<svg") == len(charts)
    assert "<script" not in still
    assert "<img" not in still


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
    for option, ours in (("--out", "must end with .html"), ("--to", "names the last partition")):
        refused = cli(project, "report", "small", option, "for the boss.xlsx")
        assert ours in refused.err
        assert refused.err.endswith("Hint: --out for the boss.html\n")
        assert not (project / "for the boss.xlsx").exists()
