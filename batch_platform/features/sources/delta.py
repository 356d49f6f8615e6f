"""Sources of kind `delta`: a Delta table, whose log says which Parquet files hold the rows of a version.

deltalake reads the log, and DuckDB the files. Two things do not stand in the files: the values of partition columns, which the
log has for each file, and that times are UTC where a writer stored them as INT96, as Spark does by default.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from batch_platform.declaration.errors import SourceError, did_you_mean, listed
from batch_platform.declaration.extras import needed
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.features.sources.kind import ParquetFiles, SourceKind, SourceTable, create_view, digest, unused_name
from batch_platform.warehouse.sql import connect, literal, quoted

if TYPE_CHECKING:
    from deltalake import DeltaTable

_LOG = "_delta_log"
_COMMIT = re.compile(r"\d{20}\.json")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_READABLE = {  # features of a table with which its files are plain Parquet files, as long as no row is marked as deleted
    *("deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "variantType", "variantType-preview")
}
_INSTANT, _WITHOUT_ZONE = "TIMESTAMP WITH TIME ZONE", "TIMESTAMP"


def is_delta_table(folder: Path) -> bool:
    """Whether a folder is a Delta table."""
    return (folder / _LOG).is_dir()


class _Commit(NamedTuple):
    """The newest commit of a log; a table that was made anew in the same folder has another one."""

    version: int
    modified_ns: int
    size: int


class _RefusedError(Exception):
    """A version of a table that cannot be read exactly, with what to do."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """One version of a table."""

    version: int
    sizes: Mapping[Path, int]  # bytes of each file, which is absolute
    columns: Mapping[str, str]  # DuckDB types by name, in order
    partitions: pa.Table | None  # the partition columns, a row for each file in order; None if there are none
    schema: str  # JSON, as Delta and Spark write it
    content: str  # differs between versions with other files or other columns

    @cached_property
    def stored(self) -> Mapping[str, str]:
        """The columns that the files hold."""
        lacking = () if self.partitions is None else self.partitions.column_names
        return {name: dtype for name, dtype in self.columns.items() if name not in lacking}

    @cached_property
    def by_int96(self) -> Mapping[frozenset[str], list[Path]]:
        """The files, by their columns that are INT96; looks into every file if the table has times.

        Raises duckdb.Error if a file cannot be read.
        """
        columns: dict[Path, set[str]] = {path: set() for path in self.sizes}
        if columns and any(_INSTANT in dtype for dtype in self.stored.values()):
            query = f"SELECT file_name, name FROM parquet_schema({_listed(columns)}) WHERE type = 'INT96'"
            with connect() as con:
                for file, column in con.execute(query).fetchall():
                    columns[Path(file)].add(column)
        files: dict[frozenset[str], list[Path]] = {}
        for path, names in columns.items():
            files.setdefault(frozenset(names), []).append(path)
        return files


def _listed(files: Iterable[Path]) -> str:
    return f"[{', '.join(literal(str(path)) for path in files)}]"


def _root(table: SourceTable) -> Path:
    """The folder of a table, without symbolic links."""
    if _ADDRESS.match(table.source.location):
        problem = f": {table.source.location} is an address; a Delta table is read from a folder of this machine."
        raise table.error(problem, "mount the storage and name the folder.")
    return (table.folder / Path(table.source.location).expanduser()).resolve()


def _newest(table: SourceTable) -> _Commit:
    """Look up the newest commit, which reads nothing."""
    root = _root(table)
    try:
        names = [path.name for path in (root / _LOG).iterdir() if _COMMIT.fullmatch(path.name)]
        newest = root / _LOG / max(names, default="")
        stat = newest.stat()
    except OSError as error:
        problem = f": {root / _LOG} cannot be looked up ({error.strerror})."
        raise table.error(problem) if is_delta_table(root) else _missing(table, root) from error
    if not names:
        raise _missing(table, root)
    return _Commit(int(newest.stem), stat.st_mtime_ns, stat.st_size)


def _missing(table: SourceTable, root: Path) -> SourceError:
    if root.is_dir():
        problem = f": the folder {root} is not a Delta table, as it has no log of commits in {_LOG}."
        return table.error(
            problem, f"name the folder that holds {_LOG}, or read its files with another kind of source."
        )
    names = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
    problem = f": there is no folder {root}."
    return table.error(problem, did_you_mean(root.name, names))


def _snapshot(table: SourceTable) -> _Snapshot:
    """The version that a source declares, else the newest one; raises SourceError if it cannot be read exactly."""
    root, newest, declared = _root(table), _newest(table), table.source.version
    version = newest.version if declared is None else declared
    try:
        return _load(root, version, newest)
    except _RefusedError as error:
        problem = f": version {version} of {root} {error.problem}."
        raise table.error(problem, error.hint) from error


@lru_cache(maxsize=16)
def _load(root: Path, version: int, newest: _Commit) -> _Snapshot:
    """Read a version from the log, but no file of rows."""
    if version > newest.version:
        problem = f"does not exist: the newest version is {newest.version}"
        raise _RefusedError(problem, "declare a version that exists, or none for the newest one.")
    with needed("deltalake", extra="delta"):
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    try:
        table = DeltaTable(str(root), version=version)
        _require_plain(table)
        names = [f"partition.{name}" for name in table.metadata().partition_columns]
        actions = pa.table(table.get_add_actions(flatten=True))
        files = actions.select(["path", "size_bytes", "modification_time", *names]).sort_by("path")
        schema, as_json = pa.schema(table.schema().to_arrow()), table.schema().to_json()
    except DeltaError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        hint = "its commits may have been removed from the log: declare a newer version, or none for the newest one."
        if version == newest.version:
            hint = "the log is damaged, or needs a newer deltalake: restore the table, or pip install -U deltalake."
        problem = f"cannot be loaded: {reason}"
        raise _RefusedError(problem, hint) from error
    partitions = files.select(names).rename_columns([name.removeprefix("partition.") for name in names])
    with connect() as con:
        view = con.from_arrow(schema.empty_table())
        columns = dict(zip(view.columns, map(str, view.types), strict=True))
    paths = [_below(root, path) for path in files["path"].to_pylist()]
    return _Snapshot(
        version=version,
        sizes=dict(zip(paths, files["size_bytes"].to_pylist(), strict=True)),
        columns=columns,
        partitions=partitions if names else None,
        schema=as_json,
        content=digest(as_json, str(files.to_pylist())),
    )


def _require_plain(table: "DeltaTable") -> None:
    """Refuse a table whose rows are not exactly those of its files."""
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        problem = "maps columns to other names in its files (column mapping), which is not supported"
        hint = "drop the feature, in Spark by ALTER TABLE … DROP FEATURE columnMapping, or copy the rows to a table without it."
        raise _RefusedError(problem, hint)
    if unknown := {*(table.protocol().reader_features or ())} - _READABLE - {"columnMapping"}:
        problem = f"needs {listed(unknown)} of its reader, which is not supported"
        raise _RefusedError(problem, "drop these features of the table, or copy the rows to a table without them.")
    if "deletionVectors" in (table.protocol().reader_features or ()):
        vectors = pa.RecordBatchReader.from_stream(table.deletion_vectors())
        if any(batch.num_rows for batch in vectors):
            problem = "marks rows in its files as deleted (deletion vectors), which is not supported"
            hint = "rewrite these files, in Spark by REORG TABLE … APPLY (PURGE), and set delta.enableDeletionVectors to false."
            raise _RefusedError(problem, hint)


def _below(root: Path, encoded: str) -> Path:
    """The file to which the log refers; raises _RefusedError if it lies outside of the table."""
    path = Path(unquote(encoded))
    if path.is_absolute() or ".." in path.parts or _ADDRESS.match(encoded):
        problem = f"refers to {path}, a file outside of the table"
        raise _RefusedError(problem, "copy the table with its files, as a deep clone does.")
    return root / path


def _files(table: SourceTable) -> list[Path]:
    """The files that hold the rows, which are all there; raises SourceError."""
    snapshot = _snapshot(table)
    for path, size in snapshot.sizes.items():
        try:
            actual = path.stat().st_size
        except OSError as error:
            problem = f": version {snapshot.version} has no file {path} any more ({error.strerror})."
            hint = "it was vacuumed or removed: read a newer version, or restore the file."
            raise table.error(problem, hint) from error
        if actual != size:
            problem = f": {path} has {actual:,} bytes, not {size:,} as the log of version {snapshot.version} says."
            raise table.error(problem, "restore the file.")
    return [*snapshot.sizes]


def _view(con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
    snapshot = _snapshot(table)
    if snapshot.partitions is None:
        create_view(con, table.name, f"({_rows(table, snapshot)})")
        return
    values, file = f"{table.name} by file", unused_name("file", snapshot.columns)
    named = snapshot.partitions.append_column(file, pa.array(map(str, snapshot.sizes), pa.string()))
    con.register("values by file", named)
    con.execute(f'CREATE OR REPLACE TEMP TABLE {quoted(values)} AS FROM "values by file"')
    con.unregister("values by file")
    columns = ", ".join(
        f"CAST({quoted(values)}.{quoted(name)} AS {dtype}) AS {quoted(name)}"
        if name in snapshot.partitions.column_names
        else f"read.{quoted(name)}"
        for name, dtype in snapshot.columns.items()
    )
    # A condition on these values lets DuckDB open only the files that have them.
    rows = f"({_rows(table, snapshot, file)}) AS read JOIN {quoted(values)} USING ({quoted(file)})"
    create_view(con, table.name, f"(SELECT {columns} FROM {rows})")


def _rows(table: SourceTable, snapshot: _Snapshot, file: str | None = None) -> str:
    """SQL of the rows with the columns that the files hold, and with the path of the file as a column if it has a name."""
    named = "" if file is None else f", filename = {literal(file)}"
    every = [*snapshot.stored, *([] if file is None else [file])]
    groups = list[str]()
    for int96, files in snapshot.by_int96.items():
        in_utc = {name for name in int96 if snapshot.stored.get(name) == _INSTANT}
        types = {name: _WITHOUT_ZONE if name in in_utc else dtype for name, dtype in snapshot.stored.items()}
        nested = {name for name, dtype in types.items() if _INSTANT in dtype and dtype != _INSTANT}
        if int96 and (nested or not int96 <= types.keys()):
            problem = (
                f": {files[0]} has INT96 times inside of other values, which cannot be told from times without a zone."
            )
            raise table.error(problem, "write the table with spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS.")
        fields = ", ".join(
            f"{literal(name)}: {{name: {literal(name)}, type: {literal(dtype)}, default_value: NULL}}"
            for name, dtype in types.items()
        )
        columns = ", ".join(
            f"{quoted(name)} AT TIME ZONE 'UTC' AS {quoted(name)}" if name in in_utc else quoted(name) for name in every
        )
        options = f"schema = MAP {{{fields}}}, hive_partitioning = false{named}"
        groups.append(f"SELECT {columns} FROM read_parquet({_listed(files)}, {options})")
    if not groups:
        types = {**snapshot.stored, **({} if file is None else {file: "VARCHAR"})}
        groups = [
            f"SELECT {', '.join(f'NULL::{dtype} AS {quoted(name)}' for name, dtype in types.items())} WHERE false"
        ]
    return " UNION ALL ".join(groups)


def _pinned(table: SourceTable) -> Source:
    """The source with the version that is the newest one now."""
    return table.source.model_copy(update={"version": _snapshot(table).version})


def _described(source: Source) -> str:
    version = "" if source.version is None else f"version {source.version} of "
    return f"{version}the Delta table `{redact(source.location)}`"


DELTA = SourceKind(
    version=lambda table: _snapshot(table).content,
    location=lambda table: str(_root(table)),
    description=_described,
    pinned=_pinned,
    admit=lambda _con, table: _files(table),
    view=_view,
    frame=lambda con, table: con.sql(f"FROM {quoted(table.name)}").pl().lazy(),
    parquet_files=lambda table: ParquetFiles(_files(table), _snapshot(table).schema, _snapshot(table).partitions),
    size=lambda table: sum(_snapshot(table).sizes.values()),
    stands_still=True,
    unreadable="a file of the table may have been vacuumed or replaced meanwhile: run it again; else check the table.",
)
