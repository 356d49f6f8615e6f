"""A metric and a measure that somebody adds from outside the package, in a real evaluation."""

from datetime import UTC, datetime
from types import MappingProxyType

import dagster as dg
import duckdb
import numpy as np
import polars as pl
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measure import Check, Column, EvaluatedMeasure, Judgement
from batch_platform.monitoring.metrics import METRICS, Metric
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.operations.cleanup import drop_partitions
from batch_platform.reports.figures import read_figures
from batch_platform.reports.report import html
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.user_tables import TableName, open_table
from batch_platform_tests.harness.deployment import Deployment, deploy_trained
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.events import evaluations, value
from batch_platform_tests.harness.small_pipeline import feature_file

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
CHALLENGER = {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression", "params": {"max_iter": 50}}


def balanced_accuracy(outcomes: Outcomes) -> float:
    """Mean over the classes of the share of its rows that are found."""
    hits = outcomes.predicted.argmax(axis=1) == outcomes.true_positions
    return float(np.mean([hits[outcomes.true_positions == at].mean() for at in (0, 1)]))


class ScoreRange(EvaluatedMeasure):
    name = "score_range"
    description = "Between which values the scores lie."
    columns = MappingProxyType({"low": Column(pl.Float64, "lowest score"), "high": Column(pl.Float64, "highest score")})

    def compute(self, partition):
        return partition.predictions.select(low=pl.col("score").min(), high=pl.col("score").max())

    def numbers(self, rows):
        return {"lowest_score": rows["low"][0], "highest_score": rows["high"][0]}

    def check(self, spec):
        return Check(
            f"No score of {spec.name} is above 0.1.",
            lambda rows, task: Judgement(f"highest_{task}", rows["high"][0], 0.1, lower_is_better=True),
        )


@pytest.fixture
def evaluated(tmp_path, monkeypatch) -> Deployment:
    """Two evaluated days of a pipeline to which a metric and a measure were added."""
    monkeypatch.setitem(METRICS, "balanced_accuracy", Metric("balanced_accuracy", ("binary",), balanced_accuracy))
    monkeypatch.setitem(MEASURES, "score_range", ScoreRange())
    deployment = deploy_trained(tmp_path, monkeypatch)
    deployment.score("2024-02-01", "2024-02-02")
    assert deployment.run("performance", first="2024-02-01", last="2024-02-02").success
    return deployment


def published(deployment: Deployment, query: str) -> pl.DataFrame:
    with duckdb.connect(str(deployment.pipeline.home.published.resolve()), read_only=True) as con:
        return con.sql(query).pl()


def test_an_added_metric_is_in_the_table_of_the_performance_and_on_its_plots(evaluated):
    query = "SELECT partition_key, value FROM small.performance WHERE metric = 'balanced_accuracy' ORDER BY ALL"
    stored = dict(published(evaluated, query).iter_rows())
    plotted = [value(entry, "balanced_accuracy") for entry in evaluated.materializations("performance")]
    assert list(stored) == ["2024-02-01", "2024-02-02"]
    assert plotted == pytest.approx(list(stored.values()), rel=1e-5)
    assert all(0.5 < share <= 1 for share in plotted)


def test_an_added_measure_has_its_table_its_numbers_and_its_check(evaluated):
    scores = published(
        evaluated,
        "SELECT partition_key, min(score) AS low, max(score) AS high, any_value(model_version) AS model_version "
        "FROM small.predictions GROUP BY ALL ORDER BY ALL",
    )
    stored = published(evaluated, "FROM small.score_range ORDER BY partition_key")
    assert stored.select(scores.columns).equals(scores)
    assert stored.columns == [
        *("partition_key", "low", "high", "model_version", "evaluated_at", "run_id", "challenger")
    ]
    entries = evaluated.materializations("performance")
    assert [value(entry, "lowest_score") for entry in entries] == pytest.approx(scores["low"].to_list(), rel=1e-5)
    results = evaluations(evaluated, "performance", "score_range")
    assert set(results) == {"2024-02-01", "2024-02-02", None}
    assert not any(evaluation.passed for evaluation in results.values())
    assert results["2024-02-01"].severity == dg.AssetCheckSeverity.WARN
    assert results["2024-02-01"].metadata["metric"].value == "highest_binary"
    assert "2024-02-02" in results[None].metadata["the_worst"].value
    key = dg.AssetCheckKey(evaluated.key("performance"), "score_range")
    declared = evaluated.definitions.resolve_asset_graph().get_check_spec(key)
    assert declared.description == "No score of small is above 0.1."


@pytest.mark.full
def test_rows_of_challengers_are_read_from_an_added_measure_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(MEASURES, "score_range", ScoreRange())
    deployment = deploy_trained(tmp_path, monkeypatch, challengers=[CHALLENGER])
    assert deployment.run("model", first="2024-02-01", config={"model": {"challengers_only": True}}).success
    deployment.score("2024-02-01", "2024-02-01")
    assert deployment.run("performance", first="2024-02-01").success
    home, name = deployment.pipeline.home, TableName("small", "score_range")
    assert open_table(home, name).pl().height == 1
    assert sorted(open_table(home, name, columns=["challenger"]).pl()["challenger"], key=str) == [None, "linear"]


@pytest.mark.usefixtures("shop_extensions")
def test_the_measure_of_the_guide_is_wherever_a_built_in_measure_is(tmp_path, monkeypatch):
    """Its table and comments, in the published copy too, its numbers and check in Dagster, the report; and gone with a partition."""
    deployment = deploy_trained(tmp_path, monkeypatch, monitoring={"drift": {}})
    assert deployment.run("features", "predictions", first="2024-02-01", last="2024-02-02").success
    home, spec = deployment.pipeline.home, deployment.pipeline.spec

    stored = published(deployment, "FROM small.empty_cells ORDER BY partition_key")
    assert stored.columns == ["partition_key", "cells", "empty", "model_version", "run_id"]
    for key, cells, empty in stored.select("partition_key", "cells", "empty").rows():
        features = pl.read_parquet(feature_file(deployment.pipeline, key))
        assert (cells, empty) == (40 * 4, features["amount"].null_count())
    comments = published(
        deployment, "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'empty_cells'"
    )
    assert dict(comments.rows()) == {
        "partition_key": "key of the partition",
        "cells": "scored rows, times the number of features",
        "empty": "cells without a value",
        "model_version": "version that scored the partition",
        "run_id": "Dagster run that wrote the row",
    }
    shares = [value(entry, "empty_share") for entry in deployment.materializations("predictions")]
    assert shares == pytest.approx((stored["empty"] / stored["cells"]).to_list(), rel=1e-5)
    results = evaluations(deployment, "predictions", "empty_cells")
    assert set(results) == {"2024-02-01", "2024-02-02", None}
    assert not any(result.passed for result in results.values())
    with open_published(home) as con:
        page = html(read_figures(con, spec), {}, spec.partitions.calendar.zone)
    assert "How many cells of the features are empty." in page
    assert "empty share" in page

    days = [spec.partitions.calendar.named(key) for key in ("2024-02-01", "2024-02-02")]
    skipped = list(deployment.pipeline.score(days, Stamp("again", NOW)))
    assert all(partition.skipped for partition in skipped)
    assert [partition.measures["empty_cells"]["empty"][0] for partition in skipped] == stored["empty"].to_list()
    drop_partitions(deployment.pipeline, ["2024-02-01"], "somebody", Stamp("dropped", NOW))
    assert published(deployment, "SELECT partition_key FROM small.empty_cells").rows() == [("2024-02-02",)]
