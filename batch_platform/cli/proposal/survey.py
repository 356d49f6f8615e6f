"""Survey a table that nobody has described: its columns, what they hold, and what is unique in it.

Each question is one scan by DuckDB of the view `seen`: the rows of one table, or of two files, one with a label to learn from and
one to score.
"""

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from shlex import quote
from typing import Any, Literal

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.cli.proposal.instants import ORDERS, DateOrder, Reading, candidates, decided, reads_as_time
from batch_platform.cli.proposal.origin import COMMA_NUMBER, Origin, unreadable
from batch_platform.declaration.calendar import Duration, Every, Partition
from batch_platform.declaration.errors import WrongUseError, listed, named, shortened
from batch_platform.declaration.inputs import ROW_IN_FILE
from batch_platform.features.sources.opening import create_view_of
from batch_platform.warehouse.sql import connect, literal, quoted

Holds = Literal["integer", "number", "boolean", "text", "time", "row number", "nothing", "other"]
PART = "part"  # column that tells of which of two files a row is, by one of these values
TRAIN, SCORE = "train", "score"
WITHIN_FILE = "within its file"  # range in which a key is unique that two files share
LENGTHS: tuple[Every, ...] = ("hour", "day", "week", "month")  # possible lengths of partitions
MOST_FAR_OFF, FAR = 3, timedelta(days=365)  # times, or one in a thousand, that may lie so far from all others
LEAST_ROWS = 20  # number of rows from which equal values are no accident
MOST_STEPS = 0.9  # share of the steps of a counter that are of one
EVEN = 1.2  # ratio of the longest to the shortest time that a counter takes for one
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
_PANDAS_INDEX = re.compile(
    r"__index_level_\d+__|Unnamed: 0|column0"
)  # names of an index without a name; column0 in CSV
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TableColumn:
    """A column of a table, and what it holds."""

    position: int  # position in the table, from 1
    name: str
    dtype: str  # type in DuckDB
    holds: Holds  # use of the values; "time" also for texts that read as times
    nulls: int  # rows without a value
    distinct: int  # approximate number of distinct values; 0 if the column holds "other"
    reading: Reading | None = None  # way to read the values as instants; None if they cannot be times
    groups_digits: bool = False  # the values are texts such as 1.234,56, which are numbers
    some_times: bool = False  # the first or last text reads as a time, though not all do in one notation

    @property
    def is_likely_time(self) -> bool:
        """Return whether name and values suggest that the column holds times."""
        return self.reading is not None and self.reading.likely

    @property
    def is_number(self) -> bool:
        """Return whether the column is stored as numbers."""
        return self.holds in ("integer", "number") and not self.groups_digits

    @property
    def is_text(self) -> bool:
        """Return whether the column is stored as text, also if the text reads as a time, but not if it is a number."""
        return _stored_as(self.dtype) == "text" and not self.groups_digits


@dataclass(frozen=True)
class TimeRange:
    """The range of the times in a column, without those that stand for no time, such as 9999-12-31."""

    first: datetime  # UTC
    last: datetime  # UTC
    rows: int  # rows with such a time
    filled: dict[Every, int]  # number of windows of each length that contain a row
    starts: frozenset[Every | Literal["year"]]  # windows at whose start every time lies
    far_off: tuple[datetime, ...] = ()  # the few times far from all others, such as 2099-12-31, which are left out

    @property
    def length(self) -> timedelta:
        """Time between the first and the last instant."""
        return self.last - self.first


@dataclass(frozen=True)
class Pair:
    """The file of the rows to score, and what it has in common with that of the rows to learn from."""

    score: Origin
    columns: tuple[str, ...]  # columns of both
    label: str  # label of the first
    left_out: dict[str, str]  # columns of one file only, with the reason

    def rows(self, train: str, score: str, *, numbered: bool) -> str:
        """SQL for the rows of both, given the names of two tables as SQL identifiers."""
        place = f"row_number() OVER () AS {ROW_IN_FILE}, " if numbered else ""
        shared = ", ".join(map(quoted, self.columns))
        return (
            f"SELECT {literal(TRAIN)} AS {PART}, {place}{shared}, {quoted(self.label)} FROM {train}\n"
            f"    UNION ALL BY NAME SELECT {literal(SCORE)} AS {PART}, {place}{shared} FROM {score}"
        )


