"""Tables as people bring them, for the transcripts in the README: made anew up to yesterday, and what arrives after a first run."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from batch_platform.cli.demo import customers as customers_of_the_shop

DAYS, ORDERS_A_DAY = 107, 40
HOURS = 24 * 140


def customers(folder: Path, yesterday: date) -> None:  # noqa: ARG001 - a table without times
    """A CSV of customers without dates; whether the newest of them leave is not known yet."""
    customers_of_the_shop().write_csv(folder / "customers.csv")


def daily_files(folder: Path, yesterday: date) -> None:
    """A folder with one Parquet file a day, written by pandas; the last day is still to come."""
    (folder / "orders").mkdir()
    for ago in range(DAYS, 0, -1):
        _write_day(folder, yesterday - timedelta(days=ago))


def another_day(folder: Path, yesterday: date) -> None:
    _write_day(folder, yesterday)


def meter(folder: Path, yesterday: date) -> None:
    """A CSV with one reading an hour, up to the day before yesterday."""
    _meter(yesterday, HOURS).write_csv(folder / "meter.csv")


def another_day_of_readings(folder: Path, yesterday: date) -> None:
    _meter(yesterday, HOURS + 24).write_csv(folder / "meter.csv")


STORIES: dict[str, Callable[[Path, date], None]] = {  # by the lines of the transcripts that begin with `#`
    "# customers.csv: one row a customer": customers,
    "# orders/: a Parquet file a day, written by pandas": daily_files,
    "# the file of another day arrives": another_day,
    "# meter.csv: one reading an hour": meter,
    "# the readings of another day arrive": another_day_of_readings,
}


def _write_day(folder: Path, day: date) -> None:
    import pandas as pd

    random = np.random.default_rng(day.toordinal())
    seconds = np.sort(random.integers(0, 86_400, ORDERS_A_DAY))
    items = random.integers(1, 6, ORDERS_A_DAY)
    orders = pd.DataFrame(
        {
            "order_id": day.toordinal() * 100 + np.arange(ORDERS_A_DAY),
            "ordered_at": pd.Timestamp(day) + pd.to_timedelta(seconds, unit="s"),
            "shop": random.choice(["north", "south", "online"], ORDERS_A_DAY),
            "items": items,
            "amount": random.gamma(3, 20, ORDERS_A_DAY).round(2),
            "returned": random.random(ORDERS_A_DAY) < np.where(items > 3, 0.5, 0.1),
        }
    )
    orders.to_parquet(folder / "orders" / f"{day}.parquet")


def _meter(yesterday: date, hours: int) -> pl.DataFrame:
    random, at = np.random.default_rng(3), np.arange(hours)
    first = pl.Series([yesterday]).cast(pl.Datetime("us"))[0] - timedelta(hours=HOURS)
    day, month = 2 * np.pi / 24, 2 * np.pi / (24 * 30)
    load = 100 + 20 * np.sin(day * at) + 25 * np.sin(month * at) + random.normal(0, 2, hours)
    return pl.DataFrame({"time": [first + timedelta(hours=int(hour)) for hour in at], "load": load.round(2)})
