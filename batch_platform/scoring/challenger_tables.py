"""The tables of challengers in the warehouse: their scores, and one row per partition and challenger with the counts.

Written in the transaction that commits the champion's predictions. Scores of a challenger that is no longer declared
stay as they are. Knows nothing of models.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import IntegrityError, listed
from batch_platform.warehouse.ledger import Change, ScoreRun, create_table, insert, note
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import has_table, quoted

SCORES, RUNS = "challenger_scores", "challengers"


@dataclass(frozen=True)
class ChallengerRun:
    """What a challenger made of a partition: it scored or rejected every row that the champion scored, or it failed."""

    partition_key: str
    challenger: str
    model_version: str | None  # None if the version could not be determined
    champion_version: str  # the version that scored the partition
    rows_in: int  # rows that the champion scored
    rows_scored: int
    rows_rejected: int  # rows that the challenger's own contract rejects
    reasons: str  # rejected rows by reason, as JSON
    rank_correlation: float | None
    decisions_flipped: float | None  # share of rows
    failure: str | None  # why it scored nothing; None if it did not fail
    in_sample: bool  # whether its training data overlap the partition
    scored_at: datetime
    run_id: str


@dataclass(frozen=True)
class StagedChallenger:
    """What one challenger commits for one partition: its row, and the files with its scores, none if it failed."""

    run: ChallengerRun
    files: Sequence[Path]


def replace_challengers(
    con: duckdb.DuckDBPyConnection, committed: Sequence[ScoreRun], challengers: Mapping[str, Sequence[StagedChallenger]]
) -> None:
    """Replace the scores and rows of challengers for the committed partitions; `challengers` has them by partition key.

    Raises:
        IntegrityError: The staged files do not hold the rows that were counted.
        DataError: Values do not fit the table.
    """
    staged = [challenger for run in committed for challenger in challengers.get(run.partition_key, ())]
    if not staged:
        return
    pipeline = committed[0].pipeline
    create_table(con, pipeline, RUNS, ChallengerRun)
    _delete(con, pipeline, SCORES, staged)
    files = [file for challenger in staged for file in challenger.files]
    scored = replace_rows(con, pipeline, SCORES, [], files) if files else 0
    runs = [challenger.run for challenger in staged]
    unbalanced = (run.rows_scored + run.rows_rejected != (0 if run.failure else run.rows_in) for run in runs)
    if scored != sum(run.rows_scored for run in runs) or any(unbalanced):
        keys = listed({run.partition_key for run in runs})
        msg = f"{pipeline}, partition {keys}: challengers staged other rows than they counted; nothing is changed."
        raise IntegrityError(msg, hint="run it again; if it fails again, report it as a defect.")
    _delete(con, pipeline, RUNS, staged)
    insert(con, RUNS, [vars(run) for run in runs], schema=pipeline)
    touched = [(run.seq, run.partition_key) for run in committed if challengers.get(run.partition_key)]
    note(con, [Change(seq, pipeline, table, key) for seq, key in touched for table in (SCORES, RUNS)])


def read_challenger_runs(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[ChallengerRun]:
    """The rows of challengers for all partitions, ordered by partition and name."""
    if not has_table(con, pipeline, RUNS):
        return []
    columns = ", ".join(item.name for item in fields(ChallengerRun))
    query = f"SELECT {columns} FROM {_table(pipeline, RUNS)} ORDER BY partition_key, challenger"
    return [ChallengerRun(*row) for row in con.execute(query).fetchall()]


def _delete(con: duckdb.DuckDBPyConnection, pipeline: str, table: str, staged: Sequence[StagedChallenger]) -> None:
    if not has_table(con, pipeline, table):
        return
    partition_keys: dict[str, list[str]] = defaultdict(list)
    for challenger in staged:
        partition_keys[challenger.run.challenger].append(challenger.run.partition_key)
    for name, keys in partition_keys.items():
        query = f"DELETE FROM {_table(pipeline, table)} WHERE challenger = $name AND partition_key IN $keys"
        con.execute(query, {"name": name, "keys": keys})


def _table(pipeline: str, table: str) -> str:
    return f"{quoted(pipeline)}.{quoted(table)}"
