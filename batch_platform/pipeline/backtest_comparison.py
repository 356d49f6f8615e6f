"""The measures of a backtest: each partition as the tested model and as production scored it, and all of them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.predictions import DECISION
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.build import FeatureSession
from batch_platform.features.row_checks import with_keys_of
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import Contract
from batch_platform.models.registry import Registry, Version, has_seen
from batch_platform.monitoring.comparison import Verdict
from batch_platform.monitoring.measure import ScoredPartition
from batch_platform.monitoring.measures.performance import labelled_outcomes, performance_of, with_unit
from batch_platform.monitoring.metrics import METRICS, known_to
from batch_platform.monitoring.outcomes import CLASSIFICATION, Outcomes, UnitRule, prediction_columns
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.scored_rows import committed_predictions, encoded_features, segments_of
from batch_platform.scoring.partition import Staged
from batch_platform.scoring.run import BundleOf
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun


@dataclass(frozen=True)
class TestedPartition:
    """One partition as the tested model scored it, and what production did; as it is reported."""

    partition: str
    model: str  # the registered version, or the serving period that it was trained for
    in_sample: bool
    rows_in: int
    rows_scored: int
    rows_rejected: int
    rows_measured: int
    metrics: dict[str, float]
    production: dict[str, float]  # metrics of production on the same rows; empty if it did not score the partition
    production_version: str | None
    production_in_sample: bool | None
    note: str  # why nothing is measured, or what would have kept the partition from being published


@dataclass(frozen=True)
class Comparison:
    """The comparison of tested models with production, as it is published, partition by partition."""

    pipeline: Pipeline
    versions: Mapping[str, Version]  # key: partition
    bundle_folder: BundleOf
    stamp: Stamp
    builds: Mapping[str, FeatureBuild]  # key: partition
    con: duckdb.DuckDBPyConnection
    session: FeatureSession  # reads the labels
    runs: Mapping[str, ScoreRun]  # key: partition
    registry: Registry
    # Of each partition that neither model has learned from: both on the same rows, and the keys of these.
    pairs: list[tuple[Outcomes, Outcomes, pl.DataFrame]] = field(default_factory=list)

    def tested(self, partition: Partition, staged: Staged, *, registered: bool) -> TestedPartition:
        """Measure a partition that was scored."""
        spec, version, run = self.pipeline.spec, self.versions[partition.key], self.runs.get(partition.key)
        known_from, counts, notes = spec.periods.matures(partition), staged.counts, list[str]()
        rows_measured, metrics, of_production = 0, dict[str, float](), dict[str, float]()
        if known_from > self.stamp.at:
            notes.append(f"its labels are not known before {known_from:%Y-%m-%d %H:%M} UTC")
        else:
            rows_measured, metrics, of_production = self._compared(partition, staged)
            notes += [] if rows_measured else ["none of its rows can be measured"]
        budget = spec.features.rejected_budget
        if budget.is_exceeded(counts.rows_rejected, counts.rows_in):
            share = counts.rows_rejected / counts.rows_in
            notes.append(f"{share:.2%} of its rows are rejected, more than max_rejected ({budget}) allows")
        return TestedPartition(
            partition=partition.key,
            model=version.version if registered else f"trained for {version.serving_period}",
            in_sample=has_seen(version, partition),
            rows_in=counts.rows_in,
            rows_scored=counts.rows_scored,
            rows_rejected=counts.rows_rejected,
            rows_measured=rows_measured,
            metrics=metrics,
            production=of_production,
            production_version=None if run is None else run.model_version,
            production_in_sample=None if run is None else run.in_sample,
            note="; ".join(notes),
        )

    def _compared(self, partition: Partition, staged: Staged) -> tuple[int, dict[str, float], dict[str, float]]:
        """The measured rows, the metrics of the tested model and, on the same rows, those of production if it scored them."""
        history, version, key = self.pipeline.history, self.versions[partition.key], self.pipeline.spec.features.key
        columns = [*key, *prediction_columns(version.task, version.class_labels)]
        columns += [] if history.spec.predictions.decide is None else [DECISION]
        predictions = pl.read_parquet(list(staged.predictions), columns=columns)
        labels = None if history.spec.labels is None else history.labels(self.session, partition, self.stamp)
        if labels is not None:
            labels = with_keys_of(predictions, history.spec, partition, labels, what="labels")
        shared, run, of_production = labels, self.runs.get(partition.key), dict[str, float]()
        if run is not None:
            served = self.registry.named(run.model_version)
            committed = committed_predictions(self.con, history.spec, partition, served)
            committed = with_keys_of(predictions, history.spec, partition, committed, what="predictions")
            committed = committed.join(predictions, on=key, how="semi", maintain_order="left")
            predictions = predictions.join(committed, on=key, how="semi", maintain_order="left")
            for classes in (version.class_labels, served.class_labels):
                if shared is not None and classes and version.task in CLASSIFICATION:
                    shared = shared.filter(known_to(classes, shared[shared.columns[-1]]))
            of_production = self._metrics(partition, served, committed, labels, shared)
            if shared is not None and not (has_seen(version, partition) or has_seen(served, partition)):
                models = ((version, predictions), (served, committed))
                first, second = (self._scored(partition, model, rows, shared) for model, rows in models)
                rows = with_unit(first, first.labelled.select(key)).with_columns(partition_key=pl.lit(partition.key))
                self.pairs.append((labelled_outcomes(first), labelled_outcomes(second), rows))
        metrics = self._metrics(partition, version, predictions, labels, shared)
        rows_measured = predictions.height if labels is None else predictions.join(labels, on=key, how="semi").height
        return rows_measured, metrics, of_production

    def _metrics(
        self,
        partition: Partition,
        version: Version,
        predictions: pl.DataFrame,
        labels: pl.DataFrame | None,
        shared: pl.DataFrame | None,
    ) -> dict[str, float]:
        """The metrics of a version; those of probabilities on the labels of classes that both models know."""
        metrics = performance_of(self._scored(partition, version, predictions, labels))
        if labels is None or shared is None or shared.height == labels.height:
            return metrics
        probable = performance_of(self._scored(partition, version, predictions, shared))
        decided = {name: value for name, value in metrics.items() if name not in METRICS or METRICS[name].of_decisions}
        return {name: value for name, value in probable.items() if name in METRICS} | decided

    def _scored(
        self, partition: Partition, version: Version, predictions: pl.DataFrame, labels: pl.DataFrame | None
    ) -> ScoredPartition:
        """A version's scores for the measures; the tested version's contract encodes the features of both versions."""
        spec = self.pipeline.spec

        def read_features() -> tuple[pl.DataFrame, NDArray[np.float64]]:
            bundle = self.bundle_folder(self.versions[partition.key], 0)
            manifest = read_manifest(Path(bundle.folder), bundle.sha256)
            contract = Contract.from_json(manifest.contract).under(spec.features.columns)
            build = self.builds[partition.key]
            return encoded_features(self.pipeline.history, build, partition, predictions, contract)

        return ScoredPartition(
            version.task,
            version.class_labels,
            spec.features.key,
            predictions,
            labels,
            read_features,
            read_segments=partial(segments_of, self.con, spec, partition),
            unit=UnitRule.of(spec),
            decide=spec.predictions.decide,
        )

    def verdict(self, metric: str) -> Verdict | None:
        """The verdict on the tested model beside production, on all rows that both scored and neither has learned from.

        None if there are none, if some models know other classes, and where the metric is not defined.
        """
        if len({(of.task, tuple(of.classes)) for *pair, _ in self.pairs for of in pair}) != 1:
            return None
        rows, spec = pl.concat([rows for *_, rows in self.pairs]), self.pipeline.spec
        units = UnitRule.of(spec).numbers(rows, spec.features.key, "partition_key")
        weights = [first.weights for first, *_ in self.pairs if first.weights is not None]
        first, second = (
            replace(
                parts[0],
                predicted=np.concatenate([part.predicted for part in parts]),
                truth=np.concatenate([part.labels for part in parts]),
                weights=np.concatenate(weights) if weights else None,
                units=units,
                decided=np.concatenate([part.decisions for part in parts]) if parts[0].task in CLASSIFICATION else None,
            )
            for parts in ([pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs])
        )
        return Verdict.on(metric, first, second)


@dataclass(frozen=True)
class Total:
    """One metric over all partitions: means weighted by the measured rows of each partition."""

    metric: str
    partitions: int
    value: float
    compared: int  # partitions that production scored too
    value_where_compared: float | None
    production_value: float | None


def totals(partitions: Sequence[TestedPartition]) -> list[Total]:
    """The result of a backtest over all partitions, by metric."""
    metrics = sorted({name for partition in partitions for name in partition.metrics} & METRICS.keys())
    return [_total(metric, partitions) for metric in metrics]


def _total(metric: str, partitions: Sequence[TestedPartition]) -> Total:
    measured = [partition for partition in partitions if metric in partition.metrics]
    compared = [partition for partition in measured if metric in partition.production]
    return Total(
        metric=metric,
        partitions=len(measured),
        value=_mean([(partition.metrics[metric], partition.rows_measured) for partition in measured]) or 0.0,
        compared=len(compared),
        value_where_compared=_mean([(partition.metrics[metric], partition.rows_measured) for partition in compared]),
        production_value=_mean([(partition.production[metric], partition.rows_measured) for partition in compared]),
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    weight = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values) / weight if weight else None
