"""Decisions on scores that stand, once the declared rule is another one: no model is opened and no feature read.

The published rows of a partition are staged with the decisions of the present rule, and replaced like those of a partition that was
scored. Scores, model and time of scoring stay, and so does what was measured of them; the new ledger row names the rule.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.deciding import DECISION, Decide
from batch_platform.declaration.errors import BatchPlatformError
from batch_platform.features.lake import BATCH_ROWS, parquet_writer
from batch_platform.models.refinements.decision import decision_column
from batch_platform.models.registry import Version
from batch_platform.monitoring.decisions import fitting_rule
from batch_platform.monitoring.measure import ScoredPart
from batch_platform.monitoring.measures.challengers import (
    CHALLENGERS,
    SCORES,
    StagedChallenger,
    read_challenger_runs,
)
from batch_platform.monitoring.outcomes import prediction_columns
from batch_platform.scoring.batch import repeated_text
from batch_platform.scoring.deciding import decide_on_highest, differing
from batch_platform.scoring.run import Committed, ScoringRun, Unscored, in_groups, one_by_one_at_need
from batch_platform.warehouse.database import StagedScores
from batch_platform.warehouse.ledger import ScoreRun, note
from batch_platform.warehouse.published import publish, reading_published
from batch_platform.warehouse.sql import quoted
from batch_platform.warehouse.tables_in_files import CHALLENGER_SCORES, PREDICTIONS, storage_explained


@dataclass(frozen=True)
class DecidedAgain:
    """A partition whose scores stand, and its staged rows with the decisions of the present rule."""

    partition: Partition
    scores: StagedScores
    challengers: Sequence[StagedChallenger]  # without files where it failed


@dataclass(frozen=True)
class DecidingRun:
    """The decisions on partitions whose scores stand, as a part of a scoring run."""

    of: ScoringRun
    folder: Path  # folder of staged files

    def committed(self, standing: Sequence[tuple[Partition, ScoreRun]]) -> Generator[Committed | Unscored]:
        """Decide on the rows of partitions by the present rule, or on none without a rule, and commit them in groups."""
        if not standing:
            return
        publish(self.of.warehouse.home)
        with reading_published(self.of.warehouse.home) as con:
            staged = (self._staged(con, partition, run) for partition, run in standing)

            def commit(group: Sequence[DecidedAgain | Unscored]) -> list[Committed | Unscored]:
                members = [member for member in group if isinstance(member, DecidedAgain)]
                return one_by_one_at_need(members, self._commit, attrgetter("partition"))

            yield from in_groups(staged, lambda it: it if isinstance(it, Unscored) else it.scores.run.rows_in, commit)

    def _staged(
        self, con: duckdb.DuckDBPyConnection, partition: Partition, standing: ScoreRun
    ) -> DecidedAgain | Unscored:
        """Stage the published rows of a partition with the decisions of the present rule."""
        spec, stamp, key = self.of.history.spec, self.of.stamp, partition.key
        declared, versions = spec.predictions.decide, self.of.commits.versions
        run = replace(standing, decision_rule=self.of.decision_rule, run_id=stamp.run_id, started_at=stamp.now())
        predictions, rejected = self.folder / f"{key}.predictions.parquet", self.folder / f"{key}.rejected.parquet"
        challengers, in_files = list[StagedChallenger](), self.of.in_files
        try:
            with storage_explained(spec.name, PREDICTIONS, [key]):
                self._write(con, predictions, PREDICTIONS.view, key, declared, versions[run.model_version])
                self._write(con, rejected, "rejected_rows", key)
                for scored in read_challenger_runs(con, spec.name, [key]):
                    again, files = replace(scored, run_id=stamp.run_id), list[Path]()
                    if scored.failure is None and scored.model_version is not None:
                        files = [self.folder / f"{key}.{scored.challenger}.challenger.parquet"]
                        version = versions[scored.model_version]
                        own = declared if fitting_rule(declared, version.task, version.class_labels) else None
                        self._write(con, files[0], SCORES, key, own, version, challenger=scored.challenger)
                        if scored.decisions_flipped is not None and scored.rows_scored:
                            column = "prediction" if own is None else DECISION
                            flipped = differing([predictions], files, spec.features.key, column)
                            again = replace(again, decisions_flipped=flipped / scored.rows_scored)
                    of_table = in_files(run, CHALLENGER_SCORES, files, challenger=scored.challenger)
                    challengers.append(StagedChallenger(again, files, of_table))
                of_table = in_files(run, PREDICTIONS, [predictions])
                scores = StagedScores([predictions], [rejected], run, standing.seq, of_table)
        except BatchPlatformError as error:
            if not error.of_one_partition:
                raise
            return Unscored(partition, error)
        return DecidedAgain(partition, scores, challengers)

    def _write(  # noqa: PLR0913 - the rows, and how they are decided
        self,
        con: duckdb.DuckDBPyConnection,
        path: Path,
        table: str,
        key: str,
        declared: Decide | None = None,
        version: Version | None = None,
        **only: str,
    ) -> None:
        """Write the rows of a partition in a table to a file, decided if there is a rule; `only` has values of further columns."""
        spec, values = self.of.history.spec, {"partition_key": key, **only}
        conditions = " AND ".join(f"{quoted(name)} = ${name}" for name in values)
        query = f"FROM {quoted(spec.name)}.{table} WHERE {conditions}"

        def staged(rows: pa.Table) -> pa.Table:
            rows = rows.drop_columns([name for name in rows.column_names if name in (DECISION, "run_id")])
            rows = rows.append_column("run_id", repeated_text(self.of.stamp.run_id, len(rows)))
            return rows if declared is None or version is None else _with_decisions(rows, declared, version)

        with con.sql(query, params=values).to_arrow_reader(BATCH_ROWS) as reader:
            schema = staged(pa.Table.from_batches([], reader.schema)).schema
            with parquet_writer(path, schema, lasting=spec.predictions.in_files) as writer:
                for batch in reader:
                    writer.write_table(staged(pa.Table.from_batches([batch])))
        if declared is not None and declared.top is not None:
            decide_on_highest([path], declared, spec)

    def _commit(self, group: Sequence[DecidedAgain]) -> list[Committed]:
        """Commit partitions together with the scores of their challengers; what was measured of the scores stays."""
        parts = {member.partition.key: ScoredPart(challengers=member.challengers) for member in group}
        runs, values = self.of.commit(
            [member.scores for member in group],
            lambda con, commits: note(con, CHALLENGERS.replace_in(con, commits, parts)),
            may_empty=True,
        )
        tasks = {name: version.task for name, version in self.of.commits.versions.items()}
        committed = list[Committed]()
        for member, run in zip(group, runs, strict=True):
            beside = (file for challenger in member.challengers for file in challenger.paths)
            for file in (*member.scores.predictions, *member.scores.rejected, *beside):
                file.unlink()
            measures, task = values[run.partition_key], tasks[run.model_version]
            committed.append(Committed(member.partition, run, skipped=False, measures=measures, task=task))
        return committed


def _with_decisions(rows: pa.Table, declared: Decide, version: Version) -> pa.Table:
    """Stored rows with the decision on each."""
    names = prediction_columns(version.task, version.class_labels)[1:]
    scores = pl.DataFrame(rows.select(names)).to_numpy()  # not by Arrow, which would import pandas for it
    probabilities = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if version.task == "binary" else scores
    decided = decision_column(declared, probabilities, version.task, version.class_labels)
    return rows.append_column(DECISION, decided.to_arrow())
