"""The calendar of a pipeline: its partitions as half-open windows of time, and their keys.

Windows and keys equal those of Dagster's time-window partitions: weeks start on the weekday of `start`, and where winter
time repeats an hour, the key of the second one has its UTC offset. They are computed here so that nothing below `components`
needs Dagster; a test compares the two in many time zones.
"""

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from operator import attrgetter
from threading import Lock
from typing import Literal
from zoneinfo import ZoneInfo

from batch_platform.declaration.errors import WrongUseError

Every = Literal["hour", "day", "week", "month"]
KEY_FORMATS: dict[Every, str] = {"hour": "%Y-%m-%d-%H:%M", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m-%d"}
FIRST_YEAR, LAST_YEAR = 2, 9998  # years that partitions can lie in, whatever the time zone
_HOUR = timedelta(hours=1)
_CLOCKS_KNOWN_UNTIL = datetime(2038, 1, 1)  # noqa: DTZ001 - on any clock; from then on zones repeat a yearly rule
_GROWING = Lock()  # schedules of one pipeline are evaluated on threads
_start, _end = attrgetter("start"), attrgetter("end")


@dataclass(frozen=True)
class Partition:
    """One window of time, `start <= t < end`, both instants in UTC."""

    key: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Duration:
    """A length of time on the wall clock: a day may have 23, 24 or 25 hours.

    Days lead from the start of a day to the start of a day, also where clocks skip midnight and the day starts at 1:00.
    """

    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: int = 0
    months: int = 0  # calendar months; the last days of a month lead to the last day of a shorter one

    def after(self, instant: datetime, zone: ZoneInfo) -> datetime:
        """The instant (UTC) this long after another instant on the clocks of a zone."""
        return self._shift(instant, zone, 1)

    def before(self, instant: datetime, zone: ZoneInfo) -> datetime:
        """The instant (UTC) this long before another instant on the clocks of a zone."""
        return self._shift(instant, zone, -1)

    @property
    def nominal(self) -> timedelta:
        """The length if every day has 24 hours, and every month 31 days."""
        days = self.days + 31 * self.months
        return timedelta(days=days, hours=self.hours, minutes=self.minutes, seconds=self.seconds)

    def _shift(self, instant: datetime, zone: ZoneInfo, sign: int) -> datetime:
        if self.days or self.months:  # adding to local time forgets which of two equal hours it was
            local = instant.astimezone(zone)
            day = local.date()
            local = datetime.combine(day, time(), zone) if instant == _midnight(day, zone) else local
            year, month = divmod(12 * local.year + local.month - 1 + sign * self.months, 12)
            local = local.replace(year=year, month=month + 1, day=min(local.day, monthrange(year, month + 1)[1]))
            instant = local + sign * timedelta(days=self.days)
        return instant.astimezone(UTC) + sign * timedelta(hours=self.hours, minutes=self.minutes, seconds=self.seconds)

    def __str__(self) -> str:
        """Return the notation of the YAML."""
        parts = [
            (self.months, "month"),
            (self.days, "day"),
            (self.hours, "hour"),
            (self.minutes, "minute"),
            (self.seconds, "second"),
        ]
        return " ".join(f"{n} {unit}{'s' if n != 1 else ''}" for n, unit in parts if n) or "0 days"


_WEEK = Duration(days=7)
LONGEST: dict[Every, Duration] = {
    "hour": Duration(hours=1),
    "day": Duration(days=1),
    "week": Duration(days=7),
    "month": Duration(days=31),
}


@dataclass(frozen=True)
class Calendar:
    """All partitions from `start` on, consecutive and without gap or overlap. `start` and `end` are naive times in `zone`."""

    every: Every
    zone: ZoneInfo  # time zone in which days, weeks and months begin
    start: datetime  # local time; the first window begins then or later, and weeks on its weekday
    end: datetime | None = None  # local time from which on no window begins; None: the calendar has no end
    end_offset: int = 0  # number of windows that are due before they close (1: the current window, from its start on)
    _windows: list[Partition] = field(default_factory=list[Partition], init=False, repr=False, compare=False)
    _by_key: dict[str, Partition] = field(default_factory=dict[str, Partition], init=False, repr=False, compare=False)

    @cached_property
    def first_start(self) -> datetime:
        """The instant (UTC) at which the first window begins."""
        return self._boundary_from(self.start)

    @cached_property
    def last_end(self) -> datetime | None:
        """The instant (UTC) at which the last window ends; None for no end."""
        return None if self.end is None else self._boundary_from(self.end)

    @property
    def cron_weekday(self) -> int:
        """The weekday on which weeks begin, as cron expressions count: 0 is Sunday."""
        return self.start.isoweekday() % 7

    @property
    def end_key(self) -> str | None:
        """The key of the window that would begin at the end; None for no end."""
        return None if self.last_end is None else self._key(self.last_end)

    def ended(self, now: datetime) -> bool:
        """Tell whether all partitions are closed at `now` and none will follow."""
        return self.last_end is not None and self.last_end <= now

    def due(self, now: datetime) -> list[Partition]:
        """All partitions closed at `now`, oldest first, and `end_offset` more."""
        windows = self._windows_beyond(now, more=self.end_offset)
        closed = bisect_right(windows, now, key=_start) - 1  # -1 before the first window begins
        return windows[: min(max(closed + self.end_offset, 0), self._count(windows))]

    def due_from(self, partition: Partition) -> datetime:
        """The instant (UTC) from which a partition is due."""
        return partition.start if self.end_offset else partition.end

    def named(self, key: str) -> Partition:
        """The partition with a key, past or future; raises WrongUseError if there is none."""
        partition = self._by_key.get(key) or self._parsed(key)
        if partition is None:
            first = self._key(self.first_start)
            msg = f"{key!r} is not the key of a partition: {self.every} partitions have keys like {first!r}."
            raise WrongUseError(msg)
        if partition.start < self.first_start:
            msg = f"Partition {key!r} lies before the first one, {self._key(self.first_start)!r}."
            raise WrongUseError(msg, hint="partitions.start sets where the partitions begin.")
        if self.last_end is not None and partition.start >= self.last_end:
            msg = f"Partition {key!r} lies at or after the end of the partitions, {self.end}."
            raise WrongUseError(msg, hint="partitions.end sets where the partitions end.")
        self._by_key[key] = partition  # each look at the state asks for every recorded key
        return partition

    def has_window(self, key: str) -> bool:
        """Return whether a key names a window, also one before the first or after the last partition."""
        return key in self._by_key or self._parsed(key) is not None

    def holding(self, instant: datetime) -> Partition | None:
        """The partition whose window contains an instant; None before the first and after the last partition."""
        if instant < self.first_start:
            return None
        windows = self._windows_beyond(instant)
        at = bisect_right(windows, instant, key=_end)
        return windows[at] if at < self._count(windows) else None

    def next_from(self, instant: datetime) -> Partition | None:
        """The first partition that starts at or after an instant; None after the last one."""
        windows = self._windows_beyond(instant, more=1)
        at = bisect_left(windows, instant, key=_start)
        return windows[at] if at < self._count(windows) else None

    def around(self, instant: datetime) -> Partition:
        """The window that an instant lies in, also before the first and after the last partition.

        Raises:
            OverflowError: It reaches beyond the range of datetime.
        """
        day = instant.astimezone(self.zone).date()
        if self.every == "week":
            day -= timedelta(days=(day.weekday() - self.start.weekday()) % 7)
        if self.every == "month":
            day = day.replace(day=1)
        start = _whole_hour(instant, self.zone) if self.every == "hour" else _midnight(day, self.zone)
        return self._between(start, self._next(start))

    def starting(self, instant: datetime) -> "Calendar":
        """The same windows, from the first one that begins at or after an instant."""
        window = self.around(instant)
        first = window.start if window.start >= instant else window.end
        return replace(self, start=first.astimezone(self.zone).replace(tzinfo=None))

    def within(self, start: datetime, end: datetime) -> list[Partition]:
        """All partitions wholly within `start <= t < end`, oldest first."""
        windows = self._windows_beyond(end)
        until = min(bisect_right(windows, end, key=_end), self._count(windows))
        return windows[bisect_left(windows, start, key=_start) : until]

    def _between(self, start: datetime, end: datetime) -> Partition:
        return Partition(key=self._key(start), start=start, end=end)

    def _key(self, start: datetime) -> str:
        local = start.astimezone(self.zone)
        key = local.strftime(KEY_FORMATS[self.every])
        repeated = self.every == "hour" and local.fold == 1
        return key + local.strftime("%z") if repeated else key

    def _parsed(self, key: str) -> Partition | None:
        """The window of a key, also before the first or after the last partition; None if the key is malformed."""
        for fmt in (KEY_FORMATS[self.every], KEY_FORMATS[self.every] + "%z"):
            try:
                parsed = datetime.strptime(key, fmt)  # noqa: DTZ007 - the zone is the calendar's
                start = parsed.astimezone(UTC) if parsed.tzinfo else _instant(parsed, self.zone)
                if self._key(start) == key and self.around(start).start == start:
                    return self._between(start, self._next(start))
            except (ValueError, OverflowError):  # the key has another form, or lies beyond the range of datetime
                continue
        return None

    def _boundary_from(self, local: datetime) -> datetime:
        """The first instant (UTC) at or after a local time at which a window begins."""
        if self.every == "hour":
            instant = _instant(local, self.zone)
            aligned = _whole_hour(instant, self.zone)
            return aligned if aligned >= instant else aligned + _HOUR
        day = local.date()
        if _instant(local, self.zone) > _midnight(day, self.zone):
            day += timedelta(days=1)
        if self.every == "week":
            day += timedelta(days=(self.start.weekday() - day.weekday()) % 7)
        if self.every == "month" and day.day != 1:
            day = _next_month(day)
        return _midnight(day, self.zone)

    def _next(self, start: datetime) -> datetime:
        if self.every == "hour":
            return start + _HOUR
        local = start.astimezone(self.zone).date()
        if self.every == "month":
            return _midnight(_next_month(local), self.zone)
        if self.every == "day":
            return _midnight(local + timedelta(days=1), self.zone)
        late = (local.weekday() - self.start.weekday()) % 7  # days, where the zone has skipped the first of the week
        return _midnight(local + timedelta(days=7 - late), self.zone)

    def _windows_beyond(self, instant: datetime, *, more: int = 0) -> list[Partition]:
        """The windows from the first one to the one that ends after an instant, and some more; each is made once.

        However late the instant, the last one begins at the end of the calendar.
        """
        windows, until = self._windows, instant if self.last_end is None else min(instant, self.last_end)
        with _GROWING:
            while len(windows) <= more or windows[-1 - more].end <= until:
                start = windows[-1].end if windows else self.first_start
                window = self._between(start, self._next(start))
                windows.append(window)
                self._by_key[window.key] = window
        return windows

    def _count(self, windows: Sequence[Partition]) -> int:
        """The number of windows that begin before the end of the calendar."""
        return len(windows) if self.last_end is None else bisect_left(windows, self.last_end, key=_start)


def shifts_by_whole_hours(zone: ZoneInfo, start: datetime, end: datetime | None) -> bool:
    """Return whether clocks in a zone only shift by whole hours between two local times, so that hours can be partitions.

    Without an end, all shifts count that the time zone database knows of.
    """
    end = end or max(start, _CLOCKS_KNOWN_UNTIL)
    firsts = (datetime(year, month, 1) for year in range(start.year, end.year + 1) for month in range(1, 13))  # noqa: DTZ001 - local
    moments = [start, *(first for first in firsts if start < first < end), end]
    offsets = {moment.replace(tzinfo=zone).utcoffset() or timedelta() for moment in moments}
    return len({offset % _HOUR for offset in offsets}) == 1


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return _instant(datetime.combine(day, time()), zone)


def _whole_hour(instant: datetime, zone: ZoneInfo) -> datetime:
    local = instant.astimezone(zone)
    return instant - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
