"""Real tables of a year or more that come with the project, and faults that are put into some of their partitions."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np
import polars as pl

DEFS = Path(__file__).parents[2] / "batch_platform" / "defs"
TOGETHER = 3  # partitions in a row that hold a fault
ID, TIME, LABEL, KEY = "id", "ts", "late", "chunk"


@dataclass(frozen=True)
class Table:
    """A table with a row for each id, by time, whose label can be predicted from the other columns."""

    name: str
    every: str
    rows: pl.DataFrame  # ID, TIME, features, LABEL, and KEY: the partition
    number: str  # column in which numeric faults are put
    category: str

    @property
    def features(self) -> list[str]:
        """The names of the features."""
        return [name for name in self.rows.columns if name not in (ID, TIME, LABEL, KEY)]

    @property
    def keys(self) -> list[str]:
        """The partitions, in order."""
        return self.rows[KEY].unique().sort().to_list()

    @property
    def served(self) -> list[str]:
        """The partitions of the second half, which the model scores; the last may be cut off."""
        return self.keys[len(self.keys) // 2 : -1]

    @property
    def starts_of_faults(self) -> list[int]:
        """The places among the served partitions at which a fault begins."""
        step = 12 if self.every == "day" else 5
        return [*range(2, len(self.served) - TOGETHER, step)]


def tables() -> list[Table]:
    """Flights as scheduled by day, the weather at three airports by week, and flights as flown by day."""
    flights = pl.read_parquet(DEFS / "flight_delays" / "data" / "flights.parquet").sort(
        "scheduled_departure", "flight_id"
    )
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    flights = flights.select(
        pl.int_range(pl.len()).alias(ID),
        local.dt.replace_time_zone(None).dt.replace_time_zone("UTC").alias(TIME),
        "carrier",
        "origin",
        "dest",
        local.dt.hour().cast(pl.Float64).alias("hour"),
        pl.col("distance").cast(pl.Float64),
        ((pl.col("scheduled_arrival") - pl.col("scheduled_departure")).dt.total_minutes()).cast(pl.Float64).alias("minutes"),
        pl.col("dep_delay").cast(pl.Float64),
        pl.col("air_time").cast(pl.Float64),
        (pl.col("arr_delay") >= 30).fill_null(value=True).alias(LABEL),
        local.dt.date().cast(pl.String).alias(KEY),
    )  # fmt: skip
    weather = pl.read_parquet(DEFS / "flight_delays" / "data" / "weather.parquet").sort("time_hour", "origin")
    numbers = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "pressure", "visib")
    weather = weather.with_row_index(ID).select(
        pl.col(ID).cast(pl.Int64),
        pl.col("time_hour").alias(TIME),
        "origin",
        *(pl.col(name).cast(pl.Float64) for name in numbers),
        (pl.col("precip") > 0).alias(LABEL),
        pl.col("time_hour").dt.truncate("1w").dt.date().cast(pl.String).alias(KEY),
    )
    flown = flights.drop_nulls(["dep_delay", "air_time"]).drop("dest", "minutes")
    return [
        Table("flights, by day", "day", flights.drop("dep_delay", "air_time"), "distance", "carrier"),
        Table(
            "weather, by week", "week", weather.filter(pl.col(TIME) < _at(date(2013, 12, 30))), "wind_speed", "origin"
        ),
        Table("flights flown, by day", "day", flown, "air_time", "carrier"),
    ]


def _at(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


Fault = Callable[[Table, pl.DataFrame, pl.DataFrame, np.random.Generator], pl.DataFrame]


def _number(change: Callable[[pl.Expr], pl.Expr], share: float) -> Fault:
    def faulty(table: Table, rows: pl.DataFrame, _: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
        hit = pl.lit(pl.Series(random.permutation(rows.height) < share * rows.height))
        column = pl.col(table.number)
        return rows.with_columns(pl.when(hit).then(change(column)).otherwise(column).alias(table.number))

    return faulty


def _shuffled(table: Table, rows: pl.DataFrame, _: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    return rows.with_columns(rows[name].gather(random.permutation(rows.height)) for name in table.features)


def _stale(_: Table, rows: pl.DataFrame, before: pl.DataFrame, __: np.random.Generator) -> pl.DataFrame:
    times = np.resize(rows[TIME].to_numpy(), before.height)
    same = before.with_columns(pl.Series(TIME, times).dt.replace_time_zone("UTC"), pl.lit(rows[KEY][0]).alias(KEY))
    return same.with_columns(pl.col(ID) + 10_000_000)


def _repeated(_: Table, rows: pl.DataFrame, __: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    again = rows[random.choice(rows.height, rows.height // 5, replace=False)]
    return pl.concat([rows, again.with_columns(pl.col(ID) + 20_000_000)])


def _one_category(table: Table, rows: pl.DataFrame, _: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    most = rows[table.category].mode().sort()[0]
    hit = pl.lit(pl.Series(random.random(rows.height) < 0.3))
    return rows.with_columns(pl.when(hit).then(pl.lit(most)).otherwise(table.category).alias(table.category))


def _flipped(share: float) -> Fault:
    def faulty(_: Table, rows: pl.DataFrame, __: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
        return rows.with_columns(pl.col(LABEL) ^ pl.Series(random.random(rows.height) < share))

    return faulty


FAULTS: dict[str, Fault] = {
    "2% of a number times 100": _number(lambda column: column * 100, 0.02),
    "a number doubled": _number(lambda column: column * 2, 1.0),
    "30% of a number null": _number(lambda _: pl.lit(None, pl.Float64), 0.3),
    "a category grows by 30%": _one_category,
    "columns shuffled": _shuffled,
    "yesterday's rows again": _stale,
    "20% repeated rows": _repeated,
    "all labels flipped": _flipped(1.0),
    "half of the labels flipped": _flipped(0.5),
}


def faulty_partitions(table: Table, fault: str) -> dict[str, list[pl.DataFrame]]:
    """The partitions with a fault, by the key of the first of each stretch."""
    random, by_key = np.random.default_rng(0), table.rows.partition_by(KEY, as_dict=True)
    stretches = dict[str, list[pl.DataFrame]]()
    for start in table.starts_of_faults:
        stretch = stretches.setdefault(table.served[start], [])
        for place in range(start, start + TOGETHER):
            before = by_key[table.served[start - 1],]
            made = FAULTS[fault](table, by_key[table.served[place],], before, random)
            stretch.append(
                made.with_columns(pl.col(ID) + place * 100_000_000) if fault.startswith("yesterday") else made
            )
    return stretches
