"""Read the values of a column as instants: stored times, texts in usual notations, and numbers that stand for times.

A reading is proposed from two values of a column and kept only if every value of the column can be read so.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from batch_platform.warehouse.sql import literal

DateOrder = Literal["dmy", "mdy", "ymd"]
ORDERS: dict[DateOrder, str] = {"dmy": "day first", "mdy": "month first", "ymd": "year first"}
_COMPARABLE = ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")  # types that compare with one of type TIMESTAMPTZ
_STORED = re.compile(r"DATE|TIMESTAMP(TZ)?(_S|_MS|_NS)?( WITH TIME ZONE)?")
_ISO = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}(?!\d).*")
_DAY_AND_MONTH: dict[DateOrder, str] = {"dmy": "%d/%m", "mdy": "%m/%d"}
# The order of day and month where it may be another one, how a date is written, and its formats.
_DATES: list[tuple[DateOrder | None, str, tuple[str, ...]]] = [
    (None, r"\d{4}-\d{1,2}", ("%Y-%m",)),
    (None, r"\d{4}/\d{1,2}", ("%Y/%m",)),
    (None, r"\d{14}", ("%Y%m%d%H%M%S",)),
    (None, r"\d{4}\.\d{1,2}\.\d{1,2}", ("%Y.%m.%d",)),
    (None, r"\d{1,2} [^\W\d]{3,} \d{4}", ("%d %b %Y", "%d %B %Y")),
    (None, r"\d{1,2}-[^\W\d]{3,}-\d{4}", ("%d-%b-%Y", "%d-%B-%Y")),
    (None, r"\d{1,2}-[^\W\d]{3}-\d{2}", ("%d-%b-%y",)),
    (None, r"[^\W\d]{3,} \d{1,2}, \d{4}", ("%b %d, %Y", "%B %d, %Y")),
    (None, r"\d{8}", ("%Y%m%d",)),
    *(
        (order, rf"\d{{1,2}}{sign}\d{{1,2}}{sign}\d{{{digits}}}", (start.replace("/", sign[-1]) + sign[-1] + year,))
        for order, start in _DAY_AND_MONTH.items()
        for sign in ("/", r"\.", "-")
        for digits, year in ((4, "%Y"), (2, "%y"))
    ),
    ("ymd", r"\d{1,2}-\d{1,2}-\d{2}", ("%y-%m-%d",)),
]
_CLOCK = re.compile(
    r"(?P<gap>,? |T)\d{1,2}:\d{2}(?P<seconds>:\d{2})?(?P<fraction>\.\d{1,9})?(?P<half> ?[AaPp][Mm])?(?P<zone>[+-]\d{2}:?\d{2})?"
)
_NUMBERS = {  # smallest and largest value of a number that stands for a time, and its format
    "%Y": (1000, 2199),
    "%Y%m": (1000_01, 2199_12),
    "%Y%m%d": (1000_01_01, 2199_12_31),
    "%Y%m%d%H%M%S": (1000_01_01_00_00_00, 2199_12_31_23_59_59),
}
_PARTS = {  # names of a column with a part of a time, the smallest and the largest value, and its value where there is none
    "year": (re.compile("year|yr|y{4}|jahr"), 1000, 2199, "1"),
    "month": (re.compile("month|mon|mnth|mo|mm|monat"), 1, 12, "1"),
    "day": (re.compile("day|mday|dd|tag|(day of (the )?month)"), 1, 31, "1"),
    "hour": (re.compile("hour|hr|hh|stunde"), 0, 23, "0"),
    "minute": (re.compile("minute|min|mi"), 0, 59, "0"),
}
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
_CLOCK_NAME = re.compile("(.* )?(time|clock|uhrzeit|zeit|hours?)( of (the )?day)?")
_COARSE = ("%Y", "%Y%m")  # other numbers look alike, so that the whole name must speak of a time
_YEARS_1990_TO_2100 = (631_152_000, 4_102_444_800)  # seconds since 1970
_SINCE_1970 = {  # number per second, and the SQL of an instant
    "seconds": (1, "to_timestamp({})"),
    "milliseconds": (1_000, "make_timestamptz(CAST({} * 1000 AS BIGINT))"),
    "microseconds": (1_000_000, "make_timestamptz(CAST({} AS BIGINT))"),
    "nanoseconds": (1_000_000_000, "make_timestamptz(CAST({} AS BIGINT) // 1000)"),
}
_SPREADSHEET_DAYS, _DAY_1970 = (32_874, 73_051), 25_569  # days since 1899-12-30: from 1990 to 2100, and 1970-01-01
_TIME_WORD = re.compile(
    "time|timestamp|datetime|date|ts|at|on|day|month|year|yr|when|period|epoch|unix|unixtime|y{2,4}m{1,2}(d{1,2})?|yyyy|ym|"
    "yearmonth|utc|created|updated|modified|datum|jahr|monat|zeit"
)
_HAPPENED = re.compile(
    "posted|booked|opened|closed|entered|submitted|logged|recorded|registered|signed|started|ended|shipped|ordered|delivered|issued"
)
_BESIDE_TIME = re.compile("[mun]?s|sec(onds)?|of|the|fiscal|calendar|event|order|start|end|first|last")


@dataclass(frozen=True)
class Reading:
    """A way to read the values of a column as instants."""

    sql: str  # expression for an instant, in which {} stands for the column, or {0}, {1}, … for those that tell it together
    note: str = ""  # the notation, for people; empty for a column that is stored as a time
    fits: str = "true"  # SQL condition, in which {} stands for the column: this value can be read so
    likely: bool = True  # name and values suggest a time; else it is read so only if the user names the column
    is_time: bool = True  # the column can hold nothing else; numbers may also be quantities
    order: DateOrder | None = None  # order of day and month, where other orders are possible
    undecided: tuple[DateOrder, ...] = ()  # orders that fit every value; the user must choose

    def of(self, column: str, *parts: str) -> str:
        """The SQL for a column, or for those that tell a time together, given as SQL identifiers."""
        return self.sql.format(*parts) if parts else self.sql.replace("{}", column)


def candidates(dtype: str, name: str, low: object, high: object) -> list[Reading]:
    """The readings that fit the smallest and the largest value of a column, best first."""
    if _STORED.fullmatch(dtype):
        return [Reading("{}" if dtype in _COMPARABLE else "CAST({} AS TIMESTAMPTZ)")]
    if isinstance(low, str) and isinstance(high, str):
        return list(_of_texts(low.strip(), high.strip(), name))
    if isinstance(low, int) and isinstance(high, int):
        return list(_of_numbers("CAST({} AS VARCHAR)", "{}", name, low, high))
    if isinstance(low, float) and isinstance(high, float):
        whole = " AND {} = trunc({})"
        return list(_of_numbers("CAST(CAST({} AS BIGINT) AS VARCHAR)", "{}", name, low, high, whole))
    return []


def decided(readings: list[Reading], order: DateOrder | None) -> Reading | None:
    """Choose among readings that all fit every value: by the order that the user gave, else none if they contradict."""
    orders: tuple[DateOrder, ...] = tuple(reading.order for reading in readings if reading.order is not None)
    if not readings or readings[0].order is None or len(orders) == 1:
        return readings[0] if readings else None
    chosen = next((reading for reading in readings if reading.order == order), None)
    return chosen or Reading("NULL", "dates whose order of day and month is not certain", undecided=orders)


def composed(
    types: Mapping[str, str], extremes: Mapping[str, tuple[object, object]], times: Mapping[str, Reading]
) -> tuple[tuple[str, ...], Reading] | None:
    """The columns that tell a time together, and their reading; None if there are none.

    They are year, month, and as many of day, hour and minute as there are, if no column is a time; or else the only time, if it is
    a date, and its hour or clock.
    """
    parts: dict[str, str] = {}
    for name, (low, high) in extremes.items():
        for part, (spelling, least, most, _) in _PARTS.items():
            is_part = isinstance(low, int) and isinstance(high, int) and least <= low <= high <= most
            if is_part and spelling.fullmatch(" ".join(words(name))):
                parts.setdefault(part, name)
    if not times and {"year", "month"} <= parts.keys():
        of = [parts[part] for part in takewhile(parts.__contains__, _PARTS)]
        values = [f"{{{at}}}" for at in range(len(of))] + [absent for *_, absent in [*_PARTS.values()][len(of) :]]
        return tuple(of), Reading(f"make_timestamptz({', '.join(values)}, 0)", f"from {', '.join(of)}")
    dates = {
        name: reading
        for name, reading in times.items()
        if types[name] == "DATE" or all(isinstance(text, str) and ":" not in text for text in extremes[name])
    }
    clocks = {name: "to_hours({1})" for part, name in parts.items() if part == "hour"}
    clocks |= {
        name: "{1}" if dtype == "TIME" else "CAST({1} AS TIME)"
        for name, dtype in types.items()
        if _CLOCK_NAME.fullmatch(" ".join(words(name)))
        and (dtype == "TIME" or all(isinstance(text, str) and _TIME_OF_DAY.fullmatch(text) for text in extremes[name]))
    }
    if len(dates) != 1 or len(times) != 1 or not clocks:
        return None
    ((date, reading),), (clock, *_) = dates.items(), clocks
    day = "{0}" if types[date] == "DATE" else f"CAST({reading.sql.replace('{}', '{0}')} AS DATE)"
    sql = f"CAST({day} + {clocks[clock]} AS TIMESTAMPTZ)"
    fits = f"{{1}} IS NULL OR {clocks[clock].replace('CAST', 'TRY_CAST')} IS NOT NULL"
    return (date, clock), replace(reading, sql=sql, fits=fits, note=f"from {date}, {clock}")


def _of_texts(low: str, high: str, name: str) -> Iterator[Reading]:
    if _ISO.fullmatch(low) and _ISO.fullmatch(high):
        yield Reading("CAST({} AS TIMESTAMPTZ)", f"text such as {low}", "TRY_CAST({} AS TIMESTAMPTZ) IS NOT NULL")
    for order in (None, *ORDERS):
        shapes = [list(_formats(text, order)) for text in (low, high)]
        if all(shapes):
            yield _parsed(list(dict.fromkeys(shapes[0] + shapes[1])), "{}", "text", order)
    if re.fullmatch(r"\d{4,20}", low) and re.fullmatch(r"\d{4,20}", high):
        yield from _of_numbers("{}", "CAST({} AS BIGINT)", name, int(low), int(high))


def _of_numbers(  # noqa: PLR0913 - how numbers are read
    digits: str, number: str, name: str, low: float, high: float, whole: str = ""
) -> Iterator[Reading]:
    """The readings of numbers between two values, given as SQL for their digits and for the number; dates are `whole` numbers."""
    own = words(re.sub(r"\d+", " ", name))
    some = any(_TIME_WORD.fullmatch(word) for word in own)
    happened = bool(own) and _HAPPENED.fullmatch(own[-1]) is not None
    epoch = (
        some or happened or own == ["t"]
    )  # a year or a date in such a column may as well be a temperature or a count
    every = some and all(_TIME_WORD.fullmatch(word) or _BESIDE_TIME.fullmatch(word) for word in own)
    for time_format, (least, most) in _NUMBERS.items():
        if least <= low <= high <= most:
            likely = every if time_format in _COARSE else some
            dates = _parsed([time_format], digits, "number")
            yield replace(dates, fits=f"{dates.fits}{whole}", likely=likely, is_time=False)
    if _SPREADSHEET_DAYS[0] <= low <= high < _SPREADSHEET_DAYS[1]:
        sql = f"CAST(make_timestamp(CAST(round(({number} - {_DAY_1970}) * 86400) AS BIGINT) * 1000000) AS TIMESTAMPTZ)"
        yield Reading(sql, "days since 1899-12-30, as spreadsheets count", likely=every or happened, is_time=False)
    first, last = _YEARS_1990_TO_2100
    for unit, (per_second, sql) in _SINCE_1970.items():
        if first * per_second <= low <= high <= last * per_second:
            fits = f"{number.replace('CAST', 'TRY_CAST')} > 0"
            yield Reading(sql.replace("{}", number), f"{unit} since 1970", fits, likely=epoch, is_time=False)


def _parsed(formats: list[str], text: str, kind: str, order: DateOrder | None = None) -> Reading:
    listing = ", ".join(literal(time_format) for time_format in formats)
    how = listing if len(formats) == 1 else f"[{listing}]"
    return Reading(
        f"CAST(strptime({text}, {how}) AS TIMESTAMPTZ)",
        f"{kind} as {' or '.join(formats)}",
        f"try_strptime({text}, {how}) IS NOT NULL",
        order=order,
    )


def _formats(text: str, order: DateOrder | None) -> Iterator[str]:
    """The formats of a text that begins with a date, which has an order of day and month or, if None, needs none."""
    for own, shape, formats in _DATES:
        if own == order and (date := re.match(rf"{shape}(?!\d)", text)) is not None:
            rest = text[date.end() :]
            clock = _CLOCK.fullmatch(rest)
            if clock is not None:
                yield from (date_format + _clock_format(clock) for date_format in formats)
            elif not rest:
                yield from formats


def _clock_format(clock: re.Match[str]) -> str:
    half, fraction = clock["half"] or "", clock["fraction"] or ""
    parts = [
        clock["gap"],
        "%I:%M" if half else "%H:%M",
        ":%S" if clock["seconds"] else "",
        ("" if not fraction else ".%f" if len(fraction) <= len(".123456") else ".%n"),
        ("" if not half else " %p" if half.startswith(" ") else "%p"),
        "%z" if clock["zone"] else "",
    ]
    return "".join(parts)


def words(name: str) -> list[str]:
    """The words of a name in lower case: `orderDate`, `Order-Date` and `ORDER DATE` have the same words."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split()
