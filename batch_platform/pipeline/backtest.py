"""History scored once more, as of then, by another model: what it would have done, held against what production did.

Trains, scores and measures by the code that production uses. What it commits are tables of its own: no version is
registered, no prediction is touched, and the models that it trains are gone at the end. Labels and features are those
known now: a correction made since then is part of them.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
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
from batch_platform.pipeline.backtest_tables import PairedMetrics, TestedPartition, commit_backtest
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
    """What is tested: a registered version, or else an estimator that is trained for each serving period.

    Args:
        version: Scores every partition, whichever it is.
        estimator: Import path of an estimator's class, or of a function that returns one.
        params: Of the estimator.
    """

    version: str | None = None
    estimator: str | None = None
    params: dict[str, Any] = field(default_factory=dict[str, Any])


def backtest(  # noqa: PLR0913 - what is tested, on what, and how it is told
    pipeline: Pipeline,
    partitions: Sequence[Partition],
    candidate: BacktestModel,
    stamp: Stamp,
    *,
    keep_scores: bool = False,
    watch: Watch | None = None,
) -> list[TestedPartition]:
    """Score and measure partitions by a candidate, and commit what came of all of them in one transaction.

    Args:
        pipeline: Whose history it is.
        partitions: To be scored, oldest first; their features are built.
        candidate: By what.
        stamp: Its run is the backtest; labels are those known to it.
        keep_scores: Whether the scores of all rows are stored too.
        watch: Is told how far a partition has come.

    Raises:
        WrongUseError: There is no such version or estimator, or no model could have been trained for a partition.
        TrainingRefusedError: The data of a serving period cannot give a model; nothing is stored.
        DataError: Features are not built, or do not go together with the model.
        IntegrityError: A feature file or a bundle is not what was recorded.
    """
    state = pipeline.state()
    with staging_folder(pipeline.home, stamp.run_id) as folder:
        bundle_folder: FolderOfVersion = pipeline.bundle_folder
        if candidate.version is not None:
            _require_features(pipeline, state, partitions)
            models = dict.fromkeys((one.key for one in partitions), state.registry.present(candidate.version))
        else:
            models = _trained(pipeline, state, partitions, candidate, stamp=stamp, folder=folder)
            bundle_folder = partial(_trained_bundle, pipeline.spec, folder / "models")
        run = _Backtest(pipeline, state, models, bundle_folder, stamp, folder, keep_scores=keep_scores)
        found = [replace(one, registered=candidate.version is not None) for one in run.tested(partitions, watch)]
        commit_backtest(pipeline.warehouse, pipeline.spec.name, found, stamp, run.kept)
    pipeline.publish()
    return found


def _trained_bundle(spec: PipelineSpec, models: Path, version: Version, rows: int) -> BundleFolder:
    folder = models / version.version
    return BundleFolder(version.version, folder, version.sha256, rows, spec.model.allow_pickle)


def _trained(  # noqa: PLR0913 - what is trained, for what, from what
    pipeline: Pipeline,
    state: State,
    partitions: Sequence[Partition],
    candidate: BacktestModel,
    *,
    stamp: Stamp,
    folder: Path,
) -> dict[str, Version]:
    """The models of a candidate by partition key, one for each serving period, each from what was known at its start."""
    pipeline = replace(pipeline, spec=_with_model(pipeline.spec, candidate))
    periods = _periods(pipeline.spec, partitions, stamp)
    windows = [one for period in set(periods.values()) for one in training_window(pipeline.spec, period.start)]
    _require_features(pipeline, state, [*partitions, *windows], as_declared=True)
    made: dict[str, Version] = {}
    for period in dict.fromkeys(periods.values()):
        learned = learn(pipeline.history, state=state, period=period, params=candidate.params, stamp=stamp)
        allowed = pipeline.spec.model.allow_pickle
        made[period.key] = learned.write(folder, folder / "models", allow_pickle=allowed)
    return {key: made[period.key] for key, period in periods.items()}


def _with_model(spec: PipelineSpec, candidate: BacktestModel) -> PipelineSpec:
    """The pipeline with another estimator, trained when and on what the declared one is.

    Raises:
        WrongUseError: It does not import, is no estimator, or lacks a parameter.
    """
    path = candidate.estimator or ""
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
            "params": candidate.params,
            "train": declared.train,
            "promote": declared.promote,
            "allow_pickle": declared.allow_pickle,
        }
    )
    check_estimator_exists(model)
    return spec.model_copy(update={"model": model})


def _periods(spec: PipelineSpec, partitions: Sequence[Partition], stamp: Stamp) -> dict[str, Partition]:
    """The serving period of each partition; of one model for all, that which begins with the first of them.

    Raises:
        WrongUseError: Before some of them there is too little history to train on.
    """
    if spec.model.train.every is None:
        begun = [Partition(key=one.key, start=one.start, end=one.start) for one in partitions[:1]]
        begun = [one for one in begun if can_train(spec, training_window(spec, one.start))]
    else:
        begun = serving_periods(spec, stamp.at)
    periods: dict[str, Partition] = {}
    early: list[str] = []
    for partition in partitions:
        served_by = [period for period in begun if period.start <= partition.start]
        if served_by:
            periods[partition.key] = served_by[-1]
        else:
            early.append(partition.key)
    if early:
        due = spec.partitions.calendar.due(stamp.at)
        served = [one for one in due if can_train(spec, training_window(spec, one.start))]
        if begun:
            served = [one for one in served if one.start >= begun[0].start]
        msg = f"{spec.name}: too little history lies before {listed(early)} to train a model that serves them."
        hint = f"--from {served[0].key}" if served else "give a shorter model.train.evaluate, or wait for more of it."
        raise WrongUseError(msg, hint=hint)
    return periods


def _require_features(
    pipeline: Pipeline, state: State, partitions: Iterable[Partition], *, as_declared: bool = False
) -> None:
    """Check that the features of partitions are there; for training, by the SQL as it is now.

    Raises:
        DataError: Some are not.
    """
    name = pipeline.spec.name
    wanted = sorted(partitions, key=lambda one: one.start)
    missing = [one for one in wanted if one.key not in state.features]
    what = "not built, or their file has changed"
    if as_declared and not missing:
        missing = [one for one in wanted if state.features[one.key].code_version != state.features_code_version]
        what = "built by an earlier version of the SQL"
    if missing:
        msg = f"{name}: the features of {listed({one.key for one in missing})} are {what}; a backtest builds none."
        raise DataError(msg, hint=materialize_hint(name, [one.key for one in missing]))


@dataclass(frozen=True)
class _Backtest:
    """What the partitions of one backtest share."""

    pipeline: Pipeline
    state: State
    models: Mapping[str, Version]  # by partition key
    bundle_folder: FolderOfVersion
    stamp: Stamp
    folder: Path
    keep_scores: bool
    kept: list[Path] = field(default_factory=list[Path])  # the scores of all rows

    def tested(self, partitions: Sequence[Partition], watch: Watch | None) -> Iterator[TestedPartition]:
        """Score partitions, and measure each as soon as it is scored."""
        spec = self.pipeline.spec
        features = spec.features.model_copy(update={"max_rejected": 1.0})  # nothing is published that they could spoil
        rows = Counter[str]()
        for one in partitions:
            rows[self.models[one.key].version] += self.state.features[one.key].rows
        orders = (self._order(one, rows) for one in partitions)
        publish(self.pipeline.home)
        with (
            open_published(self.pipeline.home) as con,
            self.pipeline.builder.session(partitions[0]) as session,
            engine_of(spec.engine.name)(
                spec.model_copy(update={"features": features}), self.folder, self.stamp, watch=watch
            ) as engine,
            closing(engine.staged(orders)) as results,
        ):
            production = _Production(con, read_latest(con, ScoreRun, spec.name), read_registry(con, spec.name))
            for one, staged in zip(partitions, results, strict=True):
                yield self._tested(one, staged, production, session)
                for file in (*staged.rejected, *(() if self.keep_scores else staged.predictions)):
                    file.unlink()
                if self.keep_scores:
                    self.kept.extend(staged.predictions)

    def _order(self, partition: Partition, rows: Mapping[str, int]) -> ScoringOrder:
        build, version = self.state.features[partition.key], self.models[partition.key]
        return ScoringOrder(
            partition=partition,
            features=self.pipeline.history.file(build),
            sha256=build.sha256,
            rows=build.rows,
            model=self.bundle_folder(version, rows[version.version]),
            xxh3=build.xxh3,
        )

    def _tested(
        self, partition: Partition, staged: Staged, production: "_Production", session: FeatureSession
    ) -> TestedPartition:
        spec, model, run = self.pipeline.spec, self.models[partition.key], production.runs.get(partition.key)
        known_from = matures(spec, partition)
        comparison = PairedMetrics()
        if known_from <= self.stamp.at:
            comparison = self._compared(partition, staged, production, session)
            note = "" if comparison.rows else "none of its rows can be measured"
        else:
            note = f"its labels are known from {known_from:%Y-%m-%d %H:%M} UTC on"
        counts = staged.counts
        if counts.rows_in and counts.rows_rejected / counts.rows_in > spec.features.max_rejected:
            budget = f"{counts.rows_rejected / counts.rows_in:.2%} of its rows are rejected, more than max_rejected"
            note = "; ".join(filter(None, [note, f"{budget} ({spec.features.max_rejected:.2%}) lets be published"]))
        return TestedPartition(
            partition=partition.key,
            model=model,
            in_sample=model.has_seen(partition),
            rows_in=counts.rows_in,
            rows_scored=counts.rows_scored,
            rows_rejected=counts.rows_rejected,
            comparison=comparison,
            production_version=None if run is None else run.model_version,
            production_in_sample=None if run is None else run.in_sample,
            note=note,
        )

    def _compared(
        self, partition: Partition, staged: Staged, production: "_Production", session: FeatureSession
    ) -> PairedMetrics:
        """The metrics of the tested model and, on the same rows, those of production if it scored the partition."""
        history, model, key = self.pipeline.history, self.models[partition.key], self.pipeline.spec.features.key
        columns = [*key, *prediction_columns(model.task, model.class_labels)]
        predictions = pl.read_parquet(list(staged.predictions), columns=columns)
        labels = known_labels(history, session, partition, self.stamp, predictions)
        run = production.runs.get(partition.key)
        if run is None:
            tested = self._scored(partition, model, predictions, labels)
            return PairedMetrics(_rows_measured(tested), performance_of(tested))
        served = production.registry.named(run.model_version)
        committed = committed_predictions(production.con, history.spec, partition, served)
        committed = with_keys_of(predictions, history.spec, partition, committed, what="predictions")
        predictions, committed = (
            rows.join(others, on=key, how="semi", maintain_order="left")
            for rows, others in ((predictions, committed), (committed, predictions))
        )
        for classes in (model.class_labels, served.class_labels):
            if labels is not None and classes:
                labels = labels.filter(known_to(classes, labels[labels.columns[-1]]))
        tested = self._scored(partition, model, predictions, labels)
        of_production = performance_of(self._scored(partition, served, committed, labels))
        return PairedMetrics(_rows_measured(tested), performance_of(tested), of_production)

    def _scored(
        self, partition: Partition, model: Version, predictions: pl.DataFrame, labels: pl.DataFrame | None
    ) -> ScoredPartition:
        """A model's scores for the measures; features are encoded by the tested model's contract, whichever model it is."""

        def read_features() -> tuple[pl.DataFrame, NDArray[np.float64]]:
            bundle = self.bundle_folder(self.models[partition.key], 0)
            manifest = read_manifest(bundle.folder, bundle.sha256)
            contract = Contract.from_json(manifest.contract).under(self.pipeline.spec.features.columns)
            build = self.state.features[partition.key]
            return encoded_features(self.pipeline.history, build, partition, predictions, contract)

        return scored_by(model, self.pipeline.spec.features.key, predictions, labels, read_features)


def _rows_measured(partition: ScoredPartition) -> int:
    return partition.predictions.height if partition.labels is None else partition.labelled.height


@dataclass(frozen=True)
class _Production:
    """What production did, as it is published."""

    con: duckdb.DuckDBPyConnection
    runs: Mapping[str, ScoreRun]  # by partition key
    registry: Registry
