"""The evaluation of scored partitions: every measure of what was committed, with the labels known now.

Reads the published copy, the lake and the label query; commits nothing. A model that is no longer on disk can still be
evaluated, unless a measure needs its contract to encode the features.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, IntegrityError
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureSession
from batch_platform.features.fingerprints import Taken
from batch_platform.features.history import History, never_learned_from, recorded_fingerprints
from batch_platform.features.row_checks import with_keys_of
from batch_platform.models.native_threads import one_thread
from batch_platform.models.registry import Registry, Version, has_seen, read_registry
from batch_platform.monitoring.catalogue import MEASURES, evaluated_measures, further_rows
from batch_platform.monitoring.measure import ScoredPartition
from batch_platform.monitoring.measures.challengers import ChallengerRun, read_challenger_runs
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.metrics import own_metrics
from batch_platform.pipeline.scored_rows import committed_predictions, features_as_scored, segments_of
from batch_platform.pipeline.set_apart import SetApart
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun, as_record, read_latest
from batch_platform.warehouse.published import reading_published

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredModel:
    """The measures of one model on one partition."""

    version: Version
    tables: Mapping[str, pl.DataFrame]  # the rows of each measure's table, by measure
    rows_labelled: int
    challenger: str | None = None  # its name; None for the model that serves
    # Further rows by name; none of a challenger, without labels, and where an evaluation is read back.
    beside: Mapping[str, pl.DataFrame] = field(default_factory=dict[str, pl.DataFrame])

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The numbers of all measures, to show and to plot."""
        return {name: value for measure in self.tables for name, value in self.numbers_of(measure).items()}

    @property
    def in_sample(self) -> bool:
        """True if the model has learned from the partition."""
        return bool(self.tables[PERFORMANCE.name]["in_sample"].any())

    def numbers_of(self, measure: str) -> dict[str, float]:
        """The numbers of one measure."""
        numbers = MEASURES[measure].numbers
        return {} if numbers is None else dict(numbers(self.tables[measure]))


@dataclass(frozen=True)
class Evaluated:
    """An evaluated partition."""

    partition: Partition
    run: EvaluationRun
    served: MeasuredModel
    challengers: tuple[MeasuredModel, ...] = ()  # every challenger that scored it, whether or not it is still declared


def evaluated(history: History, partitions: Sequence[Partition], stamp: Stamp, apart: SetApart) -> Iterator[Evaluated]:
    """Evaluate partitions, and set apart those that are not scored or fail; the records are not committed yet.

    Raises:
        SourceError: `labels.sql` fails.
        DataError: The features of a clustering were built again after it was scored.
        IntegrityError: The feature file or the manifest of a clustering is not what was recorded.
    """
    name = history.spec.name
    with reading_published(history.home) as con:
        runs = read_latest(con, ScoreRun, name)
        scored = [partition for partition in partitions if partition.key in runs]
        for partition in partitions:
            if partition.key not in runs:
                apart.add(partition.key, _not_scored(name, partition.key), tried=False)
        challengers: dict[str, list[ChallengerRun]] = defaultdict(list)
        for run in read_challenger_runs(con, name):
            challengers[run.partition_key].append(run)
        registry, builds = read_registry(con, name), read_latest(con, FeatureBuild, name)
        with history.builder.session(labels=True) as session:
            taken = recorded_fingerprints(con, name)
            evaluation = _Evaluation(history, con, session, stamp, registry, builds, challengers, taken)
            for partition in scored:
                with apart.attempt(partition.key):
                    yield evaluation.of(partition, runs[partition.key])


def _not_scored(pipeline: str, partition_key: str) -> DataError:
    """The error of a partition that cannot be evaluated because it is not scored."""
    msg = f"{pipeline}, partition {partition_key}: it is not scored yet."
    return DataError(msg, hint=f"batch-platform run {pipeline} --partition {partition_key}")


