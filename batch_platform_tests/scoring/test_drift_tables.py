"""Drift through a whole pipeline: a broken feature is found in its first partition, and the table is what the profiles say."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from batch_platform.components import commits
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import PARTITION_START
from batch_platform.models.contract import infer_contract
from batch_platform.models.reference import reference_of
from batch_platform.monitoring.divergence import USUAL_MARGIN, has_moved
from batch_platform.monitoring.measures.drift import DRIFT, ColumnDrift, drifted, drifted_segments, read_drift
from batch_platform.monitoring.profiles import number_profile
from batch_platform.pipeline.health import health_of
from batch_platform.pipeline.measured import newest_measured
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.recorded import recorded_predictions
from batch_platform.scoring.batch import score_batch
from batch_platform.warehouse.published import open_published
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    FIRST_DAY,
    LABELS_SQL,
    LOCAL_DAY,
    carry_out,
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
STAMP = Stamp("again", NOW)
DAY = "2024-02-14"
LOGISTIC = "sklearn.linear_model.LogisticRegression"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Pipeline]:
    """The pipeline with other source rows on one day, which is scored again."""
    finished_pipeline(tmp_path, NOW, monitoring={"drift": {}})

    def change(*columns: pl.Expr) -> Pipeline:
        today = LOCAL_DAY == DAY
        events = small_events()
        pipeline = small_pipeline(
            tmp_path,
            monitoring={"drift": {}},
            events=pl.concat([events.filter(~today), events.filter(today).with_columns(*columns)]).sort("id"),
        )
        day = [pipeline.spec.partitions.calendar.named(DAY)]
        list(pipeline.build_features(day, STAMP, force=True))
        list(pipeline.score(day, STAMP, force=True))
        return pipeline

    return change


def drift(pipeline: Pipeline, *keys: str) -> dict[str, tuple[ColumnDrift, ...]]:
    with pipeline.warehouse.open() as con:
        return read_drift(con, "small", keys)


def alarms(rows: tuple[ColumnDrift, ...]) -> list[str]:
    return [row.column_name for row in rows if row.level in ("warn", "fail")]


@pytest.mark.full
def test_days_like_the_training_data_raise_no_alarm(changed):
    pipeline = changed()
    measured = drift(pipeline, *(f"2024-02-{day:02}" for day in range(1, 30)))
    assert len(measured) == 29
    assert not [alarm for rows in measured.values() for alarm in alarms(rows)]
    assert {(row.baseline, row.baseline_partition) for rows in measured.values() for row in rows} == {
        ("reference", None)
    }
    assert {row.column_name for row in measured[DAY]} >= {"amount", "items", "shop", "known"}


def test_a_broken_feature_is_named_first_and_is_over_once_it_is_repaired(changed):
    pipeline = changed(pl.col("amount") * 1000)
    assert alarms(drift(pipeline, DAY)[DAY])[0] == "amount"
    repaired = changed()
    assert not alarms(drift(repaired, DAY)[DAY])
    undeclared = small_pipeline(repaired.builder.sources.folder.parent)
    list(undeclared.score([undeclared.spec.partitions.calendar.named(DAY)], STAMP, force=True))
    assert {row.level for row in drift(undeclared, DAY)[DAY]} == {None}, "measured, and not judged"


def test_each_segment_is_compared_with_the_same_segment_of_the_rows_that_the_version_was_judged_by(tmp_path):
    """Rows and cells of both are counted once more."""
    events = small_events(FIRST_DAY, date(2024, 2, 3), 300)
    moved = (pl.col("shop") == "Zürich") & (pl.col("ts") > datetime(2024, 2, 2, 12, tzinfo=UTC))
    pipeline = small_pipeline(
        tmp_path,
        events=events.with_columns(amount=pl.when(moved).then(1.0).otherwise("amount")),
        model={"refit": False, "params": {"max_iter": 20}},
        monitoring={"segments": ["shop"], "drift": {}},
    )
    carry_out(pipeline, datetime(2024, 2, 4, 12, tzinfo=UTC))
    (version,) = pipeline.state().registry.versions
    bundle = pipeline.bundle(version)
    features = pl.concat([pl.read_parquet(feature_file(pipeline, f"2024-01-{day}")) for day in range(24, 31)])
    judged = features.join(events.filter(pl.col("returned").is_not_null()), on="id", how="semi")
    before = score_batch(judged, bundle, pipeline.spec, keep=["shop"]).predictions
    with open_published(pipeline.home) as con:
        levels = con.sql("SELECT partition_key, segment, level FROM small.drift_by_segment ORDER BY ALL").pl()
        measured = con.sql("FROM small.drift_by_segment WHERE partition_key = '2024-02-03'").pl()
        scored = con.sql("FROM small.predictions WHERE partition_key = '2024-02-03'").pl()
    edges = bundle.reference.prediction.bins.edges
    assert set(measured["segment"]) == set(scored["shop"]) & set(before["shop"])
    for row in measured.iter_rows(named=True):
        own, base = (
            np.bincount(np.searchsorted(edges, rows.filter(shop=row["segment"])["score"], side="right"), minlength=99)
            for rows in (scored, before)
        )
        assert (row["segment_column"], row["rows"], row["baseline_rows"]) == ("shop", own.sum(), base.sum())
        own, base = own[filled := own + base > 0], base[filled]
        p, q = (own + 0.5) / (own + 0.5).sum(), (base + 0.5) / (base + 0.5).sum()
        assert row["psi"] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-9)
    assert levels.filter(pl.col("level") != "none").rows() == [("2024-02-03", "Zürich", "fail")]
    (committed,) = recorded_predictions(pipeline, pipeline.state(), ["2024-02-03"])
    assert drifted_segments(DRIFT.of(committed.measures).segment_alarms)[0].startswith("predictions for shop = Zürich ")


def test_a_score_that_is_not_judged_is_said_to_be_so(changed):
    """Five small trees score with few values, and with others once they are fitted again."""
    pipeline = changed()
    (version,) = pipeline.state().registry.of_model
    (committed,) = pipeline.score([pipeline.spec.partitions.calendar.named("2024-02-29")], STAMP, force=True)
    reason = f"score: not judged, because {version.version} has no known scores of rows that it had not seen"
    commit = commits.drift(Wiring(pipeline.spec, pipeline.folder), committed)
    ((check, judged),) = commit.checked.items()
    assert check.passed(judged)
    assert commit.metadata["not_judged"] == check.metadata(judged)["drifted"] == reason
    pipeline.conclude(NOW)
    measured = newest_measured(pipeline.home, pipeline.spec, state := pipeline.published_state())
    texts = [aspect.text for aspect in health_of(pipeline.spec, state, NOW, measured).aspects]
    assert f"no drift ({reason})" in texts


def test_a_column_that_differs_from_day_to_day_raises_no_alarm_until_it_differs_as_on_no_day_before(tmp_path):
    rhythm = "(epoch(ts)::BIGINT // 86400 % 5)"
    noisy = f"(returned <> ({rhythm} = 0 AND id % 2 = 0)) AS returned"  # on every fifth day the amount tells less

    def with_rhythm(factor: str) -> Pipeline:
        sql = FEATURES_SQL.replace("amount", f"amount * {factor} AS amount, {rhythm}::DOUBLE * {factor} AS rhythm")
        labels, params = LABELS_SQL.replace("id, returned", f"id, {noisy}"), {"max_iter": 50, "min_samples_leaf": 5}
        model = {"params": params, "refit": False, "train": {"evaluate": "14 days"}}
        return small_pipeline(tmp_path, features_sql=sql, labels_sql=labels, model=model, monitoring={"drift": {}})

    pipeline = with_rhythm("1")
    carry_out(pipeline, NOW)
    measured = drift(pipeline, *(f"2024-02-{day:02}" for day in range(1, 30)))
    for column, every in ("rhythm", 1), ("score", 5):
        rows = [
            row for day in range(2, 30, every) for row in measured[f"2024-02-{day:02}"] if row.column_name == column
        ]
        assert np.median([row.psi - row.psi_by_chance for row in rows]) > 0.15, "such a day differs from the others"
        assert {row.level for row in rows} == {"none"}, "as such a day of the training data does"
    compared = [row for rows in measured.values() for row in rows if row.column_name in ("rhythm", "score")]
    assert all(row.psi_usual is not None for row in compared)
    assert max(row.unusual for row in compared if row.column_name == "rhythm") < 0.05
    broken = with_rhythm(f"(CASE WHEN $partition_key = '{DAY}' THEN -1000 ELSE 1 END)")
    day = [broken.spec.partitions.calendar.named(DAY)]
    list(broken.build_features(day, STAMP, force=True))
    list(broken.score(day, STAMP, force=True))
    assert {*alarms(drift(broken, DAY)[DAY])} == {"rhythm", "amount", "score"}


@pytest.mark.full
def test_what_two_fits_differ_by_is_no_drift_of_the_score_and_a_change_of_the_rows_is(tmp_path):
    """More orders are returned in the evaluation window than before: the fit that has learned from it scores higher."""
    labels = LABELS_SQL.replace("id, returned", "id, (returned OR (ts >= '2024-01-17' AND id % 8 = 0)) AS returned")

    def multiplied_by(factor: str) -> Pipeline:
        return small_pipeline(
            tmp_path,
            events=small_events(FIRST_DAY, date(2024, 3, 1), 400),
            features_sql=FEATURES_SQL.replace("amount", f"coalesce(amount, 60) * {factor} AS amount"),
            labels_sql=labels,
            model={"estimator": LOGISTIC, "params": None, "train": {"evaluate": "14 days"}},
            monitoring={"drift": {}},
        )

    pipeline = multiplied_by("1")
    carry_out(pipeline, NOW)
    (version,) = pipeline.state().registry.of_model
    apart = pipeline.bundle(version).reference.apart
    days = drift(pipeline, *(f"2024-02-{day:02}" for day in range(1, 30)))
    scores = [row for rows in days.values() for row in rows if row.column_name == "score"]
    assert [row.level for row in scores].count("none") >= len(scores) - 1
    unexplained = [row.psi - row.psi_by_chance - USUAL_MARGIN * (row.psi_usual - apart) for row in scores]
    assert min(unexplained) > 0.05, "every day would be an alarm, were that not usual"
    broken = multiplied_by(f"(CASE WHEN $partition_key = '{DAY}' THEN 3 ELSE 1 END)")
    day = [broken.spec.partitions.calendar.named(DAY)]
    list(broken.build_features(day, STAMP, force=True))
    list(broken.score(day, STAMP, force=True))
    assert {*alarms(drift(broken, DAY)[DAY])} == {"amount", "score"}


def test_a_few_values_in_another_unit_are_named_although_the_shares_of_the_cells_hardly_change(tmp_path):
    events = small_events(FIRST_DAY, date(2024, 2, 2), 1000)
    few = (pl.col("ts") > datetime(2024, 2, 1, 23, tzinfo=UTC)) & (pl.col("id") % 200 == 0)
    wrong = pl.when(few).then(pl.col("amount") * 1e6).otherwise("amount").alias("amount")
    pipeline = small_pipeline(tmp_path, events=events.with_columns(wrong), monitoring={"drift": {}})
    now = datetime(2024, 2, 3, 12, tzinfo=UTC)
    carry_out(pipeline, now)
    (committed,) = recorded_predictions(pipeline, pipeline.state(), ["2024-02-02"])
    (alarm,) = DRIFT.of(committed.measures).alarming
    assert (alarm.column_name, alarm.level) == ("amount", "warn")
    assert alarm.unusual < 0.05, "less than the index from which a column gives a warning"
    assert "0.6% of values lie outside the range seen in training, 0.0% expected" in drifted(alarm)
    (day,) = drift(pipeline, "2024-02-01").values()
    assert not alarms(day)


def test_fewer_than_one_day_in_a_thousand_raises_an_alarm_by_range_or_mean_whatever_the_tails_of_a_column():
    random, first, days, rows = np.random.default_rng(13), datetime(2023, 1, 1, tzinfo=UTC), 30, 100
    drawn: dict[str, Callable[[int], np.ndarray]] = {
        "lognormal": lambda _: random.lognormal(sigma=2, size=rows),
        "student": lambda _: random.standard_t(3, rows),
        "mostly_zero": lambda _: np.where(random.random(rows) < 0.95, 0.0, random.exponential(size=rows)),
        "day_by_day": lambda _: random.normal() + random.normal(size=rows),
        "counter": lambda day: np.arange(rows) + float(day * rows),
        "weekday": lambda day: np.full(rows, day % 7.0),
    }
    alarms, judged = dict.fromkeys(drawn, 0), dict.fromkeys(drawn, 0)
    for _ in range(20):
        learned = pl.DataFrame({name: np.concatenate([*map(draw, range(days))]) for name, draw in drawn.items()})
        starts = [first + timedelta(days=day) for day in range(days) for _ in range(rows)]
        frame = learned.with_columns(pl.Series(PARTITION_START, starts, pl.Datetime("us", "UTC")))
        contract = infer_contract(learned, {})
        reference = reference_of(contract, (frame, contract.encode(learned)), None)
        for base in reference.features:
            usual = reference.moves_by_column[base.name]
            for day in range(days, days + 100):
                profile = number_profile(base.name, "feature", base.bins, drawn[base.name](day))
                alarms[base.name] += has_moved(profile, base, usual)
            wrong = drawn[base.name](days)
            wrong[:2] = (wrong[:2] + 1) * 1e6
            judged[base.name] += has_moved(number_profile(base.name, "feature", base.bins, wrong), base, usual)
    assert max(alarms.values()) <= 2, alarms
    assert {name: found for name, found in judged.items() if found < 20} == {"counter": 0}, "a counter is not judged"
