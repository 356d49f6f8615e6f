"""One suite that every measure passes in a real pipeline, the one of the guide included."""

from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import DataError
from batch_platform.declaration.stamp import Stamp
from batch_platform.monitoring.catalogue import MEASURES
from batch_platform.monitoring.measure import Column, ScoredMeasure
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.recorded import recorded_predictions
from batch_platform.scoring.run import Committed
from batch_platform.warehouse.published import open_published
from batch_platform.warehouse.sql import has_table, table_columns
from batch_platform_tests.harness.distribution import shop_extensions  # noqa: F401 - a fixture
from batch_platform_tests.harness.small_pipeline import LOCAL_DAY, carry_out, small_events, small_pipeline

pytestmark = pytest.mark.usefixtures("shop_extensions")
NOW = datetime(2024, 2, 9, 12, tzinfo=UTC)
EMPTY, ONE_ROW, DAY, BEFORE = "2024-02-03", "2024-02-04", "2024-02-06", "2024-02-05"
LINEAR = {"name": "linear", "estimator": "sklearn.linear_model.LogisticRegression", "params": {"max_iter": 50}}
OUTSIDE = ("empty_cells", "score_range")  # of the distribution of the guide
ELSEWHERE = (
    "interval_coverage",
    "cluster_profiles",
)  # of regressions and clusters: test_intervals, test_cluster_profiles
NAMES = (*(name for name in MEASURES if name not in ELSEWHERE), *OUTSIDE)
SCORED = tuple(name for name in NAMES if name not in ("performance", "concept_drift", "score_range"))
every_measure = pytest.mark.parametrize("name", NAMES)
every_scored_measure = pytest.mark.parametrize("name", SCORED)


@dataclass(frozen=True)
class Done:
    """A pipeline that is brought up to date, of which a partition was then scored again."""

    pipeline: Pipeline
    before: dict[str, pl.DataFrame]  # the rows of each table before the partition was scored again
    again: Committed
    skipped: dict[str, Committed]  # what a further run skipped, by partition key

    def rows(self, table: str) -> pl.DataFrame:
        return rows_of(self.pipeline, table)


def rows_of(pipeline: Pipeline, table: str) -> pl.DataFrame:
    with open_published(pipeline.home) as con:
        return con.sql(f"FROM small.{table} ORDER BY ALL").pl() if has_table(con, "small", table) else pl.DataFrame()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    events = small_events().filter(LOCAL_DAY != EMPTY)
    events = events.filter((LOCAL_DAY != ONE_ROW) | (pl.col("ts") == pl.col("ts").filter(LOCAL_DAY == ONE_ROW).min()))
    declared = {
        "monitoring": {"segments": ["shop"], "drift": {"warn": 0.01}, "performance": {"warn_below": 0.9}},
        "model": {"refit": False},  # the predictions have a baseline, by segment too
        "features": {"columns": {"amount": {"nullable": True, "min": 20}}, "max_rejected": "50%"},
        "predictions": {"reasons": 2},
    }
    pipeline = small_pipeline(tmp_path_factory.mktemp("measures"), events=events, challengers=[LINEAR], **declared)
    carry_out(pipeline, NOW)
    calendar = pipeline.spec.partitions.calendar
    tables = {table: rows_of(pipeline, table) for measure in MEASURES.values() for table in measure.described}
    (again,) = pipeline.score([calendar.named(DAY)], Stamp("again", NOW), force=True)
    list(pipeline.evaluate([calendar.named(DAY)], Stamp("again", NOW)))
    pipeline.publish()
    skipped = list(pipeline.score([calendar.named(key) for key in (EMPTY, ONE_ROW, DAY)], Stamp("third", NOW)))
    assert all(partition.skipped for partition in skipped)
    return Done(pipeline, tables, again, {partition.partition.key: partition for partition in skipped})


