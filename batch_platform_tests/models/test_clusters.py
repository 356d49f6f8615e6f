"""Segments keep their numbers from version to version, and what is new or gone is said."""

from datetime import UTC, datetime

import polars as pl
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import small_events, small_pipeline

KMEANS, MINI_BATCH = "sklearn.cluster.KMeans", "sklearn.cluster.MiniBatchKMeans"
PERIOD, STAMP = "2024-02-01", Stamp("run", datetime(2024, 3, 2, 12, tzinfo=UTC))
SQL = "SELECT id, ts, amount, shop FROM events WHERE ts >= $partition_start AND ts < $partition_end"
PLACES = [10.0, 10.0, 30.0, 100.0, 200.0]  # of the amounts, by `id` modulo 5


def events() -> pl.DataFrame:
    place = pl.col("id").mod(5).replace_strict(dict(enumerate(PLACES)), return_dtype=pl.Float64)
    return small_events().with_columns(amount=place + pl.col("items") / 10, shop=pl.lit("one"))


def clustering(tmp_path, estimator: str = KMEANS, sql: str = SQL) -> Pipeline:
    """A pipeline with the features of a month, and without a model."""
    pipeline = small_pipeline(
        tmp_path,
        events=events(),
        features_sql=sql,
        labels=None,
        model={"estimator": estimator, "params": None, "promote": {"tolerance": 2}},
    )
    month = pipeline.spec.partitions.calendar.within(
        datetime(2023, 12, 31, 23, tzinfo=UTC), datetime(2024, 1, 31, 23, tzinfo=UTC)
    )
    list(pipeline.build_features(month, STAMP, force=sql != SQL))
    return pipeline


def trained(pipeline: Pipeline, clusters: int, seed: int, **further: object) -> tuple[str, list[str], list[int]]:
    """Train a version; returns its name, its remarks, and its cluster of each place."""
    period = pipeline.spec.partitions.calendar.named(PERIOD)
    params = {"n_clusters": clusters, "random_state": seed, "n_init": 10, **further}
    result = pipeline.train(period, STAMP, params=params)
    assert result.decision.action == "approved"
    bundle = pipeline.bundle(result.version)
    remarks = bundle.manifest.remarks
    assert result.decision.reason.endswith("; ".join(remarks))
    places = pl.Series([place + 0.5 for place in PLACES[1:]])
    rows = pl.DataFrame({"amount": places, "thrice": places * 3, "paid": places, "shop": ["one"] * 4})
    clusters = bundle.predictor.predict(bundle.contract.encode(bundle.contract.split(rows).kept))
    return bundle.version, remarks, clusters.tolist()


@pytest.mark.parametrize("estimator", [KMEANS, pytest.param(MINI_BATCH, marks=pytest.mark.full)])
def test_a_cluster_keeps_its_number_whatever_the_order_in_which_clusters_are_found(tmp_path, estimator):
    pipeline = clustering(tmp_path, estimator)
    before, remarks, clusters = trained(pipeline, 4, 0)
    assert (remarks, sorted(clusters)) == ([], [0, 1, 2, 3])
    assert clusters[0] == 0, "the largest: two of the five places"
    for seed in (1, 2):
        version, remarks, again = trained(pipeline, 4, seed)
        assert (remarks, again) == ([f"its clusters are numbered as those of {before}"], clusters)
        before = version


def test_a_new_cluster_gets_a_free_number_and_one_that_vanished_is_named(tmp_path):
    pipeline = clustering(tmp_path)
    three, _, (low, lower, middle, high) = trained(pipeline, 3, 0)
    assert low == lower
    four, remarks, clusters = trained(pipeline, 4, 1)
    assert (remarks, clusters) == ([f"its clusters are numbered as those of {three}, new: 3"], [low, 3, middle, high])
    _, remarks, clusters = trained(pipeline, 3, 2)
    assert remarks == [f"its clusters are numbered as those of {four}, vanished: 3"]
    assert clusters == [low, low, middle, high]


def test_a_number_that_no_longer_exists_is_exchanged_for_a_free_one_and_that_is_said(tmp_path):
    pipeline = clustering(tmp_path)
    in_order = [[1.8, 1.0], [-0.8, 1.0], [-0.5, 1.0], [0.4, 1.0]]  # scaled amounts, and the one shop
    before, _, clusters = trained(pipeline, 4, 0, init=in_order, n_init=1)
    assert clusters == [0, 2, 3, 1]
    _, remarks, clusters = trained(pipeline, 3, 1)
    assert remarks == [f"its clusters are numbered as those of {before}, 3 of it is now 2, vanished: 2"]
    assert clusters == [0, 0, 2, 1]


def test_numbers_are_kept_where_a_feature_was_added_and_not_where_the_former_version_lacks_one(tmp_path):
    pipeline = clustering(tmp_path)
    before, _, clusters = trained(pipeline, 4, 0)
    added = clustering(tmp_path, sql=SQL.replace("amount", "amount, amount * 3 AS thrice"))
    version, remarks, again = trained(added, 4, 1)
    assert (remarks, again) == ([f"its clusters are numbered as those of {before}"], clusters)
    renamed = clustering(tmp_path, sql=SQL.replace("amount", "amount AS paid"))
    _, (remark,), _ = trained(renamed, 4, 2)
    assert remark == f"its clusters are not numbered as those of {version}: the features lack amount, thrice"
