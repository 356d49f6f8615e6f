"""Build the features of a day with one COPY of DuckDB.

python duckdb_copy.py QUERY SOURCE.parquet DAY OUTPUT.parquet
"""

import sys
from datetime import UTC, datetime, timedelta

import duckdb


def main(query: str, source: str, day: str, output: str) -> None:
    """Write the result of the query for a day."""
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute(f"CREATE VIEW events AS FROM read_parquet('{source}')")
        bounds = {"partition_start": start, "partition_end": start + timedelta(days=1)}
        con.execute(f"COPY ({query}) TO '{output}' (FORMAT parquet)", bounds)


if __name__ == "__main__":
    main(*sys.argv[1:])
