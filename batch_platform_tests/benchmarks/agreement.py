"""Check that contenders did the same work: the same number of rows, and the same score for each row."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from batch_platform.warehouse.sql import literal

MEMORY = "4GB"


@dataclass(frozen=True)
class Scores:
    """Scores that a contender has written into a DuckDB file.

    Args:
        path: The file.
        table: Its table.
        day: Column that holds the day.
        keys: The days to compare.
    """

    path: Path
    table: str
    day: str
    keys: Sequence[str]

    def view(self, con: duckdb.DuckDBPyConnection) -> None:
        """Create a view `here` of the key, score and prediction of the days to compare."""
        con.execute(f"ATTACH {literal(str(self.path.resolve()))} AS written (READ_ONLY)")
        days = ", ".join(literal(key) for key in self.keys)
        con.execute(
            f"CREATE TEMP VIEW here AS SELECT id, score, prediction FROM written.{self.table} WHERE {self.day} IN ({days})"
        )


def require_same(contender: str, scores: Scores, rows: int, reference: Path, tolerance: float) -> None:
    """Compare scores with those of the first contender, which are kept in a file.

    Raises:
        SystemExit: Rows are missing or too many, or a score or a prediction differs.
    """
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(reference.parent)}) as con:
        scores.view(con)
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
            FROM here JOIN read_parquet({literal(str(reference))}) AS there USING (id)
            """,
            {"tolerance": tolerance},
        ).fetchall()
        if same != rows:
            sys.exit(f"{contender} gives other scores for {rows - same} of {rows} rows; they differ by up to {worst}.")
