"""Models that find odd rows: -1 and 1 as scikit-learn gives them, and a score that is the higher the odder."""

from datetime import UTC, datetime

import duckdb
import polars as pl
import pytest

from batch_platform.models.bundle import read_manifest
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform_tests.harness.small_pipeline import carry_out, small_events, small_pipeline

NOW = datetime(2024, 2, 8, 12, tzinfo=UTC)  # the model of February is due, and a week that it serves
FOREST = {"estimator": "sklearn.ensemble.IsolationForest", "params": {"n_estimators": 10, "max_iter": None}}
FOREST["params"] |= {"max_leaf_nodes": None, "early_stopping": None}


@pytest.mark.parametrize(
    "labels", [pytest.param(None, marks=pytest.mark.full), {}], ids=["without labels", "with labels"]
)
def test_outliers_are_scored_and_measured(tmp_path, labels):
    overrides = {} if labels is not None else {"labels": None}
    pipeline = small_pipeline(tmp_path, model=FOREST, **overrides)
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.approved()
    assert version.task == "outliers"
    assert 0 < version.metric_values["outlier_share"] < 1
    assert ("roc_auc" in version.metric_values) == (labels is not None)
    with duckdb.connect(str(pipeline.home.published.resolve()), read_only=True) as con:
        rows = con.sql("FROM small.predictions").pl()
        measured = dict(con.sql("SELECT metric, avg(value) FROM small.performance GROUP BY metric").fetchall())
    assert set(rows["prediction"].unique()) == {-1, 1}
    assert (rows["prediction"] == -1).equals(rows["score"] > 0)
    assert "outlier_share" in measured
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def test_outliers_whose_label_is_a_text_are_found(tmp_path):
    """An odd amount is called "fraud", which sorts before "usual"."""
    odd = pl.col("id") % 20 == 0
    events = small_events().with_columns(
        amount=pl.when(odd).then(5000 + pl.col("id")).otherwise(pl.col("amount")),
        items=pl.when(odd).then(90).otherwise(pl.col("items")),
        returned=pl.when(odd).then(pl.lit("fraud")).otherwise(pl.lit("usual")),
    )
    model = {**FOREST, "promote": {"metric": "roc_auc", "tolerance": 0.1}, "refit": False}
    pipeline = small_pipeline(tmp_path, events=events, model=model)
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.approved()
    assert version.metric_values["roc_auc"] > 0.95
    assert read_manifest(pipeline.home.bundle("small", version.version), version.sha256).positive == "fraud"
    with pipeline.warehouse.open() as con:
        ((measured,),) = con.sql("SELECT avg(value) FROM small.performance WHERE metric = 'roc_auc'").fetchall()
    assert measured > 0.95
