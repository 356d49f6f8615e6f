"""Sources of kind `delta`: one version of a Delta table.

deltalake reads the log. Where the files of a version hold its rows as they are, Arrow reads them with the values that the log has for
partition columns, so that a condition skips files. Otherwise deltalake scans the table. Its own dataset is not used: a condition
`IS NULL` on a column that was added later skips the files that lack the column.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from batch_platform.declaration.errors import SourceError, did_you_mean
from batch_platform.declaration.extras import needed
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.features.sources.kind import ParquetFiles, SourceKind, SourceTable, digest
from batch_platform.warehouse.sql import quoted

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.compute import Expression
    from pyarrow.dataset import Dataset

_LOG = "_delta_log"
_COMMIT = f"{'[0-9]' * 20}.json"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Features under which files hold the rows as they are; with deletion vectors, as long as no row is marked as deleted.
_PLAIN = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}


def is_delta_table(folder: Path) -> bool:
    """Tell whether a folder is a Delta table."""
    return (folder / _LOG).is_dir()


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


def _root(table: SourceTable) -> Path:
    """The folder of a table, without symbolic links."""
    if _ADDRESS.match(table.source.location):
        problem = f": {table.source.location} is an address; a Delta table is read from a folder of this machine."
        raise table.error(problem, "mount the storage and name the folder.")
    return (table.folder / Path(table.source.location).expanduser()).resolve()


def _missing(table: SourceTable, root: Path) -> SourceError:
    if root.is_dir():
        problem = f": the folder {root} is not a Delta table, as no commit can be found in {_LOG}."
        return table.error(
            problem, f"name the folder that holds {_LOG}, or read its files with another kind of source."
        )
    names = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
    return table.error(f": there is no folder {root}.", did_you_mean(root.name, names))


def _snapshot(table: SourceTable) -> _Snapshot:
    """The version that a source declares, else the newest one; raises SourceError if it cannot be loaded."""
    root, declared = _root(table), table.source.version
    commit = max((root / _LOG).glob(_COMMIT), default=None)
    if commit is None:
        raise _missing(table, root)
    newest, stat = int(commit.stem), commit.stat()
    version = newest if declared is None else declared
    if version > newest:
        problem = f": version {version} of {root} does not exist: the newest version is {newest}."
        raise table.error(problem, "declare a version that exists, or none for the newest one.")
    with needed("deltalake", extra="delta"):
        import deltalake.exceptions
    try:
        return _load(root, version, (newest, stat.st_mtime_ns, stat.st_size))
    except deltalake.exceptions.DeltaError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        hint = "its commits may have been removed from the log: declare a newer version, or none for the newest one."
        if version == newest:
            hint = "the table is damaged, or needs a newer deltalake: restore it, or pip install -U deltalake."
        problem = f": version {version} of {root} cannot be loaded: {reason}."
        raise table.error(problem, hint) from error


@lru_cache(maxsize=16)
def _load(root: Path, version: int, newest: tuple[int, int, int]) -> _Snapshot:  # noqa: ARG001 - a table may be made anew
    """Read a version from the log, but no file of rows."""
    from deltalake import DeltaTable

    table = DeltaTable(str(root), version=version)
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


def _files(table: SourceTable) -> list[Path]:
    """The files that hold the rows, which are all there; raises SourceError."""
    root, snapshot, paths = _root(table), _snapshot(table), list[Path]()
    version = f"version {snapshot.table.version()}"
    for name, size in snapshot.sizes.items():
        path = Path(normpath(root / unquote(name)))
        if _ADDRESS.match(name) or not path.is_relative_to(root):
            problem = f": {version} of {root} refers to {name}, a file outside of the table."
            raise table.error(problem, "copy the table with its files, as a deep clone does.")
        try:
            actual = path.stat().st_size
        except OSError as error:
            problem = f": {version} has no file {path} any more ({error.strerror})."
            hint = "it was vacuumed or removed: read a newer version, or restore the file."
            raise table.error(problem, hint) from error
        if actual != size:
            problem = f": {path} has {actual:,} bytes, not {size:,} as the log of {version} says."
            raise table.error(problem, "restore the file.")
        paths.append(path)
    return paths


def _dataset(table: SourceTable) -> "Dataset":
    """The rows as Arrow reads them; no file is opened yet."""
    # Imported late: it takes its time.
    from pyarrow.dataset import FileSystemDataset, ParquetFileFormat, ParquetFragmentScanOptions
    from pyarrow.fs import LocalFileSystem

    snapshot, system = _snapshot(table), LocalFileSystem()
    options = ParquetFragmentScanOptions(pre_buffer=False)  # otherwise whole row groups wait in memory
    parquet = ParquetFileFormat(default_fragment_scan_options=options)
    fragments = [
        parquet.make_fragment(str(path), system, partition_expression=_values_of_file(snapshot.partitions, at))
        for at, path in enumerate(_files(table))
    ]
    return FileSystemDataset(fragments, pa.schema(snapshot.table.schema().to_arrow()), parquet, system)


def _values_of_file(partitions: pa.Table, at: int) -> "Expression":
    """The condition that all rows of a file fulfil, from which Arrow takes the values of the partition columns."""
    from pyarrow.compute import field, scalar

    condition = scalar(True)
    for name in partitions.column_names:
        value = partitions[name][at]
        condition &= field(name) == value if value.is_valid else field(name).is_null()
    return condition


def _view(con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
    con.register(table.name, _dataset(table) if _snapshot(table).is_plain else _snapshot(table))


def _parquet_files(table: SourceTable) -> ParquetFiles | None:
    snapshot = _snapshot(table)
    partitions = snapshot.partitions if snapshot.partitions.column_names else None
    return ParquetFiles(_files(table), snapshot.table.schema().to_json(), partitions) if snapshot.is_plain else None


def _pinned(table: SourceTable) -> Source:
    """The source with the version that is the newest one now."""
    return table.source.model_copy(update={"version": _snapshot(table).table.version()})


def _admit(_con: duckdb.DuckDBPyConnection, table: SourceTable) -> tuple[()]:
    """Refuse a version whose files are gone; Arrow and deltalake read the files, not DuckDB."""
    _files(table)
    return ()


def _described(source: Source) -> str:
    version = "" if source.version is None else f"version {source.version} of "
    return f"{version}the Delta table `{redact(source.location)}`"


DELTA = SourceKind(
    version=lambda table: _snapshot(table).content,
    location=lambda table: str(_root(table)),
    description=_described,
    pinned=_pinned,
    admit=_admit,
    view=_view,
    frame=lambda con, table: con.sql(f"FROM {quoted(table.name)}").pl().lazy(),
    parquet_files=_parquet_files,
    size=lambda table: sum(_snapshot(table).sizes.values()),
    stands_still=True,
    unreadable="a file of the table may have been vacuumed or replaced meanwhile: run it again; else check the table.",
)
