"""Read a table of 20 columns from a PostgreSQL on this machine: as a source, and by the libraries that others use."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians, run
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.harness.postgres_server import postgres

TITLE = "Rows from a database"
IN_MEMORY, CONNECTORX, COPY = "in_memory", "connectorx", "psycopg_copy"
_TABLE = """
CREATE TABLE orders AS SELECT n AS id, TIMESTAMPTZ '2026-01-01' + n * INTERVAL '1 second' AS ordered_at,
    (n % 9973 / 100.0)::numeric(12, 2) AS amount, n % 7 = 0 AS express, DATE '2026-01-01' + (n % 365)::int AS due,
    'shop ' || n % 500 AS shop, 'item ' || n % 20000 AS item, {} FROM generate_series(1, {}) AS n
"""
_NUMBERS = [f"random() AS f{at}" for at in range(9)] + [f"(n % {7 + at})::int AS i{at}" for at in range(4)]
SCRIPTS = {
    OURS: """
from batch_platform_tests.benchmarks.sources import opened
with opened(sys.argv[1]) as con:
    rows = sum(batch.num_rows for batch in con.duckdb.sql("FROM orders").to_arrow_reader(100_000))
""",
    IN_MEMORY: """
from batch_platform_tests.benchmarks.sources import opened
with opened(sys.argv[1]) as con:
    rows = con.duckdb.sql("FROM orders").pl().height
""",
    CONNECTORX: """
import polars as pl
rows = pl.read_database_uri("SELECT * FROM orders", sys.argv[1], engine="connectorx").height
""",
    COPY: """
import psycopg
with psycopg.connect(sys.argv[1]) as con, con.cursor() as cursor:
    with cursor.copy("COPY orders TO STDOUT (FORMAT binary)") as copy:
        size = sum(len(data) for data in copy)
    rows = cursor.rowcount
""",
}


def opened(uri: str):
    """The table as a pipeline reads it."""
    from batch_platform.declaration.spec import PipelineSpec
    from batch_platform.features.sources.opening import Sources
    from batch_platform.warehouse.home import Home

    declared = {
        "name": "orders",
        "partitions": {"every": "day", "start": "2026-01-01"},
        "sources": {"orders": {"sql": {"uri": uri, "table": "orders"}}},
        "features": {"sql": "features.sql", "key": ["id"], "time": "ordered_at"},
        "model": {"estimator": "sklearn.cluster.KMeans", "train": {"every": "month", "window": "all"}},
    }
    sources = Sources(PipelineSpec.model_validate(declared), Path.cwd(), Home(Path.cwd() / "home"))
    return sources.connect(sources.first_partition())


def measure(options: Options) -> Iterator[Result]:
    """Read all rows by each contender in turn, each in a process of its own."""
    import adbc_driver_postgresql.dbapi as postgresql

    with postgres() as address:
        uri = address.replace("+psycopg2", "")
        with postgresql.connect(uri, autocommit=True) as con, con.cursor() as cursor:
            cursor.execute(_TABLE.format(", ".join(_NUMBERS), options.rows))
            cursor.execute("VACUUM (FREEZE, ANALYZE) orders")  # otherwise the first reader writes marks into every page
        contenders = {name: partial(_read, name, uri, options) for name in options.chosen([*SCRIPTS])}
        yield from in_turn(contenders, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Compare with connectorx."""
    by_name = {median.contender: median for median in medians(results).values()}
    if not {OURS, CONNECTORX} <= by_name.keys():
        return ""
    ours, theirs = by_name[OURS], by_name[CONNECTORX]
    times = ours.core_seconds / theirs.core_seconds
    return f"A source takes {times:.2f} times the core-seconds of connectorx, and {ours.peak_mib / theirs.peak_mib:.2f} times the memory."


def _read(name: str, uri: str, options: Options) -> Result:
    own = name in (OURS, IN_MEMORY)
    python = options.environments.own() if own else options.environments.python("databases")
    script = f"import sys\n{SCRIPTS[name]}\nassert rows == {options.rows}, rows\n"
    here = {"PYTHONPATH": str(Path(__file__).parents[2])} if own else {}
    return run([str(python), "-c", script, uri], options.folder, **here).result("PostgreSQL", name, options.rows)
