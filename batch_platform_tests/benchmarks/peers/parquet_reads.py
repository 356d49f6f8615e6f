"""Read all rows of Parquet files as Arrow batches, by DuckDB alone or as a source of a pipeline.

parquet_reads.py duckdb|source GLOB
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

BATCH_ROWS = 131_072


@contextmanager
def opened(how: str, glob: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that shows the rows as `a`."""
    if how == "duckdb":
        con = duckdb.connect()
        con.execute(f"CREATE VIEW a AS FROM read_parquet('{glob}')")
        yield con
        return
    from batch_platform.declaration.spec import PipelineSpec
    from batch_platform.features.sources.opening import Sources
    from batch_platform.warehouse.home import Home

    spec = PipelineSpec.model_validate(
        {
            "name": "reading",
            "partitions": {"every": "day", "start": "2024-01-01"},
            "sources": {"a": {"parquet": glob}},
            "features": {"sql": "features.sql", "key": ["id"]},
            "model": {"estimator": "sklearn.dummy.DummyRegressor"},
        }
    )
    sources = Sources(spec, Path.cwd(), Home(Path.cwd()))
    with sources.connect(sources.first_partition()) as source:
        yield source.duckdb


with opened(*sys.argv[1:]) as con:
    print(sum(batch.num_rows for batch in con.sql("FROM a").to_arrow_reader(BATCH_ROWS)))
