"""The tables of challengers in the warehouse: their scores, and one row per partition and challenger with the counts.

Written in the transaction that commits the champion's predictions. Scores of a challenger that is no longer declared
stay as they are. Knows nothing of models.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import duckdb

from batch_platform.declaration.errors import IntegrityError, listed
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import Change, ScoreRun, create_table, insert, note
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import (
    CHALLENGER_SCORES,
    NewRows,
    StagedFile,
    lost_challengers,
    replace_partitions,
)

SCORES, RUNS = CHALLENGER_SCORES.view, "challengers"
_log = logging.getLogger(__name__)


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
    paths: Sequence[Path]
    files: Sequence[StagedFile] | None  # the same, to be published as they are; None: the rows are copied into DuckDB


def replace_challengers(
    con: duckdb.DuckDBPyConnection,
    home: Home,
    committed: Sequence[ScoreRun],
    challengers: Mapping[str, Sequence[StagedChallenger]],
) -> None:
    """Replace the scores and rows of challengers for the committed partitions; `challengers` has them by partition key.

    Scores of any other challenger stay, unless one of their files is lost: then they are removed with its row, since no run
    makes them again.

    Raises:
        IntegrityError: The staged files do not hold the rows that were counted.
        DataError: Values do not fit the table.
        WarehouseError: A file cannot be brought into the lake.
    """
    pipeline = committed[0].pipeline
    staged = [challenger for run in committed for challenger in challengers.get(run.partition_key, ())]
    replaced = {(challenger.run.challenger, challenger.run.partition_key) for challenger in staged}
    lost = lost_challengers(con, home, pipeline, [run.partition_key for run in committed])
    for name, key in (forgotten := [pair for pair in lost if pair not in replaced]):
        msg = (
            "%s, partition %s: a file with the scores of challenger %r is gone or changed. It does not score this "
            "partition any more, so its scores and its row are removed."
        )
        _log.warning(msg, pipeline, key, name)
    if not replaced and not forgotten:
        return
    by_challenger: dict[str, list[str]] = defaultdict(list)
    for name, key in sorted([*replaced, *forgotten]):
        by_challenger[name].append(key)
    touched = {key for keys in by_challenger.values() for key in keys}
    new = NewRows(
        keys=sorted(touched),
        staged=[path for challenger in staged for path in challenger.paths],
        files=_files(staged),
        by_challenger=by_challenger,
    )
    scored = replace_partitions(con, home, pipeline, CHALLENGER_SCORES, new)
    runs = [challenger.run for challenger in staged]
    unbalanced = (run.rows_scored + run.rows_rejected != (0 if run.failure else run.rows_in) for run in runs)
    if scored != sum(run.rows_scored for run in runs) or any(unbalanced):
        keys = listed({run.partition_key for run in runs})
        msg = f"{pipeline}, partition {keys}: challengers staged other rows than they counted; nothing is changed."
        raise IntegrityError(msg, hint="run it again; if it fails again, report it as a defect.")
    create_table(con, pipeline, RUNS, ChallengerRun)
    new.delete_replaced(con, pipeline, RUNS)
    insert(con, RUNS, [vars(run) for run in runs], schema=pipeline)
    seqs = [(run.seq, run.partition_key) for run in committed if run.partition_key in touched]
    note(con, [Change(seq, pipeline, table, key) for seq, key in seqs for table in (SCORES, RUNS)])


def _files(staged: Sequence[StagedChallenger]) -> list[StagedFile] | None:
    """The files that are published as they are; None if the rows are copied, as they are of all challengers or of none."""
    if any(challenger.files is None for challenger in staged):
        return None
    return [file for challenger in staged for file in challenger.files or ()]


def read_challenger_runs(con: duckdb.DuckDBPyConnection, pipeline: str) -> list[ChallengerRun]:
    """The rows of challengers for all partitions, ordered by partition and name."""
    if not has_table(con, pipeline, RUNS):
        return []
    columns = ", ".join(item.name for item in fields(ChallengerRun))
    query = f"SELECT {columns} FROM {_table(pipeline, RUNS)} ORDER BY partition_key, challenger"
    return [ChallengerRun(*row) for row in con.execute(query).fetchall()]


def _table(pipeline: str, table: str) -> str:
    return f"{quoted(pipeline)}.{quoted(table)}"
