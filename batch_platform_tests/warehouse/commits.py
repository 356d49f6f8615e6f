"""Small commits to a warehouse, and what it holds."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from batch_platform.warehouse.database import StagedScores, Warehouse
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform.warehouse.sql import quoted

DAY = datetime(2024, 1, 1, tzinfo=UTC)
KEYS = ["2024-01-01", "2024-01-02", "2024-01-03"]


def staged(folder: Path, key: str = KEYS[0], *, seen: int = 0, run_id: str = "run", rejected: int = 0, **columns):
    """Scores of one partition as scoring leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    values = columns or {"id": [1, 2], "score": [0.25, 0.5]}
    frame = pl.DataFrame(values).with_columns(pl.lit(key).alias("partition_key"), pl.lit(run_id).alias("run_id"))
    good, bad = folder / f"{key}.{run_id}.parquet", folder / f"{key}.{run_id}.rejected.parquet"
    frame.write_parquet(good)
    pl.DataFrame(
        {"partition_key": [key] * rejected, "reason": ["null"] * rejected},
        schema={"partition_key": pl.String, "reason": pl.String},
    ).write_parquet(bad)
    start = DAY + timedelta(days=int(key[-2:]) - 1)
    run = ScoreRun(
        pipeline="small",
        partition_key=key,
        partition_start=start,
        partition_end=start + timedelta(days=1),
        model_version="m1",
        model_sha256="a",
        input_hash="b",
        code_version="c",
        engine="local",
        rows_in=frame.height + rejected,
        rows_scored=frame.height,
        rows_rejected=rejected,
        in_sample=False,
        started_at=DAY,
        committed_at=DAY,
        run_id=run_id,
    )
    return StagedScores([good], [bad], run, seen)


def commit(warehouse: Warehouse, *scores: StagedScores, may_empty: bool = False, schema: str = "small", **further: Any):
    clock = {"clock": lambda: DAY + timedelta(hours=3)}
    return warehouse.commit_scores(schema, scores, may_empty=may_empty, **clock, **further)


def held(warehouse: Warehouse) -> dict[str, list[tuple]]:
    """Everything that the warehouse holds, table by table."""
    with warehouse.open() as con:
        tables = con.execute("SELECT schema_name, table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        return {
            f"{schema}.{table}": con.execute(f"FROM {quoted(schema)}.{quoted(table)} ORDER BY ALL").fetchall()
            for schema, table in tables
        }


def write(home: Home, folder: Path, key: str, run_id: str, **columns) -> None:
    seen = Warehouse(home).latest(ScoreRun, "small").get(key)
    commit(Warehouse(home), staged(folder, key, seen=seen.seq if seen else 0, run_id=run_id, **columns), may_empty=True)


def shown(path: Path) -> dict[str, list[tuple]]:
    """Everything that a reader sees, table by table."""
    with duckdb.connect(str(path), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        tables = con.execute("SELECT schema_name, table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        return {
            f"{schema}.{table}": con.execute(f"FROM {quoted(schema)}.{quoted(table)} ORDER BY ALL").fetchall()
            for schema, table in tables
        }
