from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Calendar, Duration, Every, shifts_by_whole_hours
from batch_platform.declaration.errors import WrongUseError
from batch_platform_tests.harness.tiers import examples

pytestmark = pytest.mark.unit

ZONES = [
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",  # summer time is half an hour
    "America/Sao_Paulo",  # midnight was skipped until 2018
    "Asia/Kathmandu",  # 5:45 ahead
    "Africa/Casablanca",  # winter time in Ramadan
    "Asia/Beirut",  # midnight is skipped
    "America/Havana",  # midnight comes twice
    "America/St_Johns",
    "Antarctica/Troll",  # summer time is two hours
    "Asia/Tehran",
    "Africa/Cairo",
    "Pacific/Apia",
]
DAGSTER = {
    "hour": dg.HourlyPartitionsDefinition,
    "day": dg.DailyPartitionsDefinition,
    "week": dg.WeeklyPartitionsDefinition,
    "month": dg.MonthlyPartitionsDefinition,
}
SPANS = {
    "hour": timedelta(hours=40),
    "day": timedelta(days=40),
    "week": timedelta(weeks=12),
    "month": timedelta(days=400),
}
local = datetime.fromisoformat

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")

everys = st.sampled_from([*DAGSTER])
zones = st.sampled_from(ZONES).map(ZoneInfo)
starts = st.datetimes(local("2013-01-01"), local("2029-12-31"), allow_imaginary=False).map(
    lambda moment: moment.replace(second=0, microsecond=0)
)
shares = st.floats(0, 1)


@st.composite
def changes(draw, zone):
    """A local time near a change to or from summer time, else any: where calendars go wrong."""
    start = draw(starts)
    day = start.replace(tzinfo=UTC)
    for _ in range(240):
        if day.astimezone(zone).utcoffset() != (day + timedelta(days=1)).astimezone(zone).utcoffset():
            return day.astimezone(zone).replace(tzinfo=None, fold=0, minute=draw(st.sampled_from([0, 17])))
        day += timedelta(days=1)
    return start


@st.composite
def calendars(draw, every=everys, end=True):
    """A calendar that Dagster can have, too: with an end where a window ends, or none."""
    length, zone = draw(every), draw(zones)
    assume(length != "hour" or shifts_by_whole_hours(zone, local("2012-01-01"), local("2032-01-01")))
    start = draw(changes(zone)) - SPANS[length] * draw(shares)
    start = start.replace(second=0, microsecond=0)
    start = draw(st.sampled_from([start, start.replace(hour=0, minute=0)]))
    offset = draw(st.integers(0, 1))
    calendar = Calendar(length, zone, start, None, offset)
    if not end or not draw(st.booleans()):
        return calendar
    until = calendar.first_start + SPANS[length] * draw(shares)
    last = calendar.holding(until).end
    return Calendar(length, zone, start, last.astimezone(zone).replace(tzinfo=None), offset)


def theirs(calendar: Calendar, now: datetime) -> list[tuple[str, datetime, datetime]]:
    end = None if calendar.last_end is None else calendar.last_end.astimezone(calendar.zone)
    weeks = {"day_offset": calendar.cron_weekday} if calendar.every == "week" else {}
    definition = DAGSTER[calendar.every](
        start_date=calendar.start, end_date=end, timezone=calendar.zone.key, end_offset=calendar.end_offset, **weeks
    )
    keys = definition.get_partition_keys(current_time=now)
    windows = [(key, definition.time_window_for_partition_key(key)) for key in keys]
    return [(key, window.start.astimezone(UTC), window.end.astimezone(UTC)) for key, window in windows]


@examples(250)
@given(calendar=calendars(), share=shares)
def test_windows_and_keys_are_those_of_dagster(calendar, share):
    # Before the first window begins, Dagster lists it already if end_offset is 1; ours is due once it has begun.
    now = calendar.first_start + SPANS[calendar.every] * share * 1.5
    assert [(p.key, p.start, p.end) for p in calendar.due(now)] == theirs(calendar, now)


@examples(100)
@given(calendar=calendars(end=False), share=shares)
def test_every_instant_lies_in_exactly_one_partition(calendar, share):
    instant = calendar.first_start + SPANS[calendar.every] * share
    partitions = calendar.within(calendar.first_start, instant + 3 * SPANS[calendar.every])
    assert partitions[0].start == calendar.first_start
    assert all(earlier.end == later.start for earlier, later in pairwise(partitions))
    assert [p for p in partitions if p.start <= instant < p.end] == [calendar.holding(instant)]


@examples(100)
@given(calendar=calendars(), low=shares, high=shares)
def test_within_due_and_holding_agree(calendar, low, high):
    first, span = calendar.first_start, SPANS[calendar.every]
    start, end = sorted([first + span * (2 * low - 0.5), first + span * (2 * high - 0.5)])
    closed = [partition for partition in calendar.due(end) if partition.end <= end]
    assert calendar.within(start, end) == [partition for partition in closed if partition.start >= start]
    assert [calendar.holding(partition.start) for partition in closed] == closed
    assert [calendar.next_from(partition.start) for partition in closed] == closed
    assert [calendar.next_from(it.start + timedelta(microseconds=1)) for it in closed[:-1]] == closed[1:]
    assert [calendar.holding(partition.end - timedelta(microseconds=1)) for partition in closed] == closed


