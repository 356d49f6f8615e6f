"""The figures of the report: every number is that of the published tables."""

import re
from dataclasses import astuple, replace
from datetime import UTC, datetime

import duckdb
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.errors import DataError, number
from batch_platform.declaration.predictions import Decide
from batch_platform.monitoring.metrics import METRICS
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_at
from batch_platform.planning.request import PlanRequest
from batch_platform.reports.charts import charts_of
from batch_platform.reports.figures import read_figures
from batch_platform.reports.measures import read_groups
from batch_platform.reports.performance import (
    LEAST_OF_A_CLASS,
    RATES,
    comparable,
    gaps_of,
    is_vague,
    measured,
    read_estimate_figures,
    segment_drift,
    shown_of,
)
from batch_platform.reports.report import html
from batch_platform.reports.span import Span
from batch_platform.reports.wording import ends, figure
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline, small_spec
from batch_platform_tests.reports.february import BERLIN, FIRST, LAST, STRANGE


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
    groups = figures.calibration
    assert groups.height == 10
    assert groups["rows"].sum() == rows
    assert groups["rows"].max() < 2 * rows / 10
    assert (groups["mean_score"] * groups["rows"]).sum() / rows == pytest.approx(predicted, rel=1e-12)
    assert (groups["outcome"] * groups["rows"]).sum() / rows == pytest.approx(true, rel=1e-12)
    assert (figures.gaps, figures.confusion.height) == ([], 0), "nothing was decided"
    assert "Predicted and true" in html(figures, charts_of(figures, BERLIN), BERLIN)


@pytest.mark.full
def test_a_clustering_is_reported_without_labels(tmp_path):
    clusters = {"labels": None, "model": {"estimator": "sklearn.cluster.KMeans", "params": None}}
    made = small_pipeline(tmp_path, monitoring={"segments": ["shop"]}, **clusters)
    carry_out(made, datetime(2024, 2, 5, 12, tzinfo=UTC))
    with open_published(made.home) as con:
        figures = read_figures(con, made.spec)
    assert (figures.task, figures.metric, figures.pooled.height) == ("clustering", "silhouette", 0)
    assert set(figures.performance["partition_key"]) == set(figures.window.keys)
    groups = figures.groups
    charts = charts_of(figures, BERLIN)
    text = html(figures, charts, BERLIN)
    assert charts["scores"].title == "Groups over time"
    assert "<h2>The groups</h2>" in text
    assert "<h2>How good the predictions were</h2>" not in text, "nothing stands below it"
    shown_columns = re.findall(r'<th scope="row">(amount|items|known|shop)</th>', text)
    assert shown_columns == [*groups.typical], "those that distinguish the groups most first"
    assert sorted(shown_columns) == ["amount", "items", "known", "shop"]


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
    assert (groups.names, groups.sizes, groups.sizes_before) == (
        ["0", "1", "2"],
        {"0": 1, "1": 1, "2": 1},
        {"0": 2, "1": 1},
    )
    assert groups.moves == {("0", "0"): 1, ("0", "1"): 1}
    assert (groups.stayed, groups.followed) == (1, 2)
    assert [groups.share_stayed(name) for name in groups.names] == [0.5, None, None]
    assert groups.typical == {}, "the partition was measured before there were typical values"


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


def test_a_period_with_few_rows_of_a_class_is_no_headline():
    rows = {"metric": "roc_auc", "value": 0.75, "low": 0.7, "high": 0.8, "rows": 200, "positives": 40}
    assert not is_vague(rows, METRICS["roc_auc"])
    assert is_vague(rows | {"positives": 29}, METRICS["roc_auc"])
    assert is_vague(rows | {"low": 0.5, "high": 0.9}, METRICS["roc_auc"]), "as wide as it is far from chance"
    assert is_vague(rows | {"metric": "mae", "value": 0.3, "low": 0.1, "high": 0.8, "positives": None}, METRICS["mae"])
    assert not is_vague(rows | {"metric": "bias", "value": 0.0, "positives": None}, METRICS["bias"])


def test_failures_for_the_same_reason_are_one_issue_told_in_words(tmp_path):
    days = ["2024-02-05", "2024-02-07"]
    items = pl.when(LOCAL_DAY.is_in(days) & (pl.col("id") % 2 == 0)).then(None).otherwise("items").cast(pl.Int32)
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


def test_a_window_without_predictions_is_refused(pipeline):
    with (
        open_published(pipeline.home) as con,
        pytest.raises(DataError, match=r"no partition from 2024-01-02 .*is scored"),
    ):
        read_figures(con, pipeline.spec, "2024-01-02", "2024-01-03")
