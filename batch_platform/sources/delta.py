"""Sources of kind `delta`: one version of a Delta table.

deltalake reads the log. Where the files of a version hold its rows as they are, Arrow reads them with the values that the log has for
partition columns, so that a condition skips files. Otherwise deltalake scans the table. Its own dataset is not used: a condition
`IS NULL` on a column that was added later skips the files that lack the column.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from batch_platform.declaration.errors import SourceError, did_you_mean
from batch_platform.declaration.importing import needed
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import ParquetFiles, SourceKind, SourceTable, digest
from batch_platform.sources.objects import (
    FilePath,
    FileState,
    ObjectPath,
    StoreError,
    arrow_file_system,
    delta_options,
    file_path,
    file_state,
    names_below,
    object_states,
    objects_below,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.compute import Expression
    from pyarrow.dataset import Dataset
    from pyarrow.fs import FileSystem

_LOG = "_delta_log"
_COMMIT = f"{'[0-9]' * 20}.json"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Features under which files hold the rows as they are; with deletion vectors, as long as no row is marked as deleted.
_PLAIN = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}


def is_delta_table(folder: FilePath) -> bool:
    """Tell whether a folder is a Delta table; may raise StoreError."""
    log = folder / _LOG
    return log.is_dir() if isinstance(log, Path) else bool(names_below(log))


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """One version of a table; can be registered in DuckDB where Arrow does not read the files."""

    table: "DeltaTable"
    sizes: Mapping[str, int]  # bytes of each file, by its path in the log
    is_plain: bool  # True if the files hold the rows as they are
    partitions: pa.Table  # values of the partition columns if it is plain, one row for each file in order
    content: str  # differs between versions with other files or other columns

    def __arrow_c_stream__(self, schema: object = None) -> object:
        return self.table.scan().__arrow_c_stream__(schema)


def _root(table: SourceTable) -> FilePath:
    """The folder of a table, without symbolic links, or its address."""
    root = file_path(table.source.location)
    return (table.folder / root).resolve() if isinstance(root, Path) else root


def _missing(table: SourceTable, root: FilePath, log: Collection[FilePath]) -> SourceError:
    if log or (isinstance(root, Path) and root.is_dir()):
        problem = f": the folder {root} is not a Delta table, as no commit can be found in {_LOG}."
        return table.error(
            problem, f"name the folder that holds {_LOG}, or read its files with another kind of source."
        )
    if isinstance(root, ObjectPath):
        names = names_below(root.parent)
    else:
        names = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
    return table.error(f": there is no folder {root}.", did_you_mean(root.name, names))


def _newest_commit(table: SourceTable, root: FilePath) -> tuple[int, FileState]:
    """The newest version of a table and its commit's state; raises SourceError."""
    if isinstance(root, Path):
        commit = max((root / _LOG).glob(_COMMIT), default=None)
        if commit is None:
            raise _missing(table, root, ())
        return int(commit.stem), file_state(commit.stat())
    try:
        commits = object_states(root / _LOG, _COMMIT, "")
        if not commits:
            raise _missing(table, root, objects_below(root))
    except StoreError as error:
        raise table.store_error(str(error)) from error
    newest = max(commits)
    return int(newest.stem), commits[newest]


def _snapshot(table: SourceTable) -> _Snapshot:
    """The version that a source declares, else the newest one; raises SourceError if it cannot be loaded."""
    root, declared = _root(table), table.source.version
    newest, commit = _newest_commit(table, root)
    version = newest if declared is None else declared
    if version > newest:
        problem = f": version {version} of {root} does not exist: the newest version is {newest}."
        raise table.error(problem, "declare a version that exists, or none for the newest one.")
    with needed("deltalake", extra="delta"):
        import deltalake.exceptions
    try:
        return _load(root, version, (newest, commit))
    except (deltalake.exceptions.DeltaError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        hint = "its commits may have been removed from the log: declare a newer version, or none for the newest one."
        if version == newest:
            hint = "the table is damaged, or needs a newer deltalake: restore it, or pip install -U deltalake."
        if isinstance(error, OSError) and isinstance(root, ObjectPath):
            hint = "deltalake takes the credentials of the store from the environment or the role of the machine."
        problem = f": version {version} of {root} cannot be loaded: {reason}."
        raise table.error(problem, hint) from error


@lru_cache(maxsize=16)
def _load(root: FilePath, version: int, newest: tuple[int, FileState]) -> _Snapshot:  # noqa: ARG001 - a table may be made anew
    """Read a version from the log, but no file of rows."""
    from deltalake import DeltaTable

    table = DeltaTable(str(root), version=version, storage_options=delta_options(root))
    features = {*(table.protocol().reader_features or ())}
    is_plain = features <= _PLAIN and table.metadata().configuration.get("delta.columnMapping.mode", "none") == "none"
    if is_plain and "deletionVectors" in features:
        vectors = pa.RecordBatchReader.from_stream(table.deletion_vectors())
        is_plain = not any(batch.num_rows for batch in vectors)
    if not is_plain:
        table.scan()  # refuses what it cannot read
    names = [f"partition.{name}" for name in table.metadata().partition_columns] if is_plain else []
    actions = pa.table(table.get_add_actions(flatten=True))
    files = actions.select(["path", "size_bytes", "modification_time", *names]).sort_by("path")
    revision = [] if is_plain else [str(version)]  # the same files may have lost other rows
    return _Snapshot(
        table=table,
        sizes=dict(zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True)),
        is_plain=is_plain,
        partitions=files.select(names).rename_columns([name.removeprefix("partition.") for name in names]),
        content=digest(table.schema().to_json(), str(files.to_pylist()), *revision),
    )


