"""The kinds of sources by name; one from outside the package is added to the dictionary."""

from batch_platform.sources.asset import ASSET
from batch_platform.sources.delta import DELTA
from batch_platform.sources.duckdb import DUCKDB
from batch_platform.sources.files import ARROW, PARQUET
from batch_platform.sources.iceberg import ICEBERG
from batch_platform.sources.kind import SourceKind
from batch_platform.sources.python import PYTHON
from batch_platform.sources.spark_table import SPARK_TABLE
from batch_platform.sources.sql import SQL
from batch_platform.sources.text_files import CSV, JSON

SOURCE_KINDS: dict[str, SourceKind] = {
    "python": PYTHON,
    "parquet": PARQUET,
    "csv": CSV,
    "json": JSON,
    "arrow": ARROW,
    "duckdb": DUCKDB,
    "delta": DELTA,
    "iceberg": ICEBERG,
    "sql": SQL,
    "spark_table": SPARK_TABLE,
    "asset": ASSET,
}
