"""Sources of kind `iceberg`: one snapshot of an Iceberg table.

pyiceberg reads the catalog and the metadata. Where the files of a snapshot hold its rows as they are, Arrow reads them, so that a
condition skips files and row groups. Otherwise pyiceberg reads the whole table for each query: where rows are marked as deleted,
and where a column has another name or type in older files.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from batch_platform.declaration.errors import BatchPlatformError, did_you_mean
from batch_platform.declaration.importing import needed
from batch_platform.declaration.inputs import IcebergSnapshot, IcebergTable, Source
from batch_platform.declaration.redaction import redact
from batch_platform.sources.delta import parquet_dataset
from batch_platform.sources.kind import SourceKind, SourceTable
from batch_platform.sources.objects import answer_in_time, store_timeout

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import DataScan, FileScanTask, Table

_LONGEST_REASON = 300  # characters of a message
_S3_ATTEMPTS = 3  # how often Arrow attempts a request


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a snapshot as pyiceberg reads them; can be registered in DuckDB."""

    scan: "DataScan"

    def __arrow_c_stream__(self, schema: object = None) -> object:
        return self.scan.to_arrow_batch_reader().__arrow_c_stream__(schema)


def _declared(table: SourceTable) -> IcebergSnapshot:
    if table.source.iceberg is None:
        msg = f"{table.name} is not an Iceberg table."
        raise TypeError(msg)
    return table.source.iceberg


@lru_cache(maxsize=16)  # asked for every partition
def _catalog(name: str, properties: tuple[tuple[str, str], ...]) -> "Catalog":
    from pyiceberg.catalog import load_catalog

    catalog = answer_in_time(lambda: load_catalog(name, **dict(properties)))
    for limit in ("s3.connect-timeout", "s3.request-timeout"):
        catalog.properties.setdefault(limit, str(store_timeout() / _S3_ATTEMPTS))
    return catalog


def catalog_of(declared: IcebergTable) -> "Catalog":
    """The catalog of a declared table; raises whatever pyiceberg does."""
    properties = {} if isinstance(declared.catalog, str) else dict(declared.catalog)
    name = declared.catalog if isinstance(declared.catalog, str) else properties.pop("name", "default")
    return _catalog(name, tuple(sorted(properties.items())))


def _opened(table: SourceTable) -> "Table":
    """The table as its catalog has it now; raises SourceError."""
    declared = _declared(table)
    with needed("pyiceberg", extra="iceberg"):
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
    with _explained(table):
        catalog = catalog_of(declared)
        try:
            return answer_in_time(lambda: catalog.load_table(declared.table))
        except NoSuchTableError as error:
            known = list[str]()
            with suppress(NoSuchNamespaceError):
                known += map(".".join, catalog.list_tables(declared.table.rpartition(".")[0]))
            problem = f": the catalog has no table {declared.table}."
            raise table.error(problem, did_you_mean(declared.table, known)) from error


def _snapshot(table: SourceTable, opened: "Table") -> int | None:
    """The snapshot that a source declares, else the current one; None for a table that was never written. Raises SourceError."""
    declared, current = _declared(table).snapshot, opened.current_snapshot()
    if declared is not None and opened.snapshot_by_id(declared) is None:
        newest = "it has none yet" if current is None else f"the current one is {current.snapshot_id}"
        problem = f": {_declared(table).table} has no snapshot {declared}: {newest}."
        raise table.error(problem, "declare one that is not expired, or none for the current one.")
    return declared if declared is not None or current is None else current.snapshot_id


@contextmanager
def _explained(table: SourceTable) -> Generator[None]:
    """Turn what catalogs and their libraries raise into an error that names the source."""
    try:
        yield
    except BatchPlatformError:
        raise
    except Exception as error:  # a catalog may be a database, a service or files: each raises classes of its own
        reason = " ".join(redact(str(error)).partition("\n")[0].split())[:_LONGEST_REASON].rstrip(". ")
        reason = reason or "no answer in time"
        problem = f" ({table.key}): {_declared(table).table} cannot be read ({type(error).__name__}: {reason})."
        hint = "check the catalog: its properties, in .pyiceberg.yaml or the environment if only its name is declared."
        raise table.error(problem, hint) from error


def _rows(table: SourceTable) -> "Dataset | _Rows":
    opened = _opened(table)
    with _explained(table):
        scan = opened.scan(snapshot_id=_snapshot(table, opened))
        files = list(scan.plan_files())
        return _dataset(opened, scan, files) or _Rows(scan)


def _dataset(opened: "Table", scan: "DataScan", files: "Sequence[FileScanTask]") -> "Dataset | None":
    """The rows as Arrow reads them; None where the files do not hold them as they are."""
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.manifest import FileFormat
    from pyiceberg.transforms import IdentityTransform

    io, fields = opened.io, [field for schema in opened.schemas().values() for field in schema.fields]
    ever = [{it(field) for field in fields} for it in (str, lambda field: field.name, lambda field: field.field_id)]
    as_ever = len({len(facts) for facts in ever}) == 1  # each column has had one name, one type and one ID
    whole = all(file.file.file_format == FileFormat.PARQUET and not file.delete_files for file in files)
    if not (as_ever and whole and isinstance(io, PyArrowFileIO) and len({file.file.spec_id for file in files}) == 1):
        return None
    places = [io.parse_location(file.file.file_path, io.properties) for file in files]
    if len({place[:2] for place in places}) > 1:
        return None
    schema = pa.schema([field.remove_metadata() for field in scan.projection().as_arrow()])
    values = dict[str, pa.Array]()
    for place, field in enumerate(opened.specs()[files[0].file.spec_id].fields):
        name = scan.projection().find_column_name(field.source_id)
        if name is not None and isinstance(field.transform, IdentityTransform) and name in schema.names:
            values[name] = _array([file.file.partition[place] for file in files], schema.field(name).type)
    scheme, host, _ = places[0]
    paths = [path for _, _, path in places]
    return parquet_dataset(paths, io.fs_by_scheme(scheme, host), schema, pa.table(values))


def _array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """Values of a partition column; dates are days and times microseconds."""
    return pa.array(values, pa.int32() if pa.types.is_date32(dtype) else None).cast(dtype)


class _Iceberg(SourceKind):
    stands_still = True
    unreadable = "a file of the snapshot may have been removed meanwhile: run it again; else check the table."

    def version(self, table: SourceTable) -> str:
        snapshot = _snapshot(table, _opened(table))
        return "no snapshot" if snapshot is None else str(snapshot)

    def location(self, table: SourceTable) -> str:
        catalog = _declared(table).catalog
        name = catalog if isinstance(catalog, str) else catalog.get("name", "")
        return f"{table.source.location} in the catalog {name}".removesuffix(" in the catalog ")

    def description(self, source: Source) -> str:
        snapshot = source.iceberg.snapshot if source.iceberg else None
        return f"{'' if snapshot is None else f'snapshot {snapshot} of '}the Iceberg table `{redact(source.location)}`"

    def pinned(self, table: SourceTable) -> Source:
        declared, snapshot = _declared(table), _snapshot(table, _opened(table))
        return table.source.model_copy(update={"iceberg": declared.model_copy(update={"snapshot": snapshot})})

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        con.register(table.name, _rows(table))

    def size(self, table: SourceTable) -> int:
        opened = _opened(table)
        snapshot = opened.snapshot_by_id(_snapshot(table, opened) or -1)
        summary = snapshot.summary if snapshot else None
        return int(summary.additional_properties.get("total-files-size", 0)) if summary else 0


ICEBERG = _Iceberg()
