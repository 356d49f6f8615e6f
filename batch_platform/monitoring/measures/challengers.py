"""The measure `challengers`: what each challenger made of a partition, and how far it agrees with the champion.

Its scores and a row with its counts are written with the champion's predictions. Scores of a challenger that is no longer
declared stay as they are.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from batch_platform.declaration.errors import IntegrityError, listed
from batch_platform.monitoring.markdown import markdown, table
from batch_platform.monitoring.measure import Check, Commits, Finding, Measure, ScoredPart
from batch_platform.warehouse.descriptions import OF_PARTITION, Description
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import Change, ScoreRun, changes_of, create_table, insert
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import (
    CHALLENGER_SCORES,
    NewRows,
    StagedFile,
    lost_challengers,
    replace_partitions,
)

SCORES, RUNS = CHALLENGER_SCORES.view, "challengers"
NONE_FAILS = (
    "Every challenger was trained, and scored what the champion scored. A challenger that fails is recorded with "
    "its reason and gives a warning here; production continues without it."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChallengerRun:
    """The result of a challenger for a partition: it scored or rejected every row that the champion scored, or it failed."""

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
    """A challenger's part of the commit of a partition: its row, and the files with its scores, none if it failed."""

    run: ChallengerRun
    paths: Sequence[Path]
    files: Sequence[StagedFile] | None  # the same, to be published as they are; None: the rows are copied into DuckDB
    decided: Mapping[Path, str] = field(default_factory=dict[Path, str])  # SQL conditions, see `rows_of_files`


def replace_challengers(
    con: duckdb.DuckDBPyConnection,
    home: Home,
    committed: Sequence[ScoreRun],
    challengers: Mapping[str, Sequence[StagedChallenger]],
) -> list[Change]:
    """Replace the scores and rows of challengers for the committed partitions; `challengers` has them by partition key.

    Returns the changes, which are still to be noted.

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
        return []
    by_challenger: dict[str, list[str]] = defaultdict(list)
    for name, key in sorted([*replaced, *forgotten]):
        by_challenger[name].append(key)
    touched = {key for keys in by_challenger.values() for key in keys}
    new = NewRows(
        keys=sorted(touched),
        staged=[path for challenger in staged for path in challenger.paths],
        files=_files(staged),
        by_challenger=by_challenger,
        decided={file: condition for challenger in staged for file, condition in challenger.decided.items()},
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
    of_touched = [run for run in committed if run.partition_key in touched]
    return [*changes_of(of_touched, SCORES), *changes_of(of_touched, RUNS)]


def _files(staged: Sequence[StagedChallenger]) -> list[StagedFile] | None:
    """The files that are published as they are; None if the rows are copied, as they are of all challengers or of none."""
    if any(challenger.files is None for challenger in staged):
        return None
    return [file for challenger in staged for file in challenger.files or ()]


def read_challenger_runs(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str] | None = None
) -> list[ChallengerRun]:
    """The rows of challengers for some partitions, by default for all, ordered by partition and name."""
    if not has_table(con, pipeline, RUNS):
        return []
    columns, chosen = ", ".join(item.name for item in fields(ChallengerRun)), "$keys IS NULL OR partition_key IN $keys"
    query = f"SELECT {columns} FROM {_table(pipeline, RUNS)} WHERE {chosen} ORDER BY partition_key, challenger"
    values = {"keys": None if partition_keys is None else list(partition_keys)}
    return [ChallengerRun(*row) for row in con.execute(query, values).fetchall()]


def _table(pipeline: str, table: str) -> str:
    return f"{quoted(pipeline)}.{quoted(table)}"


def challenger_numbers(runs: Sequence[ChallengerRun]) -> dict[str, float]:
    """The agreement of each challenger with the champion, as numbers to plot."""
    values = {
        f"{run.challenger}_{name}": value
        for run in runs
        for name, value in (
            ("rank_correlation", run.rank_correlation),
            ("decisions_flipped", run.decisions_flipped),
            ("rows_rejected", None if run.failure else run.rows_rejected),
        )
    }
    return {name: value for name, value in values.items() if value is not None}


def _stage(parts: Mapping[str, ScoredPart]) -> dict[str, tuple[ChallengerRun, ...]]:
    return {key: tuple(staged.run for staged in part.challengers) for key, part in parts.items() if part.challengers}


def _replace(con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]) -> list[Change]:
    return replace_challengers(con, commits.home, commits.runs, {key: part.challengers for key, part in parts.items()})


def _read(con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, tuple[ChallengerRun, ...]]:
    by_partition = defaultdict[str, list[ChallengerRun]](list)
    for run in read_challenger_runs(con, commits.pipeline, commits.keys):
        by_partition[run.partition_key].append(run)
    return {key: tuple(runs) for key, runs in by_partition.items()}


def _shown(runs: Sequence[ChallengerRun]) -> dict[str, Any]:
    numeric = ("scored", "rejected", "rank correlation", "decisions flipped")
    rows = [
        (
            *(run.challenger, run.model_version or "-", f"{run.rows_scored:,}", f"{run.rows_rejected:,}"),
            *("-" if value is None else f"{value:.4f}" for value in (run.rank_correlation, run.decisions_flipped)),
            markdown(run.failure or ""),
        )
        for run in runs
    ]
    text = table(("challenger", "version", *numeric, "failure"), rows, numeric)
    return {"challengers": text, **challenger_numbers(runs)}


def _judge(runs: Sequence[ChallengerRun], _: str) -> Finding:
    failures = {f"{run.challenger}_failure": run.failure for run in runs if run.failure}
    return Finding("warn" if failures else "none", {**challenger_numbers(runs), **failures})


def _summary(by_partition: Mapping[str, Sequence[ChallengerRun]], _: Sequence[str]) -> dict[str, str]:
    runs = [run for of_partition in by_partition.values() for run in of_partition]
    failed = [f"{run.challenger} ({run.partition_key})" for run in runs if run.failure]
    return {"scored": f"{len(runs) - len(failed)}", "failed": listed(failed) or "none"}


CHALLENGERS = Measure[tuple[ChallengerRun, ...]](
    name="challengers",
    description="How far each challenger agrees with the model that serves.",
    tables={
        RUNS: Description(
            "what a challenger did with a partition",
            {
                **OF_PARTITION,
                "rank_correlation": "agreement with the scores of the model that serves, 1 at most",
                "decisions_flipped": "share of rows that both models decide differently",
                "failure": "why it could not score; null if it did",
            },
        ),
    },
    stage=_stage,
    replace=_replace,
    read=_read,
    shown=_shown,
    check=lambda spec: Check(description=NONE_FAILS, judge=_judge, summary=_summary) if spec.challengers else None,
)
