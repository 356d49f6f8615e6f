"""Weights of labels, groups of rows and the order of classes, from the declaration to training, the gate and the tables."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.metrics import log_loss, roc_auc_score

from batch_platform.cli.check import check_declared
from batch_platform.declaration.errors import DataError, TrainingRefusedError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import ENTITY
from batch_platform.models.bundle import read_judged, read_manifest
from batch_platform.monitoring.pooled import pooled_performance
from batch_platform.monitoring.units import UnitRule
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.reports.card import card_of
from batch_platform.reports.figures import read_figures
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


def test_the_report_and_the_card_say_that_rows_are_weighed_and_calibrate_by_their_weight(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, **WEIGHTED)
    with reading_published(pipeline.home) as con:
        figures = read_figures(con, pipeline.spec)
    assert figures.confidence.endswith(" Metrics count each row by its weight, items (labels.weight).")
    measured = query(pipeline, "SELECT id, score, outcome_weight FROM small.predictions JOIN small.outcomes USING (id)")
    measured = measured.join(small_events().select("id", "returned"), on="id")
    weight, bins = pl.col("outcome_weight"), (pl.col("score") * 10).floor().clip(upper_bound=9).cast(pl.Int64)
    expected = measured.group_by(bin=bins).agg(
        rows=pl.len().cast(pl.Int64),
        weight=weight.sum(),
        mean_score=(pl.col("score") * weight).sum() / weight.sum(),
        outcome=(pl.col("returned") * weight).sum() / weight.sum(),
    )
    assert_frame_equal(figures.calibration, expected.sort("bin"))
    (version,) = pipeline.state().registry.versions[-1:]
    folder = pipeline.home.bundle("small", version.version)
    manifest = read_manifest(folder, version.sha256)
    judged = read_judged(folder, manifest)
    assert judged is not None
    card = card_of(pipeline.spec, pipeline.state().registry, version, manifest, judged)
    sections = {section.title: section for section in card.sections}
    assert "Rows count by their declared weight." in sections["How good it is"].sentences
    positive, score = judged.outcomes.positive_and_score
    in_bin = np.floor(score * 10).clip(max=9)
    for text, mean, came_true, count in sections["Calibration"].rows:
        here = in_bin == int(text.split("%")[0]) // 10
        weights = judged.outcomes.weights[here]
        assert count == here.sum()
        assert (mean, came_true) == pytest.approx(
            (np.average(score[here], weights=weights), np.average(positive[here], weights=weights))
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


def test_models_that_learned_the_classes_in_different_orders_are_scored_compared_and_measured_alike(tmp_path):
    kind = pl.when(pl.col("items") > 6).then(pl.lit("b")).when("returned").then(pl.lit("c")).otherwise(pl.lit("a"))
    sql = LABELS_SQL.replace(
        "returned\nFROM", "CASE WHEN items > 6 THEN 'b' WHEN returned THEN 'c' ELSE 'a' END AS kind\nFROM"
    )
    pipeline = finished_pipeline(
        tmp_path,
        NOW,
        labels_sql=sql,
        labels={"column": "kind"},
        model={"params": {"early_stopping": True}, "allow_suspected_leaks": ["*"]},
        challengers=[{"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression"}],
    )
    registry = pipeline.state().registry
    folders = [(pipeline.home.bundle("small", version.version), version.sha256) for version in registry.versions]
    assert [read_manifest(*folder).classes for folder in folders] == [["c", "b", "a"], ["a", "b", "c"]]
    rows = query(pipeline, "SELECT partition_key, id, prediction, score_a, score_b, score_c FROM small.predictions")
    shares = rows.select("score_a", "score_b", "score_c").to_numpy()
    assert rows["prediction"].to_list() == ["abc"[at] for at in shares.argmax(axis=1)]
    rows = rows.join(small_events().drop_nulls("returned").select("id", kind=kind), on="id")
    pooled = whole(pipeline, "log_loss")
    assert {*pooled["challenger"]} == {None, "linear"}
    shares = rows.select("score_a", "score_b", "score_c").to_numpy()
    own = pooled.filter(pl.col("challenger").is_null())["value"].unique().to_list()
    assert own == [pytest.approx(log_loss(rows["kind"], shares), abs=1e-12)]
    challenger = registry.last_decision(registry.challenger_trainings[-1].version)
    assert "from champion" in challenger.reason or "than champion" in challenger.reason


def test_another_weight_trains_the_newest_model_again(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW, **WEIGHTED)
    labels = pipeline.spec.labels.model_copy(update={"weight": None})
    unweighted = Pipeline(pipeline.spec.model_copy(update={"labels": labels}), pipeline.folder, pipeline.home)
    assert [item.partition.key for item in carry_out(unweighted, NOW).of("model")] == ["2024-02-01"]


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


def test_judged_fits_are_compared_only_on_groups_that_neither_has_learned(tmp_path):
    weekly = {"train": {"group": ["customer"], "every": "week"}}
    pipeline = finished_pipeline(tmp_path, NOW, **GROUPED | {"model": weekly})
    registry = pipeline.state().registry
    first, later = registry.versions[:2]
    comparison = json.loads(registry.last_decision(later.version).evidence)["comparison"]
    rows = GROUPED["events"].filter(pl.col("returned").is_not_null())
    known = first.trained_until - timedelta(days=8)  # 7 days of evaluation, and labels take a day
    learned = rows.filter(pl.col("ts") < known)
    start = later.trained_until - timedelta(days=7)
    judged = rows.filter(pl.col("ts") >= start, pl.col("ts") < later.trained_until)
    unseen = judged.filter(~pl.col("customer").is_in(learned["customer"].implode()))
    assert comparison["champion"] == first.version
    assert comparison["verdict"]["rows"] == unseen.height == judged.height - comparison["rows_seen"] < judged.height


def test_a_weight_that_the_labels_do_not_have_is_refused_by_check_with_the_nearest_name(tmp_path):
    pipeline = small_pipeline(tmp_path, **WEIGHTED | {"labels": {"weight": "itms"}})
    (problem,) = check_declared(pipeline, NOW)[0]
    assert "labels.sql gives no column 'itms'; it gives id, items, returned" in problem.message
    assert "items" in problem.hint
    assert check_declared(small_pipeline(tmp_path / "right", **WEIGHTED), NOW)[0] == []


def test_a_group_that_the_features_do_not_have_is_refused_with_the_nearest_name(tmp_path):
    pipeline = small_pipeline(tmp_path, **GROUPED | {"model": {"train": {"group": ["custommer"]}}})
    with pytest.raises(DataError, match=r"model\.train\.group: the features have no column 'custommer'") as refused:
        carry_out(pipeline, NOW)
    assert refused.value.hint == "did you mean 'customer'?"


def test_groups_that_are_all_evaluated_leave_nothing_to_learn_from(tmp_path):
    pipeline = small_pipeline(tmp_path, model={"train": {"group": ["shop"]}})
    with pytest.raises(
        TrainingRefusedError, match=r"There are 0 rows to learn from, beside [0-9,]+ of groups that are"
    ) as refused:
        carry_out(pipeline, NOW)
    assert "leave model.train.group out if the same groups are scored again" in (refused.value.hint or "")


def test_kept_groups_are_the_units_of_intervals(tmp_path):
    kept, hidden = (
        whole(finished_pipeline(tmp_path / name, NOW, **GROUPED, predictions={"keep": columns}), "accuracy")
        for name, columns in (("kept", ["shop", "customer"]), ("hidden", ["shop"]))
    )
    assert not kept.select("low", "high").equals(hidden.select("low", "high"))
