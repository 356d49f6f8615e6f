"""Sources of kind `parquet`, `csv`, `json` and `arrow`: one file, the files of a glob, or a file for each partition.

DuckDB reads CSV and JSON also for Python features, so that both see the same types, delimiters and nulls. Of the times in
them only those in ISO notation are recognised: the order of day and month in others would be guessed file by file.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from glob import has_magic
from itertools import takewhile
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration.errors import did_you_mean
from batch_platform.declaration.inputs import PLACEHOLDERS, Source, varies
from batch_platform.declaration.redaction import redact
from batch_platform.features.sources.kind import SourceKind, SourceTable, create_view, digest
from batch_platform.features.sources.zipped import ENDING, admit_archives, duckdb_path
from batch_platform.warehouse.sql import literal


def path_or_glob(table: SourceTable) -> tuple[Path, str]:
    """Split a path into the folder below which the files of every partition lie, and the path or glob from there."""
    declared = Path(table.source.location).expanduser()
    fixed = list(takewhile(lambda part: not has_magic(part) and not varies(part), declared.parts[:-1]))
    rest = "/".join(declared.parts[len(fixed) :])
    if table.partition is not None:
        for placeholder, text_of in PLACEHOLDERS.items():
            rest = rest.replace(placeholder, text_of(table.partition.key))
    return table.folder.joinpath(*fixed), rest


def files_of(table: SourceTable) -> list[Path]:
    """List the files of a source, sorted; raises SourceError if there are none."""
    head, rest = path_or_glob(table)
    path = head / rest
    try:
        files = sorted(head.glob(rest)) if has_magic(rest) else [path]
        missing = [file for file in files if not file.is_file()] or ([] if files else [path])
    except OSError as error:  # a name that is too long, a folder that may not be read
        problem = f": {path} cannot be looked up ({error.strerror})."
        raise table.error(problem) from error
    if missing:
        problem = f": there is no file {missing[0]}."
        raise table.error(problem, _hint_for_missing(table, head, path))
    return files


def _hint_for_missing(table: SourceTable, head: Path, path: Path) -> str:
    of_all = path_or_glob(replace(table, partition=None))[1]
    for placeholder in PLACEHOLDERS:
        of_all = of_all.replace(placeholder, "*")
    if table.source.by_partition and any(head.glob(of_all)):
        return "other partitions have a file: add the one that is missing, and the next run reads it."
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names) or f"correct sources.{table.name} or add the file."


def files_version(table: SourceTable) -> str:
    """Hash the paths, sizes and modification times of the files; where the project lies makes no difference."""
    head, _ = path_or_glob(table)
    facts: list[str] = []
    for path in files_of(table):
        stat = path.stat()
        facts += [str(path.relative_to(head)), str(stat.st_size), str(stat.st_mtime_ns)]
    return digest(*facts)


def file_location(table: SourceTable) -> str:
    """The absolute path or glob."""
    return str(Path(*path_or_glob(table)))


def _admit(con: duckdb.DuckDBPyConnection, table: SourceTable) -> Collection[Path]:
    if table.source.location.lower().endswith(ENDING):
        admit_archives(con)
    return [path_or_glob(table)[0]] if table.source.by_partition else files_of(table)


def _also_compressed(*endings: str) -> tuple[str, ...]:
    return tuple(ending + compressed for ending in endings for compressed in ("", ".gz", ".zst"))


def _relation(table: SourceTable) -> str:
    files = ", ".join(literal(duckdb_path(path)) for path in files_of(table))
    options = "".join(f", {option}" for option in _READ_OPTIONS[table.source.kind](table.source))
    return f"read_{table.source.kind}([{files}], hive_partitioning = false{options})"


def _csv_options(source: Source) -> Iterator[str]:
    yield "dateformat = '%Y-%m-%d'"
    yield "timestampformat = 'iso'"  # read as TIMESTAMPTZ, in the time zone of the pipeline where a value has none
    if source.delimiter is not None:
        yield f"delim = {literal(source.delimiter)}"
    if source.decimal is not None:
        yield f"decimal_separator = {literal(source.decimal)}"
    if source.types:
        types = ", ".join(f"{literal(name)}: {literal(dtype)}" for name, dtype in source.types.items())
        yield f"types = {{{types}}}"


_READ_OPTIONS: dict[str, Callable[[Source], Iterable[str]]] = {
    "parquet": lambda _: (),
    "csv": _csv_options,
    "json": lambda _: ("dateformat = 'never'", "timestampformat = 'never'"),  # JSON has no times, only texts
}


def _arrow_view(con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
    from pyarrow.dataset import dataset  # takes its time
    from pyarrow.fs import LocalFileSystem

    files = [str(path) for path in files_of(table)]
    try:
        con.register(table.name, dataset(files, format="ipc", filesystem=LocalFileSystem()))
    except pa.ArrowInvalid as error:
        problem = f" cannot be read: {' '.join(str(error).split()).rstrip('. ')}."
        raise table.error(
            problem, "write the table in the Arrow file format (Feather version 2), not as a stream."
        ) from error


PARQUET = SourceKind(
    version=files_version,
    location=file_location,
    description=lambda source: f"the Parquet files `{redact(source.location)}`",
    admit=_admit,
    view=lambda con, table: create_view(con, table.name, _relation(table)),
    frame=lambda _con, table: pl.scan_parquet(files_of(table), glob=False, hive_partitioning=False),
    endings=(".parquet", ".pq"),
)
CSV = replace(
    PARQUET,
    description=lambda source: f"the CSV files `{redact(source.location)}`",
    frame=lambda con, table: con.sql(f"FROM {_relation(table)}").pl().lazy(),
    counts_quickly=False,
    endings=_also_compressed(".csv", ".tsv", ".txt"),
)
JSON = replace(
    CSV,
    description=lambda source: f"the JSON files `{redact(source.location)}`",
    endings=_also_compressed(".json", ".jsonl", ".ndjson"),
)
ARROW = replace(
    PARQUET,
    description=lambda source: f"the Arrow files `{redact(source.location)}`",
    admit=lambda _con, _table: (),
    view=_arrow_view,
    frame=lambda _con, table: pl.scan_ipc(files_of(table), glob=False, hive_partitioning=False),
    endings=(".arrow", ".feather", ".ipc"),
)
