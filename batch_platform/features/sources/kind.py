"""What a kind of source must offer, as plain functions of a source and the partition that reads it."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.inputs import Source
from batch_platform.warehouse.sql import quoted


@dataclass(frozen=True)
class SourceTable:
    """A source as one partition reads it.

    Args:
        pipeline: Name of the pipeline, for messages.
        name: Name of the source and of its view.
        source: The declared source.
        folder: Absolute path of the folder where relative paths start.
        partition: The partition; None only for a source that is the same for all of them.
    """

    pipeline: str
    name: str
    source: Source
    folder: Path
    partition: Partition | None = None

    def error(self, problem: str, hint: str | None = None) -> SourceError:
        """The error that names this source, to be raised."""
        msg = f"Source {self.name!r} of {self.pipeline!r}{problem}"
        return SourceError(msg, hint=hint or f"correct sources.{self.name}.")

    @property
    def key(self) -> str:
        """The YAML key that declares where the source is read."""
        return f"sources.{self.name}.{self.source.kind}"


@dataclass(frozen=True)
class SourceKind:
    """How sources of one kind are read. Each function may raise SourceError, or what DuckDB and Polars raise.

    Args:
        version: Returns a text that changes when the content may have changed. Reads no rows.
        location: Returns where the source is read, for people: a path, an import path.
        description: Returns what is read, as a phrase in Markdown.
        admit: Called before the connection is shut off from everything else: returns the files and folders that it may still
            read, or attaches a database.
        view: Creates a view named like the source, or points it at another partition.
        frame: Reads the source with Polars: the same rows as the view.
        takes_partition: Returns whether partitions read different tables.
        function: Returns the import path of the user's function that reads the source; None where there is none.
        version_fixes_rows: Whether equal versions mean equal rows.
        counts_quickly: Whether rows can be counted without reading all of them.
        endings: Endings of the files of this kind, by which `new --from` recognises them.
        unreadable: Hint shown when the source cannot be read.
    """

    version: Callable[[SourceTable], str]
    location: Callable[[SourceTable], str]
    description: Callable[[Source], str]
    admit: Callable[[duckdb.DuckDBPyConnection, SourceTable], Collection[Path]]
    view: Callable[[duckdb.DuckDBPyConnection, SourceTable], None]
    frame: Callable[[duckdb.DuckDBPyConnection, SourceTable], pl.LazyFrame]
    takes_partition: Callable[[SourceTable], bool] = lambda table: table.source.by_partition
    function: Callable[[Source], str | None] = lambda _: None
    version_fixes_rows: bool = True
    counts_quickly: bool = True
    endings: tuple[str, ...] = ()
    unreadable: str | None = None


def create_view(con: duckdb.DuckDBPyConnection, name: str, relation: str) -> None:
    """Create or replace a view of what an SQL relation holds."""
    con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS FROM {relation}")


def digest(*facts: str) -> str:
    """Hash facts to a version."""
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
