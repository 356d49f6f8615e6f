"""Survey a table that nobody has described: its columns, what they hold, and what is unique in it.

Each question is one scan by DuckDB of the view `seen`: the rows of the table. In it, texts that are numbers are numbers, NaN and infinite numbers are null, and a time that is spread over several columns is one more column.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, isfinite
from typing import Any, Literal

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Duration, Every
from batch_platform.declaration.errors import WrongUseError, named, shortened
from batch_platform.proposal.instants import ORDERS, DateOrder, Reading, candidates, composed, decided
from batch_platform.proposal.origin import COMMA_NUMBER, Origin, unreadable
from batch_platform.sources.opening import create_view_of
from batch_platform.warehouse.sql import connect, literal, quoted

Holds = Literal["integer", "number", "boolean", "text", "time", "row number", "nothing", "other"]
LENGTHS: tuple[Every, ...] = ("hour", "day", "week", "month")  # possible lengths of partitions
FAR = 10  # times that are so many times as far from most others as these are apart belong to no partition
LEAST_ROWS = 20  # number of rows from which equal values are no accident
MOST_REPEATED = 0.01  # share of the rows of a series that may repeat a time, such as the hour that clocks are set back
NEARLY = 0.8  # an estimated number of distinct values may be this much too low
GAPS = 0.1  # share of the rows that may be missing from numbers of rows
HARDLY = 0.1  # share of the usual share of labelled rows, below which labels are stray ones
SURELY = 7.0  # logarithm of how much likelier labels are missing on purpose than by accident: one to a thousand
EARLIEST, LATEST = datetime(1000, 1, 1, tzinfo=UTC), datetime(2199, 12, 31, tzinfo=UTC)  # others stand for no time
_TYPES: dict[Holds, str] = {
    "integer": "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT",
    "number": "FLOAT DOUBLE DECIMAL HUGEINT UHUGEINT",
    "boolean": "BOOLEAN",
    "text": "VARCHAR UUID ENUM",
    "time": "DATE TIMESTAMP TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS TIMESTAMPTZ_NS",
}
_NAMING = ("integer", "text", "time")  # what is stored in columns that can name rows
_HOLDS: dict[str, Holds] = {word: holds for holds, words in _TYPES.items() for word in words.split()}
_PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0(\.\d+)?|column0")  # an index without a name; column0 in CSV
_MOST_VALUES = 20_000_000  # distinct values that one query holds in memory
_MOST_CELLS = 4_000_000  # values of a sample
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AT_ONCE = 500  # columns about which one query asks
_NO_VALUE = ("", "na", "n/a", "n.a.", "#n/a", "nan", "null", "none", "-", "--", "?", ".")  # words for a missing value
_IS_NO_VALUE = f"lower(trim({{}})) IN ({', '.join(map(literal, _NO_VALUE))})"
_WHOLE, _NUMBER = "[-+]?[0-9]{1,18}", "[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?"  # regular expressions
_FINITE = "CASE WHEN isfinite({}) THEN {} END"  # `isnan` is wrong on Parquet files, whose statistics leave NaN out
_GROUPED = "CAST(replace(replace({}, '.', ''), ',', '.') AS DOUBLE)"


@dataclass(frozen=True)
class TableColumn:
    """A column of a table, and what it holds."""

    position: int  # position in the table, from 1
    name: str
    dtype: str  # type in DuckDB
    holds: Holds  # use of the values; "time" also for texts that read as times
    nulls: int  # rows without a value
    distinct: int  # approximate number of distinct values; 0 if the column holds "other"
    unique: bool  # an integer, a text or a time in every row, and no two rows have the same value or instant
    counts_rows: bool  # integers that number the rows, hardly with a gap
    reading: Reading | None = None  # way to read the values as instants; None if they cannot be times
    sql: str = ""  # expression for a value, in which {} stands for the column, if texts are numbers such as 1.234,56
    missing: tuple[str, ...] = ()  # values that stand for none: texts such as NA, or numbers such as NaN
    made_of: tuple[str, ...] = ()  # the columns that tell a time together; the table has no column of this name

    @property
    def is_likely_time(self) -> bool:
        """Return whether name and values suggest that the column holds times."""
        return self.reading is not None and self.reading.likely

    @property
    def is_number(self) -> bool:
        """Return whether the column is stored as numbers."""
        return self.holds in ("integer", "number")

    @property
    def is_text(self) -> bool:
        """Return whether the column is stored as text, also if the text reads as a time, but not if it is a number."""
        return _stored_as(self.dtype) == "text" and not self.is_number


@dataclass(frozen=True)
class TimeRange:
    """The range of the times in a column, without those that stand for no time, such as 9999-12-31."""

    first: datetime  # UTC
    last: datetime  # UTC
    rows: int  # rows with such a time
    filled: dict[Every, int]  # number of windows of each length that contain a row
    starts: frozenset[Every | Literal["year"]]  # windows at whose start every time lies
    far_off: datetime | None = None  # example of the few times far from all others, which are left out

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
    con: duckdb.DuckDBPyConnection
    stored: str  # the view of the rows as the table holds them, which SQL for the table can read

    def column(self, name: str) -> TableColumn:
        """The column with a name; a WrongUseError if there is none."""
        columns = {column.name: column for column in self.columns}
        return named(name, columns, f"{self.origin.path} has no column {name!r}; it has")

    def example(self, name: str) -> str:
        """The largest value of a column, shortened."""
        return shortened(self._answer(f"SELECT max({quoted(name)}) FROM seen"))

    def shown(self, column: TableColumn) -> str:
        """Some values of a column, or its smallest and its largest number if there are more."""
        name, few = quoted(column.name), 5
        query = f"SELECT DISTINCT {name} FROM seen WHERE {name} IS NOT NULL ORDER BY 1 LIMIT {few + 1}"
        values = [shortened(value) for (value,) in self.con.execute(query).fetchall()]
        if len(values) > few and column.is_number:
            low, high = self.con.execute(f"SELECT min({name}), max({name}) FROM seen").fetchall()[0]
            return f"{low:.6g} to {high:.6g}"
        return ", ".join([*values[:few], *(["…"] if len(values) > few else [])])

    def rarer(self, name: str) -> str:
        """The value that the fewest rows have; the last of those in order."""
        column = quoted(name)
        known = f"SELECT {column}::VARCHAR FROM seen WHERE {column} IS NOT NULL"
        return self._answer(f"{known} GROUP BY ALL ORDER BY count(*), 1 DESC LIMIT 1")

    def values(self, name: str) -> int:
        """The exact number of distinct values in a column."""
        return self._answer(f"SELECT count(DISTINCT {quoted(name)}) FROM seen")

    def has_decimals(self, name: str) -> bool:
        """Return whether a value of a column of numbers is not whole."""
        return bool(self._answer(f"SELECT bool_or({quoted(name)} <> trunc({quoted(name)})) FROM seen"))

    def unique(self, names: Sequence[str], time: str | None = None, every: Every | None = None) -> bool:
        """Return whether some columns are never null and no two rows, or of those in the same window of a time, have equal values."""
        columns = [self.column(name) for name in names]
        if any(column.nulls for column in columns):
            return False
        if len(columns) == 1 and time is None and columns[0].holds != "number":
            return columns[0].unique
        own = (_instant_of_clock(column.name, None if column.made_of else column.reading) for column in columns)
        by = ", ".join([*own, *([f"date_trunc('{every}', {self._instant(time)})"] if time else [])])
        return not self._answer(f"SELECT count(*) FROM (FROM seen SELECT 1 GROUP BY {by} HAVING count(*) > 1 LIMIT 1)")

    def with_nulls_last(self, columns: Sequence[TableColumn]) -> set[str]:
        """The names of the columns in which every row after the first null is null too, in the order of the file."""
        with_nulls = [column for column in columns if column.nulls]
        places = ", ".join(f"{quoted(column.name)} IS NULL AS n{column.position}" for column in with_nulls)
        firsts = [f"min(place) FILTER (n{column.position})" for column in with_nulls]
        begins = _ask(self.con, firsts, f"(SELECT row_number() OVER () AS place, {places} FROM seen)")
        pairs = zip(with_nulls, begins, strict=True)
        return {column.name for column, first in pairs if self.rows - first + 1 == column.nulls}

    def null_with(self, known: TableColumn, columns: Sequence[TableColumn]) -> list[TableColumn]:
        """The columns that are null in exactly the rows in which a column is, if there are any."""
        as_many = [column for column in columns if column.nulls == known.nulls > 0]
        same = (f"bool_and(({quoted(column.name)} IS NULL) = ({quoted(known.name)} IS NULL))" for column in as_many)
        return [column for column, is_same in zip(as_many, _ask(self.con, same), strict=True) if is_same]

    def sample(self, columns: Sequence[TableColumn], rows: int, known: TableColumn | None = None) -> pl.DataFrame:
        """At most so many rows, evenly spaced, and fewer of many columns; only those in which a column is `known`, if one is named."""
        names = ", ".join(quoted(column.name) for column in columns)
        there = self.rows if known is None else self.rows - known.nulls
        step = -(-max(there, 1) // min(rows, max(_MOST_CELLS // len(columns), LEAST_ROWS)))
        where = "" if known is None else f"WHERE {quoted(known.name)} IS NOT NULL"
        return self.con.sql(f"SELECT {names} FROM seen {where} QUALIFY row_number() OVER () % {step} = 0").pl()

    def repeats(self, time: str) -> list[tuple[datetime, int]]:
        """The instants that several rows have, with the number of these rows; most rows first."""
        at = self._instant(time)
        groups = f"SELECT {at} AS instant, count(*) AS rows FROM seen WHERE {at} IS NOT NULL GROUP BY 1 HAVING rows > 1"
        return self.con.execute(f"{groups} ORDER BY rows DESC, instant").fetchall()

    def is_series(self, time: str, span: TimeRange, repeats: Sequence[tuple[datetime, int]]) -> bool:
        """Return whether nearly every time has one row, and times lie on whole hours or mostly follow at the same interval."""
        if self.column(time).nulls or sum(rows - 1 for _, rows in repeats) > self.rows * MOST_REPEATED:
            return False
        at = self._instant(time)
        steps = f"SELECT epoch({at}) - lag(epoch({at})) OVER (ORDER BY {at}) AS seconds FROM seen"
        usual = f"SELECT mode(seconds) FROM ({steps})"
        return "hour" in span.starts or self._answer(
            f"SELECT 2 * count(*) FILTER (seconds = ({usual})) >= count(seconds) FROM ({steps})"
        )

    def unlabelled_end(self, label: str, time: str, span: TimeRange, every: Every) -> Duration:
        """The length of the end of a table in which hardly a row has a label, rounded up to days (hours, if partitions are hours).

        It begins where the share of rows with a label changes most, so single labels after that and gaps before it do not count.
        It is empty if labels are usual there.
        """
        unit, length = ("hour", 3_600) if every == "hour" else ("day", 86_400)
        at = self._instant(time)
        query = f"""
            SELECT epoch(date_trunc('hour', {at})), epoch(date_trunc('{unit}', {at})), count(*), count({quoted(label)})
            FROM seen WHERE {at} BETWEEN $first AND $last GROUP BY ALL ORDER BY 1
        """
        counts = self.con.execute(query, {"first": span.first, "last": span.last}).fetchall()
        begins, units, rows, labels = np.array(counts, float).T
        known, of = np.cumsum(labels)[:-1], np.cumsum(rows)[:-1]
        known_later, of_later = labels.sum() - known, rows.sum() - of
        gain = _likelihood(known, of) + _likelihood(known_later, of_later) - _likelihood(labels.sum(), rows.sum())
        gain = np.where(known_later / of_later <= HARDLY * known / of, gain, 0)
        if gain.max(initial=0) < SURELY:
            return Duration()
        count = ceil((units[-1] + length - begins[gain.argmax() + 1]) / length)
        return Duration(days=count // 24, hours=count % 24) if unit == "hour" else Duration(days=count)

    def span(self, time: str) -> TimeRange | None:
        """The range of the times in a column; None if it has no times.

        Raises:
            WrongUseError: The order of day and month is not certain.
        """
        if self.column(time).reading is None:
            return None
        at = self._instant(time)
        starts = (*LENGTHS, "year")
        facts = [f"count(DISTINCT date_trunc('{every}', {at}))" for every in LENGTHS]
        facts += [f"bool_and({at} = date_trunc('{every}', {at}))" for every in starts]
        low, high, far_off = self._without_far_off(at)
        query = f"SELECT epoch_us(min({at})), epoch_us(max({at})), count(*), {', '.join(facts)} FROM seen WHERE {at} BETWEEN $low AND $high"
        ((first, last, rows, *answers),) = self.con.execute(query, {"low": low, "high": high}).fetchall()
        if first is None:
            return None
        filled, on_start = answers[: len(LENGTHS)], answers[len(LENGTHS) :]
        return TimeRange(
            _instant_of(first),
            _instant_of(last),
            rows,
            dict(zip(LENGTHS, filled, strict=True)),
            frozenset(every for every, on in zip(starts, on_start, strict=True) if on),
            far_off,
        )

    def _without_far_off(self, at: str) -> tuple[datetime, datetime, datetime | None]:
        """The bounds of the times without those that are far from most others, and the last of these.

        Far is a year and ten times as much as the middle seven of ten times are apart.
        """
        query = f"""
            WITH possible AS (SELECT {at} AS moment FROM seen WHERE moment BETWEEN $earliest AND $latest),
                most AS (SELECT quantile_disc(moment, 0.15) AS low, quantile_disc(moment, 0.85) AS high FROM possible),
                near AS (SELECT low - {FAR} * (high - low) - INTERVAL 1 YEAR AS low, high + {FAR} * (high - low) + INTERVAL 1 YEAR AS high FROM most)
            SELECT epoch_us(greatest(any_value(low), $earliest)), epoch_us(least(any_value(high), $latest)),
                epoch_us(max(moment) FILTER (moment NOT BETWEEN low AND high)) FROM possible, near
        """
        ((low, high, far_off),) = self.con.execute(query, {"earliest": EARLIEST, "latest": LATEST}).fetchall()
        if low is None:
            return EARLIEST, LATEST, None
        return _instant_of(low), _instant_of(high), None if far_off is None else _instant_of(far_off)

    def bounds_of_file(self, file: Origin, time: str) -> tuple[datetime, datetime] | None:
        """The first and the last instant in another file with the same columns; None if it has no times.

        Raises:
            SourceError: The file cannot be read, or lacks the column.
        """
        at = self._instant(time)
        try:
            create_view_of(self.con, file.as_table("one_file"))
            ((first, last),) = self.con.execute(
                f"SELECT epoch_us(min({at})), epoch_us(max({at})) FROM one_file"
            ).fetchall()
        except duckdb.Error as error:
            raise unreadable(file.path, error) from error
        return None if first is None else (_instant_of(first), _instant_of(last))

    def _instant(self, time: str) -> str:
        """SQL that reads a column as an instant, in the time zone of the session if the value has none."""
        reading = self.column(time).reading
        if reading is None or reading.undecided:
            orders = () if reading is None else reading.undecided
            readings = " and ".join(ORDERS[order] for order in orders)
            msg = f"{time!r} of {self.origin.path} holds dates such as {self.example(time)!r}, which fit {readings}."
            options = " or ".join(f"--date-order {order}" for order in orders)
            raise WrongUseError(msg, hint=f"say which it is with {options}, or name another column with --time.")
        return f"CAST({reading.of(quoted(time), *map(quoted, self.column(time).made_of))} AS TIMESTAMPTZ)"

    def _answer(self, query: str) -> Any:  # noqa: ANN401 - a value of any type
        """The only value that a query gives."""
        ((value,),) = self.con.execute(query).fetchall()
        return value


def _likelihood(known: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the likelihood that so many of the rows have a label, by their own share."""
    lacking = rows - known
    return known * np.log(np.maximum(known, 1) / rows) + lacking * np.log(np.maximum(lacking, 1) / rows)


