"""Replace a partition of predictions in a PostgreSQL on this machine: as a delivery, and by psycopg's COPY."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import duckdb

from batch_platform_tests.benchmarks.measuring import OURS, Result, in_turn, medians, run
from batch_platform_tests.benchmarks.options import Options
from batch_platform_tests.harness.postgres_server import postgres

TITLE = "Rows into a database"
CSV, ROWS = "psycopg_csv", "psycopg_rows"  # psycopg sends text that Polars wrote, or one row after the other
KEY = "2026-01-01"
_PREDICTIONS = f"""
SELECT n AS id, TIMESTAMPTZ '2026-01-01' + to_seconds(n) AS ordered_at, 'shop ' || n % 500 AS shop, n % 9973 / 100.0 AS amount,
    random() AS score, n % 7 = 0 AS prediction, '2026-01-01-3f9c1a2b' AS model_version, '{KEY}' AS partition_key
FROM range({{}}) AS numbers(n)
"""
_PEER = """
import sys
import polars as pl
import psycopg
uri, file = sys.argv[1:]
columns = "id bigint, ordered_at timestamptz, shop text, amount double precision, score double precision, prediction boolean, model_version text, partition_key text"
with psycopg.connect(uri) as con, con.cursor() as cursor:
    cursor.execute(f"CREATE TABLE IF NOT EXISTS NAME ({columns})")
    cursor.execute("CREATE INDEX IF NOT EXISTS NAME_index ON NAME (partition_key)")
    cursor.execute("DELETE FROM NAME WHERE partition_key = '2026-01-01'")
"""
SCRIPTS = {
    OURS: """
from batch_platform_tests.benchmarks.deliveries import deliver
rows = deliver(*sys.argv[1:])
""",
    CSV: f"""{_PEER.replace("NAME", CSV)}
    with cursor.copy("COPY {CSV} FROM STDIN (FORMAT csv)") as copy:
        for batch in pl.read_parquet(file).iter_slices(100_000):
            copy.write(batch.write_csv(include_header=False))
    rows = cursor.rowcount
""",
    ROWS: f"""{_PEER.replace("NAME", ROWS)}
    with cursor.copy("COPY {ROWS} FROM STDIN (FORMAT binary)") as copy:
        copy.set_types([column.split()[1] for column in columns.replace("double precision", "float8").split(", ")])
        for batch in pl.read_parquet(file).iter_slices(100_000):
            for row in batch.iter_rows():
                copy.write_row(row)
    rows = cursor.rowcount
""",
}


def deliver(uri: str, file: str) -> int:
    """Deliver the rows of a file as a run does; returns their number."""
    from batch_platform.declaration.predictions import Delivery
    from batch_platform.delivery.known import replace_at_receiver
    from batch_platform.delivery.sink import BATCH_ROWS, Target
    from batch_platform.warehouse.home import Home
    from batch_platform.warehouse.sql import connect

    delivery = Delivery.model_validate({"sql": {"uri": uri, "table": OURS}})
    with connect() as con:
        rows = con.read_parquet(file)
        number = len(rows)
        target = Target("orders", KEY, delivery, Path.cwd(), Home(Path.cwd() / "home"), number)
        replace_at_receiver(target, lambda: rows.to_arrow_reader(BATCH_ROWS))
    return number


def measure(options: Options) -> Iterator[Result]:
    """Replace the partition by each contender in turn, each in a process and a table of its own."""
    file = options.folder / "predictions.parquet"
    duckdb.sql(f"COPY ({_PREDICTIONS.format(options.rows)}) TO '{file}'")
    with postgres() as address:
        uri = address.replace("+psycopg2", "")
        contenders = {name: partial(_delivered, name, uri, file, options) for name in options.chosen([*SCRIPTS])}
        yield from in_turn(contenders, options.repeat)


def conclude(results: Sequence[Result]) -> str:
    """Compare with psycopg."""
    by_name = {median.contender: median for median in medians(results).values()}
    if OURS not in by_name:
        return ""
    ours = by_name[OURS]
    ratios = [
        f"{ours.seconds / theirs.seconds:.2f} times as long as {name}, with {ours.core_seconds / theirs.core_seconds:.2f} times "
        f"its core-seconds and {ours.peak_mib / theirs.peak_mib:.2f} times its memory"
        for name, theirs in by_name.items()
        if name != OURS
    ]
    return f"A delivery takes {'; '.join(ratios)}." if ratios else ""


def _delivered(name: str, uri: str, file: Path, options: Options) -> Result:
    own = name == OURS
    python = options.environments.own() if own else options.environments.python("databases")
    script = f"import sys\n{SCRIPTS[name]}\nassert rows == {options.rows}, rows\n"
    here = {"PYTHONPATH": str(Path(__file__).parents[2])} if own else {}
    return run([str(python), "-c", script, uri, str(file)], options.folder, **here).result(
        "PostgreSQL", name, options.rows
    )
