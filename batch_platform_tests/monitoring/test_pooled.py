"""Pooled performance: the metrics of all measured rows of a month, a quarter or any window together."""

from datetime import UTC, date, datetime

import duckdb
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn import metrics

from batch_platform.declaration.errors import DataError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import METRICS, Metric, own_metrics
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
    small_spec,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
OWN = ["batch_platform_tests.monitoring.test_pooled.cost", "batch_platform_tests.monitoring.test_pooled.hits"]
WEEKLY = {"train": {"every": "week", "start": "2024-02-18", "evaluate": "3 days"}}
KEYS = ["partition_key", "id"]


def cost(outcomes: Outcomes) -> float | None:
    """What the decisions cost: 1 for an order that was wrongly held to come back, 5 for one that was missed."""
    held = outcomes.predicted[:, 1] >= 0.5
    return float(np.mean(np.where(held, outcomes.true_positions == 0, 5 * (outcomes.true_positions == 1))))


hits = Metric("any", ("binary",), METRICS["accuracy"].value, of_decisions=True)


def published(pipeline: Pipeline, query: str) -> pl.DataFrame:
    with duckdb.connect(str(pipeline.home.published.resolve()), read_only=True) as con:
        return con.sql(query).pl()


def pooled(pipeline: Pipeline, *window: str, **options) -> pl.DataFrame:
    with duckdb.connect(str(pipeline.home.published.resolve()), read_only=True) as con:
        return pooled_performance(con, "small", *window, **options)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    """Two weeks that two versions of the model and a challenger scored, with labels."""
    made = small_pipeline(
        tmp_path_factory.mktemp("pooled"),
        model=WEEKLY,
        challengers=[{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}],
        monitoring={"segments": ["shop"], "metrics": OWN},
    )
    carry_out(made, NOW)
    made.publish()
    return made


def labelled(pipeline: Pipeline) -> pl.DataFrame:
    """The predictions with their labels from the source, not from the table of outcomes."""
    predictions = published(pipeline, "SELECT partition_key, id, shop, score, model_version FROM small.predictions")
    truth = small_events().select("id", "returned").drop_nulls()
    return predictions.filter(pl.col("partition_key") <= "2024-02-29").join(truth, on="id").sort("id")


def test_a_month_and_a_quarter_are_measured_on_all_their_rows_together(pipeline):
    rows, table = labelled(pipeline), published(pipeline, "FROM small.performance_pooled")
    whole = table.filter(
        pl.col("model_version").is_null(), pl.col("challenger").is_null(), pl.col("segment_column").is_null()
    )
    assert set(whole.select("period", "period_start").rows()) == {
        ("month", date(2024, 2, 1)),
        ("quarter", date(2024, 1, 1)),
    }
    area = metrics.roc_auc_score(rows["returned"], rows["score"])
    for period in ("month", "quarter"):
        values = dict(whole.filter(period=period).select("metric", "value").iter_rows())
        assert values["roc_auc"] == pytest.approx(area, rel=1e-12)
        assert values["accuracy"] == pytest.approx(((rows["score"] >= 0.5) == rows["returned"]).mean())
    daily = published(
        pipeline, "SELECT avg(value) FROM small.performance WHERE metric = 'roc_auc' AND challenger IS NULL"
    )
    assert abs(daily.item() - area) > 1e-4, "the mean of daily values is another number"
    assert set(whole.select("rows", "rows_labelled", "positives", "partitions").unique().rows()) == {
        (rows.height, rows.height, rows["returned"].sum(), rows["partition_key"].n_unique())
    }
    assert whole.filter((pl.col("low") > pl.col("value")) | (pl.col("high") < pl.col("value"))).is_empty()


def test_each_champion_challenger_and_segment_is_measured_on_its_own_rows(pipeline):
    rows, table = labelled(pipeline), published(pipeline, "FROM small.performance_pooled WHERE period = 'month'")
    area = table.filter(metric="roc_auc")
    versions = dict(
        area.filter(pl.col("challenger").is_null()).drop_nulls("model_version").select("model_version", "value").rows()
    )
    assert len(versions) == 2
    assert versions == pytest.approx(
        {name: metrics.roc_auc_score(of["returned"], of["score"]) for (name,), of in rows.group_by("model_version")}
    )
    segments = area.filter(pl.col("challenger").is_null(), segment_column="shop").select("segment", "value").rows()
    assert dict(segments) == pytest.approx(
        {name: metrics.roc_auc_score(of["returned"], of["score"]) for (name,), of in rows.group_by("shop")}
    )
    scores = published(pipeline, "SELECT id, score AS linear FROM small.challenger_scores")
    beside = rows.join(scores, on="id")
    linear = area.filter(pl.col("model_version").is_null(), pl.col("segment_column").is_null(), challenger="linear")
    assert linear["value"].item() == pytest.approx(metrics.roc_auc_score(beside["returned"], beside["linear"]))
    assert area.filter(challenger="linear", segment_column="shop").height == len(segments)


