"""Time travel: features that change once the rows of later times are taken away know the future, and are named."""

from datetime import UTC, datetime
from pathlib import Path

import yaml

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.defs.flight_delays import sources
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.time_travel import TimeLeak, travel_in_time
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import ROWS_PER_DAY, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
INSIDE = "e.ts >= $partition_start AND e.ts < $partition_end"
HONEST = f"""
SELECT id, ts, amount, shop, (SELECT count(*) FROM events AS b WHERE b.shop = e.shop AND b.ts < $partition_start) AS before
FROM events AS e WHERE {INSIDE}
"""
LEAKING = HONEST.replace("AND b.ts < $partition_start", "").replace(
    "amount,", "amount, lead(e.amount) OVER (ORDER BY e.ts) AS next,"
)


def test_features_that_look_back_only_are_the_same_without_later_rows(tmp_path):
    travel = travel_in_time(small_pipeline(tmp_path, features_sql=HONEST), NOW, 4)
    assert travel.leaks == travel.errors == []
    assert travel.partitions == ["2024-01-15", "2024-01-30", "2024-02-14", "2024-02-29"]
    assert (travel.cut_at_start, travel.cut_at_end, travel.without_time) == ([], ["events"], [])
    assert travel.remarks == ["time travel: 4 partitions computed without the rows of events after the end"]


def test_the_shipped_features_know_nothing_of_later_flights_or_weather(tmp_path):
    folder = Path(sources.__file__).parent
    spec = PipelineSpec.model_validate(yaml.safe_load((folder / "defs.yaml").read_text())["attributes"])
    travel = travel_in_time(Pipeline(spec, folder, Home(tmp_path).create()), datetime(2014, 1, 2, tzinfo=UTC), 1)
    assert travel.leaks == []
    assert (travel.cut_at_start, travel.cut_at_end, travel.without_time) == (["weather"], ["flights"], ["planes"])


def test_a_feature_that_counts_later_rows_is_named(tmp_path):
    travel = travel_in_time(small_pipeline(tmp_path, features_sql=LEAKING), NOW, 2)
    assert travel.leaks == [TimeLeak("events", "before", "2024-01-30", ROWS_PER_DAY, ROWS_PER_DAY)]
    (error,) = travel.errors
    assert error.message == (
        "small, partition 2024-01-30: without the rows of source 'events' after the partition's end, the columns 'before' "
        "change (40 of 40 rows of 2024-01-30)."
    )
    assert error.hint == "compare the time of its rows with $partition_end in the features."


def test_features_by_spark_are_not_checked_and_that_is_said(tmp_path):
    engine = {"spark": {"master": "local[1]"}}
    features, sql = {"sql": None, "spark_sql": "features.sql"}, HONEST.replace("$", ":")
    pipeline = small_pipeline(tmp_path, features_sql=sql, features=features, engine=engine)
    (remark,) = travel_in_time(pipeline, NOW, 4).remarks
    assert remark.startswith("time travel: features.spark_sql is not checked: only DuckDB's SQL and functions")
