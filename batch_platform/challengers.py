"""Challengers: trained with the model of a serving period on the same rows, and sent to score beside the champion.

What goes wrong with a challenger is recorded with its reason, and production goes on without it. Nothing here decides
who serves.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from batch_platform.challenger_tables import ChallengerRun, Measured, StagedChallenger
from batch_platform.errors import BatchPlatformError, WrongUseError
from batch_platform.gate import pass_gate
from batch_platform.history import History
from batch_platform.learners import Challenger
from batch_platform.learning import Trained, TrainedChallenger, learn
from batch_platform.models.bundle import Bundle
from batch_platform.models.imports import check_model
from batch_platform.partitions import Partition
from batch_platform.plan import State, training_window
from batch_platform.registry import ChallengerTraining, Promotion, Registry, Version
from batch_platform.scoring import Stamp
from batch_platform.shadow import DECIDING, Contender, Shadowed, compared_columns, failure_of
from batch_platform.spec import PipelineSpec
from batch_platform.staged import Staged
from batch_platform.staging import staging_folder
from batch_platform.training import TrainingData

OpenVersion = Callable[[Version], Bundle]

_log = logging.getLogger(__name__)
_MODEL_KEY = re.compile(r"\bmodel\.(estimator|build|import|params|flavour|task|classes|allow_pickle)\b")


@dataclass(frozen=True)
class Challenged:
    """A challenger of one partition.

    Args:
        name: As declared.
        version: That is to score; None where it could not be told which one.
        bundle: Its bundle; None where it failed.
        failure: Why it cannot score.
    """

    name: str
    version: Version | None
    bundle: Bundle | None
    failure: str = ""


def as_model(spec: PipelineSpec, challenger: Challenger) -> PipelineSpec:
    """The pipeline as if a challenger were its model: trained when the model is, on the same window."""
    own = {name: getattr(challenger, name) for name in type(challenger).model_fields if name not in ("name", "version")}
    return spec.model_copy(update={"model": spec.model.model_copy(update={**own, "publish": None})})


def check_challengers(spec: PipelineSpec, folder: Path) -> None:
    """Check, without data and without a server, that the challengers could be trained or imported.

    Raises:
        WrongUseError: One could not; the message names it.
        DataError: The file of an import is not of its kind.
    """
    for one in spec.challengers:
        if one.version is None:
            try:
                check_model(as_model(spec, one).model, folder)
            except BatchPlatformError as error:
                hint = None if error.hint is None else _of_challenger(error.hint, one.name)
                raise type(error)(_of_challenger(error.message, one.name), hint=hint) from error


def trusted(spec: PipelineSpec, registry: Registry, version: Version) -> bool:
    """Whether the declaration trusts the files of a version to run code: as its model, or as a challenger."""
    name = registry.challengers.get(version.version)
    own = [one.allow_pickle for one in spec.challengers if one.name == name or one.version == version.version]
    return spec.model.allow_pickle or any(own)


def train_challengers(  # noqa: PLR0913 - each is one fact of the training
    history: History,
    challengers: list[Challenger],
    *,
    state: State,
    period: Partition,
    stamp: Stamp,
    open_version: OpenVersion,
    model: Trained | None = None,
) -> Iterator[TrainedChallenger]:
    """Train challengers for a serving period, one after the other, on the rows that its model was trained on.

    Args:
        history: Of the pipeline.
        challengers: To be trained.
        state: What is recorded.
        period: The serving period.
        stamp: Of the run.
        open_version: Loads what they are compared with.
        model: Of the same training; None reads the rows anew, once for all.
    """
    spec, data = history.spec, None if model is None else model.data
    window = training_window(spec, period.start)  # whose features are built
    opponent = state.registry.champion(period.start)
    if model is not None and model.decision.action == "approved":
        opponent = model.version
    for one in challengers:
        try:
            trained, data = _trained(
                History(as_model(spec, one), history.home, history.builder),
                one,
                state=state,
                period=period,
                stamp=stamp,
                data=data,
                window=window,
                opponent=opponent,
                open_version=open_version,
            )
        except Exception as error:  # noqa: BLE001 - whatever users' estimators raise: it is recorded, and production goes on
            failure = _of_challenger(failure_of(error), one.name)
            _log.warning("%s: challenger %r could not be trained for %s: %s", spec.name, one.name, period.key, failure)
            yield TrainedChallenger(_training(spec, one, period, None, failure, stamp))
        else:
            yield trained


def _trained(  # noqa: PLR0913 - each is one fact of the training
    history: History,
    one: Challenger,
    *,
    state: State,
    period: Partition,
    stamp: Stamp,
    data: TrainingData | None,
    window: Sequence[Partition],
    opponent: Version | None,
    open_version: OpenVersion,
) -> tuple[TrainedChallenger, TrainingData | None]:
    spec = history.spec
    learnt = learn(history, state=state, period=period, params=one.params, stamp=stamp, data=data, within=window)
    if opponent is not None and opponent.task != learnt.fitted.task:
        msg = f"challengers.{one.name}: it is a {learnt.fitted.task} model, and {opponent.version} is {opponent.task}."
        raise WrongUseError(msg, hint="only models of one task can be compared.")
    said, evidence = "there are no labels to judge it by", "{}"
    if learnt.data is not None:
        verdict = pass_gate(
            spec.model.promote.model_copy(update={"manual": False}), learnt.fitted, learnt.data, opponent, open_version
        )
        evidence = verdict.evidence
        said = verdict.reason if verdict.action == "approved" else f"would not pass the gate: {verdict.reason}"
    with staging_folder(history.home, stamp.run_id) as staging:
        version = learnt.write(staging, history.home.models / spec.name, allow_pickle=one.allow_pickle)
    decision = Promotion(
        pipeline=spec.name,
        version=version.version,
        action="challenger",
        reason=f"{one.name}; {said}",
        evidence=evidence,
        actor="declaration",
        decided_at=stamp.now(),
        run_id=stamp.run_id,
    )
    training = _training(spec, one, period, version.version, None, stamp)
    kept = data if one.import_ is not None else learnt.data
    return TrainedChallenger(training, version, decision), kept


def _training(  # noqa: PLR0913 - each is one fact of the training
    spec: PipelineSpec, one: Challenger, period: Partition, version: str | None, failure: str | None, stamp: Stamp
) -> ChallengerTraining:
    return ChallengerTraining(
        pipeline=spec.name,
        challenger=one.name,
        declared=one.fingerprint,
        serving_period=period.key,
        version=version,
        failure=failure,
        trained_at=stamp.now(),
        run_id=stamp.run_id,
    )


def _of_challenger(text: str, name: str) -> str:
    """What is said of keys of the model, said of those of a challenger."""
    return _MODEL_KEY.sub(rf"challengers.{name}.\1", text)


class Challengers:
    """The challengers of the partitions of one run, each version opened once."""

    def __init__(self, spec: PipelineSpec, registry: Registry, open_version: OpenVersion) -> None:
        """Open nothing yet."""
        self._spec, self._registry, self._open = spec, registry, open_version
        self._opened: dict[str, Bundle | str] = {}

    def of(self, partition: Partition, champion: Version) -> tuple[Challenged, ...]:
        """Who scores a partition beside its champion: the declared ones that have a version for it, but for itself."""
        return tuple(found for one in self._spec.challengers if (found := self._one(one, partition.start, champion)))

    def named(self, name: str, version: str) -> Challenged:
        """A challenger with a given version."""
        try:
            found = self._registry.present(version)
        except WrongUseError as error:
            return Challenged(name, None, None, failure_of(error))
        bundle = self._bundle(found)
        return Challenged(name, found, None, bundle) if isinstance(bundle, str) else Challenged(name, found, bundle)

    def again(self, run: ChallengerRun) -> Challenged:
        """Who scored a partition before; one that could not, still cannot."""
        if run.failure is None and run.model_version is not None:
            return self.named(run.challenger, run.model_version)
        return Challenged(run.challenger, None, None, run.failure or "")

    def _one(self, one: Challenger, at: datetime, champion: Version) -> Challenged | None:
        version = one.version
        if version is None:
            found = self._registry.contender(one.name, at)
            version = None if found is None else found.version
        return None if version in (None, champion.version) else self.named(one.name, version)

    def _bundle(self, version: Version) -> Bundle | str:
        """The bundle, or why it cannot be had."""
        if version.version not in self._opened:
            try:
                self._opened[version.version] = self._open(version)
            except Exception as error:  # noqa: BLE001 - loading runs users' code: it is recorded, and production goes on
                self._opened[version.version] = failure_of(error)
        return self._opened[version.version]


def contenders(challenged: Sequence[Challenged], rows: Mapping[str, int]) -> tuple[Contender, ...]:
    """Those that are ready to score, given how many rows of a run each version is to score."""
    return tuple(
        Contender(one.name, one.bundle, one.bundle.for_rows(rows[one.bundle.version]))
        for one in challenged
        if one.bundle is not None
    )


def staged_challengers(
    challenged: Sequence[Challenged], staged: Staged, champion: str, stamp: Stamp
) -> tuple[StagedChallenger, ...]:
    """What the challengers of a staged partition commit, those included that failed."""
    given = {one.name: one for one in staged.shadowed}
    return tuple(_staged(one, given.get(one.name), staged, champion, stamp) for one in challenged)


def _staged(one: Challenged, given: Shadowed | None, staged: Staged, champion: str, stamp: Stamp) -> StagedChallenger:
    failure = one.failure if given is None else given.failure
    if failure:
        where = f"{staged.partition.key}: challenger {one.name!r}"
        _log.warning("partition %s could not score it beside the champion: %s", where, failure)
    version, partition = one.version, staged.partition
    run = ChallengerRun(
        partition_key=partition.key,
        challenger=one.name,
        model_version=None if version is None else version.version,
        champion_version=champion,
        rows_in=staged.rows_scored,
        rows_scored=0 if given is None else given.rows_scored,
        rows_rejected=0 if given is None else given.rows_rejected,
        reasons=json.dumps({} if given is None else given.reasons),
        rank_correlation=None if given is None else given.agreed.rank_correlation,
        decisions_flipped=None if given is None else given.agreed.decisions_flipped,
        failure=failure or None,
        in_sample=version is not None and version.has_seen(partition),
        scored_at=staged.started_at,
        run_id=stamp.run_id,
    )
    return StagedChallenger(run, None if given is None else given.file)


def added(one: StagedChallenger, before: ChallengerRun, spec: PipelineSpec, registry: Registry) -> StagedChallenger:
    """What a challenger commits where rows are added to those that it scored before."""
    if one.run.failure is not None or before.model_version is None:
        failed = replace(one.run, model_version=before.model_version, rows_in=before.rows_in + one.run.rows_in)
        return replace(one, run=failed)
    model, champion = registry.named(before.model_version), registry.named(before.champion_version)
    columns = compared_columns(model.task, champion.class_labels, model.class_labels)
    how = Measured(tuple(spec.features.key), tuple(columns), decides=model.task in DECIDING)
    return replace(one, added_to=before, measured=how)
