"""Partitions with rejected rows are listed, and scored again after a fix."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.scoring.rejected_rows import rejections, rows_as_json
from batch_platform_tests.harness.small_pipeline import finished_pipeline, small_events, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
RULES = {"columns": {"amount": {"min": 5}}, "max_rejected": "50%"}
DAYS = ("2024-02-02", "2024-02-03", "2024-02-04")


def events(*, least: float = 0.0) -> pl.DataFrame:
    """Two rows of 2 February and one of the 3rd have a negative amount, unless all amounts are raised to a minimum."""
    broken = pl.col("id").is_in([1290, 1300, 1330])
    return small_events().with_columns(amount=pl.when(broken).then(least or -1.0).otherwise(pl.col("amount")))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return finished_pipeline(tmp_path, NOW, features=RULES, events=events())


def rows(pipeline: Pipeline, table: str = "predictions") -> pl.DataFrame:
    with pipeline.warehouse.open() as con:
        frame = con.sql(f"FROM small.{table}").pl()
    return frame.sort("id" if table == "predictions" else "key")


def days(pipeline: Pipeline, *keys: str):
    return [pipeline.spec.partitions.calendar.named(key) for key in keys or DAYS]


def replayed(pipeline: Pipeline, *keys: str, run_id: str = "replay"):
    """`batch-platform replay` builds and scores the partitions with rejected rows again."""
    stamp, scores = Stamp(run_id, NOW), pipeline.state().scores
    rejected = [day for day in days(pipeline, *keys) if scores[day.key].rows_rejected]
    list(pipeline.build_features(rejected, stamp, force=True))
    return list(pipeline.score(rejected, stamp, force=True))


def test_a_fix_in_the_source_scores_the_rejected_rows(pipeline, tmp_path):
    before, rejected = rows(pipeline), rows(pipeline, "rejected_rows")
    fixed = small_pipeline(tmp_path, features=RULES, events=events(least=12.5))
    assert [committed.partition.key for committed in replayed(fixed)] == ["2024-02-02", "2024-02-03"]
    after = rows(fixed)
    new = after.join(before, on="id", how="anti")
    assert new["id"].to_list() == [1290, 1300, 1330]
    still_rejected = rows(fixed, "rejected_rows")["key"].to_list()
    fixed_keys = ('{"id":1290}', '{"id":1300}', '{"id":1330}')
    assert still_rejected == [key for key in rejected["key"] if key not in fixed_keys]
    replayed_days = pl.col("partition_key").is_in(["2024-02-02", "2024-02-03"])
    assert after.filter(~replayed_days).equals(before.filter(~replayed_days)), "other partitions are byte-equal"
    assert set(after.filter(replayed_days)["run_id"]) == {"replay"}
    unchanged = after.join(new, on="id", how="anti").drop("run_id", "scored_at")
    assert unchanged.equals(before.drop("run_id", "scored_at")), "the other rows have the scores that they had"


def test_rejections_are_counted_by_reason_and_listed_by_partition(pipeline):
    rejected = rejections("small", pipeline.home)
    assert (
        rejected.rows
        == sum(run.rows_rejected for run in pipeline.state().scores.values())
        == sum(rejected.reasons.values())
    )
    assert [row.partition for row in rejected.listed] == sorted(row.partition for row in rejected.listed)
    few = rejections("small", pipeline.home, partition_keys=["2024-02-02"], most=1)
    assert (few.rows, len(few.listed)) == (pipeline.state().scores["2024-02-02"].rows_rejected, 1)
    by_id = {row.key["id"]: row for row in rejections("small", pipeline.home, partition_keys=["2024-02-02"]).listed}
    assert (by_id[1290].column, by_id[1290].reason) == ("amount", "below the minimum 5")
    assert by_id[1290].row["amount"] == -1.0


@pytest.mark.unit
def test_a_row_as_json_keeps_every_value():
    frame = pl.DataFrame(
        {
            "number": [1.5, float("inf"), float("-inf"), float("nan"), None],
            "text": ["x\0y", '"', "é", None, "\u202e"],
            "bytes": [b"\xff\x00", b"", None, b"a", b"b"],
            "other": [float("nan"), 1.0, 2.0, 3.0, 4.0],
        }
    )
    assert rows_as_json(frame).to_list() == [
        '{"number":1.5,"text":"x\\u0000y","bytes":"ff00","other":"NaN"}',
        '{"number":"Infinity","text":"\\"","bytes":"","other":1.0}',
        '{"number":"-Infinity","text":"é","bytes":null,"other":2.0}',
        '{"number":"NaN","text":null,"bytes":"61","other":3.0}',
        '{"number":null,"text":"\u202e","bytes":"62","other":4.0}',
    ]
    assert rows_as_json(frame.clear()).to_list() == []
    assert rows_as_json(frame.select("text").head(1)).to_list() == ['{"text":"x\\u0000y"}']
