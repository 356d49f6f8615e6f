"""Survey a table that nobody has described: its columns, what they hold, and what is unique in it.

Each question is one scan by DuckDB, or one for every few columns.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Literal

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.cli.proposal.instants import ORDERS, DateOrder, Reading, candidates, decided, reads_as_time
from batch_platform.cli.proposal.origin import COMMA_NUMBER, Origin, unreadable
from batch_platform.declaration.calendar import Every, Partition
from batch_platform.declaration.errors import WrongUseError, named, shortened
from batch_platform.features.sources.opening import create_view_of
from batch_platform.warehouse.sql import connect, literal, quoted

Holds = Literal["integer", "number", "boolean", "text", "time", "row number", "nothing", "other"]
PART, IN_PARTS = "part", "seen_in_parts"  # which of two files a row is of, and the view that knows it
Tie = Literal["value", "nulls"] | None
MOST_FAR_OFF, FAR = 3, timedelta(days=365)  # times, or one in a thousand, that may lie so far from all others
LEAST_ROWS = 20  # from which equal values are no accident
COLUMNS_AT_ONCE = 20  # that one query counts distinct values of: DuckDB takes four times as long for twice as many
MOST_STEPS, EVEN = (
    0.9,
    1.2,
)  # share of the steps of a counter that are of one; ratio of the longest to the shortest count
HARDLY = 0.1  # share of the usual share of labelled rows, below which labels are stray ones
SURELY = 7.0  # logarithm of how much likelier labels are missing on purpose than by accident: one to a thousand
EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(2199, 12, 31, tzinfo=UTC)  # others stand for no time
_TYPES: dict[Holds, str] = {
    "integer": "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT",
    "number": "FLOAT DOUBLE DECIMAL HUGEINT UHUGEINT",
    "boolean": "BOOLEAN",
    "text": "VARCHAR UUID ENUM",
    "time": "DATE TIMESTAMP TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS TIMESTAMPTZ_NS",
}
_HOLDS: dict[str, Holds] = {word: holds for holds, words in _TYPES.items() for word in words.split()}
_PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|column0")  # where the index had no name; column0 in CSV
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TableColumn:
    """What a column of a table holds."""

    position: int  # in the table, from 1
    name: str
    dtype: str  # of DuckDB
    holds: Holds  # what the values can be used as; "time" also for texts that read as times
    nulls: int  # rows without a value
    distinct: int  # approximate number of distinct values; 0 if the column holds "other"
    reading: Reading | None = None  # how the values become instants; None if they cannot be times
    groups_digits: bool = False  # whether it holds texts such as 1.234,56, which are numbers
    some_times: bool = False  # whether its first or last text reads as a time, though not all do in one notation

    @property
    def is_likely_time(self) -> bool:
        """Whether name and values suggest that the column holds times."""
        return self.reading is not None and self.reading.likely

    @property
    def is_number(self) -> bool:
        """Whether the column is stored as numbers."""
        return self.holds in ("integer", "number") and not self.groups_digits

    @property
    def is_text(self) -> bool:
        """Whether the column is stored as text, also if the text reads as a time, but not if it is a number."""
        return _stored_as(self.dtype) == "text" and not self.groups_digits


@dataclass(frozen=True)
class Span:
    """The range of the times in a column, without those that stand for no time, such as 9999-12-31."""

    first: datetime  # UTC
    last: datetime  # UTC
    rows: int  # with such a time
    filled: dict[Every, int]  # number of windows of each length that contain a row
    far_off: tuple[
        datetime, ...
    ] = ()  # the few times that lie far from all others, such as 2099-12-31, which are left out

    @property
    def length(self) -> timedelta:
        """Time between the first and the last instant."""
        return self.last - self.first


@dataclass(frozen=True)
class Survey:
    """A table that is open for questions."""

    origin: Origin
    rows: int
    columns: tuple[TableColumn, ...]
    _con: duckdb.DuckDBPyConnection
    in_parts: bool = False  # whether it is the rows of two files

    def with_date_order(self, order: DateOrder) -> "Survey":
        """The same table, with this order of day, month and year where the values of a column leave it open."""
        return look(self._con, self.origin, order, in_parts=self.in_parts)

    def example(self, name: str) -> str:
        """The largest value of a column, shortened."""
        ((value,),) = self._con.execute(f"SELECT max({quoted(name)}) FROM seen").fetchall()
        return shortened(value)

    def column(self, name: str) -> TableColumn:
        """The column with a name; a WrongUseError if there is none."""
        columns = {column.name: column for column in self.columns}
        return named(name, columns, f"{self.origin.path} has no column {name!r}; it has")

    def unique(
        self, names: Sequence[str], *, within: Every | None = None, time: str | None = None, in_part: bool = False
    ) -> bool:
        """Whether some columns are never null and no two rows (of the same window, or file) have equal values in them."""
        if any(self.column(name).nulls for name in names):
            return False
        by = [quoted(name) for name in names]
        by += [] if within is None or time is None else [f"date_trunc('{within}', {self._instant(time)})"]
        by += [PART] if in_part else []
        rows = IN_PARTS if in_part else "seen"
        query = f"SELECT count(*) FROM (SELECT 1 FROM {rows} GROUP BY {', '.join(by)} HAVING count(*) > 1 LIMIT 1)"
        return self._count(query) == 0

    def nulls_are_last(self, name: str) -> bool:
        """Whether every row after the first null of a column is null too, in the order of the file."""
        rows = f"SELECT row_number() OVER () AS place, {quoted(name)} IS NULL AS lacks FROM seen"
        query = f"SELECT count(*) FILTER (lacks) - (max(place) - min(place) FILTER (lacks) + 1) FROM ({rows})"
        return self._count(query) == 0

    def ties(self, label: TableColumn, columns: Sequence[TableColumn]) -> list[Tie]:
        """What each column tells of the label: its value, where it is null, or nothing.

        A column tells the value if the numbers are equal, or if each value of one has a single value of the other.
        """
        return [
            tie
            for start in range(0, len(columns), COLUMNS_AT_ONCE)
            for tie in self._ties_at_once(label, columns[start : start + COLUMNS_AT_ONCE])
        ]

    def _ties_at_once(self, label: TableColumn, columns: Sequence[TableColumn]) -> list[Tie]:
        """What each of a few columns tells of the label, in one scan."""
        right = quoted(label.name)
        questions: list[str] = []
        for column in columns:
            left = quoted(column.name)
            known = f"FILTER ({left} IS NOT NULL AND {right} IS NOT NULL)"
            differ = f"{left} <> {right}" if column.is_number and label.is_number else "true"
            questions += [
                f"count(*) FILTER (({left} IS NULL) <> ({right} IS NULL))",
                f"count(*) {known}",
                f"count(*) FILTER ({left} IS NOT NULL AND {right} IS NOT NULL AND {differ})",
                *(f"count(DISTINCT {values}) {known}" for values in (left, right, f"({left}, {right})")),
            ]
        (answers,) = self._con.execute(f"SELECT {', '.join(questions)} FROM seen").fetchall()
        each = len(questions) // len(columns)
        return [
            _tie(column, label, *answers[at * each : (at + 1) * each], of=self.rows)
            for at, column in enumerate(columns)
        ]

    def adding_up_to(
        self, total: TableColumn, pairs: Sequence[tuple[TableColumn, TableColumn]]
    ) -> list[tuple[TableColumn, TableColumn]]:
        """The pairs of columns whose sum is the total in every row where it is known."""
        if not pairs:
            return []
        whole = quoted(total.name)
        apart = (
            f"coalesce(max(abs({quoted(left.name)}::DOUBLE + {quoted(right.name)}::DOUBLE - {whole}::DOUBLE)), 1) "
            f"<= 1e-9 * max(abs({whole}::DOUBLE))"
            for left, right in pairs
        )
        (equal,) = self._con.execute(f"SELECT {', '.join(apart)} FROM seen").fetchall()
        return [pair for pair, adds_up in zip(pairs, equal, strict=True) if adds_up]

    def sample(self, columns: Sequence[TableColumn], known: TableColumn, rows: int) -> pl.DataFrame:
        """At most so many rows in which a column is known, evenly spaced: some columns and, last, the known one."""
        names = ", ".join(quoted(column.name) for column in (*columns, known))
        step = -(-max(self.rows - known.nulls, 1) // rows)
        query = (
            f"SELECT {names} FROM seen WHERE {quoted(known.name)} IS NOT NULL QUALIFY row_number() OVER () % {step} = 0"
        )
        return self._con.sql(query).pl()

    def built(
        self, name: str, queries: Sequence[str], partitions: Iterable[Partition]
    ) -> Generator[tuple[pl.DataFrame, ...]]:
        """For each partition, the rows of queries that read the table under a name and take the bounds of the partition."""
        self._con.execute(f"CREATE TEMP TABLE {quoted(name)} AS FROM seen")
        for partition in partitions:
            bounds = {"partition_start": partition.start, "partition_end": partition.end}
            yield tuple(self._con.sql(query, params=bounds).pl() for query in queries)
        self._con.execute(f"DROP TABLE {quoted(name)}")

    def lies_on(self, every: Every | Literal["year"], time: str) -> bool:
        """Whether every time of a column is the start of an hour, day, week, month or year."""
        at = self._instant(time)
        return self._count(f"SELECT count(*) FROM seen WHERE {at} <> date_trunc('{every}', {at})") == 0

    def is_regular(self, time: str) -> bool:
        """Return whether times lie on whole hours, or most of them follow each other at the same interval, as in a series."""
        at = self._instant(time)
        steps = f"SELECT epoch({at}) - lag(epoch({at})) OVER (ORDER BY {at}) AS seconds FROM seen"
        usual = f"SELECT mode(seconds) FROM ({steps})"
        query = f"SELECT (2 * count(*) FILTER (seconds = ({usual})) >= count(seconds))::INTEGER FROM ({steps})"
        return self.lies_on("hour", time) or self._count(query) == 1

    def counts_rows(self, name: str) -> bool:
        """Whether a column of integers numbers the rows without a gap."""
        column = quoted(name)
        query = f"SELECT (count(DISTINCT {column}) = count(*) AND max({column}) - min({column}) + 1 = count(*))::INTEGER FROM seen"
        return self._count(query) == 1

    def is_counter(self, name: str, time: str) -> bool:
        """Return whether a column of integers counts the rows of a series: without a gap, or step by step in the order of a unique time.

        Where rows were taken away since, most steps are still of one, or all take equally long.
        """
        if self.counts_rows(name):
            return True
        column, at = quoted(name), self._instant(time)
        steps = f"SELECT {column} - lag({column}) OVER later AS step, epoch({at}) - lag(epoch({at})) OVER later AS seconds FROM seen WINDOW later AS (ORDER BY {at})"
        query = f"""
            SELECT (min(sign(step)) = max(sign(step)) AND min(abs(step)) > 0 AND (count(*) FILTER (abs(step) = 1) >= {MOST_STEPS} * count(step)
            OR max(seconds / abs(step)) <= {EVEN} * min(seconds / abs(step))))::INTEGER FROM ({steps})
        """
        return self._count(query) == 1

    def unlabelled_end(self, label: str, time: str, span: Span, unit: Literal["hour", "day"]) -> int:
        """The number of hours or days, rounded up, at the end of a table in which hardly a row has a label; 0 if labels are usual there.

        They begin where the share of rows with a label changes most, so single labels after that and gaps before it do not count.
        """
        at = self._instant(time)
        query = f"""
            SELECT epoch(date_trunc('hour', {at})), epoch(date_trunc('{unit}', {at})), count(*), count({quoted(label)})
            FROM seen WHERE {at} BETWEEN $first AND $last GROUP BY ALL ORDER BY 1
        """
        counts = self._con.execute(query, {"first": span.first, "last": span.last}).fetchall()
        begins, units, rows, labels = np.array(counts, float).T
        known, of = np.cumsum(labels)[:-1], np.cumsum(rows)[:-1]
        known_later, of_later = labels.sum() - known, rows.sum() - of
        gain = _likelihood(known, of) + _likelihood(known_later, of_later) - _likelihood(labels.sum(), rows.sum())
        gain = np.where(known_later / of_later <= HARDLY * known / of, gain, 0)
        if gain.max(initial=0) < SURELY:
            return 0
        length = {"hour": 3_600, "day": 86_400}[unit]
        return ceil((units[-1] + length - begins[gain.argmax() + 1]) / length)

    def rarer(self, name: str) -> str:
        """The value that the fewest rows have; the last of those in order."""
        column = quoted(name)
        query = f"SELECT {column}::VARCHAR FROM seen WHERE {column} IS NOT NULL GROUP BY ALL ORDER BY count(*), 1 DESC LIMIT 1"
        ((value,),) = self._con.execute(query).fetchall()
        return value

    def values(self, name: str) -> int:
        """The exact number of distinct values in a column."""
        return self._count(f"SELECT count(DISTINCT {quoted(name)}) FROM seen")

    def span(self, time: str) -> Span | None:
        """The range of the times in a column; None if it has no times.

        Raises:
            WrongUseError: The order of day and month is not certain.
        """
        if self.column(time).reading is None:
            return None
        at = self._instant(time)
        windows: tuple[Every, ...] = ("hour", "day", "week", "month")
        counted = ", ".join(f"count(DISTINCT date_trunc('{every}', {at}))" for every in windows)
        low, high, far_off = self._without_far_off(at)
        query = f"SELECT epoch_us(min({at})), epoch_us(max({at})), count(*), {counted} FROM seen WHERE {at} BETWEEN $low AND $high"
        ((first, last, rows, *filled),) = self._con.execute(query, {"low": low, "high": high}).fetchall()
        if first is None:
            return None
        begin, end = (_EPOCH + timedelta(microseconds=instant) for instant in (first, last))
        return Span(begin, end, rows, dict(zip(windows, map(int, filled), strict=True)), far_off)

    def _without_far_off(self, at: str) -> tuple[datetime, datetime, tuple[datetime, ...]]:
        """The first and the last time without the few that are further from all others than these are from each other, and a year at least."""
        few = max(MOST_FAR_OFF, self.rows // 1_000)
        query = f"SELECT min({at}, {few + 1}), max({at}, {few + 1}) FROM seen WHERE {at} BETWEEN $low AND $high"
        ((least, greatest),) = self._con.execute(query, {"low": EARLIEST, "high": LATEST}).fetchall()
        if self.rows < LEAST_ROWS or not least or len(least) <= few:
            return EARLIEST, LATEST, ()
        lows, highs = [moment.astimezone(UTC) for moment in least], [moment.astimezone(UTC) for moment in greatest]

        def apart(ends: list[datetime], other: datetime) -> int:
            gaps = range(1, len(ends))
            return max((at for at in gaps if abs(ends[at] - ends[at - 1]) > max(FAR, abs(other - ends[at]))), default=0)

        early, late = apart(lows, highs[-1]), apart(highs, lows[-1])
        return lows[early], highs[late], (*lows[:early], *reversed(highs[:late]))

    def bounds_of_file(self, file: Origin, time: str) -> tuple[datetime, datetime] | None:
        """The first and the last instant in another file with the same columns; None if it has no times.

        Raises:
            SourceError: The file cannot be read, or lacks the column.
        """
        at = self._instant(time)
        try:
            create_view_of(self._con, file.as_table("one_file"))
            query = f"SELECT epoch_us(min({at})), epoch_us(max({at})) FROM one_file"
            ((first, last),) = self._con.execute(query).fetchall()
        except duckdb.Error as error:
            raise unreadable(file.path, error) from error
        if first is None:
            return None
        return _EPOCH + timedelta(microseconds=first), _EPOCH + timedelta(microseconds=last)

    def _instant(self, time: str) -> str:
        """SQL that reads a column as an instant, in the time zone of the session if the value has none."""
        reading = self.column(time).reading
        if reading is None or reading.undecided:
            raise self._uncertain(time, () if reading is None else reading.undecided)
        return f"CAST({reading.of(quoted(time))} AS TIMESTAMPTZ)"

    def _uncertain(self, time: str, orders: Sequence[DateOrder]) -> WrongUseError:
        readings = " and ".join(ORDERS[order] for order in orders)
        msg = f"{time!r} of {self.origin.path} holds dates such as {self.example(time)!r}, which fit {readings}."
        options = " or ".join(f"--date-order {order}" for order in orders)
        return WrongUseError(msg, hint=f"say which it is with {options}, or name another column with --time.")

    def _count(self, query: str) -> int:
        ((value,),) = self._con.execute(query).fetchall()
        return int(value)


def _tie(  # noqa: PLR0913 - the counts of one question
    column: TableColumn,
    label: TableColumn,
    apart: int,
    known: int,
    different: int,
    values: int,
    labels: int,
    pairs: int,
    *,
    of: int,
) -> Tie:
    if column.nulls == label.nulls > 0 and not apart:
        return "nulls"
    is_equal = known > 0 and not different
    is_renamed = 1 < values == labels == pairs < known / 2
    return "value" if of >= LEAST_ROWS and (is_equal or is_renamed) else None


def _likelihood(known: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the likelihood that so many of the rows have a label, by their own share."""
    lacking = rows - known
    return known * np.log(np.maximum(known, 1) / rows) + lacking * np.log(np.maximum(lacking, 1) / rows)


