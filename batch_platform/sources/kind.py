"""The record that each kind of source fills in, with plain functions of a source and the partition that reads it."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
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


@dataclass(frozen=True)
class SourceKind:
    """The functions that read sources of one kind. Each may raise SourceError, or what DuckDB and Polars raise."""

    version: Callable[[SourceTable], str]  # changes when the content may have changed; reads no rows
    location: Callable[[SourceTable], str]  # a path or an import path, for people
    description: Callable[[Source], str]  # what is read, as a phrase in Markdown
    # Called before the connection is shut off from everything else: returns the files and folders that the connection may
    # still read, or attaches a database.
    admit: Callable[[duckdb.DuckDBPyConnection, SourceTable], Collection[FilePath]]
    # Creates a view named like the source, or points the view at another partition.
    view: Callable[[duckdb.DuckDBPyConnection, SourceTable], None]
    frame: Callable[[duckdb.DuckDBPyConnection, SourceTable], pl.LazyFrame]  # the same rows as the view
    # The source as a connection that is opened now goes on reading it: where tables have versions, with the present one.
    pinned: Callable[[SourceTable], Source] = lambda table: table.source
    # Keeps open what a connection reads the source through, such as a transaction of a database, as long as the connection.
    session: Callable[[SourceTable], AbstractContextManager[object]] | None = None
    # The files that hold exactly the rows of the view; None if no files do.
    parquet_files: Callable[[SourceTable], ParquetFiles | None] = lambda _: None
    # True if partitions read different tables.
    takes_partition: Callable[[SourceTable], bool] = lambda table: table.source.by_partition
    function: Callable[[Source], str | None] = lambda _: None  # import path of the user's function that reads it
    statement: Callable[[SourceTable], str] | None = None  # SQL that selects the rows, which the user may write
    only_on_spark: bool = False  # True if SQL on Spark reads it, and DuckDB and Polars cannot
    version_fixes_rows: bool = True  # True if equal versions mean equal rows
    counts_quickly: bool = True  # True if rows can be counted without reading all of them
    size: Callable[[SourceTable], int] = lambda _: 0  # bytes of all rows, roughly
    stands_still: bool = False  # True if an open connection goes on reading the state that it found
    endings: tuple[str, ...] = ()  # endings of file names by which `new --from` recognises the kind
    unreadable: str | None = None  # hint shown when the source cannot be read

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
