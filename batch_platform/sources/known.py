"""The kinds of sources by name, and the two that take few lines."""

from typing import NoReturn

import duckdb
import polars as pl
import pyarrow as pa

from batch_platform.declaration import extensions
from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.extensions import Registry
from batch_platform.declaration.importing import import_function, parameters_of, source_code
from batch_platform.declaration.inputs import Source
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import SourceKind, SourceTable, digest

SOURCE_KINDS: Registry[SourceKind] = extensions.SOURCES


class _Python(SourceKind):
    """A user's function that returns a table."""

    version_fixes_rows = False  # the code has a version, its rows have none

    def version(self, table: SourceTable) -> str:
        return digest(source_code(table.source.location, table.key), table.source.location)

    def location(self, table: SourceTable) -> str:
        return table.source.location

    def description(self, source: Source) -> str:
        return f"the Python function `{redact(source.location)}`"

    def function(self, source: Source) -> str:
        return source.location

    def takes_partition(self, table: SourceTable) -> bool:
        return "partition" in parameters_of(import_function(table.source.location, table.key))

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        con.register(table.name, self.frame(con, table).collect())

    def frame(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> pl.LazyFrame:
        """Call the function, with `partition=` if it has such a parameter."""
        del con
        dotted = table.source.location
        function, by_partition = import_function(dotted, table.key), self.takes_partition(table)
        try:
            result = function(partition=table.partition) if by_partition else function()
            result = pl.DataFrame(result) if isinstance(result, pa.Table) else result
        except Exception as error:  # a user's own code may raise anything
            problem = f": {dotted} failed with {type(error).__name__}: {error}."
            hint = f"correct the function, or name another one in {table.key}."
            raise table.error(problem, hint, shared=not by_partition) from error
        if not isinstance(result, pl.LazyFrame | pl.DataFrame):
            problem = f": {dotted} returned {type(result).__name__}, which is not a table."
            raise table.error(problem, "return a Polars LazyFrame or DataFrame, or a pyarrow Table.")
        return result.lazy()


def only_spark_reads(table: SourceTable) -> SourceError:
    """The error for whoever else wants to read such a table."""
    problem = f" is the table {table.source.location} of Spark's catalog, which only features.spark_sql can read."
    hint = f"declare the folder of the table in sources.{table.name}, as `parquet` or `delta`: DuckDB reads it, too."
    return table.error(problem, hint)


class _SparkTable(SourceKind):
    """A table of a catalog, which Spark alone can read, for `features.spark_sql`."""

    only_on_spark = True
    version_fixes_rows = False  # only the name of the table has a version
    counts_quickly = False

    def version(self, table: SourceTable) -> str:
        return digest(table.source.location)

    def location(self, table: SourceTable) -> str:
        return f"{table.source.location} in Spark's catalog"

    def description(self, source: Source) -> str:
        return f"the table `{redact(source.location)}` of Spark's catalog"

    def view(self, con: duckdb.DuckDBPyConnection, table: SourceTable) -> NoReturn:
        del con
        raise only_spark_reads(table)

    admit = frame = view


PYTHON, SPARK_TABLE = _Python(), _SparkTable()
