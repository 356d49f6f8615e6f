"""Pooled performance: the metrics of all measured rows of a month, a quarter or any window together."""

from datetime import UTC, datetime

import duckdb
import numpy as np
import polars as pl
import pytest
from sklearn import metrics

from batch_platform.declaration.errors import DataError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.metrics import METRICS, Metric, own_metrics
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline, small_spec

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


def test_all_rows_of_a_window_are_measured_together_by_champion_challenger_and_segment(pipeline):
    window = "2024-02-20", "2024-02-26"
    rows = labelled(pipeline).filter(pl.col("partition_key").is_between(*map(pl.lit, window)))
    table = pooled(pipeline, *window, by=["shop"])
    whole = table.filter(pl.all_horizontal(pl.col("model_version", "challenger", "segment").is_null()))
    values, area = dict(whole.select("metric", "value").iter_rows()), metrics.roc_auc_score
    assert values["roc_auc"] == pytest.approx(area(rows["returned"], rows["score"]), rel=1e-12)
    assert values["accuracy"] == pytest.approx(((rows["score"] >= 0.5) == rows["returned"]).mean())
    daily = published(
        pipeline,
        f"SELECT avg(value), sum(value * rows) / sum(rows) FROM small.performance WHERE partition_key BETWEEN '{window[0]}' "
        f"AND '{window[1]}' AND challenger IS NULL AND metric IN ('roc_auc', 'accuracy') GROUP BY metric ORDER BY metric",
    )
    assert daily[0, 1] == pytest.approx(values["accuracy"]), "the query of the guide"
    assert abs(daily[1, 0] - values["roc_auc"]) > 1e-4, "the mean of daily values is another number"
    assert set(whole.select("rows", "rows_labelled", "positives", "partitions").unique().rows()) == {
        (rows.height, rows.height, rows["returned"].sum(), 7)
    }
    assert whole.filter((pl.col("low") > pl.col("value")) | (pl.col("high") < pl.col("value"))).is_empty()

    champion = table.filter(pl.col("challenger").is_null(), metric="roc_auc")
    for column in ("model_version", "shop"):
        name = "segment" if column == "shop" else column
        expected = {of: area(part["returned"], part["score"]) for (of,), part in rows.group_by(column)}
        assert len(expected) > 1
        assert dict(champion.drop_nulls(name).select(name, "value").rows()) == pytest.approx(expected)
    beside = rows.join(published(pipeline, "SELECT id, score AS linear FROM small.challenger_scores"), on="id")
    linear = table.filter(
        pl.col("model_version").is_null(), pl.col("segment").is_null(), challenger="linear", metric="roc_auc"
    )
    assert linear["value"].item() == pytest.approx(area(beside["returned"], beside["linear"]))
    assert pooled(pipeline, "2023-01-01", "2023-02-01").is_empty()
    with pytest.raises(DataError, match=r"no column 'shopp'.*did you mean 'shop'"):
        pooled(pipeline, by=["shopp"])


def test_a_metric_of_the_pipelines_own_is_measured_by_partition_and_pooled(pipeline):
    rows = labelled(pipeline)
    held, returned = rows["score"].to_numpy() >= 0.5, rows["returned"].to_numpy()
    expected = np.mean(np.where(held, ~returned, 5 * returned))
    whole = pooled(pipeline, metrics=own_metrics(pipeline.spec), by_version=False, only=["cost"])
    of_cost = whole.filter(pl.col("challenger").is_null(), metric="cost")
    assert of_cost["value"].item() == pytest.approx(expected)
    assert of_cost["low"].item() < expected < of_cost["high"].item()
    query = "PIVOT small.performance ON metric USING first(value) GROUP BY partition_key, challenger"
    same = published(pipeline, query)
    assert same["hits"].equals(same["accuracy"].rename("hits"))
    assert same["challenger"].n_unique() == 2


def test_before_anything_was_measured_a_window_has_no_performance(tmp_path):
    pipeline = small_pipeline(tmp_path)
    list(pipeline.build_features([pipeline.spec.partitions.calendar.named("2024-01-01")], Stamp("one", NOW)))
    pipeline.publish()
    with pytest.raises(DataError, match="no partition was measured against labels yet"):
        pooled(pipeline)


@pytest.mark.unit
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


def test_a_metric_that_does_not_exist_or_is_not_finite_is_refused_by_name(pipeline, monkeypatch):
    day = [pipeline.spec.partitions.calendar.named("2024-02-20")]
    monkeypatch.setattr("batch_platform_tests.monitoring.test_pooled.cost", lambda _: float("nan"))
    with pytest.raises(DataError, match="the metric cost is nan"):
        list(pipeline.evaluate(day, Stamp("again", NOW)))
    monkeypatch.delattr("batch_platform_tests.monitoring.test_pooled.cost")
    with pytest.raises(WrongUseError, match="has no class or function 'cost'"):
        list(pipeline.evaluate(day, Stamp("again", NOW)))