def _instant_of(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


@contextmanager
def survey(origin: Origin, timezone: str, date_order: DateOrder | None = None) -> Generator[Survey]:
    """Open a table and survey its columns; `date_order` decides where the values of a column do not.

    Raises:
        SourceError: A file cannot be read.
        WrongUseError: The table has no rows.
    """
    try:
        with connect() as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            create_view_of(con, origin.as_table("seen"))
            yield _look(con, _with_short_years_as_text(con, origin), date_order)
    except duckdb.Error as error:
        raise unreadable(origin.path, error) from error


def _with_short_years_as_text(con: duckdb.DuckDBPyConnection, origin: Origin) -> Origin:
    """Have dates of a CSV file read as text if DuckDB takes 31-01-26 for a day in the year 31."""
    times = [name for name, dtype in _types(con).items() if _stored_as(dtype) == "time"]
    if origin.kind != "csv" or not times:
        return origin
    (years,) = con.execute(f"SELECT {', '.join(f'max(year({quoted(name)}))' for name in times)} FROM seen").fetchall()
    texts = {name: "VARCHAR" for name, year in zip(times, years, strict=True) if year is not None and year < 100}  # noqa: PLR2004 - two digits
    if texts:
        origin = origin.read_with(types=texts)
        create_view_of(con, origin.as_table("seen"))
    return origin


def _look(con: duckdb.DuckDBPyConnection, origin: Origin, date_order: DateOrder | None) -> Survey:
    """Survey the columns of the view `seen`; raises WrongUseError if it has no rows."""
    types = _types(con)
    rows, *answers = _ask(con, ["count(*)", *(fact for column in types.items() for fact in _facts(*column))])
    if not rows:
        msg = f"{origin.path} has no rows."
        raise WrongUseError(msg, hint="a pipeline is proposed from the rows of its table.")
    if origin.kind == "json" and all(dtype.startswith(("STRUCT", "MAP")) for dtype in types.values()):
        msg = f"{origin.path} holds an object for each column instead of one for each row."
        raise WrongUseError(
            msg, hint="write one object for each row; in pandas: to_json(orient='records', lines=True)."
        )
    facts = _by_column(types, answers)
    numbers = _numbers_in_texts(
        con,
        {name: facts[name][2:] for name in types if types[name] == "VARCHAR"},
        with_commas="decimal" in origin.options,
    )
    numbers |= _infinite_numbers(con, {name: facts[name][2:] for name in types})
    stored = types
    if numbers:
        replaced = (f"{sql.replace('{}', quoted(name))} AS {quoted(name)}" for name, (sql, _) in numbers.items())
        _see(con, "texts", f"* REPLACE ({', '.join(replaced)})")
        stored = _types(con)
        read = {name: stored[name] for name in numbers}
        facts |= _by_column(read, _ask(con, (fact for column in read.items() for fact in _facts(*column))))
    extremes = {name: (low, high) for name, (*_, low, high) in facts.items()}
    readings = {name: decided(each, date_order) for name, each in _readings(con, stored, extremes).items()}
    may_name = {
        name: _instant_of_clock(name, readings[name])
        for name, (present, distinct, *_) in facts.items()
        if present == rows and distinct > rows * NEARLY and _stored_as(stored[name]) in _NAMING
    }
    unique = _unique(con, may_name, rows)
    is_index = {name for name in types if _PANDAS_INDEX.fullmatch(name) and "column1" not in types}
    columns: list[TableColumn] = []
    for name, (present, distinct, low, high) in facts.items():
        reading, holds = readings[name], _stored_as(stored[name])
        numbered = holds == "integer" and name in unique and high - low < rows * (1 + GAPS)
        if not present:
            holds = "nothing"
        elif reading is not None and reading.is_time:
            holds = "time"
        elif holds == "integer" and name in is_index:
            holds = "row number"
        sql, missing = numbers.get(name, ("", ()))
        columns.append(
            TableColumn(
                position=len(columns) + 1,
                name=name,
                dtype=types[name],
                holds=holds,
                nulls=rows - present,
                distinct=distinct,
                unique=name in unique,
                counts_rows=numbered,
                reading=reading,
                sql=sql,
                missing=missing,
            )
        )
    times = _composed(con, columns, extremes)
    stored_view = "texts" if numbers else "parts" if times else "seen"
    return Survey(origin, rows, (*columns, *times), con, stored_view)


def _types(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    view = con.sql("FROM seen")
    return dict(zip(view.columns, map(str, view.types), strict=True))


def _instant_of_clock(name: str, reading: Reading | None) -> str:
    """SQL of a column, of times as instants: two clocks are the same instant where the clocks are set forward."""
    if reading is None or reading.undecided or not reading.is_time:
        return quoted(name)
    return f"CAST({reading.of(quoted(name))} AS TIMESTAMPTZ)"


def _see(con: duckdb.DuckDBPyConnection, inner: str, columns: str) -> None:
    """Have the view `seen` select some columns, given as SQL, from what it was so far, which gets another name."""
    con.execute(f"ALTER VIEW seen RENAME TO {inner}")
    con.execute(f"CREATE TEMP VIEW seen AS SELECT {columns} FROM {inner}")


def _facts(name: str, dtype: str) -> tuple[str, ...]:
    """SQL for the number of values, of distinct values, and the extremes of a column."""
    column, stored = quoted(name), _stored_as(dtype)
    distinct = "0" if stored == "other" else f"approx_count_distinct({column})"
    compared = {"text": column, "integer": column, "number": f"CAST({column} AS DOUBLE)"}.get(stored, "NULL")
    return f"count({column})", distinct, f"min({compared})", f"max({compared})"


def _unique(con: duckdb.DuckDBPyConnection, columns: Mapping[str, str], rows: int) -> set[str]:
    """Those of some columns without nulls, given as SQL by name, in which no two rows have the same value."""
    counts = (f"count(DISTINCT {sql})" for sql in columns.values())
    distinct = _ask(con, counts, at_once=max(_MOST_VALUES // rows, 1))
    return {name for name, number in zip(columns, distinct, strict=True) if number == rows}


def _readings(
    con: duckdb.DuckDBPyConnection, types: Mapping[str, str], extremes: Mapping[str, tuple[object, object]]
) -> dict[str, list[Reading]]:
    """The readings by which every value of a column is a time."""
    possible = [(name, reading) for name in types for reading in candidates(types[name], name, *extremes[name])]
    fit = ((quoted(name), reading.fits.replace("{}", quoted(name))) for name, reading in possible)
    fits_all = _ask(
        con,
        (f"coalesce(bool_and(coalesce({fits}, false)) FILTER ({name} IS NOT NULL), true)" for name, fits in fit),
    )
    readings: dict[str, list[Reading]] = {name: [] for name in types}
    for (name, reading), fits in zip(possible, fits_all, strict=True):
        if fits:
            readings[name].append(reading)
    return readings


def _composed(
    con: duckdb.DuckDBPyConnection, columns: Sequence[TableColumn], extremes: Mapping[str, tuple[object, object]]
) -> list[TableColumn]:
    """The time that several columns tell together, as a further column of the view `seen`; none if there is no such time."""
    times = {column.name: column.reading for column in columns if column.holds == "time" and column.reading}
    parts, reading = composed({column.name: column.dtype for column in columns}, extremes, times) or ((), None)
    name = "_".join(parts)
    if reading is None or name in extremes:
        return []
    sql, fits = (text.format(*map(quoted, parts)) for text in (reading.sql, reading.fits))
    if not all(_ask(con, [f"bool_and({fits})"])):
        return []
    rows, present, distinct = _ask(con, ["count(*)", f"count({sql})", f"count(DISTINCT {sql})"])
    _see(con, "parts", f"*, {sql} AS {quoted(name)}")
    return [
        TableColumn(
            position=0,
            name=name,
            dtype="TIMESTAMP WITH TIME ZONE",
            holds="time",
            nulls=rows - present,
            distinct=distinct,
            unique=distinct == rows,
            counts_rows=False,
            reading=reading,
            made_of=parts,
        )
    ]


def _stored_as(dtype: str) -> Holds:
    """The use of the values of a type; lists and the like are "other"."""
    word = re.match(r"\w+", dtype)
    return "other" if dtype.endswith("]") or word is None else _HOLDS.get(word[0], "other")


def _numbers_in_texts(
    con: duckdb.DuckDBPyConnection, extremes: Mapping[str, tuple[object, object]], *, with_commas: bool
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The SQL that reads texts as numbers, such as 1.234,56, or without words for no value, and these words, by column.

    Texts that are times beside such words stay texts, without the words.
    """
    texts = [name for name, (low, _) in extremes.items() if low is not None]
    groups = (f"bool_and(regexp_full_match(trim({quoted(name)}), '{COMMA_NUMBER}'))" for name in texts if with_commas)
    grouped = zip(texts, _ask(con, groups), strict=False)
    numbers: dict[str, tuple[str, tuple[str, ...]]] = {name: (_GROUPED, ()) for name, fits in grouped if fits}
    worded = [name for name in texts if {str(text).strip().lower() for text in extremes[name]} & {*_NO_VALUE}]
    facts = [fact for name in worded for fact in _worded_facts(name)]
    for name, (words, low, high, are_numbers, are_whole) in _by_column(worded, _ask(con, facts), 5).items():
        text = "{}"
        for word in (absent := tuple(sorted(words or ()))):
            text = f"nullif({text}, {literal(word)})"
        if are_numbers:
            numbers[name] = f"CAST({text} AS {'BIGINT' if are_whole else 'DOUBLE'})", absent
        elif low is not None and candidates("VARCHAR", name, low, high):
            numbers[name] = text, absent
    return numbers


def _infinite_numbers(
    con: duckdb.DuckDBPyConnection, extremes: Mapping[str, tuple[object, object]]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The SQL that reads numbers without NaN and infinite ones, and which of these there are, by column that has any."""
    columns = [
        name for name, ends in extremes.items() if any(isinstance(end, float) and not isfinite(end) for end in ends)
    ]
    facts = (f"list(DISTINCT {quoted(name)}::VARCHAR) FILTER (NOT isfinite({quoted(name)}))" for name in columns)
    return {name: (_FINITE, tuple(sorted(absent))) for name, absent in zip(columns, _ask(con, facts), strict=True)}


def _worded_facts(name: str) -> tuple[str, ...]:
    """SQL for the words for no value in a column of texts, the extremes of the others, and whether these are numbers, or whole ones."""
    column = quoted(name)
    none = _IS_NO_VALUE.replace("{}", column)
    others = [
        f"min({column})",
        f"max({column})",
        *(f"bool_and(regexp_full_match(trim({column}), '{kind}'))" for kind in (_NUMBER, _WHOLE)),
    ]
    return f"list(DISTINCT {column}) FILTER ({none})", *(f"{fact} FILTER (NOT {none})" for fact in others)


def _by_column(names: Iterable[str], answers: Sequence[Any], each: int = 4) -> dict[str, tuple[Any, ...]]:
    """So many facts on each column, where `answers` are those on all of them."""
    return dict(zip(names, zip(*(answers[fact::each] for fact in range(each)), strict=True), strict=True))


def _ask(
    con: duckdb.DuckDBPyConnection, aggregates: Iterable[str], rows: str = "seen", at_once: int = _AT_ONCE
) -> list[Any]:
    """The value of each SQL aggregate over all rows, a number of them in each query."""
    asked = [*aggregates]
    parts = (asked[start : start + at_once] for start in range(0, len(asked), at_once))
    return [value for part in parts for value in con.execute(f"SELECT {', '.join(part)} FROM {rows}").fetchall()[0]]
