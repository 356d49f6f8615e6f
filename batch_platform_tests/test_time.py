"""Every place that computes with time, held against `zoneinfo` alone: partitions, due dates, windows, and times without a zone."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
from hypothesis import given

from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Calendar
from batch_platform.features.fingerprints import instant
from batch_platform.features.row_checks import instants
from batch_platform.operations.trace import _with_zone
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.harness.tiers import examples
from batch_platform_tests.harness.windows import windows_near_a_change

HOUR = timedelta(hours=1)


def instant_of(local: datetime, zone: ZoneInfo) -> datetime:
    """The instant of a local time: the second of two, and as if clocks had not moved where they skip it."""
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return second if first.astimezone(zone).replace(tzinfo=None) == local else first


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The instant at which a day starts: the first of two midnights."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def later(at: datetime, zone: ZoneInfo, *, days: int = 0, hours: int = 0) -> datetime:
    """The instant some days or hours later; days lead from the start of a day to the start of a day."""
    return midnight(at.astimezone(zone).date() + timedelta(days=days), zone) if days else at + hours * HOUR


def key_of(at: datetime, zone: ZoneInfo, every: str) -> str:
    local = at.astimezone(zone)
    if every != "hour":
        return f"{local:%Y-%m-%d}"
    return f"{local:%Y-%m-%d-%H:%M%z}" if local.fold else f"{local:%Y-%m-%d-%H:%M}"


def next_start(at: datetime, zone: ZoneInfo, every: str) -> datetime:
    return at + HOUR if every == "hour" else later(at, zone, days=7 if every == "week" else 1)


@examples(60)
@given(windows_near_a_change())
def test_whatever_computes_with_time_agrees_with_zoneinfo(drawn):
    spec, partitions, evaluate = drawn
    zone, every = ZoneInfo(spec.partitions.timezone), spec.partitions.every
    spec = spec.model_copy(update={"monitoring": small_spec(monitoring={"fresh_by": "07:00"}).monitoring})
    calendar, delay = spec.partitions.calendar, spec.labels.maturity
    first = midnight(date.fromisoformat(spec.partitions.start), zone)
    for partition in partitions:
        assert (partition.start, partition.end) == (first, next_start(first, zone, every))
        assert partition.key == key_of(first, zone, every)
        assert spec.periods.matures(partition) == later(partition.end, zone, days=delay.days, hours=delay.hours)
        day = partition.end.astimezone(zone).date()
        mornings = [datetime.combine(day + timedelta(days=n), time(7), zone).astimezone(UTC) for n in (0, 1)]
        assert spec.periods.deadline(partition) == next(at for at in mornings if at > partition.end)
        first = partition.end
    now = partitions[-1].end
    periods = spec.periods.begun(now)[-3:]
    assert periods
    for period in periods:
        assert period.start == midnight(date.fromisoformat(period.key), zone)
        window = spec.periods.window(period.start)
        assert window == [
            it for it in partitions if window[0].start <= it.start and spec.periods.matures(it) <= period.start
        ]
        assert spec.periods.evaluation_start(window) == window[-evaluate].start
    wiring = Wiring(spec, Path("/nowhere"))
    for ours, theirs in (
        (calendar, wiring.partitions),
        (spec.periods.served, wiring.served),
        (spec.periods.trainable, wiring.serving_periods),
    ):
        agrees_with_dagster(ours, theirs, now)
    read_alike(partitions[0].start, now, spec, zone)


def agrees_with_dagster(ours: Calendar | None, theirs, now: datetime) -> None:
    assert ours is not None
    keys = theirs.get_partition_keys(current_time=now)
    assert keys == [partition.key for partition in ours.due(now)]
    windows = [theirs.time_window_for_partition_key(key) for key in keys]
    assert [window.start.timestamp() for window in windows] == [it.start.timestamp() for it in ours.due(now)]


def read_alike(start: datetime, end: datetime, spec, zone: ZoneInfo) -> None:
    """Polars, DuckDB and `trace` read times without a zone as instants, each half hour over all the partitions."""
    begin = start.astimezone(zone).replace(tzinfo=None)
    local = [begin + n * HOUR / 2 for n in range(min(2 * int((end - start) / HOUR), 2_000))]
    right = [instant_of(at, zone) for at in local]
    assert instants(pl.Series(local), zone).to_list() == right
    with duckdb.connect() as con:
        con.execute(f"SET TimeZone = '{zone.key}'")
        con.register("times", pl.DataFrame({"moment": local}))
        rows = con.execute(f"SELECT epoch_us({instant('moment')}) FROM times ORDER BY moment").fetchall()
    assert [at for (at,) in rows] == [round(at.timestamp() * 1e6) for at in right]
    assert [datetime.fromisoformat(_with_zone(str(at), spec)) for at in local[:50]] == right[:50]


def test_serving_periods_may_begin_with_the_second_of_two_hours_that_clocks_repeat():
    spec = small_spec(
        partitions={"every": "hour", "start": "2024-10-26T23:00", "end": None},
        labels={"delay": "0 days"},
        model={"train": {"every": "hour", "evaluate": "2 hours"}},
    )
    wiring = Wiring(spec, Path("/nowhere"))
    ours = spec.periods.trainable
    assert ours is not None
    assert ours.due(ours.first_start)[0].key == "2024-10-27-02:00+0100"
    agrees_with_dagster(ours, wiring.serving_periods, ours.first_start + 5 * HOUR)
    agrees_with_dagster(spec.periods.served, wiring.served, ours.first_start + 5 * HOUR)
