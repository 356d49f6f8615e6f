"""Check that contenders did the same work: the same number of rows, and the same score for each row."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.warehouse.sql import literal, quoted

MEMORY = "4GB"


@dataclass(frozen=True)
class Scores:
    """Scores that a contender has written.

    Args:
        path: A DuckDB file, or a folder of Parquet files.
        table: Table of the DuckDB file; None for Parquet.
        keys: The days to compare.
        key: Column that identifies a row.
    """

    path: Path
    table: str | None
    keys: Sequence[str]
    key: str = "id"

    def view(self, con: duckdb.DuckDBPyConnection, name: str) -> None:
        """Create a view of the key, score and prediction of the days to compare."""
        if self.table is None:
            relation, day = f"read_parquet({literal(str(self.path / '**/*.parquet'))})", "day"
        else:
            con.execute(f"ATTACH {literal(str(self.path.resolve()))} AS {quoted(f'file of {name}')} (READ_ONLY)")
            relation = f"{quoted(f'file of {name}')}.{self.table}"
            day = "partition_key" if self.table.endswith(".predictions") else "day"
        days = ", ".join(literal(key) for key in self.keys)
        con.execute(
            f"CREATE TEMP VIEW {quoted(name)} AS SELECT {quoted(self.key)} AS key, score, prediction "
            f"FROM {relation} WHERE {day} IN ({days})"
        )


def require_same(contender: str, scores: Scores, rows: int, reference: Path, tolerance: float) -> None:
    """Compare scores with those of the first contender, which are kept in a file.

    Raises:
        SystemExit: Rows are missing or too many, or a score or a prediction differs.
    """
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(reference.parent)}) as con:
        scores.view(con, "here")
        ((written,),) = con.execute("SELECT count(*) FROM here").fetchall()
        if written != rows:
            sys.exit(f"{contender} wrote {written} rows instead of {rows}.")
        if not reference.exists():
            con.execute(f"COPY here TO {literal(str(reference))} (FORMAT parquet)")
            return
        ((same, worst),) = con.execute(
            f"""
            SELECT count(*) FILTER (abs(here.score - there.score) <= $tolerance
                AND (here.prediction = there.prediction OR abs(here.score - 0.5) <= $tolerance)),
                max(abs(here.score - there.score))
            FROM here JOIN read_parquet({literal(str(reference))}) AS there USING (key)
            """,
            {"tolerance": tolerance},
        ).fetchall()
        if same != rows:
            sys.exit(f"{contender} gives other scores for {rows - same} of {rows} rows; they differ by up to {worst}.")
