"""A look at a table that nobody has described: its columns, what they hold, and what is unique in it.

Every question is one scan by DuckDB. Knows nothing of pipelines.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from glob import escape, has_magic
from pathlib import Path
from typing import Literal

import duckdb

from batch_platform.declaration.calendar import Every
from batch_platform.declaration.errors import SourceError, WrongUseError, did_you_mean, listed
from batch_platform.declaration.inputs import Source
from batch_platform.features.sources.kind import SourceTable
from batch_platform.features.sources.opening import SOURCE_KINDS, create_view_of
from batch_platform.warehouse.sql import literal, quoted

Holds = Literal["integer", "number", "boolean", "text", "time", "nothing", "other"]
EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(2199, 12, 31, tzinfo=UTC)  # what lies beyond is no time
_TYPES: dict[Holds, str] = {
    "integer": "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT",
    "number": "FLOAT DOUBLE DECIMAL HUGEINT UHUGEINT",
    "boolean": "BOOLEAN",
    "text": "VARCHAR UUID ENUM",
    "time": "DATE TIMESTAMP TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS",
}
_HOLDS: dict[str, Holds] = {word: holds for holds, words in _TYPES.items() for word in words.split()}
_MEANT = re.compile(r"\{[{%#]|\{partition_key\}")  # Dagster's templates, and our own
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Origin:
    """Where a table lies.

    Args:
        kind: What reads it.
        path: Absolute path, or a glob that begins with one.
        table: Of a DuckDB file.
    """

    kind: str
    path: Path
    table: str | None = None

    @property
    def declared(self) -> Source:
        """The source block that reads it."""
        return Source.model_validate({self.kind: str(self.path), "table": self.table})


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Args:
        position: In the table, from 1.
        name: As in the table.
        dtype: DuckDB's type.
        holds: What can be done with it; "time" also where a text reads as one.
        nulls: Rows without a value.
        distinct: About how many values there are; 0 of what holds other things.
    """

    position: int
    name: str
    dtype: str
    holds: Holds
    nulls: int
    distinct: int

    @property
    def is_text(self) -> bool:
        """Whether it is stored as a text, whatever that reads as."""
        return _stored_as(self.dtype) == "text"


@dataclass(frozen=True)
class Span:
    """Where the times of a column lie, those left out that stand for none, such as 9999-12-31.

    Args:
        first: The first instant, in UTC.
        last: The last one.
        rows: How many have such a time.
        filled: How many windows hold one.
    """

    first: datetime
    last: datetime
    rows: int
    filled: dict[Every, int]

    @property
    def length(self) -> timedelta:
        """From the first to the last instant."""
        return self.last - self.first