@contextmanager
def survey(origin: Origin, timezone: str, date_order: DateOrder | None = None) -> Generator[Survey]:
    """Open a table and survey its columns; `date_order` decides where the values of a column do not.

    Raises:
        SourceError: The table cannot be read.
        WrongUseError: The table has no rows.
    """
    try:
        with connect() as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            create_view_of(con, origin.as_table("seen"))
            origin = _with_short_years_as_text(con, origin)
            yield look(con, origin, date_order)
    except duckdb.Error as error:
        raise unreadable(origin.path, error) from error


def _with_short_years_as_text(con: duckdb.DuckDBPyConnection, origin: Origin) -> Origin:
    """Have dates of a CSV file read as text if DuckDB takes 31/01/26 for a day in the year 31."""
    view = con.sql("FROM seen")
    times = [name for name, dtype in zip(view.columns, view.types, strict=True) if _stored_as(str(dtype)) == "time"]
    if origin.kind != "csv" or not times:
        return origin
    (years,) = con.execute(f"SELECT {', '.join(f'max(year({quoted(name)}))' for name in times)} FROM seen").fetchall()
    texts = {name: "VARCHAR" for name, year in zip(times, years, strict=True) if year is not None and year < 100}  # noqa: PLR2004 - two digits
    if texts:
        origin = replace(origin, types=texts)
        create_view_of(con, origin.as_table("seen"))
    return origin


