"""What challengers leave in the warehouse: their scores, and one row for each partition and challenger that counts them.

Written in the transaction of the champion's predictions, by the warehouse. The scores of a challenger that is no longer
declared stay as they are. Knows nothing of models.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl

from batch_platform.declaration.errors import IntegrityError
from batch_platform.warehouse.ledger import Change, ScoreRun, as_arrow, note
from batch_platform.warehouse.partition_writes import create_schema, replace_rows
from batch_platform.warehouse.sql import has_table, quoted

SCORES, RUNS = "challenger_scores", "challengers"
_RUNS = """
CREATE TABLE IF NOT EXISTS {table} (
    partition_key VARCHAR, challenger VARCHAR, model_version VARCHAR, champion_version VARCHAR, rows_in BIGINT,
    rows_scored BIGINT, rows_rejected BIGINT, reasons VARCHAR, rank_correlation DOUBLE, decisions_flipped DOUBLE,
    failure VARCHAR, in_sample BOOLEAN, scored_at TIMESTAMPTZ, run_id VARCHAR)
"""


@dataclass(frozen=True)
class ChallengerRun:
    """What a challenger made of a partition: each row that the champion scored is scored or rejected, or nothing is."""

    partition_key: str
    challenger: str
    model_version: str | None  # None where it could not be told which one
    champion_version: str  # that scored the partition
    rows_in: int  # that the champion scored
    rows_scored: int
    rows_rejected: int  # by the challenger's own contract
    reasons: str  # rows by reason of their rejection, as JSON
    rank_correlation: float | None
    decisions_flipped: float | None  # a share
    failure: str | None  # why nothing is scored
    in_sample: bool  # whether its training data reach into the partition
    scored_at: datetime
    run_id: str


@dataclass(frozen=True)
class StagedChallenger:
    """What one challenger of one partition commits.

    Args:
        run: Its row.
        file: Its scores; None where it failed.
    """

    run: ChallengerRun
    file: Path | None


def replace_challengers(
    con: duckdb.DuckDBPyConnection, committed: Sequence[ScoreRun], challengers: Mapping[str, Sequence[StagedChallenger]]
) -> None:
    """Replace what challengers made of partitions, within the transaction of the predictions.

    Args:
        con: The warehouse; the predictions of the partitions are in.
        committed: The ledger row of each partition.
        challengers: What is staged of each partition's challengers, by partition key.

    Raises:
        IntegrityError: The staged files do not hold the rows that were counted.
        DataError: Values do not fit the table.
    """
    staged = [one for run in committed for one in challengers.get(run.partition_key, ())]
    if not staged:
        return
    pipeline = committed[0].pipeline
    create_schema(con, pipeline)
    con.execute(_RUNS.format(table=_table(pipeline, RUNS)))
    _delete(con, pipeline, SCORES, staged)
    files = [one.file for one in staged if one.file is not None]
    scored = replace_rows(con, pipeline, SCORES, [], files) if files else 0
    if scored != sum(one.run.rows_scored for one in staged):
        raise _not_as_counted(pipeline, staged)
    runs = [one.run for one in staged]
    if any(run.rows_scored + run.rows_rejected != (0 if run.failure else run.rows_in) for run in runs):
        raise _not_as_counted(pipeline, staged)
    _delete(con, pipeline, RUNS, staged)
    con.register("new_runs", as_arrow([vars(run) for run in runs]))
    con.execute(f"INSERT INTO {_table(pipeline, RUNS)} BY NAME FROM new_runs")
    con.unregister("new_runs")
    touched = [(run.seq, run.partition_key) for run in committed if challengers.get(run.partition_key)]
    note(con, [Change(seq, pipeline, table, key) for seq, key in touched for table in (SCORES, RUNS)])


def read_challenger_runs(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_key: str | None = None
) -> list[ChallengerRun]:
    """What challengers made of a partition, or of all, by partition and name."""
    if not has_table(con, pipeline, RUNS):
        return []
    columns = ", ".join(item.name for item in fields(ChallengerRun))
    query = (
        f"SELECT {columns} FROM {_table(pipeline, RUNS)} "
        "WHERE $key IS NULL OR partition_key = $key ORDER BY partition_key, challenger"
    )
    return [ChallengerRun(*row) for row in con.execute(query, {"key": partition_key}).fetchall()]


def read_challenger_scores(
    con: duckdb.DuckDBPyConnection, pipeline: str, run: ChallengerRun, columns: Sequence[str]
) -> pl.DataFrame:
    """Some columns of what a challenger gave for a partition."""
    names = ", ".join(quoted(name) for name in columns)
    query = f"SELECT {names} FROM {_table(pipeline, SCORES)} WHERE partition_key = $key AND challenger = $name"
    return con.sql(query, params={"key": run.partition_key, "name": run.challenger}).pl()


def _delete(con: duckdb.DuckDBPyConnection, pipeline: str, table: str, staged: Sequence[StagedChallenger]) -> None:
    if not has_table(con, pipeline, table):
        return
    keys: dict[str, list[str]] = defaultdict(list)
    for one in staged:
        keys[one.run.challenger].append(one.run.partition_key)
    for name, of in keys.items():
        query = f"DELETE FROM {_table(pipeline, table)} WHERE challenger = $name AND partition_key IN $keys"
        con.execute(query, {"name": name, "keys": of})


def _table(pipeline: str, table: str) -> str:
    return f"{quoted(pipeline)}.{quoted(table)}"


def _not_as_counted(pipeline: str, staged: Sequence[StagedChallenger]) -> IntegrityError:
    keys = sorted({one.run.partition_key for one in staged})
    msg = f"{pipeline}, partition {', '.join(keys[:10])}: the rows staged of challengers are not those that were counted; "
    return IntegrityError(f"{msg}nothing is changed.", hint="run it again; if it stays so, report it as a defect.")