@dataclass(frozen=True)
class Survey:
    """A table, open to be asked.

    Args:
        origin: Where it lies.
        rows: How many it has.
        columns: In its order.
    """

    origin: Origin
    rows: int
    columns: tuple[Column, ...]
    _con: duckdb.DuckDBPyConnection

    def column(self, name: str) -> Column:
        """The column of a name.

        Raises:
            WrongUseError: There is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = [column.name for column in self.columns]
        msg = f"{self.origin.path} has no column {name!r}; it has {listed(names)}."
        raise WrongUseError(msg, hint=did_you_mean(name, names))

    def unique(self, names: Sequence[str], *, within: Every | None = None, time: str | None = None) -> bool:
        """Whether no two rows have the same values in some columns, none of them null; or none in the same window."""
        if any(self.column(name).nulls for name in names):
            return False
        by = [quoted(name) for name in names]
        by += [] if within is None or time is None else [f"date_trunc('{within}', {instant(time)})"]
        query = f"SELECT count(*) FROM (SELECT 1 FROM seen GROUP BY {', '.join(by)} HAVING count(*) > 1 LIMIT 1)"
        return self._one(query) == 0

    def lack_together(self, one: Column, other: Column) -> bool:
        """Whether two columns lack a value in the same rows, there being such rows."""
        apart = f"SELECT count(*) FROM seen WHERE ({quoted(one.name)} IS NULL) <> ({quoted(other.name)} IS NULL)"
        return one.nulls == other.nulls > 0 and self._one(apart) == 0

    def values(self, name: str) -> int:
        """Exactly how many values a column has."""
        return self._one(f"SELECT count(DISTINCT {quoted(name)}) FROM seen")

    def span(self, time: str) -> Span | None:
        """Where the times of a column lie; None where it has none."""
        at = instant(time)
        windows: tuple[Every, ...] = ("hour", "day", "week", "month")
        counted = ", ".join(f"count(DISTINCT date_trunc('{every}', {at}))" for every in windows)
        query = f"SELECT epoch_us(min({at})), epoch_us(max({at})), count(*), {counted} FROM seen WHERE {at} BETWEEN $low AND $high"
        ((first, last, rows, *filled),) = self._con.execute(query, {"low": EARLIEST, "high": LATEST}).fetchall()
        if first is None:
            return None
        of = dict(zip(windows, map(int, filled), strict=True))
        return Span(_EPOCH + timedelta(microseconds=first), _EPOCH + timedelta(microseconds=last), rows, of)

    def _one(self, query: str) -> int:
        ((value,),) = self._con.execute(query).fetchall()
        return int(value)


def instant(column: str) -> str:
    """SQL that reads a column as an instant, by the clocks of the session where it names no zone."""
    return f"CAST({quoted(column)} AS TIMESTAMPTZ)"


def locate(given: str, table: str | None) -> Origin:
    """Where a table lies that somebody names by a file, by a glob, or by a table in a DuckDB file.

    Raises:
        WrongUseError: There is no such file, or it is of no known kind.
    """
    path = Path(given).expanduser().absolute()
    literally = path.is_file()
    if not literally and not (has_magic(given) and _found(path)):
        near = did_you_mean(path.name, [one.name for one in path.parent.iterdir()]) if path.parent.is_dir() else None
        msg = f"There is no file {path}."
        raise WrongUseError(msg, hint=near or "--from names a Parquet, CSV or DuckDB file.")
    if _MEANT.search(str(path)):
        msg = f"{path} holds brackets that mean something in a declaration."
        raise WrongUseError(msg, hint="rename it, without {{, {%, {# and {partition_key}.")
    endings = {kind: source_kind.endings for kind, source_kind in SOURCE_KINDS.items()}
    kind = next((kind for kind, ends in endings.items() if path.name.lower().endswith(ends)), None)
    if kind is None:
        msg = (
            f"{path} is no file of a known kind; known are {listed(end for ends in endings.values() for end in ends)}."
        )
        raise WrongUseError(msg, hint="write the table as Parquet; Polars and DuckDB both can.")
    if (kind == "duckdb") != (table is not None):
        msg = f"{path} is {'' if kind == 'duckdb' else 'not '}a DuckDB file."
        raise WrongUseError(msg, hint="--table goes with a DuckDB file, and only with one.")
    return Origin(kind, Path(escape(str(path))) if literally and kind != "duckdb" else path, table)


@contextmanager
def survey(origin: Origin, timezone: str) -> Generator[Survey]:
    """Open a table and look at each of its columns.

    Raises:
        SourceError: It cannot be read.
        WrongUseError: It has no row.
    """
    try:
        with duckdb.connect(":memory:") as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            create_view_of(con, SourceTable("", "seen", origin.declared, Path(origin.path.anchor)))
            yield _look(con, origin)
    except duckdb.Error as error:
        msg = f"{origin.path} cannot be read: {' '.join(str(error).split()).rstrip('.')}."
        raise SourceError(msg, hint="mend the file, or write the table as Parquet.") from error


def _look(con: duckdb.DuckDBPyConnection, origin: Origin) -> Survey:
    view = con.sql("FROM seen")
    types = {name: str(dtype) for name, dtype in zip(view.columns, view.types, strict=True)}
    asked = ", ".join(
        f"count({quoted(name)}), {_distinct(name, dtype)}, {_read_as_times(name, dtype)}"
        for name, dtype in types.items()
    )
    ((rows, *found),) = con.execute(f"SELECT count(*), {asked} FROM seen").fetchall()
    if not rows:
        msg = f"{origin.path} has no row."
        raise WrongUseError(msg, hint="a pipeline is proposed by what its table holds.")
    columns = [
        Column(position, name, dtype, _holds(dtype, present, times), rows - present, distinct)
        for position, ((name, dtype), present, distinct, times) in enumerate(
            zip(types.items(), found[::3], found[1::3], found[2::3], strict=True), start=1
        )
    ]
    return Survey(origin, rows, tuple(columns), con)


def _holds(dtype: str, present: int, times: int) -> Holds:
    if not present:
        return "nothing"
    if dtype == "VARCHAR" and times == present:
        return "time"
    return _stored_as(dtype)


def _stored_as(dtype: str) -> Holds:
    """What a type is for; lists and the like are other things, whatever is in them."""
    word = re.match(r"\w+", dtype)
    return "other" if dtype.endswith("]") or word is None else _HOLDS.get(word[0], "other")


def _distinct(name: str, dtype: str) -> str:
    return "0" if _stored_as(dtype) == "other" else f"approx_count_distinct({quoted(name)})"


def _read_as_times(name: str, dtype: str) -> str:
    return f"count(TRY_CAST({quoted(name)} AS TIMESTAMPTZ))" if dtype == "VARCHAR" else "0"


def _found(path: Path) -> list[Path]:
    return sorted(one for one in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if one.is_file())