def look(
    con: duckdb.DuckDBPyConnection, origin: Origin, date_order: DateOrder | None, *, in_parts: bool = False
) -> Survey:
    """Survey the columns of a view `seen`; raises WrongUseError if it has no rows."""
    view = con.sql("FROM seen")
    types = {name: str(dtype) for name, dtype in zip(view.columns, view.types, strict=True)}
    questions: list[str] = []
    for name, dtype in types.items():
        column, stored = quoted(name), _stored_as(dtype)
        questions.append(f"count({column})")
        questions.append("0" if stored == "other" else f"approx_count_distinct({column})")
        extremes = {"text": column, "integer": column, "number": f"CAST({column} AS DOUBLE)"}.get(stored, "NULL")
        questions += [f"min({extremes})", f"max({extremes})"]
    ((rows, *answers),) = con.execute(f"SELECT count(*), {', '.join(questions)} FROM seen").fetchall()
    if not rows:
        msg = f"{origin.path} has no rows."
        raise WrongUseError(msg, hint="a pipeline is proposed from the rows of its table.")
    if origin.kind == "json" and all(dtype.startswith(("STRUCT", "MAP")) for dtype in types.values()):
        msg = f"{origin.path} holds an object for each column instead of one for each row."
        raise WrongUseError(
            msg, hint="write one object for each row; with pandas: to_json(orient='records', lines=True)."
        )
    present = dict(zip(types, answers[::4], strict=True))
    extremes = dict(zip(types, zip(answers[2::4], answers[3::4], strict=True), strict=True))
    possible = {name: candidates(types[name], name, *extremes[name]) for name in types}
    readings = _fitting(con, possible, present)
    grouped = _with_grouped_digits(con, [name for name in types if types[name] == "VARCHAR" and present[name]], origin)
    columns: list[TableColumn] = []
    for (name, dtype), distinct in zip(types.items(), answers[1::4], strict=True):
        reading = decided(readings[name], date_order)
        holds = "number" if name in grouped else _held(name, types, reading) if present[name] else "nothing"
        column = TableColumn(
            position=len(columns) + 1,
            name=name,
            dtype=dtype,
            holds=holds,
            nulls=rows - present[name],
            distinct=distinct,
            reading=reading,
            groups_digits=name in grouped,
            some_times=reading is None and any(reads_as_time(text) for text in extremes[name]),
        )
        columns.append(column)
    return Survey(origin, rows, tuple(columns), con, in_parts)


