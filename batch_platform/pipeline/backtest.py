"""Backtests: score past partitions with another model, as of then, and compare it with production.

Trains, scores and measures with the code that production uses, and commits to tables of its own: no version is
registered, no prediction changes, and the models that it trains are removed at the end. Labels and features are those
known now, including corrections made since then. Rows of `<pipeline>.backtests` and, if the scores are kept, of
`<pipeline>.backtest_scores` are only ever added.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.functions import import_function
from batch_platform.declaration.notation import check_dotted
from batch_platform.declaration.spec import Model, PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import can_train, matures, serving_periods, training_window
from batch_platform.features.build import FeatureSession
from batch_platform.features.history import materialize_hint
from batch_platform.features.row_checks import with_keys_of
from batch_platform.models.bundle import read_manifest
from batch_platform.models.contract import Contract
from batch_platform.models.declared_model import check_estimator_exists
from batch_platform.models.registry import Registry, Version, read_registry
from batch_platform.monitoring.measure import ScoredPartition
from batch_platform.monitoring.measures.performance import performance_of
from batch_platform.monitoring.metrics import METRICS, is_worse, known_to
from batch_platform.monitoring.outcomes import CLASSIFICATION, prediction_columns
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.scored_rows import committed_predictions, encoded_features
from batch_platform.pipeline.state import State
from batch_platform.pipeline.train import Training
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.orders import BundleFolder, Watch
from batch_platform.scoring.partition import Staged
from batch_platform.scoring.run import BundleOf, Due, orders_of
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.instance import in_memory
from batch_platform.warehouse.ledger import (
    FeatureBuild,
    ScoreRun,
    as_record,
    create_table,
    insert,
    note_partitions,
    read_latest,
)
from batch_platform.warehouse.published import reading_published
from batch_platform.warehouse.replacing import replace_rows
from batch_platform.warehouse.sql import literal
from batch_platform.warehouse.staging import staging_folder

BACKTESTS, SCORES = "backtests", "backtest_scores"


@dataclass(frozen=True)
class BacktestModel:
    """The model to test: a registered version, or an estimator that is trained for each serving period."""

    version: str | None = None
    estimator: str | None = None  # import path of a class, or of a function that returns an estimator
    params: dict[str, Any] = field(default_factory=dict[str, Any])


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
    production: dict[str, float]  # on the same rows; empty if production did not score the partition
    production_version: str | None
    production_in_sample: bool | None
    note: str  # why nothing is measured, or what would have kept the partition from being published


@dataclass(frozen=True)
class Backtested:
    """The result of a backtest."""

    partitions: list[TestedPartition]  # oldest first
    versions: Mapping[str, Version]  # that scored each partition, by key
    registered: bool  # whether these are registered versions, and not trained for the backtest alone

    @property
    def task(self) -> str:
        """Task of the tested model."""
        return next(iter(self.versions.values())).task


@dataclass(frozen=True)
class BacktestRow:
    """A row of the table of backtests: one metric of one partition."""

    backtest_id: str
    partition_key: str
    metric: str | None  # None if nothing could be measured; `note` says why
    value: float | None
    production_value: float | None
    rows_measured: int
    rows_in: int
    rows_scored: int
    rows_rejected: int
    in_sample: bool
    model_version: str | None  # None for a model that is not registered
    estimator: str
    params: str  # JSON
    serving_period: str
    trained_from: datetime
    trained_until: datetime
    rows_trained: int
    production_version: str | None
    production_in_sample: bool | None
    note: str
    run_at: datetime


@dataclass(frozen=True)
class Total:
    """One metric over all partitions: means weighted by the measured rows of each partition."""

    metric: str
    partitions: int
    value: float
    compared: int  # partitions that production scored too
    value_where_compared: float | None
    production_value: float | None
    better: int | None  # partitions in which the tested model is better than production; None if neither direction is
    worse: int | None


def totals(partitions: Sequence[TestedPartition]) -> list[Total]:
    """The result of a backtest over all partitions, by metric."""
    metrics = sorted({name for partition in partitions for name in partition.metrics} & METRICS.keys())
    return [_total(metric, partitions) for metric in metrics]


def _total(metric: str, partitions: Sequence[TestedPartition]) -> Total:
    measured = [partition for partition in partitions if metric in partition.metrics]
    compared = [partition for partition in measured if metric in partition.production]
    pairs = [(partition.metrics[metric], partition.production[metric]) for partition in compared]
    neutral = METRICS[metric].neutral
    return Total(
        metric=metric,
        partitions=len(measured),
        value=_mean([(partition.metrics[metric], partition.rows_measured) for partition in measured]) or 0.0,
        compared=len(compared),
        value_where_compared=_mean([(partition.metrics[metric], partition.rows_measured) for partition in compared]),
        production_value=_mean([(partition.production[metric], partition.rows_measured) for partition in compared]),
        better=None if neutral else sum(is_worse(metric, production, tested) for tested, production in pairs),
        worse=None if neutral else sum(is_worse(metric, tested, production) for tested, production in pairs),
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    weight = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values) / weight if weight else None


def backtest(  # noqa: PLR0913 - what is tested, on what, and how it is reported
    pipeline: Pipeline,
    partitions: Sequence[Partition],
    model: BacktestModel,
    stamp: Stamp,
    *,
    keep_scores: bool = False,
    watch: Watch | None = None,
) -> Backtested:
    """Score and measure partitions, oldest first, and commit the results of all of them in one transaction.

    The run of the stamp names the backtest; labels are those known to it. `keep_scores` stores the scores of all rows too.

    Raises:
        WrongUseError: The version or estimator does not exist, or no model could have been trained for a partition.
        TrainingRefusedError: The data of a serving period cannot give a model; nothing is stored.
        DataError: Features are not built, or do not fit the model.
        IntegrityError: A feature file or a bundle is not what was recorded.
    """
    state, spec = pipeline.state(), pipeline.spec
    if spec.partitions.snapshot:
        msg = f"{spec.name} scores snapshots, which cannot be backtested: their labels were not dated when they were taken."
        raise WrongUseError(msg, hint="declare the other model as a challenger: it is measured on the rows held out.")
    tested, kept = list[TestedPartition](), list[Path]()
    with staging_folder(pipeline.home, stamp.run_id) as folder:
        bundle_folder: BundleOf = pipeline.bundle_folder
        if model.version is not None:
            _require_features(pipeline, state, partitions)
            versions = dict.fromkeys((partition.key for partition in partitions), state.registry.present(model.version))
        else:
            with_model = replace(pipeline, spec=_with_model(spec, model))
            versions = _trained(with_model, state, partitions, stamp, folder)
            bundle_folder = partial(_trained_bundle, spec, folder / "models")
        pipeline.publish()
        due = [Due(partition, versions[partition.key], state.features[partition.key], None) for partition in partitions]
        make_engine = engine_of(spec.engine.name)
        with (
            reading_published(pipeline.home) as con,
            pipeline.builder.session(labels=True) as session,
            make_engine(spec, folder, stamp, watch=watch) as engine,
            closing(engine.staged(orders_of(due, pipeline.history, bundle_folder))) as results,
        ):
            runs, registry = read_latest(con, ScoreRun, spec.name), read_registry(con, spec.name)
            run = _Backtest(pipeline, versions, bundle_folder, stamp, state.features, con, session, runs, registry)
            for item, staged in zip(due, results, strict=True):
                tested.append(run.tested(item.partition, staged, registered=model.version is not None))
                kept += staged.predictions if keep_scores else ()
                for file in (*staged.rejected, *(() if keep_scores else staged.predictions)):
                    file.unlink()
        result = Backtested(tested, versions, model.version is not None)
        _commit(pipeline.warehouse, spec.name, result, stamp, kept)
    pipeline.publish()
    return result


def _trained_bundle(spec: PipelineSpec, models: Path, version: Version, rows: int) -> BundleFolder:
    folder = models / version.version
    return BundleFolder(version.version, folder, version.sha256, rows, spec.model.allow_pickle)


def _trained(
    pipeline: Pipeline, state: State, partitions: Sequence[Partition], stamp: Stamp, folder: Path
) -> dict[str, Version]:
    """The trained versions by partition key: one per serving period, each from what was known at its start."""
    model, periods = pipeline.spec.model, _periods(pipeline.spec, partitions, stamp)
    windows = [training_window(pipeline.spec, period.start, state.dropped) for period in set(periods.values())]
    _require_features(pipeline, state, [*partitions, *chain.from_iterable(windows)], as_declared=True)
    trained: dict[str, Version] = {}
    for period in dict.fromkeys(periods.values()):
        training = Training(pipeline.history, state, period, stamp)
        learned = training.refit(training.learn(model.params))
        trained[period.key] = learned.write(folder, folder / "models", allow_pickle=model.allow_pickle)
    return {key: trained[period.key] for key, period in periods.items()}


def _with_model(spec: PipelineSpec, tested: BacktestModel) -> PipelineSpec:
    """The pipeline with the estimator to test, trained when and on what the declared model is trained."""
    path = tested.estimator or ""
    try:
        check_dotted(path)
    except ValueError as error:
        msg = f"the estimator: {error}."
        raise WrongUseError(msg, hint="write it as 'package.module.Class'.") from error
    kind = "estimator" if inspect.isclass(import_function(path, "the estimator")) else "build"
    declared = {name: getattr(spec.model, name) for name in ("train", "promote", "refit", "allow_pickle")}
    model = Model.model_validate({kind: path, "params": tested.params, **declared})
    check_estimator_exists(model)
    return spec.model_copy(update={"model": model})


def _periods(spec: PipelineSpec, partitions: Sequence[Partition], stamp: Stamp) -> dict[str, Partition]:
    """The serving period of each partition, by partition key; a single model's period starts with the first partition."""
    if spec.model.train.every is None:
        first = partitions[0]
        begun = [Partition(key=first.key, start=first.start, end=first.start)] if _can_serve(spec, first) else []
    else:
        begun = serving_periods(spec, stamp.at)
    periods = {partition.key: period for partition in partitions for period in begun if period.start <= partition.start}
    if early := [partition.key for partition in partitions if partition.key not in periods]:
        due = spec.partitions.calendar.due(stamp.at)
        served = [partition for partition in due if _can_serve(spec, partition)]
        if begun:
            served = [partition for partition in served if partition.start >= begun[0].start]
        msg = f"{spec.name}: there is too little history before {listed(early)} to train a model that serves them."
        hint = f"--from {served[0].key}" if served else "give a shorter model.train.evaluate, or wait for more history."
        raise WrongUseError(msg, hint=hint)
    return periods


