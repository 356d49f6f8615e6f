"""The models that a backtest tests: registered versions, or versions trained as of then for the backtest alone."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.importing import import_function
from batch_platform.declaration.model import Model
from batch_platform.declaration.notation import check_dotted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import materialize_hint
from batch_platform.models.declared_model import check_estimator_exists
from batch_platform.models.registry import Version
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.training import Training
from batch_platform.planning.state import State
from batch_platform.scoring.partition import BundleFolder


@dataclass(frozen=True)
class BacktestModel:
    """The model to test: a registered version, or an estimator that is trained for each serving period."""

    version: str | None = None
    estimator: str | None = None  # import path of a class, or of a function that returns an estimator
    params: dict[str, Any] = field(default_factory=dict[str, Any])


def trained_bundle(spec: PipelineSpec, models: Path, version: Version, rows: int) -> BundleFolder:
    """The folder of the bundle of a version that was trained for a backtest, which scores so many rows."""
    folder = models / version.version
    return BundleFolder(version.version, folder, version.sha256, rows, spec.model.allow_pickle)


def train_models(  # noqa: PLR0913 - what is trained, and where
    pipeline: Pipeline,
    state: State,
    partitions: Sequence[Partition],
    stamp: Stamp,
    folder: Path,
    announce: Callable[[Partition], object],
) -> dict[str, Version]:
    """The trained versions by partition key: one per serving period, each from what was known at its start."""
    model, periods = pipeline.spec.model, _periods(pipeline.spec, partitions, stamp)
    windows = [pipeline.spec.periods.window(period.start, state.dropped) for period in set(periods.values())]
    require_features(pipeline, state, [*partitions, *chain.from_iterable(windows)], as_declared=True)
    trained: dict[str, Version] = {}
    for period in dict.fromkeys(periods.values()):
        announce(period)
        training = Training(pipeline.history, state, period, stamp)
        learned = training.refit(training.learn(model.params))
        trained[period.key] = learned.write(folder, folder / "models", allow_pickle=model.allow_pickle)
    return {key: trained[period.key] for key, period in periods.items()}


def with_model(spec: PipelineSpec, tested: BacktestModel) -> PipelineSpec:
    """The pipeline with the estimator to test, trained when and on what the declared model is trained."""
    path = tested.estimator or ""
    try:
        check_dotted(path)
    except ValueError as error:
        msg = f"the estimator: {error}."
        raise WrongUseError(msg, hint="write it as 'package.module.Class'.") from error
    kind = "estimator" if inspect.isclass(import_function(path, "the estimator")) else "build"
    declared = {name: getattr(spec.model, name) for name in ("train", "promote", "refit", "allow_pickle", "calibrate")}
    model = Model.model_validate({kind: path, "params": tested.params, **declared})
    check_estimator_exists(model)
    return spec.model_copy(update={"model": model})


def _periods(spec: PipelineSpec, partitions: Sequence[Partition], stamp: Stamp) -> dict[str, Partition]:
    """The serving period of each partition, by partition key; a single model's period starts with the first partition."""
    if spec.model.train.every is None:
        first = partitions[0]
        begun = [Partition(key=first.key, start=first.start, end=first.start)] if _can_serve(spec, first) else []
    else:
        begun = spec.periods.begun(stamp.at)
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
    return spec.periods.can_train(spec.periods.window(partition.start))


def require_features(
    pipeline: Pipeline, state: State, partitions: Iterable[Partition], *, as_declared: bool = False
) -> None:
    """Check that the features of partitions are built; for training, by the SQL as it is now."""
    name, keys = pipeline.spec.name, sorted({partition.key for partition in partitions})
    missing = [key for key in keys if key not in state.features]
    what = "not built, or their file has changed"
    if as_declared and not missing:
        missing = [key for key in keys if state.features[key].code_version != state.declared.features_version]
        what = "built by an earlier version of the SQL"
    if missing:
        msg = f"{name}: the features of {listed(missing)} are {what}; a backtest builds no features."
        raise DataError(msg, hint=materialize_hint(name, missing))
