"""What a kind of source offers: methods of a source and the partition that reads it."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SharedSourceError, SourceError
from batch_platform.declaration.inputs import Source
from batch_platform.sources.objects import FilePath, hint_for
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import quoted


@dataclass(frozen=True)
class SourceTable:
    """A source as one partition reads it."""

    pipeline: str  # name for messages; empty if no pipeline declares the source
    name: str  # name of the source and of its view
    source: Source
    folder: Path  # absolute folder at which relative paths start
    partition: Partition | None = None  # None only for a source that is the same for all partitions
    home: Home | None = None  # its warehouse holds the tables of assets; None if no pipeline declares the source
    timezone: str = "UTC"  # clocks of the partitions
    session: Any = None  # what `SourceKind.session` keeps open for a connection; None outside of one

    def error(self, problem: str, hint: str | None = None, *, shared: bool | None = None) -> SourceError:
        """The error that names this source, to be raised; `shared` says whether all partitions read the same table."""
        msg = (
            f"Source {self.name!r} of {self.pipeline!r}{problem}"
            if self.pipeline
            else f"{self.source.location}{problem}"
        )
        error = SharedSourceError if (not self.source.by_partition if shared is None else shared) else SourceError
        return error(msg, hint=hint or f"correct sources.{self.name}.")

    def store_error(self, problem: str) -> SourceError:
        """The error for a store that fails, which concerns every partition; `problem` is the text of a StoreError."""
        return self.error(
            f" ({self.key}): {problem}." if self.pipeline else f": {problem}.", hint_for(problem), shared=True
        )

    @property
    def key(self) -> str:
        """The YAML key that declares where the source is read."""
        return f"sources.{self.name}.{self.source.kind}"


def unused_name(name: str, columns: Iterable[str]) -> str:
    """A name for one more column, lengthened until no other column has it in small or capital letters."""
    taken = {column.lower() for column in columns}
    while name.lower() in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files that hold the rows of a source, for an engine that reads them by itself."""

    paths: Sequence[Path]  # absolute paths
    schema: str | None = None  # columns and types as Spark's JSON; None: those of the files, which are all alike
    # The columns that the files lack, with a row for each file in the order of `paths`; None: they lack none.
    partitions: pa.Table | None = None


@dataclass(frozen=True)
class SourceState:
    """The content of a source as it is now."""

    version: str  # changes when the content may have changed
    rows: int
    columns: dict[str, str]  # DuckDB types by name, in order
    location: str  # path, or module.function


class SourceKind(ABC):
    """How sources of one kind are versioned, opened and read. Each method may raise SourceError, or what DuckDB and Polars raise."""

    only_on_spark = False  # True if SQL on Spark reads it, and DuckDB and Polars cannot
    version_fixes_rows = True  # True if equal versions mean equal rows
    counts_quickly = True  # True if rows can be counted without reading all of them
    stands_still = False  # True if an open connection goes on reading the state that it found
    keeps_session = False  # True if `session` keeps something open for a connection
    value_type: type = str  # of the YAML key that declares a source, for a kind without a field in `Source`
    endings: tuple[str, ...] = ()  # endings of file names by which `new --from` recognises the kind
    unreadable: str | None = None  # hint shown when the source cannot be read

    @abstractmethod
    def version(self, table: SourceTable) -> str:
        """A text that changes when the content may have changed; reads no rows."""

    @abstractmethod
    def location(self, table: SourceTable) -> str:
        """A path or an import path, for people."""

    @abstractmethod
    def description(self, source: Source) -> str:
        """What is read, as a phrase in Markdown."""

    @abstractmethod
    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        """Create a view named like the source, or point the view at another partition."""

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        """The same rows as the view; of the table's partition, whichever one the view shows."""
        return con.sql(f"FROM {quoted(table.name)}").pl().lazy()

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> Collection[FilePath]:
        """Attach a database, or name the files and folders that a connection may read once it is shut off from all others."""
        del con, table
        return ()

    def pinned(self, table: SourceTable) -> Source:
        """The source as a connection that is opened now goes on reading it: where tables have versions, with the present one."""
        return table.source

    def session(self, table: SourceTable) -> AbstractContextManager[Any]:
        """What a connection reads the source through as long as it is open, such as a transaction of a database."""
        return nullcontext(table.session)

    def parquet_files(self, table: SourceTable) -> ParquetFiles | None:
        """The files that hold exactly the rows of the view; None if no files do."""
        del table

    def takes_partition(self, table: SourceTable) -> bool:
        """Return whether partitions read different tables."""
        return table.source.by_partition

    def function(self, source: Source) -> str | None:
        """The import path of the user's function that reads the source."""
        del source

    def statement(self, table: SourceTable) -> str | None:
        """SQL that selects the rows in a database, which the user may write."""
        del table

    def size(self, table: SourceTable) -> int:
        """Bytes of all rows, roughly; 0 if nothing tells."""
        del table
        return 0

    def state(self, table: SourceTable, rows: int, columns: dict[str, str]) -> SourceState:
        """Describe a source that holds so many rows of these columns; may raise SourceError."""
        version = self.version(table)
        if not self.version_fixes_rows:
            version = digest(version, str(rows), *columns, *columns.values())
        return SourceState(version, rows, columns, self.location(table))


_failures: dict[str, SourceError] = {}  # key: mark in the text of what is raised
_MARK = re.compile(r"\[failure ([0-9a-f]{32})\]")


def failure_of_stream(error: SourceError) -> RuntimeError:
    """An error for a stream to raise where DuckDB reads it: DuckDB passes on only a text, in which `failure_in` finds the error."""
    mark = uuid4().hex
    _failures[mark] = error
    return RuntimeError(f"{error.message} [failure {mark}]")


def failure_in(error: Exception) -> SourceError | None:
    """The error of a stream, if it made DuckDB or Arrow raise this one."""
    mark = _MARK.search(str(error))
    return _failures.pop(mark[1], None) if mark else None


def create_view(con: duckdb.DuckDBPyConnection, name: str, relation: str) -> None:
    """Create or replace a view of what an SQL relation holds."""
    con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS FROM {relation}")


def digest(*facts: str) -> str:
    """Hash facts to a version."""
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
