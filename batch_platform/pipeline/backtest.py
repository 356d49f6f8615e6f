"""Backtests: score past partitions by another model, as of then, and compare it with what production did.

Trains, scores and measures with the code that production uses, and commits to tables of its own: no version is
registered, no prediction changes, and the models that it trains are removed at the end. Labels and features are those
known now, including corrections made since then.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
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
from batch_platform.models.estimator import check_estimator_exists
from batch_platform.models.registry import Registry, Version, read_registry
from batch_platform.monitoring.measure import ScoredPartition
from batch_platform.monitoring.metrics import known_to
from batch_platform.monitoring.performance import performance_of
from batch_platform.pipeline.backtest_tables import Backtested, TestedPartition, commit_backtest
from batch_platform.pipeline.evaluate import committed_predictions, encoded_features, known_labels, scored_by
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.plan import State
from batch_platform.pipeline.train import learn
from batch_platform.scoring.batch import prediction_columns
from batch_platform.scoring.engines.known import engine_of
from batch_platform.scoring.orders import BundleFolder, ScoringOrder, Watch
from batch_platform.scoring.partition import Staged
from batch_platform.warehouse.ledger import ScoreRun, read_latest
from batch_platform.warehouse.published import open_published, publish
from batch_platform.warehouse.staging import staging_folder

FolderOfVersion = Callable[[Version, int], BundleFolder]


@dataclass(frozen=True)
class BacktestModel:
    """The model to test: a registered version, or an estimator that is trained for each serving period.

    Args:
        version: Name of the version that scores every partition.
        estimator: Import path of an estimator class, or of a function that returns an estimator.
        params: Parameters of the estimator.
    """

    version: str | None = None
    estimator: str | None = None
    params: dict[str, Any] = field(default_factory=dict[str, Any])


def backtest(  # noqa: PLR0913 - what is tested, on what, and how it is reported
    pipeline: Pipeline,
    partitions: Sequence[Partition],
    model: BacktestModel,
    stamp: Stamp,
    *,
    keep_scores: bool = False,
    watch: Watch | None = None,
) -> Backtested:
    """Score and measure partitions by a model, and commit the results of all of them in one transaction.

    Args:
        pipeline: Pipeline whose history is scored.
        partitions: Partitions to score, oldest first; their features are built.
        model: Model to test.
        stamp: Run that names the backtest; labels are those known to it.
        keep_scores: Whether to store the scores of all rows too.
        watch: Called with the progress of each partition.

    Raises:
        WrongUseError: The version or estimator does not exist, or no model could have been trained for a partition.
        TrainingRefusedError: The data of a serving period cannot give a model; nothing is stored.
        DataError: Features are not built, or do not fit the model.
        IntegrityError: A feature file or a bundle is not what was recorded.
    """
    state = pipeline.state()
    with staging_folder(pipeline.home, stamp.run_id) as folder:
        bundle_folder: FolderOfVersion = pipeline.bundle_folder
        if model.version is not None:
            _require_features(pipeline, state, partitions)
            versions = dict.fromkeys((partition.key for partition in partitions), state.registry.present(model.version))
        else:
            versions = _trained(pipeline, state, partitions, model, stamp=stamp, folder=folder)
            bundle_folder = partial(_trained_bundle, pipeline.spec, folder / "models")
        registered = model.version is not None
        run = _Backtest(pipeline, state, versions, bundle_folder, stamp, folder, registered, keep_scores)
        result = Backtested(list(run.tested(partitions, watch)), versions, registered)
        commit_backtest(pipeline.warehouse, pipeline.spec.name, result, stamp, run.kept)
    pipeline.publish()
    return result


def _trained_bundle(spec: PipelineSpec, models: Path, version: Version, rows: int) -> BundleFolder:
    folder = models / version.version
    return BundleFolder(version.version, folder, version.sha256, rows, spec.model.allow_pickle)


def _trained(  # noqa: PLR0913 - what is trained, for what, from what
    pipeline: Pipeline,
    state: State,
    partitions: Sequence[Partition],
    model: BacktestModel,
    *,
    stamp: Stamp,
    folder: Path,
) -> dict[str, Version]:
    """The trained versions by partition key: one per serving period, each from what was known at its start."""
    pipeline = replace(pipeline, spec=_with_model(pipeline.spec, model))
    periods = _periods(pipeline.spec, partitions, stamp)
    windows = [training_window(pipeline.spec, period.start) for period in set(periods.values())]
    _require_features(pipeline, state, [*partitions, *chain.from_iterable(windows)], as_declared=True)
    trained: dict[str, Version] = {}
    for period in dict.fromkeys(periods.values()):
        learned = learn(pipeline.history, state=state, period=period, params=model.params, stamp=stamp)
        allowed = pipeline.spec.model.allow_pickle
        trained[period.key] = learned.write(folder, folder / "models", allow_pickle=allowed)
    return {key: trained[period.key] for key, period in periods.items()}


def _with_model(spec: PipelineSpec, tested: BacktestModel) -> PipelineSpec:
    """The pipeline with the estimator to test, trained when and on what the declared model is trained.

    Raises:
        WrongUseError: The estimator cannot be imported, is no estimator, or lacks a parameter.
    """
    path = tested.estimator or ""
    try:
        check_dotted(path)
    except ValueError as error:
        msg = f"the estimator: {error}."
        raise WrongUseError(msg, hint="write it as 'package.module.Class'.") from error
    kind = "estimator" if inspect.isclass(import_function(path, "the estimator")) else "build"
    declared = spec.model
    model = Model.model_validate(
        {
            kind: path,
            "params": tested.params,
            "train": declared.train,
            "promote": declared.promote,
            "allow_pickle": declared.allow_pickle,
        }
    )
    check_estimator_exists(model)
    return spec.model_copy(update={"model": model})


def _periods(spec: PipelineSpec, partitions: Sequence[Partition], stamp: Stamp) -> dict[str, Partition]:
    """The serving period of each partition, by partition key; a single model's period starts with the first partition.

    Raises:
        WrongUseError: There is too little history before some partitions to train on.
    """
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
    """Check that the features of partitions are built; for training, by the SQL as it is now.

    Raises:
        DataError: The features of some partitions are not.
    """
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
    """What the partitions of one backtest share."""

    pipeline: Pipeline
    state: State
    versions: Mapping[str, Version]  # by partition key
    bundle_folder: FolderOfVersion
    stamp: Stamp
    folder: Path
    registered: bool  # whether the versions are registered
    keep_scores: bool
    kept: list[Path] = field(default_factory=list[Path])  # files with the scores of all rows

    def tested(self, partitions: Sequence[Partition], watch: Watch | None) -> Iterator[TestedPartition]:
        """Score partitions, and measure each as soon as it is scored."""
        spec = self.pipeline.spec
        features = spec.features.model_copy(update={"max_rejected": 1.0})  # nothing is published that they could spoil
        rows = Counter[str]()
        for partition in partitions:
            rows[self.versions[partition.key].version] += self.state.features[partition.key].rows
        orders = (self._order(partition, rows) for partition in partitions)
        publish(self.pipeline.home)
        with (
            open_published(self.pipeline.home) as con,
            self.pipeline.builder.session(partitions[0]) as session,
            engine_of(spec.engine)(
                spec.model_copy(update={"features": features}), self.folder, self.stamp, watch=watch
            ) as engine,
            closing(engine.staged(orders)) as results,
        ):
            runs, registry = read_latest(con, ScoreRun, spec.name), read_registry(con, spec.name)
            production = _Production(con, session, runs, registry)
            for partition, staged in zip(partitions, results, strict=True):
                yield self._tested(partition, staged, production)
                for file in (*staged.rejected, *(() if self.keep_scores else staged.predictions)):
                    file.unlink()
                if self.keep_scores:
                    self.kept.extend(staged.predictions)

    def _order(self, partition: Partition, rows: Mapping[str, int]) -> ScoringOrder:
        build, version = self.state.features[partition.key], self.versions[partition.key]
        return ScoringOrder(
            partition=partition,
            features=self.pipeline.history.file(build),
            sha256=build.sha256,
            rows=build.rows,
            model=self.bundle_folder(version, rows[version.version]),
            xxh3=build.xxh3,
        )

    def _tested(self, partition: Partition, staged: Staged, production: "_Production") -> TestedPartition:
        spec, version, run = self.pipeline.spec, self.versions[partition.key], production.runs.get(partition.key)
        known_from = matures(spec, partition)
        rows_measured, metrics, of_production = 0, dict[str, float](), dict[str, float]()
        if known_from <= self.stamp.at:
            rows_measured, metrics, of_production = self._compared(partition, staged, production)
            note = "" if rows_measured else "none of its rows can be measured"
        else:
            note = f"its labels are known from {known_from:%Y-%m-%d %H:%M} UTC on"
        counts = staged.counts
        if counts.rows_in and counts.rows_rejected / counts.rows_in > spec.features.max_rejected:
            share = f"{counts.rows_rejected / counts.rows_in:.2%} of its rows are rejected"
            share += f", more than max_rejected ({spec.features.max_rejected:.2%}) allows"
            note = "; ".join(filter(None, [note, share]))
        return TestedPartition(
            partition=partition.key,
            model=version.version if self.registered else f"trained for {version.serving_period}",
            in_sample=version.has_seen(partition),
            rows_in=counts.rows_in,
            rows_scored=counts.rows_scored,
            rows_rejected=counts.rows_rejected,
            rows_measured=rows_measured,
            metrics=metrics,
            production=of_production,
            production_version=None if run is None else run.model_version,
            production_in_sample=None if run is None else run.in_sample,
            note=note,
        )

    def _compared(
        self, partition: Partition, staged: Staged, production: "_Production"
    ) -> tuple[int, dict[str, float], dict[str, float]]:
        """The measured rows, the metrics of the tested model and, on the same rows, those of production if it scored them."""
        history, version, key = self.pipeline.history, self.versions[partition.key], self.pipeline.spec.features.key
        columns = [*key, *prediction_columns(version.task, version.class_labels)]
        predictions = pl.read_parquet(list(staged.predictions), columns=columns)
        labels = known_labels(history, production.session, partition, self.stamp, predictions)
        run, committed, served = production.runs.get(partition.key), None, None
        if run is not None:
            served = production.registry.named(run.model_version)
            committed = committed_predictions(production.con, history.spec, partition, served)
            committed = with_keys_of(predictions, history.spec, partition, committed, what="predictions")
            predictions, committed = (
                rows.join(others, on=key, how="semi", maintain_order="left")
                for rows, others in ((predictions, committed), (committed, predictions))
            )
            for classes in (version.class_labels, served.class_labels):
                if labels is not None and classes:
                    labels = labels.filter(known_to(classes, labels[labels.columns[-1]]))
        tested = self._scored(partition, version, predictions, labels)
        rows_measured = predictions.height if labels is None else tested.labelled.height
        of_production: dict[str, float] = {}
        if served is not None and committed is not None:
            of_production = performance_of(self._scored(partition, served, committed, labels))
        return rows_measured, performance_of(tested), of_production

    def _scored(
        self, partition: Partition, version: Version, predictions: pl.DataFrame, labels: pl.DataFrame | None
    ) -> ScoredPartition:
        """A version's scores for the measures; the tested version's contract encodes the features of both versions."""

        def read_features() -> tuple[pl.DataFrame, NDArray[np.float64]]:
            bundle = self.bundle_folder(self.versions[partition.key], 0)
            manifest = read_manifest(bundle.folder, bundle.sha256)
            contract = Contract.from_json(manifest.contract).under(self.pipeline.spec.features.columns)
            build = self.state.features[partition.key]
            return encoded_features(self.pipeline.history, build, partition, predictions, contract)

        return scored_by(version, self.pipeline.spec.features.key, predictions, labels, read_features)


@dataclass(frozen=True)
class _Production:
    """What production did, as it is published, and the session that reads the labels."""

    con: duckdb.DuckDBPyConnection
    session: FeatureSession
    runs: Mapping[str, ScoreRun]  # by partition key
    registry: Registry
