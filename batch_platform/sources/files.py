"""Sources that are files: one, those of a glob, or a file for each partition. Here the kinds `parquet` and `arrow`."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from glob import has_magic
from itertools import takewhile
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.errors import did_you_mean, listed
from batch_platform.declaration.inputs import FILE, PLACEHOLDERS, ROW_IN_FILE, Source, varies
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import ParquetFiles, SourceKind, SourceTable, create_view, digest
from batch_platform.sources.objects import (
    FilePath,
    FileState,
    ObjectFolder,
    ObjectPath,
    StoreError,
    admit_objects,
    arrow_file_system,
    file_path,
    file_state,
    names_below,
    object_states,
    read_whole,
)
from batch_platform.warehouse.sql import literal

ARCHIVE = ".zip"
UNPACK = "unpack it, and name the file that holds the table; CSV and JSON may be compressed as .gz or .zst."


def path_or_glob(table: SourceTable) -> tuple[FilePath, str]:
    """Split a path into the folder below which the files of every partition lie, and the path or glob from there."""
    fixed, rest = _split(table.source.location)
    if table.partition is not None:
        for placeholder, text_of in PLACEHOLDERS.items():
            rest = rest.replace(placeholder, text_of(table.partition.key))
    return table.folder / fixed if isinstance(fixed, Path) else fixed, rest


@cache  # asked for every partition
def _split(location: str) -> tuple[FilePath, str]:
    declared = file_path(location)
    fixed = list(takewhile(lambda part: not has_magic(part) and not varies(part), declared.parts[:-1]))
    return type(declared)(*fixed), "/".join(declared.parts[len(fixed) :])


def files_of(table: SourceTable) -> list[FilePath]:
    """List the files of a source, sorted; raises SourceError if there are none, or a zip archive among them."""
    files = [*_states(table)]
    if archives := [file for file in files if file.suffix.lower() == ARCHIVE]:
        problem = f" cannot be read: {archives[0]} is a zip archive."
        raise table.error(problem, UNPACK)
    return files


def _states(table: SourceTable) -> Mapping[FilePath, FileState]:
    """The files of a source as they are now, sorted; raises SourceError if there are none."""
    head, rest = path_or_glob(table)
    path, hint = head / rest, None
    try:
        states = _found(table, head, rest)
        missing = [file for file, state in states.items() if state is None] or ([] if states else [path])
        if missing:
            hint = _hint_for_missing(table, head, path)
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        problem = f": {path} cannot be looked up ({error.strerror})."
        raise table.error(problem) from error
    except StoreError as error:
        raise table.store_error(str(error)) from error
    if missing:
        in_the_way = isinstance(missing[0], Path) and missing[0].exists()
        problem = f": {missing[0]} is not a file." if in_the_way else f": there is no file {missing[0]}."
        raise table.error(problem, hint)
    return {file: state for file, state in states.items() if state is not None}


def _found(table: SourceTable, head: FilePath, rest: str) -> Mapping[FilePath, FileState | None]:
    """The state of each file that a path or glob names, None for a folder and for the path of no file."""
    if isinstance(head, ObjectPath):
        return {**object_states(head, rest, _split(table.source.location)[1])}
    files = sorted(head.glob(rest)) if has_magic(rest) else [head / rest]
    return {file: file_state(file.stat()) if file.is_file() else None for file in files}


def _hint_for_missing(table: SourceTable, head: FilePath, path: FilePath) -> str:
    of_all = path_or_glob(replace(table, partition=None))[1]
    for placeholder in PLACEHOLDERS:
        of_all = of_all.replace(placeholder, "*")
    if table.source.by_partition and _found(table, head, of_all):
        return "other partitions have a file: add the one that is missing, and the next run reads it."
    if isinstance(path, ObjectPath):
        names = names_below(path.parent)
    else:
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, {*names} - {path.name}) or f"correct sources.{table.name} or add the file."


def numbered(con: duckdb.DuckDBPyConnection, table: SourceTable, relation: str, place: str | None = None) -> str:
    """SQL of a relation with the path of each row's file, given as `__file`, and the row's place in it.

    `place` names a column with the place from 0; None: rows come file by file, in order.
    """
    present = {name.lower() for name in con.sql(f"FROM {relation}").columns}
    if taken := present & {FILE, ROW_IN_FILE}:
        problem = f" has a column {listed(map(repr, taken))} already, so number_rows cannot add it."
        raise table.error(problem, f"rename the column, or remove sources.{table.name}.number_rows.")
    head = literal(f"{path_or_glob(table)[0]}/")
    columns = (
        f"CASE WHEN starts_with(__file, {head}) THEN substr(__file, length({head}) + 1) ELSE __file END AS {FILE}, "
        f"__place - {'0' if place else 'min(__place) OVER (PARTITION BY __file)'} + 1 AS {ROW_IN_FILE}"
    )
    inner = f"SELECT {place or 'row_number() OVER ()'} AS __place, * {f'EXCLUDE ({place})' if place else ''} FROM {relation}"
    return f"(SELECT {columns}, * EXCLUDE (__file, __place) FROM ({inner}))"


def _parquet_relation(con: duckdb.DuckDBPyConnection, table: SourceTable) -> str:
    files = ", ".join(literal(str(path)) for path in files_of(table))
    if not table.source.number_rows:
        return f"read_parquet([{files}], hive_partitioning = false)"
    options = "hive_partitioning = false, filename = '__file', file_row_number = true"
    return numbered(con, table, f"read_parquet([{files}], {options})", "file_row_number")


def _for_polars(table: SourceTable) -> list[Path] | list[bytes]:
    """The files of a source for Polars: objects whole, but not decoded yet, as only fsspec knows the way to their store."""
    files = files_of(table)
    objects = [file for file in files if isinstance(file, ObjectPath)]
    try:
        return read_whole(objects) if objects else [file for file in files if isinstance(file, Path)]
    except StoreError as error:
        raise table.store_error(str(error)) from error


class Files(SourceKind):
    """Any kind of files: their paths, versions and sizes, and what to say where one is missing."""

    def version(self, table: SourceTable) -> str:
        """Hash the paths, sizes and modification times or entity tags of the files; where the project lies makes no difference."""
        head, _ = path_or_glob(table)
        facts: list[str] = []
        for path, state in _states(table).items():
            facts += [str(path.relative_to(head)), str(state.size), state.mark]
        return digest(*facts)

    def location(self, table: SourceTable) -> str:
        """The absolute path or glob, or the address."""
        head, rest = path_or_glob(table)
        return str(head / rest)

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> Collection[FilePath]:
        """The files of a source; where each partition has files of its own, the folder in which they lie."""
        head, _ = path_or_glob(table)
        if isinstance(head, ObjectPath):
            admit_objects(con, head)
            head = ObjectFolder(head)
        return [head] if table.source.by_partition else files_of(table)

    def size(self, table: SourceTable) -> int:
        """The bytes of all files."""
        return sum(state.size for state in _states(table).values())


class _Parquet(Files):
    endings = (".parquet", ".pq")

    def description(self, source: Source) -> str:
        return f"the Parquet files `{redact(source.location)}`"

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        create_view(con, table.name, _parquet_relation(con, table))

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        if table.source.number_rows:
            return con.sql(f"FROM {_parquet_relation(con, table)}").pl().lazy()
        return pl.scan_parquet(_for_polars(table), glob=False, hive_partitioning=False)

    def parquet_files(self, table: SourceTable) -> ParquetFiles | None:
        if table.source.number_rows:
            return None
        files = [file for file in files_of(table) if isinstance(file, Path)]
        return (
            ParquetFiles(files) if files else None
        )  # DuckDB copies objects for an engine that may not reach their store


PARQUET = _Parquet()


class _Arrow(Files):
    endings = (".arrow", ".feather", ".ipc")

    def description(self, source: Source) -> str:
        return f"the Arrow files `{redact(source.location)}`"

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
        del con, table
        return ()

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        from pyarrow.dataset import dataset  # imported late: it takes its time

        files, system = [str(file) for file in files_of(table)], arrow_file_system(table.source.location)
        try:
            con.register(table.name, dataset(files, format="ipc", filesystem=system))
        except pa.ArrowInvalid as error:
            problem = f" cannot be read: {' '.join(str(error).split()).rstrip('. ')}."
            hint = "write the table in the Arrow file format (Feather version 2), not as a stream."
            raise table.error(problem, hint) from error

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        del con
        return pl.scan_ipc(_for_polars(table), glob=False, hive_partitioning=False)


ARROW = _Arrow()
