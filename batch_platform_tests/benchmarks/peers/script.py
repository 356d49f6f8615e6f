"""A script as a good engineer writes it in an afternoon: polars, scikit-learn on all cores, DuckDB, a transaction per day.

    python script.py MODEL OUTPUT.duckdb FILE…

It has no ledger, checks, hashes, resume, lineage or published copy.
"""

import sys
from pathlib import Path

import duckdb
import polars as pl
from served import load


def main(model: str, output: str, *files: str) -> None:
    """Score each day's file into the table `scores`."""
    served = load(model)
    with duckdb.connect(output) as con:
        for file in files:
            rows = pl.scan_parquet(file).select(served.columns).collect()
            con.register("scored", served.scored(rows, Path(file).name.partition(".")[0]).to_arrow())
            con.execute("BEGIN")
            con.execute("CREATE TABLE IF NOT EXISTS scores AS FROM scored LIMIT 0")
            con.execute("INSERT INTO scores BY NAME FROM scored")
            con.execute("COMMIT")


if __name__ == "__main__":
    main(*sys.argv[1:])
