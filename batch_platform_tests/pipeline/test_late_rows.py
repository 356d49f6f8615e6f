"""Rows that come late, are corrected or vanish, in sources whose files hold the rows of many partitions."""

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_of
from batch_platform.planning.artifacts import features_due
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform_tests.harness.small_pipeline import (
    FEATURES_SQL,
    LOCAL_DAY,
    carry_out,
    small_events,
    small_pipeline,
    small_spec,
)

FIRST, LAST = date(2024, 1, 20), date(2024, 2, 16)
NOW = datetime(2024, 2, 17, 12, tzinfo=UTC)
WEEKLY: dict[str, Any] = {
    "partitions": {"start": "2024-01-20", "end": None},
    "labels": {"delay": "0 days"},
    "model": {"train": {"every": "month", "start": "2024-02-01", "window": "all", "evaluate": "2 days"}},
}


def complete(last: date = LAST) -> pl.DataFrame:
    """Twenty rows a day."""
    rows = small_events(FIRST, LAST + timedelta(days=1), 20)
    return rows.filter(local_day(rows) <= f"{last}")


def orders(last: date = LAST) -> pl.DataFrame:
    """The rows that are there at NOW: every day but 2024-02-12, and half of 2024-02-13."""
    rows = complete(last)
    day = local_day(rows)
    return rows.filter((day != "2024-02-12") & ((day != "2024-02-13") | (rows["id"] % 2 == 0)))


def local_day(rows: pl.DataFrame) -> pl.Series:
    return rows.select(LOCAL_DAY).to_series()


def write(pipeline: Pipeline, rows: pl.DataFrame) -> None:
    """Replace the source by these rows, as one file or as the files of a glob."""
    source = pipeline.spec.sources["events"]
    path = pipeline.folder / source.location
    if source.kind == "delta":
        write_deltalake(path, rows.to_arrow(), mode="overwrite")
        return
    if "*" not in path.name:
        rows.write_parquet(path) if source.kind == "parquet" else rows.write_csv(path)
        return
    path.parent.mkdir(exist_ok=True)
    for file in path.parent.iterdir():
        file.unlink()
    for (day,), of_day in rows.group_by(local_day(rows)):
        of_day.write_parquet(path.parent / f"{day}.parquet")


def due(pipeline: Pipeline, now: datetime = NOW, *, recheck: bool = False) -> dict[str, str]:
    """The partitions whose predictions are due, and why."""
    plan = make_plan(pipeline.spec, pipeline.state(recheck=recheck), PlanRequest(now))
    return {item.partition.key: item.reason for item in plan.of("predictions")}


def commits(pipeline: Pipeline) -> dict[str, int]:
    return {key: run.seq for key, run in pipeline.warehouse.latest(ScoreRun, pipeline.spec.name).items()}


def scored_again(pipeline: Pipeline, act: Callable[[], object]) -> set[str]:
    """The partitions that were scored before and are committed once more while something is done."""
    before = commits(pipeline)
    act()
    after = commits(pipeline)
    return {key for key, seq in before.items() if after[key] != seq}


