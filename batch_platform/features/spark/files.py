"""Sources as data frames of Spark: Parquet files, and tables of a catalog."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from batch_platform.declaration.errors import EngineError
from batch_platform.sources.kind import ParquetFiles, unused_name

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

_SCHEME = re.compile("^file:/+")
_DEFECT = "this is a defect of this package; please report it."


def identifier(name: str) -> str:
    """A name as Spark's SQL quotes it."""
    return f"`{name.replace('`', '``')}`"


def rows_of(files: ParquetFiles, session: "SparkSession") -> "DataFrame":
    """The rows of the files, with the columns that are not in them; Spark opens no more than the files' ends yet.

    Spark looks for columns in the names of folders only below a base path, of which none is given here.
    """
    reader = session.read.options(mergeSchema=False, __globPaths__=False)
    names = [f"file://{path}" for path in files.paths]
    if files.schema is None:
        return reader.parquet(*names)
    from pyspark.sql.types import StructType

    schema = StructType.fromJson(json.loads(files.schema))
    if not names:
        return session.createDataFrame([], schema)
    if files.partitions is None:
        return reader.schema(schema).parquet(*names)
    lacking = files.partitions.column_names
    frame = reader.schema(StructType([field for field in schema if field.name not in lacking])).parquet(*names)
    return _with_partitions(frame, files, files.partitions, schema, session)


def rows_in_catalog(table: str, session: "SparkSession") -> "DataFrame":
    """The rows of a table as the catalog has them now; a name without a database is one of the session's present database."""
    parts = table.split(".")
    if len(parts) == 1:  # Spark would take a view of that name, which may be of another source
        parts = [session.catalog.currentDatabase(), *parts]
    name = ".".join(map(identifier, parts))
    session.catalog.refreshTable(name)  # Spark goes on reading the files that it found once
    return session.table(name)


def _with_partitions(
    frame: "DataFrame", files: ParquetFiles, partitions: pa.Table, schema: "StructType", session: "SparkSession"
) -> "DataFrame":
    """Join the columns that the files lack by the name that Spark has for the file of a row."""
    from pyspark.sql.functions import broadcast, col, concat, lit, raise_error, regexp_replace, when
    from pyspark.sql.types import StringType, StructField, StructType

    # Spark writes file:/a or file:///a, and encodes some characters.
    spelled = {Path(unquote(urlsplit(name).path)): _SCHEME.sub("/", name) for name in frame.inputFiles()}
    if spelled.keys() != {*files.paths}:
        msg = f"Spark reads other files than it was given, such as {min(spelled.keys() ^ {*files.paths})}."
        raise EngineError(msg, hint=_DEFECT)
    file = unused_name("file", schema.names)
    values = partitions.append_column(file, pa.array([spelled[path] for path in files.paths]))
    fields = [schema[name] for name in partitions.column_names]
    lookup = session.createDataFrame(values, StructType([*fields, StructField(file, StringType())]))
    lookup = lookup.withColumnRenamed(file, f"{file} listed")
    path = regexp_replace(frame.metadataColumn("_metadata")["file_path"], _SCHEME.pattern, "/")
    named = frame.withColumn(file, path)
    joined = named.join(broadcast(lookup), col(f"`{file}`") == col(f"`{file} listed`"), "left")
    unlisted = raise_error(
        concat(lit(f"Spark has another name for a listed file; {_DEFECT} It is: "), col(f"`{file}`"))
    )
    columns = {name: col(identifier(name)) for name in schema.names}
    for name in partitions.column_names:
        columns[name] = when(col(f"`{file} listed`").isNull(), unlisted).otherwise(columns[name]).alias(name)
    return joined.select(*columns.values())
