"""Training for one serving period: from recorded features to bundles on disk and the decisions on them.

A version that does not pass the gate is kept with the reason and never serves. A training of the model that fails leaves no
trace, and the champion continues to serve. Challengers train on the rows of the model; one that fails is recorded with the
reason, and production goes on without it.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch_platform.declaration.errors import (
    BatchPlatformError,
    PublishingError,
    WrongUseError,
)
from batch_platform.declaration.spec import Challenger, PipelineSpec
from batch_platform.declaration.windows import training_window
from batch_platform.features.history import History, TrainingData
from batch_platform.models.bundle import (
    Bundle,
)
from batch_platform.models.clusters import Former
from batch_platform.models.declared_model import check_model
from batch_platform.models.gate import Verdict, accepted, pass_gate
from batch_platform.models.registry import ChallengerTraining, Promotion, Version, leaks_in
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.pipeline.learned import LearnedModel
from batch_platform.pipeline.training import Training
from batch_platform.pipeline.trainings_due import knows_too_much
from batch_platform.scoring.orders import failure_of
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.staging import staging_folder

UNJUDGED = "imported, no labels to judge by"
OpenVersion = Callable[[Version], Bundle]
_MODEL_KEY = re.compile(r"\bmodel\.(estimator|build|import|params|flavour|task|classes|allow_pickle)\b")
_log = logging.getLogger(__name__)


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
    data: TrainingData | None = field(default=None, repr=False, compare=False)  # on which its challengers train
    challengers: tuple[TrainedChallenger, ...] = ()  # filled in once they are trained

    @property
    def leaks(self) -> list[SuspectedLeak]:
        """The leaks that the gate suspects."""
        return leaks_in(self.decision.evidence)


def train_version(training: Training, params: dict[str, Any], open_version: OpenVersion) -> Trained:
    """Train or import the model of a serving period, write its bundle and judge it by the gate.

    Raises:
        TrainingRefusedError: No model can be trained on the data; nothing is written. See `Training.learn` for others.
    """
    model, features, registry = training.history.spec.model, training.history.spec.features, training.state.registry
    champion = registry.champion(training.period.start)
    if former := champion or next(reversed(registry.of_model), None):
        training = replace(training, former=Former(former, open_version))
    learned = training.learn(params)
    if learned.data is None:
        verdict = accepted(model.promote, UNJUDGED)
    else:
        period, knowing = training.period.key, champion and knows_too_much(training.history.spec, champion)
        opponent = None if knowing else champion
        verdict = pass_gate(model.promote, features, learned.fitted, learned.data, period, opponent, open_version)
        if champion and knowing:
            reason = f"{verdict.reason}; the champion {champion.version} was not compared: it {knowing}"
            verdict = replace(verdict, reason=reason)
    final = learned if verdict.action == "refused" else training.refit(learned)
    version, decision = _written(training, final, verdict, actor="gate")
    return Trained(version, decision, learned.data if model.import_ is None else None)


def _written(training: Training, learned: LearnedModel, verdict: Verdict, *, actor: str) -> tuple[Version, Promotion]:
    """Write the bundle of a model; return its version and the decision on it, not registered yet."""
    home, spec, stamp = training.history.home, training.history.spec, training.stamp
    evaluation = replace(learned.manifest.evaluation, coverage=verdict.coverage)
    learned = replace(learned, manifest=replace(learned.manifest, evaluation=evaluation))
    with staging_folder(home, stamp.run_id) as staging:
        version = learned.write(staging, home.bundles(spec.name), allow_pickle=spec.model.allow_pickle)
    decision = Promotion(
        pipeline=version.pipeline,
        version=version.version,
        action=verdict.action,
        reason="; ".join([verdict.reason, *learned.manifest.remarks]),
        evidence=verdict.evidence,
        actor=actor,
        decided_at=stamp.now(),
        run_id=stamp.run_id,
    )
    return version, decision


def train_challengers(
    training: Training, challengers: Sequence[Challenger], open_version: OpenVersion, model: Trained | None = None
) -> Iterator[TrainedChallenger]:
    """Train challengers one after the other, on the rows that the model of the same training was trained on.

    Without a model the rows are read again, once for all challengers.
    """
    history, period, stamp = training.history, training.period, training.stamp
    spec, data = history.spec, None if model is None else model.data
    window = training_window(spec, period.start, training.state.dropped)  # whose features are built
    opponent = training.state.registry.champion(period.start)
    if model is not None and model.decision.action == "approved":
        opponent = model.version
    for challenger in challengers:
        result = ChallengerTraining(
            pipeline=spec.name,
            challenger=challenger.name,
            declared=challenger.fingerprint,
            serving_period=period.key,
            version=None,
            failure=None,
            trained_at=stamp.now(),
            run_id=stamp.run_id,
        )
        challenged = replace(
            training,
            history=History(as_model(spec, challenger), history.home, history.builder),
            former=None if opponent is None else Former(opponent, open_version),
        )
        try:
            learned = challenged.learn(challenger.params, data=data, within=window)
            verdict = _verdict(challenger, challenged.history.spec, learned, opponent, open_version)
            version, decision = _written(challenged, challenged.refit(learned), verdict, actor="declaration")
        except Exception as error:  # noqa: BLE001 - users' estimators may raise anything: it is recorded, and production goes on
            failure = _with_own_keys(failure_of(error), challenger)
            message = "%s: challenger %r could not be trained for %s: %s"
            _log.warning(message, spec.name, challenger.name, period.key, failure)
            yield TrainedChallenger(replace(result, failure=failure, trained_at=stamp.now()))
        else:
            data = data if challenger.import_ is not None else learned.data
            result = replace(result, version=version.version, trained_at=stamp.now())
            yield TrainedChallenger(result, version, decision)


def _verdict(
    challenger: Challenger,
    spec: PipelineSpec,
    learned: LearnedModel,
    opponent: Version | None,
    open_version: Callable[[Version], Bundle],
) -> Verdict:
    """Compare a challenger with the version that serves; whatever the result, it stays a challenger."""
    task = learned.fitted.signature.task
    if opponent is not None and opponent.task != task:
        msg = f"challengers.{challenger.name}: it is a {task} model, but {opponent.version} is a {opponent.task} model."
        raise WrongUseError(msg, hint="declare a challenger of the same task; only such models can be compared.")
    judgement, evidence = "there are no labels to judge it by", "{}"
    if learned.data is not None:
        gate = spec.model.promote.model_copy(update={"manual": False})
        period = learned.manifest.serving_period
        verdict = pass_gate(gate, spec.features, learned.fitted, learned.data, period, opponent, open_version)
        evidence = verdict.evidence
        judgement = verdict.reason if verdict.action == "approved" else f"would not pass the gate: {verdict.reason}"
    return Verdict("challenger", f"{challenger.name}; {judgement}", evidence)


def _with_own_keys(text: str, challenger: Challenger) -> str:
    """Replace the keys of the model in a message by those of a challenger."""
    return _MODEL_KEY.sub(rf"challengers.{challenger.name}.\1", text)


def as_model(spec: PipelineSpec, challenger: Challenger) -> PipelineSpec:
    """The pipeline with a challenger in place of its model, trained at the same times on the same windows."""
    declared = {
        name: getattr(challenger, name) for name in type(challenger).model_fields if name not in ("name", "version")
    }
    return spec.model_copy(update={"model": spec.model.model_copy(update={**declared, "publish": None})})


def check_challengers(spec: PipelineSpec, folder: Path) -> None:
    """Check, without data and without a server, that the challengers could be trained or imported.

    Raises:
        WrongUseError: A challenger could not; the message names it.
        DataError: The file of an import is not of its flavour.
    """
    for challenger in spec.challengers:
        if challenger.version is None:
            try:
                check_model(as_model(spec, challenger).model, folder)
            except BatchPlatformError as error:
                hint = None if error.hint is None else _with_own_keys(error.hint, challenger)
                raise type(error)(_with_own_keys(error.message, challenger), hint=hint) from error


def publish_version(spec: PipelineSpec, home: Home, trained: Trained) -> None:
    """Register a version in MLflow too, as declared; raises a PublishingError if MLflow does not accept it."""
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