def conditions(pipeline: Pipeline, now: datetime = NOW) -> dict[str, tuple[str, str]]:
    state = pipeline.published_state()
    report = status_of(pipeline.spec, state, make_plan(pipeline.spec, state, PlanRequest(now)), now)
    return {line.partition: (line.condition, line.reason) for line in report.partitions}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The pipeline up to date at NOW."""
    folder = tmp_path_factory.mktemp("template")
    carry_out(small_pipeline(folder, events=orders(), **WEEKLY), NOW)
    return folder


@pytest.fixture
def pipeline(template, tmp_path) -> Pipeline:
    for name in ("home", "project"):
        shutil.copytree(template / name, tmp_path / name, symlinks=True)
    pipeline = declared(tmp_path)
    assert due(pipeline) == {}
    return pipeline


def declared(folder: Path, **overrides: Any) -> Pipeline:
    return Pipeline(small_spec(**WEEKLY | overrides), folder / "project", Home(folder / "home"))


def only_built(folder: Path, **overrides: Any) -> Pipeline:
    """A pipeline of which only the features are built, of the last twelve days."""
    pipeline = small_pipeline(folder, **WEEKLY | overrides | {"partitions": {"start": "2024-02-05", "end": None}})
    write(pipeline, orders())
    build(pipeline)
    assert rebuilt(pipeline) == {}
    return pipeline


def build(pipeline: Pipeline, now: datetime = NOW, *, force: bool = False) -> dict[str, str]:
    """Build the features of all partitions; returns the content of each that was built."""
    partitions = pipeline.spec.partitions.calendar.due(now)
    built = list(pipeline.build_features(partitions, Stamp("run", now), force=force))
    pipeline.conclude(now)
    return {one.partition.key: one.build.sha256 for one in built if not one.skipped}


def rebuilt(pipeline: Pipeline, *, recheck: bool = False) -> dict[str, str]:
    """The partitions whose features are due, and why."""
    state = pipeline.state(recheck=recheck)
    partitions = pipeline.spec.partitions.calendar.due(NOW)
    return {one.key: reason for one in partitions if (reason := features_due(state, one)) is not None}


def test_late_rows_are_scored_in_the_partitions_whose_rows_they_are_and_then_nothing_is_due(pipeline):
    write(pipeline, complete())
    assert due(pipeline) == {
        "2024-02-12": "source 'events' holds 20 rows of it, and held 0",
        "2024-02-13": "source 'events' holds 20 rows of it, and held 10",
    }
    assert conditions(pipeline)["2024-02-13"] == ("stale", "source 'events' holds 20 rows of it, and held 10")
    assert scored_again(pipeline, lambda: carry_out(pipeline, NOW)) == {"2024-02-12", "2024-02-13"}
    assert pipeline.state().scores["2024-02-12"].rows_in == 20
    assert make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).items == []
    assert {condition for condition, _ in list(conditions(pipeline).values())[12:]} == {"scored"}


def test_labels_that_come_late_are_measured_again_and_change_no_prediction(pipeline):
    rows = orders()
    corrected = pl.Series(local_day(rows).is_in(["2024-02-03", "2024-02-15"]))
    write(pipeline, rows.with_columns(returned=pl.when(corrected).then(~pl.col("returned")).otherwise("returned")))

    def plan(*, recheck: bool = False) -> dict[str, list[str]]:
        items = make_plan(pipeline.spec, pipeline.state(recheck=recheck), PlanRequest(NOW)).items
        return {
            step: [item.partition.key for item in items if item.step == step] for step in {item.step for item in items}
        }

    assert plan() == {"performance": ["2024-02-15"]}
    assert plan(recheck=True) == {"performance": ["2024-02-03", "2024-02-15"]}
    assert scored_again(pipeline, lambda: carry_out(pipeline, NOW)) == set()
    assert plan() == {}
    assert plan(recheck=True) == {"performance": ["2024-02-03"]}


GLOB = {"sources": {"events": {"parquet": "days/*.parquet"}}}
CSV = {"sources": {"events": {"parquet": None, "csv": "events.csv"}}}
DELTA = {"sources": {"events": {"parquet": None, "delta": "events"}}}


@pytest.mark.parametrize("source", [GLOB, CSV, DELTA], ids=["glob", "csv", "delta"])
def test_a_corrected_row_is_found_in_files_of_any_kind_and_an_appended_day_concerns_no_other(tmp_path, source):
    pipeline = only_built(tmp_path, **source)
    rows = orders(LAST + timedelta(days=1))
    write(pipeline, rows)
    assert rebuilt(pipeline) == {}
    corrected = rows.with_columns(
        items=pl.when(pl.Series(local_day(rows) == "2024-02-11")).then(pl.lit(9, pl.Int32)).otherwise("items")
    )
    write(pipeline, corrected)
    assert rebuilt(pipeline) == {"2024-02-11": "rows of source 'events' changed"}
    assert list(build(pipeline)) == ["2024-02-11"]
    write(pipeline, corrected.sample(fraction=1.0, shuffle=True, seed=1).with_columns(returned=True))
    assert rebuilt(pipeline) == {}, "neither the order of rows nor a column that the features do not read matters"


def corrected_on(day: str) -> pl.DataFrame:
    """The rows that are there at NOW, with other amounts on a day."""
    rows = orders()
    return rows.with_columns(amount=pl.when(pl.Series(local_day(rows) == day)).then(1.0).otherwise("amount"))


def test_a_correction_of_an_old_scored_row_is_found_only_on_demand_or_if_late_is_always(pipeline, tmp_path):
    write(pipeline, corrected_on("2024-02-06"))
    assert rebuilt(pipeline) == {}
    assert rebuilt(pipeline, recheck=True) == {"2024-02-06": "rows of source 'events' changed"}
    for late, found in (("always", True), ("11 days", True), ("2 weeks", True), ("10 days", False), ("never", False)):
        other = declared(tmp_path, sources={"events": {"late": late}})
        assert bool(rebuilt(other)) == found, late
    assert list(build(pipeline)) == ["2024-02-06"], "a run compares the partitions that it is given"
    assert rebuilt(pipeline, recheck=True) == {}


def told(pipeline: Pipeline) -> dict[str, str]:
    """What a reader of `status` is told of partitions that are not due."""
    return dict(make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW)).remarks)


def test_rows_that_vanish_are_told_and_change_no_prediction(pipeline):
    write(pipeline, orders().filter(local_day(orders()) != "2024-02-10"))
    assert conditions(pipeline)["2024-02-10"] == ("scored", "source 'events' no longer holds its rows")
    assert scored_again(pipeline, lambda: carry_out(pipeline, NOW)) == set()
    (pipeline.folder / "events.parquet").unlink()
    assert conditions(pipeline)["2024-02-10"] == ("scored", "source 'events' is gone")
    assert due(pipeline) == {}


def test_features_are_not_built_from_rows_that_vanished_unless_forced(tmp_path):
    pipeline = only_built(tmp_path, **GLOB)
    for key in ("2024-02-06", "2024-02-10"):
        (pipeline.folder / f"days/{key}.parquet").unlink()
    assert told(pipeline) == dict.fromkeys(("2024-02-06", "2024-02-10"), "source 'events' no longer holds its rows")
    assert build(pipeline) == {}
    (pipeline.folder / "features.sql").write_text(FEATURES_SQL + "AND items > 0")
    other = declared(tmp_path, **GLOB | {"partitions": {"start": "2024-02-05", "end": None}})
    with pytest.raises(BatchPlatformError, match="2024-02-06: source 'events' no longer holds its rows") as raised:
        build(other)
    assert "--force" in str(raised.value)
    assert [key for key, build in other.state().features.items() if build.rows == 0] == ["2024-02-12"]
    assert {"2024-02-06", "2024-02-10"} <= build(other, force=True).keys()
    assert (told(other), build(other)) == ({}, {})


def test_rows_that_no_partition_can_hold_are_counted_by_every_run_that_builds(tmp_path):
    far = [None, None, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]  # as databases write no end
    lost = small_events().head(4).with_columns(pl.Series("ts", far, dtype=pl.Datetime("us", "UTC")))
    pipeline = small_pipeline(tmp_path, events=pl.concat([small_events(), lost]))
    days = pipeline.spec.partitions.calendar.due(pipeline.spec.partitions.calendar.first_start + timedelta(days=4))
    counted = ("source 'events' holds 4 rows without a time in the years 2 to 9998, in no partition",)
    for run in (days[:2], days[2:]):
        assert [built.findings for built in pipeline.build_features(run, Stamp("run", NOW))] == [counted, ()]
