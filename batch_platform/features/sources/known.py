"""The kinds of sources by name; one from outside the package is added to the dictionary."""

from batch_platform.features.sources.asset import ASSET
from batch_platform.features.sources.delta import DELTA
from batch_platform.features.sources.duckdb import DUCKDB
from batch_platform.features.sources.files import ARROW, PARQUET
from batch_platform.features.sources.iceberg import ICEBERG
from batch_platform.features.sources.kind import SourceKind
from batch_platform.features.sources.python import PYTHON
from batch_platform.features.sources.spark_table import SPARK_TABLE
from batch_platform.features.sources.sql import SQL
from batch_platform.features.sources.text_files import CSV, JSON

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
