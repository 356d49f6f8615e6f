"""The raw tables of a pipeline: Python functions, Parquet and CSV files, tables of a DuckDB file.

Opens them for SQL (as views of an in-memory DuckDB that can read nothing else) and for Polars, and tells what state
they are in. Knows nothing of what is made from them.
"""

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.errors import SourceError, WrongUseError, did_you_mean
from batch_platform.partitions import Partition
from batch_platform.spec import PipelineSpec, Source


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
    def connect(self) -> Iterator["SourceConnection"]:
        """An in-memory DuckDB that can read these sources and nothing else, nor write a file.

        Raises:
            SourceError: A source cannot be read.
        """
        with duckdb.connect(":memory:") as con:
            yield SourceConnection(self, con)

    def versions(self, partition: Partition) -> dict[str, str]:
        """The version of each source as this partition reads it; cheap (no file is read).

        Raises:
            SourceError: A file is missing.
        """
        return {name: self._version(name, partition) for name in self.spec.sources}

    def frames(self, partition: Partition) -> dict[str, pl.LazyFrame]:
        """Each source as this partition reads it.

        Raises:
            SourceError: A source cannot be read.
        """
        return {name: self._frame(name, source, partition) for name, source in self.spec.sources.items()}

    def _frame(self, name: str, source: Source, partition: Partition) -> pl.LazyFrame:
        if source.python is not None:
            table = self.call(name, partition)
            if isinstance(table, pa.Table):
                return pl.DataFrame(table).lazy()
            return table.lazy()
        if source.duckdb is not None:
            with self.connect() as con:
                con.open(partition)
                return con.duckdb.sql(f"FROM {quoted(name)}").pl().lazy()
        files = [str(path) for path in self.files(name, partition)]
        return pl.scan_parquet(files) if source.parquet is not None else pl.scan_csv(files, try_parse_dates=True)

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
        location = source.python or str(self._path(name, anyone))
        version = self._version(name, anyone)
        if source.python is not None:
            version = _digest(version, str(rows), *columns, *columns.values())
        return SourceState(version=version, rows=int(rows), columns=columns, location=location)

    def takes_partition(self, name: str) -> bool:
        """Whether the source differs from partition to partition."""
        source = self.spec.sources[name]
        if source.python is None:
            return source.by_partition
        return bool(inspect.signature(import_function(source.python, f"sources.{name}.python")).parameters)

    def call(self, name: str, partition: Partition) -> pl.LazyFrame | pl.DataFrame | pa.Table:
        """Call the function of a Python source.

        Raises:
            SourceError: It fails, or returns something that is no table.
        """
        dotted = self.spec.sources[name].python or ""
        function = import_function(dotted, f"sources.{name}.python")
        try:
            table = function(partition) if self.takes_partition(name) else function()
        except Exception as error:
            msg = f"Source {name!r} of {self.spec.name!r}: {dotted} failed with {type(error).__name__}: {error}."
            raise SourceError(msg) from error
        if not isinstance(table, pl.LazyFrame | pl.DataFrame | pa.Table):
            msg = f"Source {name!r} of {self.spec.name!r}: {dotted} returned {type(table).__name__}, which is no table."
            raise SourceError(msg, hint="return a Polars LazyFrame or DataFrame, or a pyarrow Table.")
        return table

    def files(self, name: str, partition: Partition) -> list[Path]:
        """The files of a Parquet or CSV source, sorted.

        Raises:
            SourceError: There is none.
        """
        path = self._path(name, partition)
        found = [Path(match) for match in sorted(glob(str(path), recursive=True))] if has_magic(str(path)) else [path]
        missing = [path for path in found if not path.is_file()]
        if missing or not found:
            msg = f"Source {name!r} of {self.spec.name!r}: there is no file {missing[0] if missing else path}."
            near = did_you_mean(path.name, [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else [])
            raise SourceError(msg, hint=near or f"correct sources.{name} or bring the file.")
        return found

    def _path(self, name: str, partition: Partition) -> Path:
        source = self.spec.sources[name]
        declared = source.parquet or source.csv or source.duckdb or ""
        return self.folder / Path(declared.replace("{partition_key}", partition.key)).expanduser()

    def _version(self, name: str, partition: Partition) -> str:
        source = self.spec.sources[name]
        if source.python is not None:
            function = import_function(source.python, f"sources.{name}.python")
            return _digest(Path(inspect.getfile(function)).read_text(encoding="utf-8"), source.python)
        paths = [self._path(name, partition)] if source.duckdb is not None else self.files(name, partition)
        facts: list[str] = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError as error:
                msg = f"Source {name!r} of {self.spec.name!r}: {path} cannot be read ({error.strerror})."
                raise SourceError(msg, hint=f"correct sources.{name} or bring the file.") from error
            facts += [path.name, str(stat.st_size), str(stat.st_mtime_ns)]
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
        wanted = [only] if only else list(spec.sources)
        databases = [name for name in wanted if spec.sources[name].duckdb is not None]
        for name in databases:
            self._attach(name)
        paths = [p for name in wanted if spec.sources[name].kind in ("parquet", "csv") for p in self._allowed(name, partition)]
        con.execute(f"SET allowed_directories = [{', '.join(literal(path) for path in sorted(set(paths)))}]")
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

    def _allowed(self, name: str, partition: Partition) -> list[str]:
        folder = self.sources.files(name, partition)[0].parent
        while has_magic(str(folder)) or partition.key in str(folder):
            folder = folder.parent
        return [f"{folder}{os.sep}"]

    def _attach(self, name: str) -> None:
        path = self.sources.folder / Path(self.sources.spec.sources[name].duckdb or "").expanduser()
        if not path.is_file():
            msg = f"Source {name!r} of {self.sources.spec.name!r}: there is no file {path}."
            raise SourceError(msg, hint=f"correct sources.{name}.duckdb or bring the file.")
        try:
            self.duckdb.execute(f"ATTACH {literal(str(path))} AS {quoted('source ' + name)} (READ_ONLY)")
        except duckdb.Error as error:
            msg = f"Source {name!r} of {self.sources.spec.name!r}: {path} cannot be opened: {_first_line(error)}."
            raise SourceError(msg, hint="another process may be writing to it; close it or read a copy.") from error

    def _view(self, name: str, partition: Partition) -> None:
        sources, con = self.sources, self.duckdb
        source = sources.spec.sources[name]
        if source.python is not None:
            table = sources.call(name, partition)
            con.register(name, table.collect() if isinstance(table, pl.LazyFrame) else table)
            return
        if source.duckdb is not None:
            schema, _, table = (source.table or "").rpartition(".")
            relation = ".".join(quoted(part) for part in ("source " + name, schema or "main", table))
        else:
            paths = ", ".join(literal(str(path)) for path in sources.files(name, partition))
            relation = f"read_{source.kind}([{paths}])"
        try:
            con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS FROM {relation}")
        except duckdb.Error as error:
            msg = f"Source {name!r} of {sources.spec.name!r} cannot be read: {_first_line(error)}."
            raise SourceError(msg, hint=f"correct sources.{name}.") from error


def import_function(dotted: str, key: str) -> Callable[..., Any]:
    """Import `module.function`.

    Raises:
        WrongUseError: There is no such module or function; the message names the key of the YAML.
    """
    module_name, _, name = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        msg = f"{key}: the module {module_name!r} cannot be imported ({error})."
        raise WrongUseError(msg, hint="write it as 'package.module.function', importable from the project.") from error
    function = getattr(module, name, None)
    if not callable(function):
        public = [other for other in vars(module) if not other.startswith("_")]
        msg = f"{key}: {module_name!r} has no function {name!r}."
        raise WrongUseError(msg, hint=did_you_mean(name, public))
    return function


def quoted(identifier: str) -> str:
    """An SQL identifier, whatever it holds."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string, for the few statements that take no bound values."""
    return "'" + text.replace("'", "''") + "'"


def _digest(*facts: str) -> str:
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
