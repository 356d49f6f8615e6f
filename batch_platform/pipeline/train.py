"""Training for one serving period: from recorded features to a bundle on disk and the gate's decision on it.

A version that does not pass the gate is kept with the reason and never serves. A training that fails leaves no trace, and the champion
continues to serve.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, PublishingError, TrainingRefusedError
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import can_train, evaluation_start, matures, training_window
from batch_platform.features.history import History, fingerprint
from batch_platform.features.labelled import TrainingData, feature_columns
from batch_platform.features.sample import SEED
from batch_platform.models.bundle import Bundle, Evaluation, Manifest, Sampled, Window, write_bundle
from batch_platform.models.contract import infer_contract
from batch_platform.models.estimator import is_classification
from batch_platform.models.fitting import Fitted, compiled_form, declared_columns, evaluate, fit
from batch_platform.models.flavours.known import predictor_of
from batch_platform.models.gate import Verdict, pass_gate, unjudged
from batch_platform.models.imports import read_import
from batch_platform.models.registry import ChallengerTraining, Promotion, Version
from batch_platform.pipeline.plan import State
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform.warehouse.staging import staging_folder

UNJUDGED = "imported, no labels to judge by"
_TRIAL_ROWS = 1_000


def import_model(  # noqa: PLR0913 - each is one fact of the import
    history: History,
    builds: Mapping[str, FeatureBuild],
    window: Sequence[Partition],
    period: Partition,
    *,
    params: dict[str, Any],
    stamp: Stamp,
) -> tuple[Fitted, TrainingData | None]:
    """Read the model that a pipeline imports and check it against the features.

    Args:
        history: Of the pipeline.
        builds: Its feature files, by partition key.
        window: The partitions before the serving period.
        period: The serving period.
        params: Arguments for a model class in Python.
        stamp: Of the run.

    Returns:
        The model, and the labelled rows to judge it by; None if no label is known.

    Raises:
        TrainingRefusedError: There is no row of features from which a contract could be learned.
        DataError: The model does not fit the features.
        WrongUseError: The model does not exist, or cannot be used as declared.
        IntegrityError: A feature file differs from what was recorded.
    """
    spec = history.spec
    seen = history.rows(builds, window)
    if not seen.height:
        msg = "There are no features before it from which the contract of the imported model could be learned."
        raise TrainingRefusedError(msg, hint="import it for a later serving period.")
    imported = read_import(spec.model, history.builder.sources.folder, params)
    columns = seen.select(feature_columns(spec.features, seen.schema))
    inferred = infer_contract(columns, declared_columns(spec.features, columns), most_categories=None)
    signature = imported.signature(inferred)
    predictor, contract = predictor_of(imported.flavour, imported.source.model, signature), signature.contract
    trial = contract.split(seen.tail(_TRIAL_ROWS)).kept
    if trial.height:  # the model must return what it is declared to return
        predictor.predict(contract.encode(trial))
    data = _labelled(history, builds, window, period, stamp)
    rows = contract.split(seen.clear() if data is None else data.evaluate)
    classes, label = list(signature.classes), None if data is None else data.label
    metrics: dict[str, float] = {}
    if data is not None:
        metrics = evaluate(
            predictor, task=signature.task, classes=classes, contract=contract, rows=rows.kept, label=label
        )
    fitted = Fitted(
        estimator=imported.source.model,
        task=signature.task,
        classes=classes,
        contract=contract,
        metrics=metrics,
        rows_fitted=0,
        rows_evaluated=rows.kept.height,
        rows_rejected=rows.rejected.height,
        suspicious=[],
        proof=compiled_form(predictor, contract, trial),
        flavour=imported.flavour,
        predictor=predictor,
        details=imported.source.details,
    )
    return fitted, data if metrics else None


def _labelled(
    history: History, builds: Mapping[str, FeatureBuild], window: Sequence[Partition], period: Partition, stamp: Stamp
) -> TrainingData | None:
    """The end of the window, with labels known at the start of the serving period; None if no label is known."""
    spec = history.spec
    known = [partition for partition in window if matures(spec, partition) <= period.start]
    if spec.labels is None or not known:
        return None
    boundary = evaluation_start(spec, known)
    held_out = [partition for partition in known if partition.start >= boundary] or known[-1:]
    return history.training_data(builds, held_out, held_out[0].start, stamp)


@dataclass(frozen=True)
class LearnedModel:
    """A fitted or imported model and its manifest, not written to disk yet."""

    fitted: Fitted
    data: TrainingData | None  # None if no label is known to judge it by
    manifest: Manifest  # without what is known only once the files are written

    def write(self, staging: Path, models: Path, *, allow_pickle: bool) -> Version:
        """Write its bundle, wholly or not at all; see `write_bundle`.

        Raises:
            TrainingRefusedError: The model holds a type that would not be trusted on loading.
        """
        model = self.fitted.flavour.to_save(self.fitted.estimator, allow_pickle=allow_pickle)
        version, sha256, manifest = write_bundle(self.manifest, model, staging, models, self.fitted.proof.trees)
        return Version(
            pipeline=manifest.pipeline,
            version=version,
            serving_period=manifest.serving_period,
            serving_start=datetime.fromisoformat(manifest.serving_start),
            sha256=sha256,
            flavour=manifest.flavour,
            task=manifest.task,
            estimator=manifest.estimator,
            params=json.dumps(manifest.params, sort_keys=True),
            trained_from=datetime.fromisoformat(manifest.training.start),
            trained_until=datetime.fromisoformat(manifest.training.end),
            rows_trained=manifest.training.rows,
            rows_evaluated=manifest.evaluation.rows,
            metrics=json.dumps(manifest.evaluation.metrics, sort_keys=True),
            features_code_version=manifest.features_code_version,
            created_at=datetime.fromisoformat(manifest.created_at),
            run_id=manifest.run_id,
            classes=json.dumps(manifest.classes),
            label_sources=manifest.training.label_sources,
        )


@dataclass(frozen=True)
class TrainedChallenger:
    """The result of training a challenger: a version on disk and the decision on it, or only the failure."""

    training: ChallengerTraining
    version: Version | None = None
    decision: Promotion | None = None


@dataclass(frozen=True)
class Trained:
    """A version on disk and the decision on it, not registered yet."""

    version: Version
    decision: Promotion
    suspicious: list[str]  # features that alone nearly decide the label
    data: TrainingData | None = field(default=None, repr=False, compare=False)  # on which its challengers train
    challengers: tuple[TrainedChallenger, ...] = ()  # filled in once they are trained


def train_version(  # noqa: PLR0913 - each is one fact of the training
    history: History,
    *,
    state: State,
    period: Partition,
    params: dict[str, Any],
    stamp: Stamp,
    open_version: Callable[[Version], Bundle],
) -> Trained:
    """Train or import the model of a serving period, write its bundle and judge it by the gate.

    Args:
        history: Of the pipeline.
        state: The recorded state.
        period: The model learns only from what is known at its start.
        params: Parameters of the estimator.
        stamp: Of the run.
        open_version: Loads the champion for the gate's comparison.

    Raises:
        TrainingRefusedError: No model can be trained on the data; nothing is written.
        DataError: Features of the window are not built, or do not fit the model.
        WrongUseError: The model does not exist, or cannot be used as declared.
        IntegrityError: A feature file differs from what was recorded.
    """
    spec = history.spec
    learned = learn(history, state=state, period=period, params=params, stamp=stamp)
    if learned.data is None:
        verdict = unjudged(spec.model.promote, UNJUDGED)
    else:
        champion = state.registry.champion(period.start)
        verdict = pass_gate(spec.model.promote, learned.fitted, learned.data, champion, open_version)
    version, decision = written(
        learned, verdict, history.home, stamp, actor="gate", allow_pickle=spec.model.allow_pickle
    )
    data = learned.data if spec.model.import_ is None else None
    return Trained(version, decision, learned.fitted.suspicious, data)


def written(  # noqa: PLR0913 - each is one fact of the decision
    learned: LearnedModel, verdict: Verdict, home: Home, stamp: Stamp, *, actor: str, allow_pickle: bool
) -> tuple[Version, Promotion]:
    """Write the bundle of a model; return its version and the decision on it, not registered yet."""
    with staging_folder(home, stamp.run_id) as staging:
        version = learned.write(staging, home.models / learned.manifest.pipeline, allow_pickle=allow_pickle)
    decision = Promotion(
        pipeline=version.pipeline,
        version=version.version,
        action=verdict.action,
        reason=verdict.reason,
        evidence=verdict.evidence,
        actor=actor,
        decided_at=stamp.now(),
        run_id=stamp.run_id,
    )
    return version, decision


def learn(  # noqa: PLR0913 - each is one fact of the training
    history: History,
    *,
    state: State,
    period: Partition,
    params: dict[str, Any],
    stamp: Stamp,
    data: TrainingData | None = None,
    within: Sequence[Partition] | None = None,
) -> LearnedModel:
    """Fit or import the model of a serving period from what is known at its start; write nothing.

    Args:
        history: Of the pipeline.
        state: The recorded state.
        period: The serving period.
        params: Parameters of the estimator.
        stamp: Of the run.
        data: The rows of the training window, if they were read before.
        within: Partitions to which the window is restricted; None for no restriction.

    Raises:
        As `train_version`.
    """
    spec = history.spec
    window = training_window(spec, period.start)
    if within is not None:
        window = [partition for partition in window if partition in within]
    if not can_train(spec, window):
        msg = f"{spec.name}, serving period {period.key}: its training window holds {len(window)} partitions."
        hint = f"besides model.train.evaluate ({spec.model.train.evaluate}), it needs partitions to learn from."
        raise TrainingRefusedError(msg, hint=hint)
    boundary = evaluation_start(spec, window)
    stratified = spec.model.import_ is None and is_classification(spec.model)
    labels = "" if spec.model.import_ else history.label_fingerprint(window)  # before they are read
    try:
        if spec.model.import_ is None:
            data = data or history.training_data(state.features, window, boundary, stamp, stratified=stratified)
            fitted = fit(spec.model, spec.features, data, params)
        else:
            fitted, data = import_model(history, state.features, window, period, params=params, stamp=stamp)
    except BatchPlatformError as error:
        if error.message.startswith(spec.name):
            raise
        msg = f"{spec.name}, serving period {period.key}: {error.message}"
        raise type(error)(msg, hint=error.hint) from error
    manifest = Manifest(
        pipeline=spec.name,
        serving_period=period.key,
        serving_start=period.start.isoformat(),
        flavour=fitted.flavour.name,
        task=fitted.task,
        classes=fitted.classes,
        estimator=redact(spec.model.estimator or spec.model.build or spec.model.import_ or ""),
        params=redacted(params),
        contract=fitted.contract.to_json(),
        training=Window(
            start=window[0].start.isoformat(),
            end=window[-1].end.isoformat(),
            partitions=len(window),
            rows=fitted.rows_fitted,
            rows_rejected=fitted.rows_rejected,
            features_sha256=fingerprint(state.features, window),
            label_sources=labels,
        ),
        evaluation=Evaluation(
            start=boundary.isoformat(),
            end=window[-1].end.isoformat(),
            rows=fitted.rows_evaluated,
            metrics=fitted.metrics,
        ),
        features_code_version=state.features_code_version,
        created_at=stamp.now().isoformat(),
        run_id=stamp.run_id,
        compiled=fitted.proof.compiled,
        imported_from=redact(spec.model.import_ or ""),
        details=redacted(fitted.details),
        sampled=None if data is None or spec.model.import_ else _sampled(spec, data, stratified=stratified),
    )
    return LearnedModel(fitted, data, manifest)


def publish_version(spec: PipelineSpec, home: Home, trained: Trained) -> None:
    """Register a version in MLflow too, as declared; nothing that is recorded here depends on it.

    Raises:
        PublishingError: MLflow did not accept it.
    """
    from batch_platform.models.publishing import publish_bundle

    version, decision = trained.version, trained.decision
    try:
        publish_bundle(
            home.bundle(spec.name, version.version),
            version.sha256,
            decision=decision.action,
            reason=decision.reason,
            allow_pickle=spec.model.allow_pickle,
        )
    except Exception as error:  # errors of MLflow, the network and the disk share no class
        msg = f"{spec.name}: {version.version} is registered here ({decision.action}), but not in MLflow: {error}"
        raise PublishingError(msg.rstrip(".") + ".", hint="materialize the model again once MLflow answers.") from error


def _sampled(spec: PipelineSpec, data: TrainingData, *, stratified: bool) -> Sampled | None:
    """How rows were sampled to stay below the cap on training rows; None if all of them were used."""
    max_rows, before, after = spec.model.train.max_rows, data.rows_before_cap, data.fit.height
    if max_rows is None or before == after:
        return None
    return Sampled(max_rows=max_rows, rows_before=before, rows_after=after, stratified=stratified, seed=SEED)
