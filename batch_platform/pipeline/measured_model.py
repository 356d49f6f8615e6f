"""The measures of a model on a scored partition, with the labels known now.

A model that is no longer on disk can still be measured, unless a measure needs its contract to encode the features.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial

import duckdb
import polars as pl

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, IntegrityError, WrongUseError
from batch_platform.declaration.predictions import rule_in
from batch_platform.features.history import History, never_learned_from, snapshot_hashes
from batch_platform.features.row_checks import with_keys_of
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.bundle import read_learned, read_manifest
from batch_platform.models.refinements.interval import INTERVAL, correlation_by_widths
from batch_platform.models.registry import Registry, Version, is_in_sample
from batch_platform.monitoring.catalogue import MEASURES, evaluated_measures, further_rows
from batch_platform.monitoring.measure import ChallengerRun, Expected, Intervals, ScoredPartition
from batch_platform.monitoring.measures.estimates import EstimatedMetric, estimated_metric
from batch_platform.monitoring.measures.evaluated import CONCEPT_DRIFT, LOSS, RECENT, counted_deviation
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.metrics import default_metric, own_metrics
from batch_platform.monitoring.outcomes import UnitRule
from batch_platform.pipeline.scored_rows import committed_predictions, features_as_scored, segments_of
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun

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
        numbers = dict[str, float]()
        for name, rows in self.tables.items():
            numbers |= MEASURES[name].numbers(rows)
        return numbers

    @property
    def in_sample(self) -> bool:
        """True if the model has learned from the partition."""
        return bool(self.tables[PERFORMANCE.name]["in_sample"].any())


@dataclass(frozen=True)
class Measuring:
    """The measuring of the published scores of a pipeline."""

    history: History
    con: duckdb.DuckDBPyConnection  # to the published copy
    registry: Registry
    builds: Mapping[str, FeatureBuild]  # key: partition
    challengers: Mapping[str, list[ChallengerRun]]  # key: partition
    # Estimates by partition key.
    estimated: Mapping[str, Sequence[EstimatedMetric]] = field(default_factory=dict[str, Sequence[EstimatedMetric]])
    # Fault by which rows have the features of other rows, by partition key.
    misplaced: Mapping[str, str] = field(default_factory=dict[str, str])
    # Deviations from estimates by partition, those of this run included; of partitions in doubt, none.
    deviations: dict[str, float] = field(default_factory=dict[str, float])

    def of_challengers(
        self, partition: Partition, run: ScoreRun, labels: pl.DataFrame | None
    ) -> Iterator[MeasuredModel]:
        """Measure the challengers' scores of a partition; a challenger that cannot be measured is left out."""
        for scored in self.challengers.get(partition.key, ()):
            if scored.failure is not None or scored.model_version is None:
                continue
            try:
                yield self.of_version(partition, run, scored.model_version, labels, scored.challenger)
            except (DataError, IntegrityError) as error:
                message = "%s, partition %s: challenger %r is not measured: %s"
                _log.warning(message, self.history.spec.name, partition.key, scored.challenger, error)

    def of_version(
        self,
        partition: Partition,
        run: ScoreRun,
        model_version: str,
        labels: pl.DataFrame | None,
        challenger: str | None = None,
    ) -> MeasuredModel:
        """Measure the predictions of a version, or its scores as a challenger; `labels` are those known of the partition."""
        spec, model = self.history.spec, self.registry.named(model_version)
        predictions = committed_predictions(self.con, spec, partition, model, challenger)
        held_out, in_sample = None, is_in_sample(spec, model, partition)
        if labels is not None:
            labels = with_keys_of(predictions, spec, partition, labels, what="labels")
            if spec.partitions.snapshot:
                unseen = predictions.filter(self._not_learned_from(model, predictions))
                known = labels.join(unseen, on=spec.features.key, how="semi")
                in_sample = bool(labels.height) and not known.height
                if not in_sample:
                    labels, held_out = known, unseen.height
        read_features = partial(features_as_scored, self.history, self.builds, partition, run, model, predictions)
        scored = ScoredPartition(
            model.task,
            model.class_labels,
            spec.features.key,
            predictions,
            labels,
            cache(read_features),
            own_metrics(spec),
            in_sample=in_sample,
            segments=spec.monitoring.segments,
            read_segments=partial(segments_of, self.con, spec, partition),
            unit=UnitRule.of(spec),
            intervals=None if spec.predictions.interval is None else self._intervals(model),
            decide=rule_in(run.decision_rule),
            held_out=held_out,
            expected=None if challenger else self._expected(partition.key, model),
            misplaced=self.misplaced.get(partition.key),
            not_given=[name for name, rule in spec.features.columns.items() if not rule.feature],
        )
        with one_thread():
            tables = {name: measure.compute(scored) for name, measure in evaluated_measures(spec).items()}
            beside = {} if labels is None or challenger else further_rows(scored)
        if challenger is None:
            self.deviations.pop(partition.key, None)
            if (drift := tables.get(CONCEPT_DRIFT.name)) is not None and (
                deviation := counted_deviation(drift)
            ) is not None:
                self.deviations[partition.key] = deviation
        return MeasuredModel(model, tables, scored.labelled.height, challenger, beside)

    def _not_learned_from(self, model: Version, predictions: pl.DataFrame) -> pl.Series:
        """Mark the rows of a snapshot that a version did not learn from; none, where its bundle can no longer say so."""
        spec, folder = self.history.spec, self.history.home.bundle(model.pipeline, model.version)
        try:
            learned = read_learned(folder, read_manifest(folder, model.sha256))
        except (IntegrityError, WrongUseError):
            return pl.repeat(value=False, n=predictions.height, eager=True)
        if learned is None:
            return never_learned_from(spec, predictions)
        return ~snapshot_hashes(spec, predictions).is_in(pl.Series(learned).implode())

    def _expected(self, key: str, model: Version) -> Expected | None:
        """The gate's metric, or the accuracy or error in its place, as it was expected of a partition; None without an estimate."""
        by_metric = {row.metric: row for row in self.estimated.get(key, ()) if row.model_version == model.version}
        metric = estimated_metric(self.history.spec.model.promote.metric or default_metric(model.task), by_metric)
        if metric is None:
            return None
        row, before = by_metric[metric], sorted(other for other in self.deviations if other < key)[1 - RECENT :]
        loss = by_metric.get(LOSS) if model.task == "binary" else None
        return Expected(
            *(metric, row.estimate, row.low, row.high),
            before=[self.deviations[other] for other in before],
            log_loss=loss and (loss.estimate, loss.high),
        )

    def _intervals(self, model: Version) -> Intervals | None:
        """The intervals of a version; None if it has none, or cannot be read any more."""
        with suppress(IntegrityError, WrongUseError):
            manifest = read_manifest(self.history.home.bundle(model.pipeline, model.version), model.sha256)
            facts = manifest.refinements.get(INTERVAL.name)
            if facts is not None:
                correlation = max(facts["correlation"], correlation_by_widths(facts["rows"]))
                return Intervals(facts["level"], correlation)
        return None
