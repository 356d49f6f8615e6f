"""Training for one serving period: from recorded features to bundles on disk and the decisions on them.

A version that does not pass the gate is kept with the reason and never serves. A training of the model that fails leaves no
trace, and the champion continues to serve. Challengers train on the rows of the model; one that fails is recorded with the
reason, and production goes on without it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import (
    DataError,
    IntegrityError,
    WarehouseError,
    WrongUseError,
    counted,
    failure_of,
    in_short,
    listed,
)
from batch_platform.declaration.spec import Challenger, PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.history import History, TrainingData
from batch_platform.models.bundle import OpenVersion
from batch_platform.models.clusters import Former
from batch_platform.models.gate import GateDecision, pass_gate, unjudged
from batch_platform.models.registry import (
    REFINEMENTS,
    ChallengerTraining,
    ModelTraining,
    Promotion,
    Version,
    guesses_in,
    leaks_in,
    record_failure,
    register,
)
from batch_platform.monitoring.leakage import SuspectedLeak
from batch_platform.pipeline.build import Absent
from batch_platform.pipeline.challengers import as_model, with_own_keys
from batch_platform.pipeline.learned import LearnedModel, publish_version
from batch_platform.pipeline.training import Training
from batch_platform.planning.holds import require_labels
from batch_platform.planning.state import State
from batch_platform.planning.trainings import declared_now, knows_too_much, untrained
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.failures import forget_failures
from batch_platform.warehouse.lock import staging_folder

UNJUDGED = "imported, no labels to judge by"
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
    # Rows for the training of its challengers.
    data: TrainingData | None = field(default=None, repr=False, compare=False)
    challengers: tuple[TrainedChallenger, ...] = ()  # filled in once they are trained

    @property
    def leaks(self) -> list[SuspectedLeak]:
        """The leaks that the gate suspects."""
        return leaks_in(self.decision.evidence)

    @property
    def guesses(self) -> str:
        """That the version is not better than guessing, in words; empty if it is, or if nobody knows."""
        return guesses_in(self.decision.evidence)


@dataclass(frozen=True)
class TrainingStep:
    """The training of models and challengers in one run; each is registered as soon as it is trained."""

    history: History
    warehouse: Warehouse
    state: State
    stamp: Stamp
    open_version: OpenVersion
    absent: Absent = lambda _: {}  # partitions of assets with labels that were never materialized

    def train(self, period: Partition, params: Mapping[str, Any]) -> Trained:
        """Train the model of a serving period and its challengers; see `Pipeline.train`."""
        training, spec, stamp = Training(self.history, self.state, period, self.stamp), self.history.spec, self.stamp
        self._require_window(period)
        record = ModelTraining(
            pipeline=spec.name,
            serving_period=period.key,
            declared=declared_now(spec, self.state),
            version=None,
            failure=None,
            trained_at=stamp.now(),
            run_id=stamp.run_id,
        )
        try:
            trained = self._trained(training, {**spec.model.params, **params})
        except (OSError, MemoryError, IntegrityError, WarehouseError):
            raise
        except Exception as error:
            registry, single = self.state.registry, spec.periods.serving is None
            if not params and (registry.of_model if single else registry.newest_of(period.key)):
                with self.warehouse.transaction() as con:
                    record_failure(con, replace(record, failure=failure_of(error), trained_at=stamp.now()))
            raise
        record = replace(record, version=trained.version.version, trained_at=stamp.now())
        with self.warehouse.transaction() as con:
            register(con, trained.version, trained.decision, record)
            forget_failures(con, spec.name, "model", [period.key])
        due = [challenger for challenger in spec.challengers if challenger.version is None]
        trained = replace(trained, data=None, challengers=self._challenge(training, due, trained))
        if spec.model.publish is not None:
            publish_version(spec, self.history.home, trained.version, trained.decision)
        return trained

    def _require_window(self, period: Partition) -> None:
        """Refuse to train without some partitions of the training window, and name them."""
        spec, name, state = self.history.spec, self.history.spec.name, self.state
        window = spec.periods.window(period.start, state.dropped)
        if lacking := [partition.key for partition in window if partition.key not in state.features]:
            msg = (
                f"{name}, serving period {period.key}: the model is not trained, since the features of "
                f"{listed(lacking)} are missing from its training window."
            )
            failed = [key for key in lacking if ("features", key) in state.failures]
            hint = (
                f"batch-platform status {name} says what failed. If the rows of {failed[0]} never come, batch-platform drop {name} "
                f"--partition {failed[0]} leaves it out of every training window."
                if failed
                else f"batch-platform train {name} --period {period.key} builds them first; in Dagster, launch the job "
                f"{name}_bring_up_to_date."
            )
            raise DataError(msg, hint=hint)
        self._require_buildable(period, [partition.key for partition in window])
        self._require_labels(period, window)

    def _require_labels(self, period: Partition, window: Sequence[Partition]) -> None:
        """Refuse to train where the files or assets of mature labels are not there, instead of learning from fewer rows."""
        spec, builder = self.history.spec, self.history.builder
        require_labels(spec, period, window, builder.awaited_label_sources)
        for partition in window:
            if spec.periods.matures(partition) <= period.start:
                builder.require_labels(partition, self.absent(partition))

    def _require_buildable(self, period: Partition, window: Sequence[str]) -> None:
        """Refuse to train on features of an earlier declaration where those of the present one could not be built."""
        name, state = self.history.spec.name, self.state
        built = {key: state.features[key].code_version == state.declared.features_version for key in window}
        failures = {item.partition_key: item for item in state.standing_failures if item.step == "features"}
        if failed := [failures[key] for key in window if key in failures and not built[key]]:
            msg = (
                f"{name}, serving period {period.key}: the model is not trained, since the features of "
                f"{counted(len(failed), 'partition')} of its training window could not be built as they are declared now. "
                f"{failed[0].partition_key}: {in_short(name, failed[0].reason)}"
            )
            raise DataError(msg, hint=failed[0].hint or f"batch-platform status {name} says what failed.")

    def challenge(self, period: Partition) -> tuple[TrainedChallenger, ...]:
        """Train the challengers that a serving period lacks; its model stays as it is."""
        due = untrained(self.history.spec, self.state.registry, period.key)
        if due:
            self._require_labels(period, self.history.spec.periods.window(period.start, self.state.dropped))
        return self._challenge(Training(self.history, self.state, period, self.stamp), due)

    def _trained(self, training: Training, params: dict[str, Any]) -> Trained:
        """Train or import the model of a serving period, write its bundle and judge it by the gate.

        Raises:
            TrainingRefusedError: No model can be trained on the data; nothing is written. See `Training.learn` for others.
        """
        model, features, registry = self.history.spec.model, self.history.spec.features, self.state.registry
        champion = registry.champion(training.period.start)
        if former := champion or next(reversed(registry.of_model), None):
            training = replace(training, former=Former(former, self.open_version))
        learned = training.learn(params)
        if learned.data is None:
            judged = unjudged(model.promote, UNJUDGED)
        else:
            knowing = champion and knows_too_much(self.history.spec, champion)
            opponent = None if knowing else champion
            judged = pass_gate(
                model.promote,
                features,
                learned.fitted,
                learned.data,
                opponent,
                self.open_version,
                learned_from=learned.manifest.training,
                champion_over_guessing=opponent and registry.judged_beside_guessing(opponent.version),
            )
            if champion and knowing:
                reason = f"{judged.reason}; the champion {champion.version} was not compared: it {knowing}"
                judged = replace(judged, reason=reason)
        if former:
            changes = learned.changes_since(former, self.history.spec, self.history.home)
            judged = replace(judged, reason="; ".join([judged.reason, *changes]))
        final = learned if judged.action == "refused" else training.refit(learned)
        version, decision = self._written(training, final, judged, actor="gate")
        rows = None if learned.data is None or model.import_ is not None else learned.data.undivided()
        return Trained(version, decision, rows)

    def _written(
        self, training: Training, learned: LearnedModel, judged: GateDecision, *, actor: str
    ) -> tuple[Version, Promotion]:
        """Write the bundle of a model; return its version and the decision on it, not registered yet."""
        home, spec, stamp = training.history.home, training.history.spec, training.stamp
        evaluation = replace(learned.manifest.evaluation, coverage=judged.coverage)
        learned = replace(learned, manifest=replace(learned.manifest, evaluation=evaluation))
        with staging_folder(home, stamp.run_id) as staging:
            version = learned.write(staging, home.bundles(spec.name), allow_pickle=spec.model.allow_pickle)
        applied, remarks = learned.fitted.refinements.applied, learned.fitted.refinements.remarks
        refinements = {"applied": [each.refinement.name for each in applied], "remarks": remarks}
        decision = Promotion(
            pipeline=version.pipeline,
            version=version.version,
            action=judged.action,
            reason="; ".join([judged.reason, *learned.manifest.remarks]),
            evidence=json.dumps(json.loads(judged.evidence) | {REFINEMENTS: refinements}),
            actor=actor,
            decided_at=stamp.now(),
            run_id=stamp.run_id,
        )
        return version, decision

    def _challenge(
        self, training: Training, due: Sequence[Challenger], model: Trained | None = None
    ) -> tuple[TrainedChallenger, ...]:
        """Train challengers on the rows of a model of the same training; register each as soon as it is trained.

        Without a model the rows are read again, once for all challengers.
        """
        history, period, stamp = self.history, training.period, self.stamp
        spec, data = history.spec, None if model is None else model.data
        window = spec.periods.window(period.start, self.state.dropped)  # its features are built
        opponent = self.state.registry.champion(period.start)
        if model is not None and model.decision.action == "approved":
            opponent = model.version
        trained: list[TrainedChallenger] = []
        for challenger in due:
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
                former=None if opponent is None else Former(opponent, self.open_version),
                divided=training.divides,
                challenges=True,
            )
            try:
                learned = challenged.learn(challenger.params, data=data, within=window)
                judged = self._judged(challenger, challenged.history.spec, learned, opponent)
                version, decision = self._written(challenged, challenged.refit(learned), judged, actor="declaration")
            except Exception as error:  # noqa: BLE001 - users' estimators may raise anything: it is recorded, and production goes on
                failure = with_own_keys(failure_of(error), challenger)
                message = "%s: challenger %r could not be trained for %s: %s"
                _log.warning(message, spec.name, challenger.name, period.key, failure)
                result = replace(result, failure=failure, trained_at=stamp.now())
                with self.warehouse.transaction() as con:
                    record_failure(con, result)
                trained.append(TrainedChallenger(result))
            else:
                data = data if challenger.import_ is not None else learned.data
                result = replace(result, version=version.version, trained_at=stamp.now())
                with self.warehouse.transaction() as con:
                    register(con, version, decision, result)
                trained.append(TrainedChallenger(result, version, decision))
        return tuple(trained)

    def _judged(
        self, challenger: Challenger, spec: PipelineSpec, learned: LearnedModel, opponent: Version | None
    ) -> GateDecision:
        """Compare a challenger with the version that serves; whatever the result, it stays a challenger."""
        task = learned.fitted.signature.task
        if opponent is not None and opponent.task != task:
            msg = f"challengers.{challenger.name}: it is a {task} model, but {opponent.version} is a {opponent.task} model."
            raise WrongUseError(msg, hint="declare a challenger of the same task; only such models can be compared.")
        judgement, evidence = "there are no labels to judge it by", "{}"
        if learned.data is not None:
            gate = spec.model.promote.model_copy(update={"manual": False})
            judged = pass_gate(
                gate,
                spec.features,
                learned.fitted,
                learned.data,
                opponent,
                self.open_version,
                learned_from=learned.manifest.training,
                champion_over_guessing=opponent and self.state.registry.judged_beside_guessing(opponent.version),
            )
            evidence = judged.evidence
            judgement = judged.reason if judged.action == "approved" else f"would not pass the gate: {judged.reason}"
        return GateDecision("challenger", f"{challenger.name}; {judgement}", evidence)