@dataclass(frozen=True)
class Survey:
    """A table that is open for questions."""

    origin: Origin
    rows: int
    columns: tuple[TableColumn, ...]
    pair: Pair | None  # the second file, where the rows are those of two
    _con: duckdb.DuckDBPyConnection

    def with_date_order(self, order: DateOrder) -> "Survey":
        """The same table, with this order of day, month and year where the values of a column leave it open."""
        return _look(self._con, self.origin, order, self.pair)

    def column(self, name: str) -> TableColumn:
        """The column with a name; a WrongUseError if there is none."""
        columns = {column.name: column for column in self.columns}
        return named(name, columns, f"{self.origin.path} has no column {name!r}; it has")

    def example(self, name: str) -> str:
        """The largest value of a column, shortened."""
        return shortened(self._answer(f"SELECT max({quoted(name)}) FROM seen"))

    def rarer(self, name: str) -> str:
        """The value that the fewest rows have; the last of those in order."""
        column = quoted(name)
        known = f"SELECT {column}::VARCHAR FROM seen WHERE {column} IS NOT NULL"
        return self._answer(f"{known} GROUP BY ALL ORDER BY count(*), 1 DESC LIMIT 1")

    def values(self, name: str) -> int:
        """The exact number of distinct values in a column."""
        return self._answer(f"SELECT count(DISTINCT {quoted(name)}) FROM seen")

    def unique(self, names: Sequence[str], *within: str) -> bool:
        """Return whether some columns are never null and no two rows have equal values in them, and in further SQL expressions."""
        if any(self.column(name).nulls for name in names):
            return False
        by = ", ".join([*map(quoted, names), *within])
        return not self._answer(f"SELECT count(*) FROM (FROM seen SELECT 1 GROUP BY {by} HAVING count(*) > 1 LIMIT 1)")

    def where_unique(self, names: Sequence[str], time: str | None, every: Every) -> str | None:
        """The range in which some columns identify a row: everywhere, its file, or a window; None if they do not."""
        if self.unique(names):
            return "everywhere"
        if self.pair is not None and self.unique(names, PART):
            return WITHIN_FILE
        within = time is not None and self.unique(names, f"date_trunc('{every}', {self._instant(time)})")
        return f"within a {every}" if within else None

    def nulls_are_last(self, name: str) -> bool:
        """Return whether every row after the first null of a column is null too, in the order of the file."""
        rows = f"SELECT row_number() OVER () AS place, {quoted(name)} IS NULL AS lacks FROM seen"
        return self._answer(
            f"SELECT count(*) FILTER (lacks) = max(place) - min(place) FILTER (lacks) + 1 FROM ({rows})"
        )

    def null_with(self, known: TableColumn, columns: Sequence[TableColumn]) -> list[TableColumn]:
        """The columns that are null in exactly the rows in which a column is, if there are any."""
        as_many = [column for column in columns if column.nulls == known.nulls > 0]
        if not as_many:
            return []
        same = (f"bool_and(({quoted(column.name)} IS NULL) = ({quoted(known.name)} IS NULL))" for column in as_many)
        (answers,) = self._con.execute(f"SELECT {', '.join(same)} FROM seen").fetchall()
        return [column for column, is_same in zip(as_many, answers, strict=True) if is_same]

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

    def is_series(self, time: str, span: TimeRange) -> bool:
        """Return whether each time has one row, and times lie on whole hours or mostly follow each other at the same interval."""
        if not self.unique([time]):
            return False
        at = self._instant(time)
        steps = f"SELECT epoch({at}) - lag(epoch({at})) OVER (ORDER BY {at}) AS seconds FROM seen"
        usual = f"SELECT mode(seconds) FROM ({steps})"
        return "hour" in span.starts or self._answer(
            f"SELECT 2 * count(*) FILTER (seconds = ({usual})) >= count(seconds) FROM ({steps})"
        )

    def counts_rows(self, name: str) -> bool:
        """Return whether a column of integers numbers the rows without a gap."""
        column = quoted(name)
        gapless = f"count(DISTINCT {column}) = count(*) AND max({column}) - min({column}) + 1 = count(*)"
        return self._answer(f"SELECT {gapless} FROM seen")

    def is_counter(self, name: str, time: str) -> bool:
        """Return whether a column of integers counts the rows of a series: without a gap, or step by step in the order of a unique time.

        Where rows were taken away since, most steps are still of one, or all take equally long.
        """
        if self.counts_rows(name):
            return True
        column, at = quoted(name), self._instant(time)
        return self._answer(f"""
            SELECT min(sign(step)) = max(sign(step)) AND min(abs(step)) > 0 AND (
                count(*) FILTER (abs(step) = 1) >= {MOST_STEPS} * count(step)
                OR max(seconds / abs(step)) <= {EVEN} * min(seconds / abs(step)))
            FROM (
                SELECT {column} - lag({column}) OVER later AS step, epoch({at}) - lag(epoch({at})) OVER later AS seconds
                FROM seen WINDOW later AS (ORDER BY {at}))
        """)

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
        counts = self._con.execute(query, {"first": span.first, "last": span.last}).fetchall()
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
        low, high, far_off = self._without_far_off(at)
        starts = (*LENGTHS, "year")
        facts = [f"count(DISTINCT date_trunc('{every}', {at}))" for every in LENGTHS]
        facts += [f"bool_and({at} = date_trunc('{every}', {at}))" for every in starts]
        query = f"SELECT epoch_us(min({at})), epoch_us(max({at})), count(*), {', '.join(facts)} FROM seen WHERE {at} BETWEEN $low AND $high"
        ((first, last, rows, *answers),) = self._con.execute(query, {"low": low, "high": high}).fetchall()
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
        return f"CAST({reading.of(quoted(time))} AS TIMESTAMPTZ)"

    def _answer(self, query: str) -> Any:  # noqa: ANN401 - a value of any type
        """The only value that a query gives."""
        ((value,),) = self._con.execute(query).fetchall()
        return value


