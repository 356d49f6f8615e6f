"""The measure `challengers`: what each challenger made of a partition, and how far it agrees with the champion.

Its scores and a row with its counts are written with the champion's predictions. Scores of a challenger that is no longer
declared stay as they are.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import duckdb

from batch_platform.declaration.errors import IntegrityError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.monitoring.measure import (
    ChallengerRun,
    Check,
    Commits,
    Finding,
    ScoredMeasure,
    ScoredPart,
    StagedChallenger,
    markdown,
    table,
)
from batch_platform.warehouse.descriptions import OF_PARTITION, Description
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import Change, ScoreRun, changes_of, create_table, insert, read_records
from batch_platform.warehouse.sql import has_table, quoted
from batch_platform.warehouse.tables_in_files import (
    CHALLENGER_SCORES,
    NewRows,
    lost_challengers,
    replace_partitions,
)

SCORES, RUNS = CHALLENGER_SCORES.view, "challengers"
NONE_FAILS = (
    "Every challenger was trained, and scored what the champion scored. A challenger that fails is recorded with "
    "its reason and gives a warning here; production continues without it."
)
_log = logging.getLogger(__name__)


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
        # Published as they are, of all challengers; or the rows are copied.
        files=None
        if any(challenger.files is None for challenger in staged)
        else [file for challenger in staged for file in challenger.files or ()],
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


def read_challenger_runs(
    con: duckdb.DuckDBPyConnection, pipeline: str, partition_keys: Collection[str] | None = None
) -> list[ChallengerRun]:
    """The rows of challengers for some partitions, by default for all, ordered by partition and name."""
    if not has_table(con, pipeline, RUNS):
        return []
    rows = f"{quoted(pipeline)}.{RUNS} WHERE $keys IS NULL OR partition_key IN $keys ORDER BY partition_key, challenger"
    return read_records(con, ChallengerRun, rows, {"keys": None if partition_keys is None else list(partition_keys)})


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


def _judge(runs: Sequence[ChallengerRun], _: str) -> Finding:
    failures = {f"{run.challenger}_failure": run.failure for run in runs if run.failure}
    return Finding("warn" if failures else "none", {**challenger_numbers(runs), **failures})


def _summary(by_partition: Mapping[str, Sequence[ChallengerRun]], _: Sequence[str]) -> dict[str, str]:
    runs = [run for of_partition in by_partition.values() for run in of_partition]
    failed = [f"{run.challenger} ({run.partition_key})" for run in runs if run.failure]
    return {"scored": f"{len(runs) - len(failed)}", "failed": listed(failed) or "none"}


class Challengers(ScoredMeasure[tuple[ChallengerRun, ...]]):
    """What each challenger made of a partition, and how far it agrees with the champion."""

    name = "challengers"
    description = "How far each challenger agrees with the model that serves."
    tables: ClassVar = {
        RUNS: Description(
            "what a challenger did with a partition",
            {
                **OF_PARTITION,
                "rank_correlation": "agreement with the scores of the model that serves, 1 at most",
                "decisions_flipped": "share of rows that both models decide differently",
                "failure": "why it could not score; null if it did",
            },
        ),
    }

    def stage(self, parts: Mapping[str, ScoredPart]) -> dict[str, tuple[ChallengerRun, ...]]:
        """The rows of staged challengers."""
        return {
            key: tuple(staged.run for staged in part.challengers) for key, part in parts.items() if part.challengers
        }

    def replace(
        self, con: duckdb.DuckDBPyConnection, commits: Commits, parts: Mapping[str, ScoredPart]
    ) -> list[Change]:
        """Replace the scores and the rows of challengers."""
        staged = {key: part.challengers for key, part in parts.items()}
        return replace_challengers(con, commits.home, commits.runs, staged)

    def read(self, con: duckdb.DuckDBPyConnection, commits: Commits) -> dict[str, tuple[ChallengerRun, ...]]:
        """The rows of challengers for committed partitions."""
        by_partition = defaultdict[str, list[ChallengerRun]](list)
        for run in read_challenger_runs(con, commits.pipeline, commits.keys):
            by_partition[run.partition_key].append(run)
        return {key: tuple(runs) for key, runs in by_partition.items()}

    def shown(self, value: Sequence[ChallengerRun]) -> dict[str, Any]:
        """A table with a row for each challenger, and their agreement."""
        numeric = ("scored", "rejected", "rank correlation", "decisions flipped")
        rows = [
            (
                *(run.challenger, run.model_version or "-", f"{run.rows_scored:,}", f"{run.rows_rejected:,}"),
                *("-" if value is None else f"{value:.4f}" for value in (run.rank_correlation, run.decisions_flipped)),
                markdown(run.failure or ""),
            )
            for run in value
        ]
        text = table(("challenger", "version", *numeric, "failure"), rows, numeric)
        return {"challengers": text, **challenger_numbers(value)}

    def check(self, spec: PipelineSpec) -> Check[tuple[ChallengerRun, ...]] | None:
        """Warn of challengers that failed."""
        return Check(description=NONE_FAILS, judge=_judge, summary=_summary) if spec.challengers else None


CHALLENGERS = Challengers()
