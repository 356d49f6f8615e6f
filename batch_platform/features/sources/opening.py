"""The raw tables of a pipeline: Python functions, Parquet and CSV files, tables of a DuckDB file.

Opens them for SQL (as views of an in-memory DuckDB that can read nothing else) and for Polars, and tells what state
they are in. Knows nothing of what is made from them.
"""

import hashlib
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import SourceError, WrongUseError, did_you_mean
from batch_platform.declaration.functions import import_function, parameters_of, source_code
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.warehouse.sql import literal, quoted

_LONGEST_TOLD = 300  # characters; what follows are proposals and settings
KEY_IN_PATH = "{partition_key}"
MEMORY_LIMIT = "1GiB"  # of a query that can spill: a sort by key of ten million rows of twenty columns runs within it


@dataclass(frozen=True)
class SourceState:
    """What a source holds now."""

    version: str  # changes when the content may have changed
    rows: int
    columns: dict[str, str]  # DuckDB types by name, in order
    location: str  # path, or module.function


@dataclass(frozen=True)
class Sources:
    """The sources of one pipeline.

    Args:
        spec: The pipeline.
        folder: Absolute path of the folder that holds its files; relative paths start there.
    """

    spec: PipelineSpec
    folder: Path

    @contextmanager
    def connect(self, spill: Path | None = None) -> Generator["SourceConnection"]:
        """An in-memory DuckDB that can read these sources and nothing else, nor write a file of its own accord.

        Args:
            spill: A folder on this disk for what does not fit into MEMORY_LIMIT, made when there is need; left out:
                all has to fit into the machine's memory.

        Raises:
            SourceError: A source cannot be read.
        """
        with duckdb.connect(":memory:") as con:
            con.execute(f"SET temp_directory = {literal('' if spill is None else str(spill))}")
            if spill is not None:
                con.execute(f"SET memory_limit = {literal(MEMORY_LIMIT)}")
            yield SourceConnection(self, con)

    def versions(self, partition: Partition) -> dict[str, str]:
        """The version of each source as this partition reads it; cheap (no file is read).

        Raises:
            SourceError: A file is missing.
        """
        return {name: self.version(name, partition) for name in self.spec.sources}

    def frames(self, partition: Partition, names: Collection[str]) -> dict[str, pl.LazyFrame]:
        """Some of the sources as this partition reads them.

        Raises:
            SourceError: A source cannot be read.
        """
        return {name: self._frame(name, partition) for name in names}

    def _frame(self, name: str, partition: Partition) -> pl.LazyFrame:
        source = self.spec.sources[name]
        if source.python is not None:
            return self.call(name, partition).lazy()
        if source.duckdb is not None:
            with self.connect() as con:
                con.open(partition, only=name)
                return con.duckdb.sql(f"FROM {quoted(name)}").pl().lazy()
        files = self.files(name, partition)
        if source.parquet is not None:
            return pl.scan_parquet(files, glob=False, hive_partitioning=False)
        return pl.scan_csv(files, try_parse_dates=True, glob=False)

    def state(self, name: str, partition: Partition | None) -> SourceState:
        """Read the source and say what it holds; `partition` for one that has a file for each.

        Raises:
            SourceError: The source cannot be read.
        """
        anyone = partition or self.spec.partitions.calendar.named(self._first_key())
        with self.connect() as con:
            con.open(anyone, only=name)
            view = con.duckdb.sql(f"FROM {quoted(name)}")
            columns = dict(zip(view.columns, (str(dtype) for dtype in view.types), strict=True))
            ((rows,),) = con.duckdb.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()
        source = self.spec.sources[name]
        location = source.python or str(Path(*self.located(name, anyone)))
        version = self.version(name, anyone)
        if source.python is not None:
            version = _digest(version, str(rows), *columns, *columns.values())
        return SourceState(version=version, rows=int(rows), columns=columns, location=location)

    def takes_partition(self, name: str) -> bool:
        """Whether the source differs from partition to partition."""
        source = self.spec.sources[name]
        if source.python is None:
            return source.by_partition
        return "partition" in parameters_of(import_function(source.python, f"sources.{name}.python"))

    def call(self, name: str, partition: Partition) -> pl.LazyFrame | pl.DataFrame:
        """Call the function of a Python source, with `partition=` if it has such a parameter.

        Raises:
            SourceError: It fails, or returns something that is no table.
        """
        dotted = self.spec.sources[name].python or ""
        function = import_function(dotted, f"sources.{name}.python")
        try:
            table = function(partition=partition) if self.takes_partition(name) else function()
            table = pl.DataFrame(table) if isinstance(table, pa.Table) else table
        except Exception as error:  # a user's own code may raise anything
            msg = f"Source {name!r} of {self.spec.name!r}: {dotted} failed with {type(error).__name__}: {error}."
            raise SourceError(msg, hint=f"mend the function, or name another one in sources.{name}.python.") from error
        if not isinstance(table, pl.LazyFrame | pl.DataFrame):
            msg = f"Source {name!r} of {self.spec.name!r}: {dotted} returned {type(table).__name__}, which is no table."
            raise SourceError(msg, hint="return a Polars LazyFrame or DataFrame, or a pyarrow Table.")
        return table

    def files(self, name: str, partition: Partition) -> list[Path]:
        """The files of a Parquet, CSV or DuckDB source, sorted.

        Raises:
            SourceError: There is none.
        """
        head, rest = self.located(name, partition)
        path = head / rest
        try:
            found = sorted(head.glob(rest)) if has_magic(rest) else [path]
            missing = [path for path in found if not path.is_file()] or ([] if found else [path])
        except OSError as error:  # a name too long to be one, a folder that may not be read
            msg = f"Source {name!r} of {self.spec.name!r}: {path} cannot be looked up ({error.strerror})."
            raise SourceError(msg, hint=f"correct sources.{name}.") from error
        if missing:
            msg = f"Source {name!r} of {self.spec.name!r}: there is no file {missing[0]}."
            others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            near = did_you_mean(path.name, others)
            raise SourceError(msg, hint=near or f"correct sources.{name} or bring the file.")
        return found

    def located(self, name: str, partition: Partition) -> tuple[Path, str]:
        """The folder below which all files of a source lie, whatever the partition, and the path or glob from there."""
        source = self.spec.sources[name]
        declared = Path(source.parquet or source.csv or source.duckdb or "").expanduser()
        fixed = list(takewhile(lambda part: not has_magic(part) and KEY_IN_PATH not in part, declared.parts[:-1]))
        rest = "/".join(declared.parts[len(fixed) :]).replace(KEY_IN_PATH, partition.key)
        return self.folder.joinpath(*fixed), rest

    def version(self, name: str, partition: Partition) -> str:
        """The version of one source, be the files of the others there or not.

        Raises:
            SourceError: A file is missing.
        """
        source = self.spec.sources[name]
        if source.python is not None:
            return _digest(source_code(source.python, f"sources.{name}.python"), source.python)
        head, _ = self.located(name, partition)
        facts: list[str] = []
        for path in self.files(name, partition):
            stat = path.stat()
            facts += [str(path.relative_to(head)), str(stat.st_size), str(stat.st_mtime_ns)]
        return _digest(*facts)

    def _first_key(self) -> str:
        calendar = self.spec.partitions.calendar
        first = calendar.holding(calendar.first_start)
        if first is None:
            msg = f"{self.spec.name!r} has no partition: its end lies at or before its start."
            raise WrongUseError(msg, hint="correct partitions.start or partitions.end.")
        return first.key


