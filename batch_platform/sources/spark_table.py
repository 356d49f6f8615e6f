"""Sources of kind `spark_table`: a table of a catalog, which Spark alone can read, for `features.spark_sql`."""

from typing import NoReturn

from batch_platform.declaration.errors import SourceError
from batch_platform.declaration.redaction import redact
from batch_platform.sources.kind import SourceKind, SourceTable, digest


def only_spark_reads(table: SourceTable) -> SourceError:
    """The error for whoever else wants to read such a table."""
    problem = f" is the table {table.source.location} of Spark's catalog, which only features.spark_sql can read."
    hint = f"declare the folder of the table in sources.{table.name}, as `parquet` or `delta`: DuckDB reads it, too."
    return table.error(problem, hint)


def _refuse(_con: object, table: SourceTable) -> NoReturn:
    raise only_spark_reads(table)


SPARK_TABLE = SourceKind(
    version=lambda table: digest(table.source.location),
    location=lambda table: f"{table.source.location} in Spark's catalog",
    description=lambda source: f"the table `{redact(source.location)}` of Spark's catalog",
    admit=_refuse,
    view=_refuse,
    frame=_refuse,
    only_on_spark=True,
    version_fixes_rows=False,  # only the name of the table has a version
    counts_quickly=False,
)
