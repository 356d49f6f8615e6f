"""Intervals of a pipeline: their columns, what is recorded of them, and what comes true once labels are known."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from batch_platform.declaration.errors import TrainingRefusedError
from batch_platform.models.bundle import read_manifest
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import (
    carry_out,
    finished_pipeline,
    small_events,
    small_pipeline,
    small_spec,
)

NOW = datetime(2024, 2, 9, 12, tzinfo=UTC)
TREE = "sklearn.tree.DecisionTreeRegressor"
LABELS = "SELECT id, spent FROM events WHERE ts >= $partition_start AND ts < $partition_end"
INTERVALS = {
    "labels_sql": LABELS,
    "labels": {"column": "spent"},
    "model": {"estimator": "sklearn.ensemble.HistGradientBoostingRegressor", "train": {"evaluate": "14 days"}},
    "challengers": [{"name": "tree", "estimator": TREE, "params": {"max_depth": 3}}],
    "predictions": {"interval": "90%"},
    "monitoring": {"segments": ["shop"]},
}
TAMED = pl.col("ts") >= datetime(2024, 2, 6, tzinfo=UTC)  # days in which the world is noisier than before


def spending() -> pl.DataFrame:
    """Orders with an amount that is spent, which varies by the more the higher it is."""
    events, random = small_events(rows_per_day=200), np.random.default_rng(1)
    amount = pl.col("amount").fill_null(60)
    noise = pl.Series(random.normal(size=events.height)) * (1 + amount / 20) * pl.when(TAMED).then(6).otherwise(1)
    return events.with_columns(spent=amount / 2 + noise)


@pytest.fixture
def done(tmp_path):
    return finished_pipeline(tmp_path, NOW, events=spending(), **INTERVALS)


def rows(pipeline, query):
    with open_published(pipeline.home) as con:
        return con.sql(query).pl()


def test_predictions_and_challengers_have_the_ends_of_their_own_intervals(done):
    of_champion = rows(
        done,
        "SELECT id, prediction AS p, prediction_low AS low, prediction_high AS high FROM small.predictions ORDER BY id",
    )
    of_challenger = rows(
        done,
        "SELECT id, prediction AS p, prediction_low AS low, prediction_high AS high FROM small.challenger_scores ORDER BY id",
    )
    for of_model in (of_champion, of_challenger):
        assert of_model.height == 8 * 200
        assert of_model.select((pl.col("low") < pl.col("p")) & (pl.col("p") < pl.col("high"))).to_series().all()
        assert of_model.select(width=(pl.col("high") - pl.col("low")).round(9))["width"].n_unique() > 1
    assert of_champion["low"].to_list() != of_challenger["low"].to_list()


def test_the_coverage_of_rows_that_nothing_was_learned_from_is_recorded_with_the_version(done):
    (version,) = done.state().registry.of_model
    manifest = read_manifest(done.home.bundle("small", version.version), version.sha256)
    facts = manifest.refinements["interval"]
    assert facts["level"] == 0.9
    assert facts["rows"] == 6 * 200 / 2, (
        "half of the first half of the evaluation window, whose last labels come too late"
    )
    assert facts["rows_judged"] == manifest.evaluation.rows == 7 * 200
    assert 0.86 < facts["coverage"] < 0.94
    assert 10 < facts["mean_width"] < 100
    assert not [remark for remark in manifest.remarks if "infinite" in remark]
    assert manifest.refit, "and the intervals are those of the fit that was judged"


def test_coverage_and_width_are_measured_by_partition_and_segment(done):
    table = rows(done, "FROM small.interval_coverage WHERE challenger IS NULL")
    labelled = rows(
        done,
        "SELECT partition_key, shop, outcome_value BETWEEN prediction_low AND prediction_high AS covered,"
        " prediction_high - prediction_low AS width FROM small.predictions JOIN small.outcomes USING (partition_key, id)",
    )
    for by, names in ([], ["partition_key"]), (["shop"], ["partition_key", "segment"]):
        expected = (
            labelled.group_by("partition_key", *by)
            .agg(
                rows=pl.len(),
                covered=pl.col("covered").sum(),
                mean_width=pl.col("width").mean(),
                median_width=pl.col("width").median(),
            )
            .rename({"shop": "segment"}, strict=False)
        )
        measured = table.filter(pl.col("segment_column").is_null() if not by else pl.col("segment_column") == "shop")
        assert_frame_equal(
            measured.select(*names, "rows", "covered", "mean_width", "median_width").sort(names),
            expected.select(*names, "rows", "covered", "mean_width", "median_width").sort(names),
            check_dtypes=False,
        )
    assert set(rows(done, "FROM small.interval_coverage")["challenger"]) == {None, "tree"}


@pytest.mark.unit
@pytest.mark.parametrize(("written", "nearest"), [("0%", "1%"), (1.0, "99.9%"), (90, "90%")])
def test_a_share_that_no_interval_can_hold_is_refused_with_the_nearest_one(written, nearest):
    with pytest.raises(ValidationError) as refused:
        small_spec(predictions={"interval": written})
    (error,) = refused.value.errors()
    assert error["loc"] == ("predictions", "interval")
    assert "write 1% to 99.9%" in error["msg"]
    assert error["msg"].endswith(f"did you mean {nearest}?")


@pytest.mark.full
def test_infinite_intervals_are_stored_and_said_to_be(tmp_path):
    pipeline = small_pipeline(tmp_path, events=spending(), **{**INTERVALS, "predictions": {"interval": "99.9%"}})
    carry_out(pipeline, NOW)
    ends = rows(pipeline, "SELECT DISTINCT prediction_low AS low, prediction_high AS high FROM small.predictions")
    assert ends.rows() == [(-np.inf, np.inf)]
    (version,) = pipeline.state().registry.of_model
    remark = "the interval is infinite: 600 rows to learn its width from, at least 999 are needed"
    assert remark in pipeline.state().registry.last_decision(version.version).reason


def test_an_interval_of_another_model_than_a_regression_is_refused(tmp_path):
    with pytest.raises(
        TrainingRefusedError, match=r"predictions\.interval: only a regression has intervals"
    ) as refused:
        carry_out(small_pipeline(tmp_path, predictions={"interval": "90%"}), NOW)
    assert refused.value.hint == "leave predictions.interval out, or declare a regression."
