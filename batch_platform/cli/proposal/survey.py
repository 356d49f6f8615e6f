"""Survey a table that nobody has described: its columns, what they hold, and what is unique in it.

Each question is one scan by DuckDB.
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
from batch_platform.declaration.errors import SourceError, WrongUseError, did_you_mean, listed, named
from batch_platform.declaration.inputs import Source
from batch_platform.features.sources.kind import SourceTable
from batch_platform.features.sources.opening import SOURCE_KINDS, create_view_of
from batch_platform.warehouse.sql import literal, quoted

Holds = Literal["integer", "number", "boolean", "text", "time", "nothing", "other"]
EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(2199, 12, 31, tzinfo=UTC)  # others stand for no time
_TYPES: dict[Holds, str] = {
    "integer": "TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT",
    "number": "FLOAT DOUBLE DECIMAL HUGEINT UHUGEINT",
    "boolean": "BOOLEAN",
    "text": "VARCHAR UUID ENUM",
    "time": "DATE TIMESTAMP TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS",
}
_HOLDS: dict[str, Holds] = {word: holds for holds, words in _TYPES.items() for word in words.split()}
_MEANT = re.compile(r"\{[{%#]|\{partition_key\}")  # Dagster's templates and this project's own
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Origin:
    """The location of a table."""

    kind: str  # of the source that reads it
    path: Path  # absolute; may be a glob
    table: str | None = None  # of a DuckDB file

    @property
    def declared(self) -> Source:
        """The source block that reads it."""
        return Source.model_validate({self.kind: str(self.path), "table": self.table})


@dataclass(frozen=True)
class TableColumn:
    """What a column of a table holds."""

    position: int  # in the table, from 1
    name: str
    dtype: str  # of DuckDB
    holds: Holds  # what the values can be used as; "time" also for texts that read as times
    nulls: int  # rows without a value
    distinct: int  # approximate number of distinct values; 0 if the column holds "other"

    @property
    def is_text(self) -> bool:
        """Whether the column is stored as text, also if the text reads as a time."""
        return _stored_as(self.dtype) == "text"


@dataclass(frozen=True)
class Span:
    """The range of the times in a column, without those that stand for no time, such as 9999-12-31."""

    first: datetime  # UTC
    last: datetime  # UTC
    rows: int  # with such a time
    filled: dict[Every, int]  # number of windows of each length that contain a row

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

    def column(self, name: str) -> TableColumn:
        """The column with a name; a WrongUseError if there is none."""
        columns = {column.name: column for column in self.columns}
        return named(name, columns, f"{self.origin.path} has no column {name!r}; it has")

    def unique(self, names: Sequence[str], *, within: Every | None = None, time: str | None = None) -> bool:
        """Whether some columns are never null and no two rows (of the same window) have equal values in them."""
        if any(self.column(name).nulls for name in names):
            return False
        by = [quoted(name) for name in names]
        by += [] if within is None or time is None else [f"date_trunc('{within}', {instant(time)})"]
        query = f"SELECT count(*) FROM (SELECT 1 FROM seen GROUP BY {', '.join(by)} HAVING count(*) > 1 LIMIT 1)"
        return self._count(query) == 0

    def null_together(self, left: TableColumn, right: TableColumn) -> bool:
        """Whether two columns have nulls, and in exactly the same rows."""
        apart = f"SELECT count(*) FROM seen WHERE ({quoted(left.name)} IS NULL) <> ({quoted(right.name)} IS NULL)"
        return left.nulls == right.nulls > 0 and self._count(apart) == 0

    def values(self, name: str) -> int:
        """The exact number of distinct values in a column."""
        return self._count(f"SELECT count(DISTINCT {quoted(name)}) FROM seen")

    def span(self, time: str) -> Span | None:
        """The range of the times in a column; None if it has no times."""
        at = instant(time)
        windows: tuple[Every, ...] = ("hour", "day", "week", "month")
        counted = ", ".join(f"count(DISTINCT date_trunc('{every}', {at}))" for every in windows)
        query = f"SELECT epoch_us(min({at})), epoch_us(max({at})), count(*), {counted} FROM seen WHERE {at} BETWEEN $low AND $high"
        ((first, last, rows, *filled),) = self._con.execute(query, {"low": EARLIEST, "high": LATEST}).fetchall()
        if first is None:
            return None
        begin, end = (_EPOCH + timedelta(microseconds=instant) for instant in (first, last))
        return Span(begin, end, rows, dict(zip(windows, map(int, filled), strict=True)))

    def _count(self, query: str) -> int:
        ((value,),) = self._con.execute(query).fetchall()
        return int(value)


def instant(column: str) -> str:
    """SQL that reads a column as an instant, in the time zone of the session if the value has none."""
    return f"CAST({quoted(column)} AS TIMESTAMPTZ)"


def locate(file: str, table: str | None) -> Origin:
    """Locate a table by its file, by a glob of files, or by its name in a DuckDB file.

    Raises:
        WrongUseError: The file does not exist or has no known ending.
    """
    path = Path(file).expanduser().absolute()
    literally, pattern = path.is_file(), str(path.relative_to(path.anchor))
    if not literally and not (has_magic(file) and any(f.is_file() for f in Path(path.anchor).glob(pattern))):
        near = did_you_mean(path.name, [neighbour.name for neighbour in path.parent.glob("*")])
        msg = f"There is no file {path}."
        raise WrongUseError(msg, hint=near or "--from names a Parquet, CSV or DuckDB file.")
    if _MEANT.search(str(path)):
        msg = f"{path} contains brackets that have a meaning in a declaration."
        raise WrongUseError(msg, hint="rename the file without {{, {%, {# and {partition_key}.")
    endings = {kind: source_kind.endings for kind, source_kind in SOURCE_KINDS.items()}
    kind = next((kind for kind, ends in endings.items() if path.name.lower().endswith(ends)), None)
    if kind is None:
        msg = f"{path} has no known file ending; known endings are {listed(end for ends in endings.values() for end in ends)}."
        raise WrongUseError(msg, hint="write the table as Parquet, for example with Polars or DuckDB.")
    if (kind == "duckdb") != (table is not None):
        msg = f"{path} is {'' if kind == 'duckdb' else 'not '}a DuckDB file."
        raise WrongUseError(msg, hint="give --table with a DuckDB file, and only with one.")
    return Origin(kind, Path(escape(str(path))) if literally and kind != "duckdb" else path, table)


@contextmanager
def survey(origin: Origin, timezone: str) -> Generator[Survey]:
    """Open a table and survey its columns.

    Raises:
        SourceError: The table cannot be read.
        WrongUseError: The table has no rows.
    """
    try:
        with duckdb.connect(":memory:") as con:
            con.execute(f"SET TimeZone = {literal(timezone)}")
            create_view_of(con, SourceTable("", "seen", origin.declared, Path(origin.path.anchor)))
            yield _look(con, origin)
    except duckdb.Error as error:
        msg = f"{origin.path} cannot be read: {' '.join(str(error).split()).rstrip('.')}."
        raise SourceError(msg, hint="correct the file, or write the table as Parquet.") from error


def _look(con: duckdb.DuckDBPyConnection, origin: Origin) -> Survey:
    view = con.sql("FROM seen")
    types = {name: str(dtype) for name, dtype in zip(view.columns, view.types, strict=True)}
    questions: list[str] = []
    for name, dtype in types.items():
        questions.append(f"count({quoted(name)})")
        questions.append("0" if _stored_as(dtype) == "other" else f"approx_count_distinct({quoted(name)})")
        questions.append(f"count(TRY_CAST({quoted(name)} AS TIMESTAMPTZ))" if dtype == "VARCHAR" else "0")
    ((rows, *answers),) = con.execute(f"SELECT count(*), {', '.join(questions)} FROM seen").fetchall()
    if not rows:
        msg = f"{origin.path} has no rows."
        raise WrongUseError(msg, hint="a pipeline is proposed from the rows of its table.")
    columns: list[TableColumn] = []
    for (name, dtype), present, distinct, times in zip(
        types.items(), answers[::3], answers[1::3], answers[2::3], strict=True
    ):
        holds = "nothing" if not present else "time" if times == present else _stored_as(dtype)
        columns.append(TableColumn(len(columns) + 1, name, dtype, holds, rows - present, distinct))
    return Survey(origin, rows, tuple(columns), con)


def _stored_as(dtype: str) -> Holds:
    """What values of a type can be used as; lists and the like are "other"."""
    word = re.match(r"\w+", dtype)
    return "other" if dtype.endswith("]") or word is None else _HOLDS.get(word[0], "other")