def _can_serve(spec: PipelineSpec, partition: Partition) -> bool:
    return can_train(spec, training_window(spec, partition.start))


def _require_features(
    pipeline: Pipeline, state: State, partitions: Iterable[Partition], *, as_declared: bool = False
) -> None:
    """Check that the features of partitions are built; for training, by the SQL as it is now."""
    name, keys = pipeline.spec.name, sorted({partition.key for partition in partitions})
    missing = [key for key in keys if key not in state.features]
    what = "not built, or their file has changed"
    if as_declared and not missing:
        missing = [key for key in keys if state.features[key].code_version != state.features_code_version]
        what = "built by an earlier version of the SQL"
    if missing:
        msg = f"{name}: the features of {listed(missing)} are {what}; a backtest builds no features."
        raise DataError(msg, hint=materialize_hint(name, missing))


@dataclass(frozen=True)
class _Backtest:
    """What the partitions of one backtest share, and what production did with them, as it is published."""

    pipeline: Pipeline
    versions: Mapping[str, Version]  # by partition key
    bundle_folder: BundleOf
    stamp: Stamp
    builds: Mapping[str, FeatureBuild]  # by partition key
    con: duckdb.DuckDBPyConnection
    session: FeatureSession  # reads the labels
    runs: Mapping[str, ScoreRun]  # by partition key
    registry: Registry

    def tested(self, partition: Partition, staged: Staged, *, registered: bool) -> TestedPartition:
        """Measure a partition that was scored."""
        spec, version, run = self.pipeline.spec, self.versions[partition.key], self.runs.get(partition.key)
        known_from, counts, notes = matures(spec, partition), staged.counts, list[str]()
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
            in_sample=version.has_seen(partition),
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
            manifest = read_manifest(bundle.folder, bundle.sha256)
            contract = Contract.from_json(manifest.contract).under(spec.features.columns)
            build = self.builds[partition.key]
            return encoded_features(self.pipeline.history, build, partition, predictions, contract)

        return ScoredPartition(
            version.task, version.class_labels, spec.features.key, predictions, labels, read_features
        )


