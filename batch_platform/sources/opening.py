"""The sources of a pipeline, opened: for SQL as views of an in-memory DuckDB that can read nothing else, and for Polars."""

import shutil
import weakref
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, listed
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.sources.duckdb import not_stored
from batch_platform.sources.interruption import interrupt, interruptible
from batch_platform.sources.kind import SourceKind, SourceState, SourceTable, create_view, failure_in
from batch_platform.sources.known import SOURCE_KINDS
from batch_platform.sources.objects import FilePath, StoreError, store_failure_in
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.sql import connect, literal, quoted

MEMORY_LIMIT = "1GiB"  # limit of a query that can spill, enough to sort ten million rows of twenty columns
SPILL_SHARE = 0.25  # share of the free space; the rest is for results, the warehouse and others
_LONGEST_REASON = 300  # characters of a message, after which DuckDB goes on with proposals and settings


def create_view_of(con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
    """Create a view of a source on a connection of the caller's, which may read every file."""
    kind = SOURCE_KINDS[table.source.kind]
    table = replace(table, source=kind.pinned(table))
    if kind.keeps_session:
        stack = ExitStack()
        weakref.finalize(con, stack.close)
        table = replace(table, session=stack.enter_context(kind.session(table)))
    kind.admit(con, table)
    _create_view(con, kind, table)


def _create_view(con: duckdb.DuckDBPyConnection, kind: SourceKind, table: SourceTable) -> None:
    """Create the view of a source, with times in microseconds: DuckDB compares no time in nanoseconds with a TIMESTAMPTZ."""
    kind.view(con, table)
    name = quoted(table.name)
    rows = con.sql(f"FROM {name}")
    finer = [column for column, dtype in zip(rows.columns, rows.types, strict=True) if str(dtype) == "TIMESTAMP_NS"]
    if finer:
        as_read = quoted(f"{table.name} in nanoseconds")
        con.execute(f"DROP VIEW IF EXISTS {as_read}; ALTER VIEW {name} RENAME TO {as_read}")
        rounded = ", ".join(f"make_timestamp(epoch_us({quoted(column)})) AS {quoted(column)}" for column in finer)
        create_view(con, table.name, f"(SELECT * REPLACE ({rounded}) FROM {as_read})")


@contextmanager
def bounded(spill: Path | None, timezone: str) -> Generator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB whose clocks are those of a time zone; for `spill` see `Sources.connect`."""
    with connect() as con, interruptible(con):
        con.execute(f"SET temp_directory = {literal('' if spill is None else str(spill))}")
        con.execute(f"SET TimeZone = {literal(timezone)}")
        if spill is None:
            con.execute("SET enable_external_file_cache = false")  # it would keep what a store sent, without a limit
        else:
            con.execute(f"SET memory_limit = {literal(MEMORY_LIMIT)}")
            con.execute(f"SET max_temp_directory_size = '{_spill_limit(spill)} bytes'")
        yield con


def _spill_limit(folder: Path) -> int:
    """Bytes that a query may write into a folder, which need not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return int(shutil.disk_usage(existing).free * SPILL_SHARE)


@dataclass(frozen=True)
class Sources:
    """The sources of one pipeline."""

    spec: PipelineSpec
    folder: Path  # absolute folder at which relative paths start
    home: Home  # its warehouse holds the tables of assets

    def kind(self, name: str) -> SourceKind:
        """The kind of a source."""
        return SOURCE_KINDS[self.spec.sources[name].kind]

    @property
    def in_duckdb(self) -> list[str]:
        """The sources that DuckDB can read."""
        return [name for name in self.spec.sources if not self.kind(name).only_on_spark]

    def table(self, name: str, partition: Partition) -> SourceTable:
        """A source as a partition reads it."""
        source, timezone = self.spec.sources[name], self.spec.partitions.timezone
        return SourceTable(self.spec.name, name, source, self.folder, partition, self.home, timezone)

    def gone(self) -> list[str]:
        """The sources of local files, the same for all partitions, whose files are gone; reads no rows."""
        gone = list[str]()
        for name in self.spec.sources:
            kind, table = self.kind(name), self.table(name, self.first_partition())
            if kind.endings and not kind.takes_partition(table) and "://" not in kind.location(table):
                try:
                    kind.version(table)
                except SourceError:
                    gone.append(name)
        return gone

    @contextmanager
    def connect(
        self,
        partition: Partition,
        *,
        names: Collection[str] | None = None,
        spill: Path | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Generator["SourceConnection"]:
        """Open an in-memory DuckDB that can read these sources and nothing else, and cannot write a file on its own.

        Without `names` it reads all sources that DuckDB can read.
        The views first show `partition`. What does not fit into MEMORY_LIMIT goes to the folder `spill`, which is created
        when needed, up to SPILL_SHARE of the free space there; without it, everything must fit into the machine's memory.
        `only` holds SQL conditions by source: of these sources other rows are not shown, nor is any other partition. Raises
        SourceError if a source cannot be read.
        """
        with ExitStack() as sessions, bounded(spill, self.spec.partitions.timezone) as con:
            opened = SourceConnection(self, con, tuple(self.in_duckdb if names is None else names), only or {})
            opened.create_views(partition, sessions)
            yield opened

    def version(self, name: str, partition: Partition) -> str:
        """The version of a source as a partition reads it, without reading rows; raises SourceError if a file is missing."""
        return self.kind(name).version(self.table(name, partition))

    def versions(self, partition: Partition, names: Iterable[str]) -> dict[str, str]:
        """The versions of some sources as a partition reads them; raises SourceError if a file is missing."""
        return {name: self.version(name, partition) for name in names}

    def statements(self) -> dict[str, str]:
        """The SQL that databases run, by source; raises SourceError if a file is missing."""
        tables = [(self.kind(name), self.table(name, self.first_partition())) for name in self.spec.sources]
        texts = {table.name: kind.statement(table) for kind, table in tables}
        return {name: text for name, text in texts.items() if text is not None}

    def require_reachable(self, partition: Partition, names: Iterable[str]) -> None:
        """Raise SourceError if a store does not say what a partition would read; a file that is gone is no such failure."""
        for name in names:
            try:
                self.version(name, partition)
            except SourceError as error:
                if isinstance(error.__cause__, StoreError):
                    raise

    def require_stored(self, name: str, partition: Partition, keys: Collection[str], without: str) -> None:
        """Raise SourceError unless the table of an asset holds some of its partitions, with or without rows; `without` says how to do without them."""
        table = self.table(name, partition)
        if absent := not_stored(table, keys):
            each = "partition" if len(absent) == 1 else "partitions"
            were = "was" if len(absent) == 1 else "were"
            problem = f": {each} {listed(absent)} of the asset {table.source.asset} {were} never materialized."
            run = f"batch-platform run {self.spec.name} --partition {partition.key}"
            hint = f"materialize what is missing, then {run}. {without}"
            raise table.error(problem, hint, shared=False)

    def state(self, name: str, partition: Partition | None) -> SourceState:
        """Read a source and describe what it holds for a partition, by default for the first one; may raise SourceError."""
        reader = partition or self.first_partition()
        with self.connect(reader, names=[name]) as con:
            view = con.duckdb.sql(f"FROM {quoted(name)}")
            columns = dict(zip(view.columns, (str(dtype) for dtype in view.types), strict=True))
            with con.explained(name, reader):
                ((rows,),) = con.duckdb.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()
        return self.kind(name).state(self.table(name, reader), int(rows), columns)

    def first_partition(self) -> Partition:
        """The first partition; raises WrongUseError if there is none."""
        calendar = self.spec.partitions.calendar
        first = calendar.holding(calendar.first_start)
        if first is None:
            msg = f"{self.spec.name!r} has no partition: its end lies at or before its start."
            raise WrongUseError(msg, hint="correct partitions.start or partitions.end.")
        return first


@dataclass(frozen=True)
class SourceConnection:
    """Sources opened as DuckDB views of their names; whoever opened the connection closes it."""

    sources: Sources
    duckdb: duckdb.DuckDBPyConnection
    names: tuple[str, ...]
    only: Mapping[str, str]  # SQL conditions by source; see `Sources.connect`
    # Versions of the sources that stand still, as they were opened.
    _versions: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _pinned: dict[str, Source] = field(default_factory=dict[str, Source], init=False)
    _sessions: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    def create_views(self, partition: Partition, sessions: ExitStack) -> None:
        """Create the views for a first partition and shut the connection off from everything else; called once.

        What sources keep open beside the connection is closed with `sessions`.
        """
        con = self.duckdb
        con.execute("SET python_enable_replacements = false")
        allowed = set[FilePath]()
        for name in self.names:
            with self.explained(name, partition) as (kind, unpinned):
                self._pinned[name] = kind.pinned(unpinned)
                if kind.keeps_session:
                    self._sessions[name] = sessions.enter_context(kind.session(unpinned))
                    sessions.enter_context(interruptible(self._sessions[name]))
                table = self.table(name, partition)
                if kind.stands_still:
                    # The version is read before the rows, which may be newer than their version and never older.
                    self._versions[name] = kind.version(table)
                allowed.update(kind.admit(con, table))
        folders = {path for path in allowed if path.is_dir()}
        for setting, paths in (
            ("allowed_paths", map(str, allowed - folders)),
            ("allowed_directories", map(str, folders)),
        ):
            con.execute(f"SET {setting} = [{', '.join(map(literal, sorted(paths)))}]")
        con.execute("SET enable_external_access = false")
        for name in self.names:
            with self.explained(name, partition) as (kind, table):
                _create_view(con, kind, table)
        for name, condition in self.only.items():
            whole = quoted(f"{name} with all rows")
            con.execute(f"ALTER VIEW {quoted(name)} RENAME TO {whole}")
            con.execute(f"CREATE TEMP VIEW {quoted(name)} AS FROM {whole} WHERE {condition}")
        con.execute("SET lock_configuration = true")

    def table(self, name: str, partition: Partition) -> SourceTable:
        """A source as a partition reads it through this connection."""
        table = self.sources.table(name, partition)
        return replace(table, source=self._pinned.get(name, table.source), session=self._sessions.get(name))

    def versions(self, partition: Partition, names: Iterable[str]) -> dict[str, str]:
        """The versions of sources as this connection reads them, or of an older state; raises SourceError if one is missing."""
        return {
            name: self.sources.kind(name).version(self.table(name, partition))
            if name in self._sessions
            else self._versions.get(name) or self.sources.version(name, partition)
            for name in names
        }

    def interrupt(self) -> None:
        """Interrupt what the connection executes, here and in databases; may be called from another thread."""
        interrupt(self.duckdb)
        for session in self._sessions.values():
            session.interrupt()

    def is_current(self, partition: Partition) -> bool:
        """Tell whether all sources are read as they are now; may raise SourceError."""
        return all(self.sources.version(name, partition) == version for name, version in self._versions.items())

    def move(self, partition: Partition) -> None:
        """Point the views of sources that differ between partitions at another partition; may raise SourceError."""
        for name in self.names:
            with self.explained(name, partition) as (kind, table):
                if kind.takes_partition(table):
                    _create_view(self.duckdb, kind, table)

    def frames(self, partition: Partition, names: Collection[str]) -> dict[str, pl.LazyFrame]:
        """Some of the sources as a partition reads them, whichever partition the views show; may raise SourceError."""
        frames: dict[str, pl.LazyFrame] = {}
        for name in names:
            with self.explained(name, partition) as (kind, table):
                frames[name] = kind.frame(self.duckdb, table)
                if name in self.only:
                    shown = self.duckdb.sql(f"FROM {quoted(name)}").pl().lazy()
                    frames[name] = shown.cast(dict(frames[name].collect_schema()))
        return frames

    @contextmanager
    def explained(self, name: str, partition: Partition) -> Generator[tuple[SourceKind, SourceTable]]:
        """Give the kind and the table of a source; in the block, an error of DuckDB or Polars becomes a SourceError."""
        kind, table = self.sources.kind(name), self.table(name, partition)
        try:
            yield kind, table
        except (duckdb.Error, pl.exceptions.PolarsError) as error:
            if (failed := failure_in(error)) is not None:
                raise failed from None
            if (failure := store_failure_in(error)) is not None:
                raise table.store_error(failure) from error
            # DuckDB's message ends with the SQL of the view, which the user did not write.
            reason = " ".join(redact(str(error)).partition("\nLINE ")[0].split())
            problem = f" cannot be read: {reason[:_LONGEST_REASON].rstrip('. ')}."
            raise table.error(problem, kind.unreadable, shared=not kind.takes_partition(table)) from error
