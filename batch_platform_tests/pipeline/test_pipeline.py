"""The steps of a pipeline: what is recorded, what is skipped, and what a changed source makes due."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import serving_periods
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LABELS_SQL,
    carry_out,
    feature_file,
    finished_pipeline,
    small_events,
    small_pipeline,
)

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
BY_DAY = {"sources": {"events": {"parquet": "days/{partition_key}.parquet"}, "shops": {"csv": "shops.csv"}}}


def by_day(tmp_path):
    """A pipeline with a source that has a file for each day, and a source with one file for all days."""
    pipeline = small_pipeline(tmp_path, **BY_DAY)
    days = pipeline.folder / "days"
    days.mkdir(exist_ok=True)
    (pipeline.folder / "shops.csv").write_text("shop\nx\n", encoding="utf-8")
    key = pl.col("ts").dt.convert_time_zone("Europe/Berlin").dt.strftime("%Y-%m-%d")
    for (name,), rows in small_events().with_columns(key=key).partition_by("key", as_dict=True).items():
        rows.drop("key").write_parquet(days / f"{name}.parquet")
    return pipeline


@pytest.mark.full
def test_a_changed_file_of_one_partition_makes_that_one_due(tmp_path):
    pipeline = by_day(tmp_path)
    carry_out(pipeline, NOW)
    file = pipeline.folder / "days" / "2024-02-03.parquet"
    pl.read_parquet(file).head(10).write_parquet(file)
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    assert [(item.step, item.partition.key) for item in plan.items] == [
        (kind, "2024-02-03") for kind in ("features", "predictions", "performance")
    ]
    carry_out(pipeline, NOW, "again")
    assert pipeline.state().scores["2024-02-03"].rows_in == 10
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


@pytest.mark.full
def test_a_file_for_all_partitions_that_grows_makes_no_past_partition_due(tmp_path):
    pipeline = by_day(tmp_path)
    carry_out(pipeline, NOW)
    (pipeline.folder / "shops.csv").write_text("shop\nx\ny\n", encoding="utf-8")
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def test_archiving_a_source_file_blocks_nothing(tmp_path):
    pipeline = by_day(tmp_path)
    carry_out(pipeline, NOW)
    (pipeline.folder / "days" / "2024-01-03.parquet").unlink()
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []


def test_features_are_recognized_by_the_name_and_size_of_their_file(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    kept, touched, linked, cut, gone = days = [f"2024-01-0{day}" for day in range(1, 6)]
    files = {day: feature_file(pipeline, day) for day in days}
    os.utime(files[touched])
    files[linked].rename(files[linked].with_name("elsewhere"))
    files[linked].symlink_to("elsewhere")
    with files[cut].open("ab") as file:
        file.truncate(100)
    files[gone].unlink()
    assert pipeline.state().features.keys() & set(days) == {kept, touched, linked}


def test_a_training_says_which_features_are_new_gone_or_of_another_kind(tmp_path):
    now = datetime(2024, 2, 2, 12, tzinfo=UTC)
    pipeline = finished_pipeline(tmp_path, now)
    other = FEATURES_SQL.replace("amount, items", "amount || ' EUR' AS amount, items AS pieces")
    (pipeline.folder / "features.sql").write_text(other, encoding="utf-8")
    changed = Pipeline(pipeline.spec, pipeline.folder, pipeline.home)
    window = changed.spec.partitions.calendar.due(now)
    list(changed.build_features(window, Stamp("again", now)))
    trained = changed.train(serving_periods(changed.spec, now)[-1], Stamp("again", now))
    told = "amount was a number and is text now; pieces is a new feature; items is no longer a feature"
    assert trained.decision.reason.endswith(told)


def test_the_ledger_says_when_each_thing_really_happened(tmp_path):
    pipeline = small_pipeline(tmp_path)
    ticks = iter(range(10**6))
    stamp = Stamp("run", NOW, lambda: NOW + timedelta(seconds=next(ticks)))
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    list(pipeline.build_features([item.partition for item in plan.of("features")], stamp))
    (period,) = plan.of("model")
    trained = pipeline.train(period.partition, stamp)
    runs = [committed.run for committed in pipeline.score([item.partition for item in plan.of("predictions")], stamp)]
    evaluations = [
        committed.run for committed in pipeline.evaluate([item.partition for item in plan.of("performance")], stamp)
    ]
    assert NOW < trained.version.created_at < trained.decision.decided_at < runs[0].started_at
    assert [run.started_at for run in runs] == sorted({run.started_at for run in runs})
    assert {run.committed_at for run in runs} == {runs[-1].started_at + timedelta(seconds=1)}, (
        "one transaction, one time"
    )
    assert runs[-1].committed_at < evaluations[0].evaluated_at


def test_without_a_clock_everything_happens_when_the_run_began():
    assert Stamp("run", NOW).now() == NOW


def test_recorded_sources_are_the_versions_that_were_read(tmp_path):
    pipeline = by_day(tmp_path)
    carry_out(pipeline, NOW)
    build = pipeline.state().features["2024-02-03"]
    day = pipeline.spec.partitions.calendar.named("2024-02-03")
    assert json.loads(build.sources) == pipeline.builder.sources.versions(day, pipeline.builder.feature_sources)


@pytest.mark.parametrize("label", ["count", "n"])
def test_columns_may_have_the_names_that_counting_gives(tmp_path, label):
    others = ", ".join(
        f"amount AS {name}" for name in ("count", "n", "len", "value", "index", "literal") if name != label
    )
    pipeline = small_pipeline(
        tmp_path,
        features_sql=FEATURES_SQL.replace("amount", f"amount, {others}"),
        labels_sql=LABELS_SQL.replace("returned", f"returned AS {label}", 1),
        labels={"column": label},
        monitoring={"drift": {}},
    )
    carry_out(pipeline, NOW)
    assert pipeline.state().scores


def test_no_partitions_mean_no_work(tmp_path):
    pipeline, stamp = small_pipeline(tmp_path), Stamp("run", NOW)
    assert [*pipeline.build_features([], stamp), *pipeline.score([], stamp), *pipeline.evaluate([], stamp)] == []


def rebuilt(pipeline: Pipeline, key: str, more: float) -> Path:
    """Build a partition from amounts that are larger by some number; return its file."""
    small_events().with_columns(pl.col("amount") + more).write_parquet(pipeline.folder / "events.parquet")
    list(pipeline.build_features([pipeline.spec.partitions.calendar.named(key)], Stamp("again", NOW), force=True))
    return feature_file(pipeline, key)


def test_a_file_that_a_killed_build_did_not_record_changes_nothing_for_readers(tmp_path):
    pipeline = finished_pipeline(tmp_path, NOW)
    day = pipeline.spec.partitions.calendar.named("2024-02-02")
    before = pipeline.state().features[day.key]
    small_events().with_columns(pl.col("amount") + 1).write_parquet(pipeline.folder / "events.parquet")
    with pipeline.builder.session() as session:
        unrecorded = session.write(day, pipeline.home.features("small"))
    assert unrecorded.sha256 != before.sha256
    assert pipeline.state().features[day.key] == before
    (scored,) = pipeline.score([day], Stamp("meanwhile", NOW), force=True)
    assert scored.run.input_hash == before.sha256


def test_the_files_of_earlier_builds_stay_for_the_runs_that_may_be_reading_them(tmp_path):
    pipeline = small_pipeline(tmp_path)
    first = rebuilt(pipeline, "2024-02-02", 1)
    of_another_day = rebuilt(pipeline, "2024-02-03", 1)
    second = rebuilt(pipeline, "2024-02-02", 2)
    assert {*first.parent.iterdir()} == {first, second, of_another_day}
    assert rebuilt(pipeline, "2024-02-02", 1) == first, "the sources are as they were"
    assert {*first.parent.iterdir()} == {first, second, of_another_day}
