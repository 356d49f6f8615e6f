"""Intervals of a pipeline: their columns, what is recorded of them, and what comes true once labels are known."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from batch_platform.cli.check import check_declared
from batch_platform.declaration.errors import TrainingRefusedError, WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import read_manifest
from batch_platform.models.declared_model import check_model
from batch_platform.monitoring.measures.interval_coverage import INTERVAL_COVERAGE
from batch_platform.pipeline.backtest import BacktestModel, backtest
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


@pytest.mark.full
def test_the_prediction_is_what_it_is_without_an_interval(done, tmp_path):
    refined = {**INTERVALS, "predictions": {"interval": None}}
    plain = small_pipeline(tmp_path / "plain", events=spending(), **refined)
    carry_out(plain, NOW)
    predictions, without = (
        rows(each, "FROM small.predictions ORDER BY id").drop(
            "model_version", "prediction_low", "prediction_high", strict=False
        )
        for each in (done, plain)
    )
    assert predictions.equals(without)
    assert "interval_coverage" not in rows(plain, "SELECT table_name FROM duckdb_tables()")["table_name"].to_list()


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


def test_the_check_warns_of_days_in_which_the_world_is_noisier_and_says_so(done):
    table = rows(done, "FROM small.interval_coverage WHERE challenger IS NULL ORDER BY partition_key")
    check = INTERVAL_COVERAGE.check(done.spec)
    judged = {
        str(key): check.judge(of_day.select(*INTERVAL_COVERAGE.columns), "regression")
        for (key,), of_day in table.partition_by("partition_key", as_dict=True).items()
    }
    assert {key for key, finding in judged.items() if finding.level == "warn"} == {"2024-02-06", "2024-02-07"}
    noisy = judged["2024-02-07"].shown["what"]
    assert "true values lie within their intervals, and 90% should: fewer than chance explains" in noisy
    shown = INTERVAL_COVERAGE.metadata(table.filter(partition_key="2024-02-01").select(*INTERVAL_COVERAGE.columns))
    names = {"interval_coverage", "expected_interval_coverage", "mean_interval_width", "median_interval_width"}
    assert set(shown) == names
    assert shown["expected_interval_coverage"] == 0.9


def test_infinite_intervals_are_stored_and_said_to_be(tmp_path):
    pipeline = small_pipeline(tmp_path, events=spending(), **{**INTERVALS, "predictions": {"interval": "99.9%"}})
    carry_out(pipeline, NOW)
    assert rows(
        pipeline, "SELECT DISTINCT prediction_low AS low, prediction_high AS high FROM small.predictions"
    ).rows() == [(-np.inf, np.inf)]
    (version,) = pipeline.state().registry.of_model
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    remark = "the interval is infinite: 600 rows to learn its width from, at least 999 are needed"
    assert manifest.remarks.count(remark) == 1
    assert remark in pipeline.state().registry.last_decision(version.version).reason
    facts = manifest.refinements["interval"]
    assert (facts["coverage"], facts["mean_width"]) == (1.0, "infinite")
    table = rows(pipeline, "FROM small.interval_coverage WHERE partition_key = '2024-02-01' AND challenger IS NULL")
    table = table.select(*INTERVAL_COVERAGE.columns)
    finding = INTERVAL_COVERAGE.check(pipeline.spec).judge(table, "regression")
    assert finding.level == "none", "a hundred percent of so few rows may be chance"
    assert "Most intervals are infinite: training held out too few rows" in finding.shown["what"]
    assert INTERVAL_COVERAGE.metadata(table) == {"interval_coverage": 1.0, "expected_interval_coverage": 0.999}


def test_a_backtest_gives_the_same_intervals(done):
    day = done.spec.partitions.calendar.named("2024-02-03")
    (version,) = done.state().registry.of_model
    backtest(done, [day], BacktestModel(version=version.version), Stamp("b", NOW), keep_scores=True)
    again = rows(done, "SELECT id, prediction, prediction_low, prediction_high FROM small.backtest_scores ORDER BY id")
    query = "SELECT id, prediction, prediction_low, prediction_high FROM small.predictions WHERE partition_key = '2024-02-03' ORDER BY id"
    assert again.equals(rows(done, query))


def test_an_interval_of_another_model_than_a_regression_is_refused(tmp_path):
    message = r"predictions\.interval: only a regression has intervals, and this is a binary"
    pipeline = small_pipeline(tmp_path, predictions={"interval": "90%"})
    problems = [str(error) for error in check_declared(pipeline, NOW)[0]]
    assert any("predictions.interval: only a regression has intervals" in problem for problem in problems)
    with pytest.raises(TrainingRefusedError, match=message) as refused:
        carry_out(pipeline, NOW)
    assert refused.value.hint == "leave predictions.interval out, or declare a regression."
    with pytest.raises(WrongUseError, match=r"predictions\.interval"):
        check_model(pipeline.spec.model, tmp_path, pipeline.spec.predictions)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("0%", "1%"),
        ("100%", "99.9%"),
        (0, "1%"),
        (1.0, "99.9%"),
        (-0.5, "1%"),
        (90, "90%"),
        (95.5, "95.5%"),
        (500, "99.9%"),
    ],
)
def test_a_share_that_no_interval_can_hold_is_refused_with_the_nearest_one(written, nearest):
    with pytest.raises(ValidationError) as refused:
        small_spec(predictions={"interval": written})
    (error,) = refused.value.errors()
    assert error["loc"] == ("predictions", "interval")
    assert "write 1% to 99.9%" in error["msg"]
    assert error["msg"].endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize("written", ["ninety", "", True, [0.9], {"level": 0.9}])
def test_an_interval_that_is_no_share_is_refused(written):
    with pytest.raises(
        ValidationError, match=r"is not a share of the true values that an interval can hold: write 1% to 99\.9%"
    ):
        small_spec(predictions={"interval": written})


def test_an_interval_without_labels_and_a_kept_column_of_the_name_of_an_end_are_refused():
    with pytest.raises(ValidationError, match=r"predictions\.interval: an interval is learned from labels"):
        small_spec(labels=None, predictions={"interval": "90%"})
    with pytest.raises(ValidationError, match="'prediction_low' cannot be a key, the time or a kept column"):
        small_spec(predictions={"interval": "90%", "keep": ["prediction_low"]})
    assert small_spec(predictions={"keep": ["shop", "prediction_low"]}).predictions.interval is None
    assert small_spec(predictions={"interval": 0.9}) == small_spec(predictions={"interval": " 90 %"})
