"""Time travel: features that change once the rows of later times are taken away know the future, and are named."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import yaml

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.defs.flight_delays import sources
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.time_travel import TimeLeak, travel_in_time
from batch_platform.warehouse.home import Home
from batch_platform_tests.harness.small_pipeline import ROWS_PER_DAY, small_events, small_pipeline

NOW = datetime(2024, 3, 2, 12, tzinfo=UTC)
INSIDE = "e.ts >= $partition_start AND e.ts < $partition_end"
HONEST = f"""
SELECT id, ts, amount, shop, (SELECT count(*) FROM events AS b WHERE b.shop = e.shop AND b.ts < $partition_start) AS before
FROM events AS e WHERE {INSIDE}
"""
LEAKING = HONEST.replace("AND b.ts < $partition_start", "").replace(
    "amount,", "amount, lead(e.amount) OVER (ORDER BY e.ts) AS next,"
)
NEWS = """
SELECT e.id, e.ts, e.amount, max(w.wind) AS wind, max(w.wind) FILTER (w.seen_at < $partition_start) AS wind_before, max(p.old) AS old
FROM events AS e JOIN weather AS w ON date_trunc('hour', e.ts) >= w.seen_at JOIN shops AS p USING (shop)
WHERE e.ts >= $partition_start AND e.ts < $partition_end GROUP BY ALL
"""


def with_weather(tmp_path, **sources):
    pipeline = small_pipeline(
        tmp_path,
        features_sql=NEWS,
        sources={
            "weather": {"parquet": "weather.parquet", "time": "seen_at", **sources},
            "shops": {"parquet": "shops.parquet"},
        },
    )
    events, folder = small_events(), tmp_path / "project"
    hours = pl.datetime_range(events["ts"].min(), events["ts"].max() + timedelta(hours=1), "1h", eager=True)
    weather = pl.DataFrame(
        {"seen_at": hours.dt.truncate("1h"), "wind": range(len(hours))}
    )  # a row knows all hours before
    weather.write_parquet(folder / "weather.parquet")
    events.select("shop").unique().with_columns(old=True).write_parquet(folder / "shops.parquet")
    return pipeline


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


def test_a_source_that_only_adds_columns_is_cut_at_the_start_of_the_partition_and_one_without_time_is_named(tmp_path):
    travel = travel_in_time(with_weather(tmp_path), NOW, 1)
    assert (travel.cut_at_start, travel.cut_at_end, travel.without_time) == (["weather"], ["events"], ["shops"])
    assert [(leak.source, leak.column) for leak in travel.leaks] == [("weather", "wind")]
    assert 0 < travel.leaks[0].rows <= ROWS_PER_DAY
    assert "after the partition's start" in travel.errors[0].message
    assert "shops could not be checked: neither `time` of the source nor the SQL says" in travel.remarks[-1]
