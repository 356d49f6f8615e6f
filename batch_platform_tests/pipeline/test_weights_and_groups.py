"""Weights of labels, groups of rows and the order of classes, from the declaration to training, the gate and the tables."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import ENTITY
from batch_platform.models.bundle import read_manifest
from batch_platform.monitoring.outcomes import UnitRule
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.published import open_published, reading_published
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
WEIGHTED = {
    "labels": {"weight": "items"},  # a feature has the same name
    "labels_sql": LABELS_SQL.replace("id, returned", "id, items, returned"),
}
GROUPED = {
    "events": small_events().with_columns(customer=pl.col("id") * 7919 % 700),
    "features_sql": FEATURES_SQL.replace("shop,", "shop, customer,"),
    "features": {"columns": {"customer": {"feature": False}}},
    "model": {"train": {"group": ["customer"]}},
}


def query(pipeline: Pipeline, sql: str) -> pl.DataFrame:
    with reading_published(pipeline.home) as con:
        return con.sql(sql).pl()


def whole(pipeline: Pipeline, metric: str) -> pl.DataFrame:
    """A metric of all partitions together."""
    with open_published(pipeline.home) as con:
        return pooled_performance(con, "small", only=[metric], unit=UnitRule.of(pipeline.spec)).filter(metric=metric)


def weighted_auc(scores: pl.DataFrame) -> float:
    rows = scores.join(small_events().select("id", "items", "returned"), on="id").drop_nulls("returned")
    return float(roc_auc_score(rows["returned"], rows["score"], sample_weight=rows["items"]))


@pytest.mark.full
def test_metrics_of_partitions_and_months_count_rows_by_their_weight(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, **WEIGHTED)
    scores = query(pipeline, "SELECT partition_key, id, score FROM small.predictions")
    measured = query(pipeline, "SELECT partition_key, value, low, high FROM small.performance WHERE metric = 'roc_auc'")
    assert measured.height == 29
    for key, value, low, high in measured.iter_rows():
        assert value == pytest.approx(weighted_auc(scores.filter(pl.col("partition_key") == key)), abs=1e-12)
        assert low < value <= high
    pooled = whole(pipeline, "roc_auc")
    labelled = scores.join(measured.select("partition_key"), on="partition_key", how="semi")
    assert pooled["value"].unique().to_list() == [pytest.approx(weighted_auc(labelled), abs=1e-12)]
    weights = query(pipeline, "SELECT id, outcome_weight FROM small.outcomes").join(small_events(), on="id")
    assert weights["outcome_weight"].to_list() == weights["items"].to_list()
    assert query(pipeline, "FROM duckdb_tables() WHERE table_name = 'estimates'").is_empty(), (
        "the weights of rows without labels are not known"
    )


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("nullif(items, 3)", "null, negative or not a number in [0-9]+ of [0-9]+ rows"),
        ("items - 2", "null, negative or not a number in [0-9]+ of [0-9]+ rows"),
        ("'nan'::DOUBLE", "null, negative or not a number in [0-9]+ of [0-9]+ rows"),
        ("0", "0 in all rows"),
    ],
)
def test_weights_that_are_null_negative_or_all_zero_are_refused_with_partition_and_column(tmp_path, weight, says):
    sql = LABELS_SQL.replace("id, returned", f"id, {weight} AS worth, returned")
    pipeline = small_pipeline(tmp_path, labels={"weight": "worth"}, labels_sql=sql)
    with pytest.raises(DataError, match=rf"partition 2024-01-01: the weight 'worth' \(labels\.weight\) is {says}"):
        carry_out(pipeline, NOW)


def test_a_group_is_never_on_both_sides_of_the_evaluation_and_the_rows_left_out_are_counted(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, **GROUPED)
    calendar, registry = pipeline.spec.partitions.calendar, pipeline.state().registry
    window = [calendar.named(f"2024-01-{day:02}") for day in range(1, 31)]
    boundary = calendar.named("2024-01-24").start
    data = pipeline.history.training_data(pipeline.state().features, window, boundary, Stamp("r", NOW))
    assert not set(data.fit[ENTITY]) & set(data.evaluate[ENTITY])
    rows = GROUPED["events"].filter(pl.col("returned").is_not_null(), pl.col("ts") < window[-1].end)
    earlier, later = rows.filter(pl.col("ts") < boundary), rows.filter(pl.col("ts") >= boundary)
    known = earlier.filter(pl.col("ts") < boundary - timedelta(days=1))  # labels take a day
    learned = known.filter(~pl.col("customer").is_in(later["customer"].implode()))
    assert (data.fit.height, data.evaluate.height) == (learned.height, later.height)
    assert data.rows_apart == known.height - learned.height > 100
    version = registry.versions[0]
    assert version.rows_trained == rows.height, "the version that serves was fitted again on all rows"
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    remark = (
        f"{data.rows_apart} earlier rows of the groups in the evaluation rows are left out of the fit that is judged"
    )
    assert manifest.remarks == [remark]
    assert remark in registry.last_decision(version.version).reason
    assert manifest.sampled is None