def _commit(warehouse: Warehouse, pipeline: str, result: Backtested, stamp: Stamp, scores: Sequence[Path]) -> None:
    """Add a backtest to its tables, in one transaction with its entries in the journal of changes.

    `scores` are files of staged predictions of all rows; none if they are not kept.
    """
    rows = [vars(row) for row in _rows(result, stamp)]
    files = [_named(file) for file in scores]
    with warehouse.transaction() as con:
        create_table(con, pipeline, BACKTESTS, BacktestRow)
        insert(con, BACKTESTS, rows, schema=pipeline)
        if files:
            replace_rows(con, pipeline, SCORES, [], files)
        tables = [BACKTESTS, SCORES] if files else [BACKTESTS]
        for table in tables:
            note_partitions(con, pipeline, table, [partition.partition for partition in result.partitions])


def _rows(result: Backtested, stamp: Stamp) -> Iterator[BacktestRow]:
    for partition in result.partitions:
        version = result.versions[partition.partition]
        for metric in sorted(partition.metrics) or [None]:
            yield as_record(
                BacktestRow,
                version,
                partition,
                backtest_id=stamp.run_id,
                partition_key=partition.partition,
                metric=metric,
                value=None if metric is None else partition.metrics[metric],
                production_value=None if metric is None else partition.production.get(metric),
                model_version=version.version if result.registered else None,
                run_at=stamp.at,
            )


def _named(file: Path) -> Path:
    """Staged predictions with the column `backtest_id` instead of `run_id`."""
    named = file.with_name(f"{file.name}.named")
    with in_memory() as con:
        rows = f"SELECT * EXCLUDE (run_id), run_id AS backtest_id FROM read_parquet({literal(str(file))}, hive_partitioning := false)"
        con.execute(f"COPY ({rows}) TO {literal(str(named))} (FORMAT parquet)")
    file.unlink()
    return named