@dataclass(frozen=True)
class SourceConnection:
    """Sources opened as DuckDB views; the connection is closed by whoever opened it."""

    sources: Sources
    duckdb: duckdb.DuckDBPyConnection

    def open(self, partition: Partition, only: str | None = None) -> None:
        """Make the views for a first partition and shut the connection off from everything else.

        Raises:
            SourceError: A source cannot be read.
        """
        spec, con = self.sources.spec, self.duckdb
        con.execute(f"SET TimeZone = {literal(spec.partitions.timezone)}")
        con.execute("SET python_enable_replacements = false")
        wanted = [only] if only else list(spec.sources)
        for name in wanted:
            if spec.sources[name].duckdb is not None:
                self._attach(name, partition)
        paths, folders = set[str](), set[str]()
        for name in wanted:
            if spec.sources[name].by_partition:
                folders.add(str(self.sources.located(name, partition)[0]))
            elif spec.sources[name].kind in ("parquet", "csv"):
                paths.update(str(path) for path in self.sources.files(name, partition))
        con.execute(f"SET allowed_paths = [{', '.join(literal(path) for path in sorted(paths))}]")
        con.execute(f"SET allowed_directories = [{', '.join(literal(folder) for folder in sorted(folders))}]")
        con.execute("SET enable_external_access = false")
        for name in wanted:
            self._view(name, partition)
        con.execute("SET lock_configuration = true")

    def move(self, partition: Partition) -> None:
        """Point the views that differ from partition to partition at another one.

        Raises:
            SourceError: A source cannot be read.
        """
        for name in self.sources.spec.sources:
            if self.sources.takes_partition(name):
                self._view(name, partition)

    def _attach(self, name: str, partition: Partition) -> None:
        (path,) = self.sources.files(name, partition)
        try:
            self.duckdb.execute(attaching(path))
        except duckdb.Error as error:
            msg = f"Source {name!r} of {self.sources.spec.name!r}: {path} cannot be opened: {_told(error)}."
            raise SourceError(msg, hint="another process may be writing to it; close it or read a copy.") from error

    def _view(self, name: str, partition: Partition) -> None:
        sources = self.sources
        source = sources.spec.sources[name]
        try:
            if source.python is not None:
                self.duckdb.register(name, sources.call(name, partition).lazy().collect())
                return
            stored = relation(source.kind, sources.files(name, partition), source.table)
            self.duckdb.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS FROM {stored}")
        except (duckdb.Error, pl.exceptions.PolarsError) as error:
            msg = f"Source {name!r} of {sources.spec.name!r} cannot be read: {_told(error)}."
            raise SourceError(msg, hint=f"correct sources.{name}.") from error


def attaching(database: Path) -> str:
    """SQL that opens a DuckDB file to be read, under its path as its name."""
    return f"ATTACH IF NOT EXISTS {literal(str(database))} AS {quoted(str(database))} (READ_ONLY)"


def relation(kind: str, paths: Sequence[Path], table: str | None = None) -> str:
    """SQL for what Parquet or CSV files hold together, or for a table of an attached DuckDB file."""
    if kind == "duckdb":
        schema, _, name = (table or "").rpartition(".")
        return ".".join(quoted(part) for part in (str(paths[0]), schema or "main", name))
    files = ", ".join(literal(str(path)) for path in paths)
    return f"read_{kind}([{files}], hive_partitioning = false)"


def _digest(*facts: str) -> str:
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _told(error: Exception) -> str:
    """What a library says, as one line: DuckDB gives the reason only after the place."""
    return " ".join(str(error).split())[:_LONGEST_TOLD].rstrip(". ")
