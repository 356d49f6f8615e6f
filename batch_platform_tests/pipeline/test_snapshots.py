"""Snapshots: tables without a time of their own, scored whole each time a partition is due."""

from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from xxhash import xxh3_64_intdigest

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.bundle import read_manifest
from batch_platform.pipeline.health import health_of
from batch_platform.pipeline.measured import newest_measured
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.reports.report import write_report
from batch_platform_tests.harness.small_pipeline import carry_out, finished_pipeline, small_spec
from batch_platform_tests.pipeline.snapshots import (
    FILES,
    MONDAY,
    SNAPSHOT,
    WITHOUT_REFIT,
    customers,
    days_later,
    snapshots,
)

FIRST, SECOND, THIRD = "2026-01-05", "2026-01-06", "2026-01-07"


def of_monday(tmp_path: Path) -> Pipeline:
    """A pipeline that has taken its first snapshot."""
    return finished_pipeline(tmp_path, MONDAY, events=customers(), **FILES, **SNAPSHOT)


def change_source(pipeline: Pipeline, events: pl.DataFrame) -> None:
    events.write_parquet(pipeline.folder / "events.parquet")


def query(pipeline: Pipeline, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(pipeline.home.published), read_only=True) as con:
        return con.execute(sql).fetchall()


def is_held_out(*key: object) -> bool:
    """The rule computed without the package: a fifth of the keys by their hash."""
    return xxh3_64_intdigest("\0".join(map(str, key)).encode(), 0) / 2**64 < 0.2


def test_the_fit_that_serves_learns_from_the_rows_that_judged_it_too_and_is_marked_to_be_measured_on_rows_it_learned_from(
    tmp_path,
):
    pipeline = of_monday(tmp_path)
    labelled = customers().drop_nulls("returned")
    held_out = sum(is_held_out(*key) for key in labelled.select("id", "shop").iter_rows())
    (version,) = pipeline.state().registry.versions
    assert (version.rows_trained, version.rows_evaluated) == (labelled.height, held_out)
    manifest = read_manifest(pipeline.home.bundle("small", version.version), version.sha256)
    assert manifest.judged_training.rows == labelled.height - held_out
    (evaluation,) = pipeline.state().evaluations.values()
    assert evaluation.rows_labelled == labelled.height
    assert query(pipeline, "SELECT DISTINCT in_sample FROM small.performance") == [(True,)]


def test_performance_is_measured_on_rows_whose_label_became_known_after_the_training(tmp_path):
    def health(now: datetime) -> str:
        state = pipeline.state()
        measured = newest_measured(pipeline.home, pipeline.spec, state)
        return " ".join(aspect.text for aspect in health_of(pipeline.spec, state, now, measured).aspects)

    pipeline = of_monday(tmp_path)
    assert "on rows that the model learned from" in health(MONDAY)
    report = write_report(pipeline, MONDAY, file=tmp_path / "report.html").file.read_text()
    assert "no label is known yet that the model has not learned from" in report
    change_source(pipeline, customers(unknown=150))
    carry_out(pipeline, days_later(1))
    assert "learned from" not in health(days_later(1))
    assert len(pipeline.state().registry.versions) == 1
    learned, now = (customers(unknown).drop_nulls("returned").height for unknown in (400, 150))
    assert pipeline.state().evaluations[SECOND].rows_labelled == now - learned > 200
    measured = f"SELECT DISTINCT in_sample FROM small.performance WHERE partition_key = '{SECOND}'"
    assert query(pipeline, measured) == [(False,)]


def test_without_refit_rows_held_out_by_their_key_are_never_learned_from_and_are_what_the_model_is_measured_on(
    tmp_path,
):
    pipeline = snapshots(tmp_path, model=WITHOUT_REFIT)
    carry_out(pipeline, MONDAY)
    labelled = customers().drop_nulls("returned")
    held_out = sum(is_held_out(*key) for key in labelled.select("id", "shop").iter_rows())
    (version,) = pipeline.state().registry.versions
    assert version.rows_trained + version.rows_evaluated == labelled.height
    assert version.rows_evaluated == held_out
    assert 0.15 < held_out / labelled.height < 0.25
    (evaluation,) = pipeline.state().evaluations.values()
    assert evaluation.rows_labelled == held_out
    ((measured,),) = query(
        pipeline, "SELECT value FROM small.performance WHERE metric = 'roc_auc' AND challenger IS NULL"
    )
    assert measured == pytest.approx(version.metric_values["roc_auc"], abs=1e-12)
    everywhere = (
        "SELECT DISTINCT in_sample FROM small.performance UNION SELECT in_sample FROM batch_platform.score_runs"
    )
    assert query(pipeline, everywhere) == [(False,)]


def test_a_new_day_is_scored_from_the_table_as_it_is_then_and_the_day_before_stays(tmp_path):
    pipeline = of_monday(tmp_path)
    before = query(pipeline, f"FROM small.predictions WHERE partition_key = '{FIRST}' ORDER BY ALL")
    change_source(pipeline, customers().filter(pl.col("id") > 1000).with_columns(pl.col("amount") + 5))
    carry_out(pipeline, days_later(1))
    assert query(pipeline, f"SELECT count(*) FROM small.predictions WHERE partition_key = '{SECOND}'") == [(1400,)]
    assert query(pipeline, f"FROM small.predictions WHERE partition_key = '{FIRST}' ORDER BY ALL") == before
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(days_later(1))).items == []


def test_days_on_which_nothing_ran_are_left_out_and_cannot_be_taken_later(tmp_path):
    pipeline = of_monday(tmp_path)
    now = days_later(2)
    carry_out(pipeline, now)
    assert [key for (key,) in query(pipeline, "SELECT DISTINCT partition_key FROM small.predictions ORDER BY 1")] == [
        FIRST,
        THIRD,
    ]
    state = pipeline.state()
    plan = make_plan(pipeline.spec, state, PlanRequest(now))
    assert plan.items == []
    status = status_of(pipeline.spec, state, plan, now)
    assert [partition.partition for partition in status.partitions] == [FIRST, THIRD]
    assert f"fresh ({THIRD})" in [aspect.text for aspect in status.health.aspects], "what cannot be taken is not late"
    second = pipeline.spec.partitions.calendar.named(SECOND)
    with pytest.raises(WrongUseError, match=f"the snapshot {SECOND} can no longer be taken") as refused:
        make_plan(pipeline.spec, state, PlanRequest(now, [second]))
    assert f"--partition {THIRD}" in str(refused.value)
    with pytest.raises(WrongUseError, match="can no longer be taken"):
        list(pipeline.build_features([pipeline.spec.partitions.calendar.named(FIRST)], Stamp("x", now), force=True))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"features": {"time": "ts", "key": ["id"]}}, "features.time has no meaning with partitions.snapshot"),
        (
            {"model": {"train": {"every": None, "evaluate": None, "window": None, "group": ["shp"]}}},
            "did you mean 'shop'",
        ),
        ({"partitions": {"snapshot": False}}, None),
    ],
)
def test_keys_without_a_meaning_for_snapshots_are_refused(overrides, says):
    merged: dict[str, Any] = {**SNAPSHOT, **overrides}
    if says is None:
        merged["model"] = {"train": {"held_out": "10%"}}
        says = "model.train: held_out needs partitions.snapshot"
    with pytest.raises(ValueError, match=says):
        small_spec(**merged)
