"""The SQL of the flight_delays pipeline: complete, repeatable, and blind to what happens after the partition starts."""

import io
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pytest

from batch_platform.defs.flight_delays import sources

Tables = dict[str, pl.DataFrame]
Features = Callable[[date], pl.DataFrame]

FOLDER = Path(sources.__file__).parent
FEATURES = (FOLDER / "features.sql").read_text()
NEW_YORK = ZoneInfo("America/New_York")

DAYS = [
    pytest.param(date(2013, 1, 1), id="first day: no history, no weather"),
    pytest.param(date(2013, 3, 10), id="day of 23 hours"),
    pytest.param(date(2013, 11, 3), id="day of 25 hours"),
    pytest.param(date(2013, 12, 31), id="last day: weather ends 30 hours before it does"),
]
OUTCOMES = ["arrived_at", "dep_delay", "arr_delay", "air_time"]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return {read.__name__: read().collect() for read in (sources.flights, sources.weather, sources.planes)}


@pytest.fixture(scope="module")
def features_of(tables: Tables) -> Features:
    """The features of a day, calculated once from the tables as they are."""
    return cache(partial(features, tables))


@pytest.mark.parametrize("day", DAYS)
def test_features_do_not_change_when_the_future_is_different(tables: Tables, features_of: Features, day: date) -> None:
    start = start_of(day)
    unknown = (pl.col("arrived_at") >= start) | (
        pl.col("arrived_at").is_null() & (pl.col("scheduled_departure") >= start)
    )
    flights, weather = tables["flights"], tables["weather"]
    changed = {
        **tables,
        "flights": flights.with_columns(
            pl.when(unknown).then(start + timedelta(hours=25)).otherwise("arrived_at").alias("arrived_at"),
            *(pl.when(unknown).then(999).otherwise(name).alias(name) for name in OUTCOMES[1:]),
        ),
        "weather": weather.with_columns(
            pl.when(pl.col("time_hour") >= start).then(-99.0).otherwise(name).alias(name)
            for name, dtype in weather.schema.items()
            if dtype.is_float()
        ),
    }
    assert not changed["flights"].equals(flights)
    assert as_bytes(features(changed, day)) == as_bytes(features_of(day))


def test_an_arrival_counts_from_the_moment_it_is_known(tables: Tables, features_of: Features) -> None:
    # This leaves no doubt that the law above is able to fail.
    day = date(2013, 7, 11)
    start = start_of(day)
    last_to_arrive = tables["flights"].filter(pl.col("arrived_at") < start)["arrived_at"].max()
    without = {
        **tables,
        "flights": tables["flights"].with_columns(
            pl.when(pl.col("arrived_at") == last_to_arrive).then(None).otherwise(name).alias(name) for name in OUTCOMES
        ),
    }
    assert as_bytes(features(without, day)) != as_bytes(features_of(day))


@pytest.mark.unit
def test_a_flight_arrives_within_a_day_of_the_end_of_its_partition(tables: Tables) -> None:
    # This is what `labels: {delay: 1 day}` in defs.yaml promises.
    local = tables["flights"].select(
        pl.col("scheduled_departure", "arrived_at").dt.convert_time_zone("America/New_York")
    )
    known = pl.col("scheduled_departure").dt.truncate("1d").dt.offset_by("2d")
    assert local.filter(pl.col("arrived_at") >= known).is_empty()


def start_of(day: date) -> datetime:
    return datetime.combine(day, time(), NEW_YORK).astimezone(UTC)


def features(tables: Tables, day: date) -> pl.DataFrame:
    values = {"partition_start": start_of(day), "partition_end": start_of(day + timedelta(days=1))}
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'America/New_York'")
        for name, table in tables.items():
            con.register("table_in_memory", table)
            con.execute(f"CREATE TABLE {name} AS FROM table_in_memory")
        return con.sql(FEATURES, params={name: value for name, value in values.items() if f"${name}" in FEATURES}).pl()


def as_bytes(frame: pl.DataFrame) -> bytes:
    assert frame.height > 0
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()
