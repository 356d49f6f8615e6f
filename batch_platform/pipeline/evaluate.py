"""The step that evaluates scored partitions: every measure of what was committed, with the labels known now.

Reads the published copy, the lake and the label query.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, SourceError, counted
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.fingerprints import Taken, recorded_fingerprints
from batch_platform.features.history import History
from batch_platform.models.registry import read_registry
from batch_platform.monitoring.catalogue import MEASURES, Subject, is_table, replace_judgements, settle_measures
from batch_platform.monitoring.measure import ChallengerRun
from batch_platform.monitoring.measures.challengers import read_challenger_runs
from batch_platform.monitoring.measures.estimates import read_estimates
from batch_platform.monitoring.measures.evaluated import read_deviations
from batch_platform.monitoring.measures.rows import read_misplaced
from batch_platform.pipeline.build import Absent
from batch_platform.pipeline.measured_model import MeasuredModel, Measuring
from batch_platform.pipeline.set_apart import SetApart, setting_apart
from batch_platform.scoring.run import in_groups
from batch_platform.warehouse.database import Warehouse, require_none_erased
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun, as_record, newest_change, read_latest
from batch_platform.warehouse.published import publish, reading_published


@dataclass(frozen=True)
class Evaluated:
    """An evaluated partition."""

    partition: Partition
    run: EvaluationRun
    served: MeasuredModel
    challengers: tuple[MeasuredModel, ...] = ()  # every challenger that scored it, whether or not it is still declared
    findings: tuple[str, ...] = ()  # what is odd about its labels and no reason to fail


@dataclass(frozen=True)
class EvaluationStep:
    """The evaluation of scored partitions in one run; they are committed in groups."""

    history: History
    warehouse: Warehouse
    declared: str  # hash of the whole declaration
    inputs: Mapping[str, str]  # versions of what is measured beside the sources of the labels
    stamp: Stamp
    absent: Absent

    def committed(self, partitions: Sequence[Partition]) -> Iterator[Evaluated]:
        """Evaluate partitions whose labels are known, oldest first; see `Pipeline.evaluate`."""
        spec, stamp = self.history.spec, self.stamp
        publish(self.history.home)
        with reading_published(self.history.home) as con:
            commit = partial(self._commit, newest_change(con))
        with setting_apart(spec, self.warehouse, self.declared, "performance", stamp, len(partitions)) as apart:
            evaluations = self._evaluations(partitions, apart)
            yield from in_groups(evaluations, lambda evaluation: evaluation.run.rows_scored, commit)

    def _evaluations(self, partitions: Sequence[Partition], apart: SetApart) -> Iterator[Evaluated]:
        """Evaluate partitions, and set apart those that are not scored or fail; commit nothing."""
        history, name, keys = self.history, self.history.spec.name, [partition.key for partition in partitions]
        with reading_published(history.home) as con:
            runs = read_latest(con, ScoreRun, name, keys)
            scored = [partition for partition in partitions if partition.key in runs]
            for partition in partitions:
                if partition.key not in runs:
                    msg = f"{name}, partition {partition.key}: it is not scored yet."
                    hint = f"batch-platform run {name} --partition {partition.key}"
                    apart.add(partition.key, DataError(msg, hint=hint), tried=False)
            challengers: dict[str, list[ChallengerRun]] = defaultdict(list)
            for run in read_challenger_runs(con, name, keys):
                challengers[run.partition_key].append(run)
            registry, builds = read_registry(con, name), read_latest(con, FeatureBuild, name, keys)
            before = read_latest(con, EvaluationRun, name, keys)
            with history.builder.session(labels=True) as session:
                taken = recorded_fingerprints(con, name)
                estimated, deviations = read_estimates(con, name, keys), read_deviations(con, name, keys)
                misplaced = read_misplaced(con, history.spec, keys)
                measuring = Measuring(history, con, registry, builds, challengers, estimated, misplaced, deviations)
                versions = self._label_versions(scored, taken)  # before any labels are read, which may be those of many
                most_rows = max((runs[partition.key].rows_in for partition in scored), default=0)
                labels_of_each = history.labels_of(session, scored, most_rows, self.stamp)
                for partition, labels in zip(scored, labels_of_each, strict=True):
                    with apart.attempt(partition.key):
                        history.builder.require_labels(partition, self.absent(partition))
                        label_sources = versions.get(partition.key) or history.label_versions(partition, taken)
                        run = runs[partition.key]
                        known = None if history.spec.labels is None else labels()
                        evaluated = self._evaluation(partition, run, label_sources, measuring, known)
                        yield replace(evaluated, findings=_lost_labels(evaluated.run, before.get(partition.key)))

    def _label_versions(self, partitions: Sequence[Partition], taken: Taken) -> dict[str, str]:
        """The present versions of the labels of partitions by key; those whose file is missing are left out."""
        versions = dict[str, str]()
        for partition in partitions:
            with suppress(SourceError):
                versions[partition.key] = self.history.label_versions(partition, taken)
        return versions

    def _evaluation(
        self, partition: Partition, run: ScoreRun, label_sources: str, measuring: Measuring, labels: pl.DataFrame | None
    ) -> Evaluated:
        """Evaluate one partition."""
        served = measuring.of_version(partition, run, run.model_version, labels)
        return Evaluated(
            partition=partition,
            run=as_record(
                EvaluationRun,
                run,
                score_seq=run.seq,
                rows_labelled=served.rows_labelled,
                evaluated_at=self.stamp.now(),
                run_id=self.stamp.run_id,
                label_sources=json.dumps(json.loads(label_sources) | self.inputs, sort_keys=True),
            ),
            served=served,
            challengers=tuple(measuring.of_challengers(partition, run, labels)),
        )

    def _commit(self, since: int, group: list[Evaluated]) -> list[Evaluated]:
        """Commit the evaluations of a group, of predictions that were read at the change `since`."""
        name, runs = self.history.spec.name, [evaluation.run for evaluation in group]
        keys, further = [run.partition_key for run in runs], _rows_beside(group)
        tables = _measure_tables(group) | {table: rows for table, rows in further.items() if is_table(table)}
        judged = [
            Subject(run.partition_key, model.tables, version.task, version.version, run.run_id, run.evaluated_at)
            for run, model, version in ((each.run, each.served, each.served.version) for each in group)
        ]

        def in_transaction(con: duckdb.DuckDBPyConnection) -> None:
            require_none_erased(con, name, keys, since)  # the rows beside the measures name each row's key
            settle_measures(con, name, keys, further)
            replace_judgements(con, self.history.spec, ("performance",), judged)

        self.warehouse.commit_evaluations(name, runs, tables, in_transaction)
        return group


def _lost_labels(now: EvaluationRun, before: EvaluationRun | None) -> tuple[str, ...]:
    """Say that fewer labels are known than at the last evaluation of at most as many rows."""
    if before is None or before.rows_scored > now.rows_scored or before.rows_labelled <= now.rows_labelled:
        return ()
    lost = counted(before.rows_labelled - now.rows_labelled, "label")
    return (f"{lost} of {before.rows_labelled:,} that were known at its last evaluation are gone",)


def _measure_tables(group: Sequence[Evaluated]) -> dict[str, pl.DataFrame]:
    """The rows of every measure's table for some partitions, of the predictions and of the challengers' scores."""
    tables: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for partition in group:
        for model in (partition.served, *partition.challengers):
            for name, rows in model.tables.items():
                tables[name].append(
                    rows.select(
                        pl.lit(partition.partition.key).alias("partition_key"),
                        *MEASURES[name].columns,
                        pl.lit(model.version.version).alias("model_version"),
                        pl.lit(partition.run.evaluated_at, dtype=pl.Datetime("us", "UTC")).alias("evaluated_at"),
                        pl.lit(partition.run.run_id).alias("run_id"),
                        pl.lit(model.challenger, dtype=pl.String).alias("challenger"),
                    )
                )
    return {name: pl.concat(frames) for name, frames in tables.items()}


def _rows_beside(group: Sequence[Evaluated]) -> dict[str, pl.DataFrame]:
    """The further rows of measures for some partitions, by name."""
    further: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for partition in group:
        key, run_id = pl.lit(partition.partition.key), pl.lit(partition.run.run_id)
        for name, rows in partition.served.beside.items():
            further[name].append(rows.select(key.alias("partition_key"), pl.all(), run_id.alias("run_id")))
    return {name: pl.concat(frames, how="vertical_relaxed") for name, frames in further.items()}
