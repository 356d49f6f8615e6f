"""Training of challengers, for the serving period of a model and on the same rows.

A challenger that fails is recorded with the reason, and production goes on without it. Nothing here decides which version serves.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, WrongUseError
from batch_platform.declaration.spec import Challenger, PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import training_window
from batch_platform.features.history import History
from batch_platform.models.bundle import Bundle
from batch_platform.models.gate import Verdict, pass_gate
from batch_platform.models.imports import check_model
from batch_platform.models.registry import ChallengerTraining, Registry, Version
from batch_platform.pipeline.plan import State
from batch_platform.pipeline.train import LearnedModel, Trained, TrainedChallenger, learn, written
from batch_platform.scoring.orders import failure_of

_log = logging.getLogger(__name__)
_MODEL_KEY = re.compile(r"\bmodel\.(estimator|build|import|params|flavour|task|classes|allow_pickle)\b")


def as_model(spec: PipelineSpec, challenger: Challenger) -> PipelineSpec:
    """The pipeline with a challenger in place of its model, trained at the same times on the same windows."""
    own = {name: getattr(challenger, name) for name in type(challenger).model_fields if name not in ("name", "version")}
    return spec.model_copy(update={"model": spec.model.model_copy(update={**own, "publish": None})})


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


def trusted(spec: PipelineSpec, registry: Registry, version: Version) -> bool:
    """Whether the declaration trusts the files of a version to run code, as the model or as a challenger."""
    name = registry.challengers.get(version.version)
    own = (each.allow_pickle for each in spec.challengers if each.name == name or each.version == version.version)
    return spec.model.allow_pickle or any(own)


def train_challengers(  # noqa: PLR0913 - each is one fact of the training
    history: History,
    challengers: list[Challenger],
    *,
    state: State,
    period: Partition,
    stamp: Stamp,
    open_version: Callable[[Version], Bundle],
    model: Trained | None = None,
) -> Iterator[TrainedChallenger]:
    """Train challengers for a serving period, one after the other, on the rows that the model was trained on.

    Args:
        history: Of the pipeline.
        challengers: The challengers to train.
        state: The recorded state.
        period: The serving period.
        stamp: Of the run.
        open_version: Loads the version that they are compared with.
        model: The model of the same training. None: the rows are read again, once for all challengers.
    """
    spec, data = history.spec, None if model is None else model.data
    window = training_window(spec, period.start)  # whose features are built
    opponent = state.registry.champion(period.start)
    if model is not None and model.decision.action == "approved":
        opponent = model.version
    for challenger in challengers:
        training = ChallengerTraining(
            pipeline=spec.name,
            challenger=challenger.name,
            declared=challenger.fingerprint,
            serving_period=period.key,
            version=None,
            failure=None,
            trained_at=stamp.now(),
            run_id=stamp.run_id,
        )
        own = History(as_model(spec, challenger), history.home, history.builder)
        params = challenger.params
        try:
            learned = learn(own, state=state, period=period, params=params, stamp=stamp, data=data, within=window)
            verdict = _verdict(challenger, own.spec, learned, opponent, open_version)
            version, decision = written(
                learned, verdict, history.home, stamp, actor="declaration", allow_pickle=challenger.allow_pickle
            )
        except Exception as error:  # noqa: BLE001 - users' estimators may raise anything: it is recorded, and production goes on
            failure = _with_own_keys(failure_of(error), challenger)
            message = "%s: challenger %r could not be trained for %s: %s"
            _log.warning(message, spec.name, challenger.name, period.key, failure)
            yield TrainedChallenger(replace(training, failure=failure, trained_at=stamp.now()))
        else:
            data = data if challenger.import_ is not None else learned.data
            training = replace(training, version=version.version, trained_at=stamp.now())
            yield TrainedChallenger(training, version, decision)


def _verdict(
    challenger: Challenger,
    spec: PipelineSpec,
    learned: LearnedModel,
    opponent: Version | None,
    open_version: Callable[[Version], Bundle],
) -> Verdict:
    """Compare a challenger with the version that serves; whatever the result, it stays a challenger."""
    task = learned.fitted.task
    if opponent is not None and opponent.task != task:
        msg = f"challengers.{challenger.name}: it is a {task} model, but {opponent.version} is a {opponent.task} model."
        raise WrongUseError(msg, hint="declare a challenger of the same task; only such models can be compared.")
    judgement, evidence = "there are no labels to judge it by", "{}"
    if learned.data is not None:
        gate = spec.model.promote.model_copy(update={"manual": False})
        verdict = pass_gate(gate, learned.fitted, learned.data, opponent, open_version)
        evidence = verdict.evidence
        judgement = verdict.reason if verdict.action == "approved" else f"would not pass the gate: {verdict.reason}"
    return Verdict("challenger", f"{challenger.name}; {judgement}", evidence)


def _with_own_keys(text: str, challenger: Challenger) -> str:
    """Replace the keys of the model in a message by those of a challenger."""
    return _MODEL_KEY.sub(rf"challengers.{challenger.name}.\1", text)