def _files(table: SourceTable) -> list[FilePath]:
    """The files that hold the rows, which are all there; raises SourceError."""
    root, snapshot, paths = _root(table), _snapshot(table), list[FilePath]()
    version = f"version {snapshot.table.version()}"
    try:
        objects = objects_below(root) if isinstance(root, ObjectPath) else {}
    except StoreError as error:
        raise table.store_error(str(error)) from error
    for name, size in snapshot.sizes.items():
        path = root / unquote(name)
        path = Path(normpath(path)) if isinstance(path, Path) else path
        if _ADDRESS.match(name) or not path.is_relative_to(root) or ".." in path.parts:
            problem = f": {version} of {root} refers to {name}, a file outside of the table."
            raise table.error(problem, "copy the table with its files, as a deep clone does.")
        try:
            actual = path.stat().st_size if isinstance(path, Path) else objects[path].size
        except (OSError, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such object"
            problem = f": {version} has no file {path} any more ({reason})."
            hint = "it was vacuumed or removed: read a newer version, or restore the file."
            raise table.error(problem, hint) from error
        if actual != size:
            problem = f": {path} has {actual:,} bytes, not {size:,} as the log of {version} says."
            raise table.error(problem, "restore the file.")
        paths.append(path)
    return paths


def _dataset(table: SourceTable) -> "Dataset":
    """The rows as Arrow reads them; no file is opened yet."""
    snapshot, files = _snapshot(table), [str(path) for path in _files(table)]
    schema = pa.schema(snapshot.table.schema().to_arrow())
    return parquet_dataset(files, arrow_file_system(table.source.location), schema, snapshot.partitions)


def parquet_dataset(files: Sequence[str], system: "FileSystem", schema: pa.Schema, partitions: pa.Table) -> "Dataset":
    """Parquet files with the columns of a schema; `partitions` has a row for each file, with values that all of its rows have."""
    # Imported late: it takes its time.
    from pyarrow.dataset import FileSystemDataset, ParquetFileFormat, ParquetFragmentScanOptions

    options = ParquetFragmentScanOptions(pre_buffer=False)  # otherwise whole row groups wait in memory
    parquet = ParquetFileFormat(default_fragment_scan_options=options)
    fragments = [
        parquet.make_fragment(file, system, partition_expression=_values_of_file(partitions, at))
        for at, file in enumerate(files)
    ]
    return FileSystemDataset(fragments, schema, parquet, system)


def _values_of_file(partitions: pa.Table, at: int) -> "Expression":
    """The condition that all rows of a file fulfil, from which Arrow takes the values of the partition columns."""
    from pyarrow.compute import field, scalar

    condition = scalar(True)
    for name in partitions.column_names:
        value = partitions[name][at]
        condition &= field(name) == value if value.is_valid else field(name).is_null()
    return condition


class _Delta(SourceKind):
    stands_still = True
    unreadable = "a file of the table may have been vacuumed or replaced meanwhile: run it again; else check the table."

    def version(self, table: SourceTable) -> str:
        return _snapshot(table).content

    def location(self, table: SourceTable) -> str:
        return str(_root(table))

    def description(self, source: Source) -> str:
        version = "" if source.version is None else f"version {source.version} of "
        return f"{version}the Delta table `{redact(source.location)}`"

    def pinned(self, table: SourceTable) -> Source:
        return table.source.model_copy(update={"version": _snapshot(table).table.version()})

    def admit(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
        del con
        _files(table)  # refuses a version whose files are gone; Arrow and deltalake read the files, not DuckDB
        return ()

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        con.register(table.name, _dataset(table) if _snapshot(table).is_plain else _snapshot(table))

    def parquet_files(self, table: SourceTable) -> ParquetFiles | None:
        snapshot = _snapshot(table)
        if not snapshot.is_plain or isinstance(_root(table), ObjectPath):
            return None  # DuckDB copies the rows
        files = [file for file in _files(table) if isinstance(file, Path)]
        partitions = snapshot.partitions if snapshot.partitions.column_names else None
        return ParquetFiles(files, snapshot.table.schema().to_json(), partitions)

    def size(self, table: SourceTable) -> int:
        return sum(_snapshot(table).sizes.values())


DELTA = _Delta()