@every_measure
def test_it_describes_itself_its_tables_and_their_columns(done, name):
    measure = MEASURES[name]
    assert measure.name == name
    assert measure.description.endswith(".")
    for table, description in measure.described.items():
        with open_published(done.pipeline.home) as con:
            columns = {column for column, _ in table_columns(con, "small", table)}
            query = (
                "SELECT column_name, comment FROM duckdb_columns() WHERE schema_name = 'small' AND table_name = $table"
            )
            comments = dict(con.execute(query, {"table": table}).fetchall())
        assert description.columns.keys() - columns <= {"outcome_value", "outcome_weight"}, table
        expected = {column: text for column, text in description.columns.items() if column in columns}
        assert {column: text for column, text in comments.items() if text} == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name in OUTSIDE or MEASURES[name].described])
def test_the_rows_of_a_partition_are_replaced_when_it_is_scored_and_measured_again(done, name):
    for table in MEASURES[name].described:
        then, now = done.before[table], done.rows(table)
        assert now.height == then.height, table
        of_day = now.filter(partition_key=DAY)
        if of_day.height or table != "concept_drift":  # which needs more rows than a day has
            assert set(of_day["run_id"]) == {"again"}, table
        unchanged = pl.col("partition_key") != DAY
        columns = [column for column in now.columns if column != "realised"]
        assert now.filter(unchanged).select(columns).equals(then.filter(unchanged).select(columns)), table


@every_scored_measure
def test_a_partition_that_is_skipped_or_recorded_is_read_back_as_it_was_committed(done, name):
    (recorded,) = recorded_predictions(done.pipeline, done.pipeline.published_state(), [DAY])
    committed, skipped = done.again.measures, done.skipped[DAY].measures
    if name == "profiles":  # which nothing shows
        assert not {name} & (committed.keys() | skipped.keys() | recorded.measures.keys())
        return
    for other in (skipped, recorded.measures):
        assert _plain(name, other[name]) == _plain(name, committed[name])
    assert dict(MEASURES[name].shown(skipped[name])) is not None


def _plain(name: str, value: Any) -> Any:
    """A value to compare; what comes true later is left out."""
    if isinstance(value, pl.DataFrame):
        return value.rows()
    if name == "estimates":
        return [(row.metric, row.estimate, row.low, row.high) for row in value.metrics]
    return value


@every_scored_measure
@pytest.mark.parametrize("key", [EMPTY, ONE_ROW])
def test_a_partition_without_rows_and_one_with_a_single_row_are_measured(done, name, key):
    measure, partition = MEASURES[name], done.skipped[key]
    assert partition.run.rows_scored == (key == ONE_ROW)
    check = measure.check(done.pipeline.spec)
    if name in partition.measures:
        shown = measure.shown(partition.measures[name])
        assert all(isinstance(number, str) and number for number in shown)
        judged = None if check is None else check.judge(partition.measures[name], "binary")
        assert judged is None or judged.level in ("none", "warn", "fail")
    rows = [done.rows(table).filter(partition_key=key) for table in measure.described if done.rows(table).height]
    assert all("run" in set(of_table["run_id"]) for of_table in rows if of_table.height)


class Broken(ScoredMeasure):
    name = "broken"
    description = "It lacks a column."
    columns = MappingProxyType({"cells": Column(pl.Int64), "empty": Column(pl.Int64)})

    def score(self, run, part):
        return pl.DataFrame({"cells": [run.rows_scored + len(part.profiles)]})


def test_a_measure_that_computes_other_columns_than_it_declares_is_refused_and_changes_nothing(done, monkeypatch):
    monkeypatch.setitem(MEASURES, "broken", Broken())
    before, pipeline = done.rows("profiles"), done.pipeline
    told = r"small, partition 2024-02-06: the measure 'broken' computed no column 'empty'; it computed 'cells'\."
    with pytest.raises(DataError, match=told) as refused:
        list(pipeline.score([pipeline.spec.partitions.calendar.named(DAY)], Stamp("broken", NOW), force=True))
    assert "cells, empty" in refused.value.hint
    pipeline.publish()
    assert done.rows("profiles").equals(before)