def _fitting(
    con: duckdb.DuckDBPyConnection, possible: Mapping[str, Sequence[Reading]], present: Mapping[str, int]
) -> dict[str, list[Reading]]:
    """The readings by which every value of a column is a time."""
    asked = [(name, reading) for name, readings in possible.items() for reading in readings]
    if not asked:
        return {name: [] for name in possible}
    counts = [
        f"count(*) FILTER ({quoted(name)} IS NOT NULL AND {reading.fits.replace('{}', quoted(name))})"
        for name, reading in asked
    ]
    (counted,) = con.execute(f"SELECT {', '.join(counts)} FROM seen").fetchall()
    fitting: dict[str, list[Reading]] = {name: [] for name in possible}
    for (name, reading), count in zip(asked, counted, strict=True):
        if count == present[name]:
            fitting[name].append(reading)
    return fitting


def _with_grouped_digits(con: duckdb.DuckDBPyConnection, texts: Sequence[str], origin: Origin) -> set[str]:
    """The columns of a CSV file with decimal commas whose texts are numbers such as 1.234,56."""
    if origin.decimal is None or not texts:
        return set()
    matches = (f"bool_and(regexp_full_match(trim({quoted(name)}), '{COMMA_NUMBER}'))" for name in texts)
    (all_match,) = con.execute(f"SELECT {', '.join(matches)} FROM seen").fetchall()
    return {name for name, match in zip(texts, all_match, strict=True) if match}


def _held(name: str, types: Mapping[str, str], reading: Reading | None) -> Holds:
    if reading is not None and reading.is_time:
        return "time"
    stored = _stored_as(types[name])
    is_index = stored == "integer" and _PANDAS_INDEX.fullmatch(name) is not None and "column1" not in types
    return "row number" if is_index else stored


def _stored_as(dtype: str) -> Holds:
    """What values of a type can be used as; lists and the like are "other"."""
    word = re.match(r"\w+", dtype)
    return "other" if dtype.endswith("]") or word is None else _HOLDS.get(word[0], "other")