def _likelihood(known: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the likelihood that so many of the rows have a label, by their own share."""
    lacking = rows - known
    return known * np.log(np.maximum(known, 1) / rows) + lacking * np.log(np.maximum(lacking, 1) / rows)


def _instant_of(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


@contextmanager
def survey(
    origin: Origin,
    timezone: str,
    date_order: DateOrder | None = None,
    *,
    score: Origin | None = None,
    label: str | None = None,
) -> Generator[Survey]:
    """Open a table and survey its columns; `date_order` decides where the values of a column do not.

    With a second file to `score`, the rows are those of both, and only the first has the `label`.

    Raises:
        SourceError: A file cannot be read.
        WrongUseError: The table has no rows, or two files have no columns in common or no clear label.
    """
    try:
        with connect() as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            pair = None
            if score is None:
                create_view_of(con, origin.as_table("seen"))
                origin = _with_short_years_as_text(con, origin)
            else:
                create_view_of(con, origin.as_table(TRAIN))
                create_view_of(con, score.as_table(SCORE))
                columns = [con.sql(f"FROM {part}").columns for part in (TRAIN, SCORE)]
                pair = _paired(origin, score, label, *columns)
                con.execute(f"CREATE TEMP VIEW seen AS {pair.rows(TRAIN, SCORE, numbered=False)}")
            yield _look(con, origin, date_order, pair)
    except duckdb.Error as error:
        raise unreadable(origin.path, error) from error


def _paired(train: Origin, score: Origin, label: str | None, first: Sequence[str], second: Sequence[str]) -> Pair:
    have = {name.lower() for name in second}
    alone = [name for name in first if name.lower() not in have]
    if label is not None:
        named(label, dict.fromkeys(first), f"{train.path} has no column {label!r}; it has")
    elif len(alone) != 1:
        msg = f"It is not clear which column of {train.path} to predict: {score.path.name} lacks {listed(alone) or 'none'} of them."
        raise WrongUseError(msg, hint=f"name it, such as --label {quote((alone or first)[-1])}.")
    label = label or alone[0]
    shared = tuple(name for name in first if name.lower() in have and name != label)
    if not shared:
        msg = f"{train.path} and {score.path} have no columns in common to learn from."
        raise WrongUseError(msg, hint="name two files with the same columns, of which only the first has the label.")
    if taken := {name for name in (*shared, label) if name.lower() in (PART, ROW_IN_FILE)}:
        msg = f"{train.path} has a column {listed(map(repr, taken))}, which the pipeline would add."
        raise WrongUseError(msg, hint="rename the column.")
    known = {name.lower() for name in first}
    left_out = {name: f"only {train.path.name} has it" for name in alone if name != label}
    left_out |= {name: f"only {score.path.name} has it" for name in second if name.lower() not in known}
    return Pair(score, shared, label, left_out)


def _with_short_years_as_text(con: duckdb.DuckDBPyConnection, origin: Origin) -> Origin:
    """Have dates of a CSV file read as text if DuckDB takes 31-01-26 for a day in the year 31."""
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


def _look(
    con: duckdb.DuckDBPyConnection, origin: Origin, date_order: DateOrder | None, pair: Pair | None = None
) -> Survey:
    """Survey the columns of the view `seen`; raises WrongUseError if it has no rows."""
    view = con.sql("FROM seen")
    types = {
        name: str(dtype) for name, dtype in zip(view.columns, view.types, strict=True) if pair is None or name != PART
    }
    facts = ", ".join(_facts(name, dtype) for name, dtype in types.items())
    ((rows, *answers),) = con.execute(f"SELECT count(*), {facts} FROM seen").fetchall()
    if not rows:
        msg = f"{origin.path} has no rows."
        raise WrongUseError(msg, hint="a pipeline is proposed from the rows of its table.")
    if origin.kind == "json" and all(dtype.startswith(("STRUCT", "MAP")) for dtype in types.values()):
        msg = f"{origin.path} holds an object for each column instead of one for each row."
        raise WrongUseError(
            msg, hint="write one object for each row; with pandas: to_json(orient='records', lines=True)."
        )
    extremes = dict(zip(types, zip(answers[2::4], answers[3::4], strict=True), strict=True))
    readings, grouped = _notations(con, types, extremes, with_commas=origin.decimal is not None)
    columns: list[TableColumn] = []
    for (name, dtype), present, distinct in zip(types.items(), answers[::4], answers[1::4], strict=True):
        reading = decided(readings[name], date_order)
        is_index = _PANDAS_INDEX.fullmatch(name) is not None and "column1" not in types
        holds: Holds = _stored_as(dtype)
        if not present:
            holds = "nothing"
        elif name in grouped:
            holds = "number"
        elif reading is not None and reading.is_time:
            holds = "time"
        elif holds == "integer" and is_index:
            holds = "row number"
        columns.append(
            TableColumn(
                position=len(columns) + 1,
                name=name,
                dtype=dtype,
                holds=holds,
                nulls=rows - present,
                distinct=distinct,
                reading=reading,
                groups_digits=name in grouped,
                some_times=reading is None and any(map(reads_as_time, extremes[name])),
            )
        )
    return Survey(origin, rows, tuple(columns), pair, con)


def _facts(name: str, dtype: str) -> str:
    """SQL for the values, the distinct values, and the extremes of a column."""
    column, stored = quoted(name), _stored_as(dtype)
    distinct = "0" if stored == "other" else f"approx_count_distinct({column})"
    compared = {"text": column, "integer": column, "number": f"CAST({column} AS DOUBLE)"}.get(stored, "NULL")
    return f"count({column}), {distinct}, min({compared}), max({compared})"


def _notations(
    con: duckdb.DuckDBPyConnection,
    types: dict[str, str],
    extremes: dict[str, tuple[object, object]],
    *,
    with_commas: bool,
) -> tuple[dict[str, list[Reading]], set[str]]:
    """The readings by which every value of a column is a time, and the columns of texts that are numbers such as 1.234,56."""
    possible = [(name, reading) for name in types for reading in candidates(types[name], name, *extremes[name])]
    texts = [
        name for name, (low, _) in extremes.items() if with_commas and types[name] == "VARCHAR" and low is not None
    ]
    fit = [(name, reading.fits.replace("{}", quoted(name))) for name, reading in possible]
    fit += [(name, f"regexp_full_match(trim({quoted(name)}), '{COMMA_NUMBER}')") for name in texts]
    every = (
        f"coalesce(bool_and(coalesce({fits}, false)) FILTER ({quoted(name)} IS NOT NULL), true)" for name, fits in fit
    )
    (answers,) = con.execute(f"SELECT {', '.join(['count(*)', *every])} FROM seen").fetchall()
    fits_all = answers[1:]
    readings: dict[str, list[Reading]] = {name: [] for name in types}
    for (name, reading), fits in zip(possible, fits_all, strict=False):
        if fits:
            readings[name].append(reading)
    return readings, {name for name, fits in zip(texts, fits_all[len(possible) :], strict=True) if fits}


def _stored_as(dtype: str) -> Holds:
    """The use of the values of a type; lists and the like are "other"."""
    word = re.match(r"\w+", dtype)
    return "other" if dtype.endswith("]") or word is None else _HOLDS.get(word[0], "other")