@pytest.mark.parametrize(
    ("zone", "key", "hours"),
    [("Europe/Berlin", "2024-03-31", 23), ("Europe/Berlin", "2024-10-27", 25), ("America/Sao_Paulo", "2018-11-04", 23)],
)
def test_a_day_has_23_24_or_25_hours_as_the_clocks_say(zone, key, hours):
    day = Calendar("day", ZoneInfo(zone), local("2013-01-01")).named(key)
    assert day.end - day.start == timedelta(hours=hours)


WRONG_KEYS: dict[Every, list[str]] = {
    "hour": ["2024-01-01", "2024-01-01-05:30", "2024-01-01-24:00", "2024-01-01-05:00+0100", "2024-06-01-05:00:00"],
    "day": ["2024-02-30", "2024-1-1", "2024-01-01T00:00", "", "../2024-01-01", "202\u0664-01-01"],
    "week": ["2024-01-08", "2024-W02"],
    "month": ["2024-01-02", "2024-01", "2024-13-01"],
}


@pytest.mark.parametrize(("every", "key"), [(every, key) for every, keys in WRONG_KEYS.items() for key in keys])
def test_a_key_of_no_partition_is_refused_with_an_example(every, key):
    calendar = Calendar(every, BERLIN, local("2023-01-01"))
    with pytest.raises(WrongUseError, match=r"is not the key of a partition: .* have keys like '2023-01-01") as refused:
        calendar.named(key)
    assert repr(key) in str(refused.value)


@pytest.mark.parametrize(
    ("key", "message"), [("2023-12-31", "before the first one, '2024-01-01'"), ("2024-03-01", "at or after the end")]
)
def test_a_key_beyond_the_calendar_is_refused(key, message):
    calendar = Calendar("day", BERLIN, local("2024-01-01"), local("2024-03-01"))
    with pytest.raises(WrongUseError, match=message):
        calendar.named(key)


def test_no_partition_holds_an_instant_before_the_first_or_after_the_last_partition():
    calendar = Calendar("day", BERLIN, local("2024-01-01"), local("2024-01-03"))
    assert calendar.holding(calendar.first_start - timedelta(microseconds=1)) is None
    assert calendar.holding(calendar.first_start).key == "2024-01-01"
    assert calendar.holding(calendar.last_end - timedelta(microseconds=1)).key == "2024-01-02"
    assert calendar.holding(calendar.last_end) is None
    assert calendar.next_from(calendar.first_start - timedelta(days=9)).key == "2024-01-01"
    assert calendar.next_from(calendar.last_end - timedelta(days=1)).key == "2024-01-02"
    assert calendar.next_from(calendar.last_end - timedelta(hours=1)) is None
    assert (
        Calendar("week", BERLIN, local("2024-01-01")).next_from(local("2024-06-01").replace(tzinfo=BERLIN)).key
        == "2024-06-03"
    )


def test_a_partition_is_due_when_it_closes_or_with_an_offset_when_it_begins():
    midnight = datetime(2024, 1, 3, tzinfo=BERLIN)
    for offset, before, at in [(0, "2024-01-01", "2024-01-02"), (1, "2024-01-02", "2024-01-03")]:
        calendar = Calendar("day", BERLIN, local("2024-01-01"), None, offset)
        assert calendar.due(midnight - timedelta(microseconds=1))[-1].key == before
        assert calendar.due(midnight)[-1].key == at


@pytest.mark.parametrize(
    ("duration", "before", "after"),
    [
        (Duration(days=1), "2024-03-30T12:00+01:00", "2024-03-31T12:00+02:00"),
        (Duration(hours=24), "2024-03-30T12:00+01:00", "2024-03-31T13:00+02:00"),
        (Duration(days=7), "2024-10-21T00:00+02:00", "2024-10-28T00:00+01:00"),
    ],
)
def test_a_duration_of_days_follows_the_clock_and_a_duration_of_hours_does_not(duration, before, after):
    earlier, later = datetime.fromisoformat(before), datetime.fromisoformat(after)
    assert duration.after(earlier, BERLIN) == later
    assert duration.before(later, BERLIN) == earlier


@pytest.mark.parametrize("zone", ZONES)
def test_only_clocks_that_shift_by_whole_hours_can_have_hours_as_partitions(zone):
    assert shifts_by_whole_hours(ZoneInfo(zone), local("2013-01-01"), None) == (zone != "Australia/Lord_Howe")


@pytest.mark.parametrize(
    ("start", "end", "whole"),
    [("2014-12-30", "2016-05-02", False), ("2014-12-30", "2016-05-01", True), ("2016-05-02", None, True)],
)
def test_a_shift_by_half_an_hour_counts_only_between_start_and_end_and_however_late_it_comes(start, end, whole):
    clocks_moved_on_the_first_of_may = ZoneInfo("America/Caracas")
    assert shifts_by_whole_hours(clocks_moved_on_the_first_of_may, local(start), end and local(end)) == whole


def test_weeks_after_a_date_that_the_zone_skipped_begin_on_the_same_weekday():
    def weeks() -> Calendar:
        return Calendar("week", ZoneInfo("Pacific/Apia"), datetime(2011, 12, 16))  # noqa: DTZ001 - local, a Friday

    windows = weeks().due(datetime(2012, 1, 15, tzinfo=UTC))
    assert [window.key for window in windows] == ["2011-12-16", "2011-12-23", "2011-12-31", "2012-01-06"]
    assert [weeks().named(window.key) for window in windows] == windows, "each key is read alone too"