def test_any_window_is_measured_by_a_function_on_the_published_tables(pipeline):
    rows = labelled(pipeline).filter(pl.col("partition_key").is_between(pl.lit("2024-02-20"), pl.lit("2024-02-22")))
    table = pooled(pipeline, "2024-02-20", "2024-02-22", by=["shop"])
    whole = table.filter(
        pl.all_horizontal(pl.col("model_version", "challenger", "segment").is_null()), metric="log_loss"
    )
    assert whole["value"].item() == pytest.approx(metrics.log_loss(rows["returned"], rows["score"]))
    assert whole["partitions"].item() == 3
    assert set(table.drop_nulls("segment")["segment"]) == set(rows["shop"])
    month = published(pipeline, "FROM small.performance_pooled WHERE period = 'month' AND segment_column IS NULL")
    month = month.filter(~pl.col("metric").is_in(["cost", "hits"]))
    everything = pooled(pipeline, "2024-02-01")
    order = ["model_version", "challenger", "metric"]
    assert_frame_equal(everything.sort(order), month.select(everything.columns).sort(order))
    assert pooled(pipeline, "2023-01-01", "2023-02-01").is_empty()
    with pytest.raises(DataError, match=r"no column 'shopp'.*did you mean 'shop'"):
        pooled(pipeline, by=["shopp"])


def test_a_metric_of_the_pipelines_own_is_measured_by_partition_and_by_month(pipeline):
    rows = labelled(pipeline)
    held, returned = rows["score"].to_numpy() >= 0.5, rows["returned"].to_numpy()
    expected = np.mean(np.where(held, ~returned, 5 * returned))
    month = published(pipeline, "FROM small.performance_pooled WHERE period = 'month' AND model_version IS NULL")
    of_cost = month.filter(pl.col("segment_column").is_null(), pl.col("challenger").is_null(), metric="cost")
    assert of_cost["value"].item() == pytest.approx(expected)
    assert of_cost["low"].item() < expected < of_cost["high"].item()
    daily = published(
        pipeline, "SELECT DISTINCT ON (metric, challenger) * FROM small.performance WHERE metric IN ('cost', 'hits')"
    )
    assert daily.height == 4, "of the champion and of the challenger"
    same = published(
        pipeline, "PIVOT small.performance ON metric USING first(value) GROUP BY partition_key, challenger"
    )
    assert same["hits"].equals(same["accuracy"].rename("hits"))


def test_a_corrected_label_and_a_killed_run_bring_their_periods_up_to_date(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    with pipeline.warehouse.transaction() as con:  # as if a run had been killed before it pooled
        con.execute("DELETE FROM small.performance_pooled WHERE period = 'quarter'")
    corrected = small_events().with_columns(returned=~pl.col("returned"))
    fresh = small_pipeline(tmp_path, events=corrected)
    list(fresh.evaluate([fresh.spec.partitions.calendar.named("2024-02-03")], Stamp("again", NOW)))
    fresh.publish()
    right, everything = published(fresh, "FROM small.performance_pooled WHERE metric = 'roc_auc'"), labelled(fresh)
    flipped = everything["returned"] ^ (everything["partition_key"] == "2024-02-03")
    area = metrics.roc_auc_score(flipped, everything["score"])
    assert right.filter(pl.col("model_version").is_null())["value"].to_list() == pytest.approx([area, area])
    assert set(right["run_id"]) == {"again"}


def test_before_anything_was_measured_a_window_has_no_performance(tmp_path):
    pipeline = small_pipeline(tmp_path)
    list(pipeline.build_features([pipeline.spec.partitions.calendar.named("2024-01-01")], Stamp("one", NOW)))
    pipeline.publish()
    with pytest.raises(DataError, match="no partition was measured against labels yet"):
        pooled(pipeline)


@pytest.mark.parametrize(
    ("monitoring", "message"),
    [
        ({"metrics": ["shop.metrics.roc_auc"]}, "'roc_auc' is the name of another metric"),
        ({"metrics": ["shop.metrics.label_cost"]}, "'label_cost' is the name of another metric"),
        ({"segments": ["shops"]}, "'shops' is not in predictions.keep; did you mean 'shop'"),
    ],
)
def test_metrics_and_segments_that_cannot_be_are_refused_when_declared(monitoring, message):
    with pytest.raises(ValueError, match=message):
        small_spec(monitoring=monitoring)


def test_a_metric_of_the_users_own_keeps_the_docstring_by_which_reports_describe_it():
    declared, _ = own_metrics(small_spec(monitoring={"metrics": OWN}))
    assert declared.value.__doc__ == cost.__doc__


def test_a_metric_that_does_not_exist_or_is_not_finite_is_refused_by_name(pipeline, monkeypatch):
    day = [pipeline.spec.partitions.calendar.named("2024-02-20")]
    monkeypatch.setattr("batch_platform_tests.monitoring.test_pooled.cost", lambda _: float("nan"))
    with pytest.raises(DataError, match=r"test_pooled.cost is nan"):
        list(pipeline.evaluate(day, Stamp("again", NOW)))
    monkeypatch.delattr("batch_platform_tests.monitoring.test_pooled.cost")
    with pytest.raises(WrongUseError, match="has no class or function 'cost'"):
        list(pipeline.evaluate(day, Stamp("again", NOW)))