def measure_tables(group: Sequence[Evaluated]) -> dict[str, pl.DataFrame]:
    """The rows of every measure's table for some partitions, of the predictions and of the challengers' scores."""
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in evaluated_measures()}
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


def rows_beside(group: Sequence[Evaluated]) -> dict[str, pl.DataFrame]:
    """The further rows of measures for some partitions, by name."""
    further: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for partition in group:
        key, run_id = pl.lit(partition.partition.key), pl.lit(partition.run.run_id)
        for name, rows in partition.served.beside.items():
            further[name].append(rows.select(key.alias("partition_key"), pl.all(), run_id.alias("run_id")))
    return {name: pl.concat(frames, how="vertical_relaxed") for name, frames in further.items()}


@dataclass(frozen=True)
class _Evaluation:
    """The context that the partitions of one evaluation share."""

    history: History
    con: duckdb.DuckDBPyConnection
    session: FeatureSession
    stamp: Stamp
    registry: Registry
    builds: Mapping[str, FeatureBuild]
    challengers: Mapping[str, list[ChallengerRun]]  # key: partition
    fingerprints: Taken

    def of(self, partition: Partition, run: ScoreRun) -> Evaluated:
        """Evaluate one partition."""
        spec = self.history.spec
        versions = self.history.label_versions(partition, self.fingerprints)  # before the labels are read
        labels = None if spec.labels is None else self.history.labels(self.session, partition, self.stamp)
        served = self._measured(partition, run, run.model_version, labels)
        return Evaluated(
            partition=partition,
            run=as_record(
                EvaluationRun,
                run,
                score_seq=run.seq,
                rows_labelled=served.rows_labelled,
                evaluated_at=self.stamp.now(),
                run_id=self.stamp.run_id,
                label_sources=versions,
            ),
            served=served,
            challengers=tuple(self._measured_challengers(partition, run, labels)),
        )

    def _measured_challengers(
        self, partition: Partition, run: ScoreRun, labels: pl.DataFrame | None
    ) -> Iterator[MeasuredModel]:
        """Measure the challengers' scores of a partition; a challenger that cannot be measured is left out."""
        for scored in self.challengers.get(partition.key, ()):
            if scored.failure is not None or scored.model_version is None:
                continue
            try:
                yield self._measured(partition, run, scored.model_version, labels, scored.challenger)
            except (DataError, IntegrityError) as error:
                message = "%s, partition %s: challenger %r is not measured: %s"
                _log.warning(message, self.history.spec.name, partition.key, scored.challenger, error)

    def _measured(
        self,
        partition: Partition,
        run: ScoreRun,
        model_version: str,
        labels: pl.DataFrame | None,
        challenger: str | None = None,
    ) -> MeasuredModel:
        spec, model = self.history.spec, self.registry.named(model_version)
        predictions = committed_predictions(self.con, spec, partition, model, challenger)
        if labels is not None:
            labels = with_keys_of(predictions, spec, partition, labels, what="labels")
            if spec.partitions.snapshot:
                unseen = predictions.filter(never_learned_from(spec, predictions))
                labels = labels.join(unseen, on=spec.features.key, how="semi")
        read_features = partial(features_as_scored, self.history, self.builds, partition, run, model, predictions)
        scored = ScoredPartition(
            model.task,
            model.class_labels,
            spec.features.key,
            predictions,
            labels,
            read_features,
            own_metrics(spec),
            in_sample=not spec.partitions.snapshot
            and has_seen(model, partition),  # only unseen rows of a snapshot count
            segments=spec.monitoring.segments,
            read_segments=partial(segments_of, self.con, spec, partition),
        )
        with one_thread():
            tables = {
                name: measure.compute(scored) for name, measure in evaluated_measures().items() if measure.compute
            }
            beside = {} if labels is None or challenger else further_rows(scored)
        return MeasuredModel(model, tables, scored.labelled.height, challenger, beside)
