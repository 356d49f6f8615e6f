"""The plan of what is due, in order: features, then models and challengers, then predictions, then performance and deliveries.

A pure function of the declaration, the state and a request; schedules, `run` and `status` all ask it. Once a plan is
carried out, the next plan by the same request is empty.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Registry, Version
from batch_platform.pipeline.retention import why_left
from batch_platform.pipeline.set_apart import failures_of
from batch_platform.pipeline.state import State, features_due, undelivered
from batch_platform.pipeline.steps import Item, Step
from batch_platform.pipeline.trainings_due import (
    changed,
    due_challengers,
    due_models,
    knows_too_much,
    single_period,
    why_again,
)
from batch_platform.pipeline.wanted import PlanRequest, Question
from batch_platform.warehouse.ledger import ScoreRun


@dataclass(frozen=True)
class Plan:
    """The items that are due, and what readers of a committed partition should know, by its key."""

    items: list[Item]  # order of execution
    blocked: list[Item]  # predictions that no model serves, of which some are warm-up
    # Why scoring a committed partition now would give other rows; also where `rescore` forbids it.
    stale: Mapping[str, str] = field(default_factory=dict[str, str])
    # What the evaluation of a scored partition waits for although its labels should be known.
    awaiting: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: Mapping[str, str] = field(default_factory=dict[str, str])
    expired: Mapping[str, str] = field(default_factory=dict[str, str])  # why partitions are left as they are
    # Why a model should be trained again although its declaration is the same, by serving period; also with `retrain: never`.
    outdated: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, *steps: Step) -> list[Item]:
        """The due items of some steps, oldest first."""
        return [item for item in self.items if item.step in steps]

    def part(self, partitions: Collection[Partition]) -> "Plan":
        """The plan for some of its partitions, if no model is due, so that the others do not matter to them."""
        items = [item for item in self.items if item.partition in partitions]
        return replace(self, items=items, blocked=[item for item in self.blocked if item.partition in partitions])


def make_plan(spec: PipelineSpec, state: State, request: PlanRequest) -> Plan:
    """Plan what is due by a request; raises WrongUseError if it names a version that does not exist."""
    question = Question.of(spec, state, request)
    named = None if request.model is None else state.registry.named(request.model)
    models = _Models() if named else _due_models(question)
    with_model = {item.partition.key for item in models.due} | request.failed_models  # challengers are trained with it
    challengers = [] if named else due_challengers(question)
    learning = [*models.due, *(item for item in challengers if item.partition.key not in with_model)]
    scoring = _due_predictions(question, models.due, named)
    features = _due_features(question, learning, scoring)
    scoring = _with_features_built_again(question, scoring, features)
    performance, awaiting = _due_performance(question, scoring)
    return Plan(
        items=[*features, *learning, *scoring.due, *performance, *_due_deliveries(question, scoring)],
        blocked=_with_warm_up(question, models.due, scoring.blocked),
        stale=scoring.stale,
        awaiting=awaiting,
        remarks=_remarks(question, scoring, awaiting),
        expired=why_left(spec, question.old),
        outdated=models.outdated,
    )


def remaining(
    spec: PipelineSpec, state: State, request: PlanRequest, run_ids: Collection[str], plan: Plan | None = None
) -> Plan:
    """Plan what is left of a request once models are trained, without what failed in some runs.

    The previous model scores for a model that could not be trained. The `plan` by which the runs began stands where it
    trains nothing.
    """
    failures = failures_of(state, run_ids)
    failed_models = {failure.partition_key for failure in failures if failure.step == "model"}
    failed = {failure.partition_key for failure in failures if failure.step in ("features", "predictions")}
    if plan is None or plan.of("model", "challengers"):
        plan = make_plan(spec, state, replace(request, retrain=False, failed_models=failed_models))
    items = [item for item in plan.items if item.partition.key not in failed and not item.awaits_model]
    return replace(plan, items=items)


@dataclass(frozen=True)
class _Models:
    """The models that are due, and those that should be trained again although their declaration is the same."""

    due: Sequence[Item] = ()
    outdated: Mapping[str, str] = field(default_factory=dict[str, str])  # reasons by serving period


@dataclass(frozen=True)
class _Scoring:
    """The predictions that are due, those that no model serves, and those that are stale, due or not."""

    due: Sequence[Item]  # oldest first
    blocked: Sequence[Item]
    stale: Mapping[str, str]  # reasons by partition key

    @property
    def keys(self) -> set[str]:
        """The partitions that are due."""
        return {item.partition.key for item in self.due}


def _due_models(question: Question) -> _Models:
    """The serving periods whose model is due, as the request and the declaration want it."""
    spec, state, request = question.spec, question.state, question.request
    due = due_models(question)
    outdated = {
        item.partition.key: item.reason for item in due if item.again and changed(spec, state, item.partition) is None
    }
    if spec.model.train.retrain == "never":
        due = [item for item in due if not item.again]
    train = [training_asked_for(spec, state, request.now, force=True)[0]] if request.retrain else request.train
    asked = [Item("model", period, "asked for") for period in train if period is not None]
    keys = {item.partition.key for item in asked}
    return _Models(sorted([*(item for item in due if item.partition.key not in keys), *asked], key=_start), outdated)


def _due_features(question: Question, learning: Sequence[Item], scoring: _Scoring) -> list[Item]:
    """The partitions whose features are due: to learn from, to score, or to make again what was dropped and is named.

    With `recheck`, also those that no model serves and whose sources changed: the next model learns from them.
    """
    spec, state = question.spec, question.state
    windows = [spec.periods.window(item.partition.start, state.dropped) for item in learning]
    windows.append([partition for partition in question.wanted if partition.key in state.dropped])
    if question.request.recheck:
        current = {key for key, build in state.features.items() if build.code_version == state.features_code_version}
        windows.append([partition for partition in question.wanted if partition.key in current])
    needed = {partition.key: partition for window in windows for partition in window}
    forced = {partition.key: partition for partition in question.wanted} if question.request.force else {}
    needed |= forced | {item.partition.key: item.partition for item in scoring.due}
    reasons = {key: features_due(state, needed[key]) or ("forced" if key in forced else None) for key in needed}
    due = [Item("features", needed[key], reason) for key, reason in reasons.items() if reason is not None]
    return sorted(due, key=_start)


def _with_features_built_again(question: Question, scoring: _Scoring, features: Sequence[Item]) -> _Scoring:
    """Add the scored partitions whose features are built again to learn from."""
    rebuilt = {item.partition.key for item in features} - scoring.keys
    if question.spec.predictions.rescore == "never":
        return scoring
    again = [
        Item("predictions", partition, "its features are built again")
        for partition in _servable(question)
        if partition.key in rebuilt and partition.key in question.state.scores
    ]
    stale = {item.partition.key: item.reason for item in again} | {**scoring.stale}
    return _Scoring(sorted([*scoring.due, *again], key=_start), scoring.blocked, stale)


def _servable(question: Question) -> list[Partition]:
    """The wanted partitions that a model can serve."""
    served_from = question.spec.periods.served.first_start
    return [partition for partition in question.wanted if partition.start >= served_from]


def _start(item: Item) -> datetime:
    return item.partition.start


def _remarks(question: Question, scoring: _Scoring, awaiting: Mapping[str, str]) -> dict[str, str]:
    """Collect by key what readers of a committed partition should know although scoring it now would change nothing.

    Of the wanted partitions if the request names some.
    """
    spec, state = question.spec, question.state
    knowing = {version.version: knows_too_much(spec, version) for version in state.registry.versions}
    learned = {version.version for version in state.registry.versions if version.rows_trained}
    for training in state.registry.model_trainings:
        if training.version in learned and "labels" in state.inputs.changes_since(training, state.fingerprints):
            knowing[training.version] = (
                "learned other labels: labels.sql or the declaration of the labels changed since"
            )
    scores = state.scores
    if question.request.only is not None:
        scores = {it.key: scores[it.key] for it in question.wanted if it.key in scores}
    remarks = state.gone | {
        key: _remark_on(spec, state, run, awaiting.get(key), knowing.get(run.model_version))
        for key, run in scores.items()
    }
    for key, reason in why_left(spec, question.old).items():
        if key in scores:
            remarks[key] = "; ".join(filter(None, [remarks.get(key), reason]))
    return {key: remark for key, remark in remarks.items() if remark and key not in scoring.stale}


def _remark_on(spec: PipelineSpec, state: State, run: ScoreRun, awaiting: str | None, known: str | None) -> str:
    """Say what readers of a committed partition should know although scoring it now would change nothing.

    Its evaluation may be `awaiting` something, and `known` says what is wrong with the labels that its model learned.
    """
    remarks = [state.gone[run.partition_key]] if run.partition_key in state.gone else []
    remarks += [] if awaiting is None else [f"its evaluation waits: {awaiting}"]
    if run.model_version in state.relabelled:
        remarks.append(f"its model {run.model_version} learned from labels that were corrected since")
    if known is not None:
        remarks.append(f"its model {run.model_version} {known}")
    if run.rows_rejected and (budget := spec.features.rejected_budget).is_exceeded(run.rows_rejected, run.rows_in):
        remarks.append(
            f"{run.rows_rejected} of its {run.rows_in} rows are rejected, more than max_rejected ({budget}) allows now; "
            "it was published before"
        )
    return "; ".join(remarks)


def training_asked_for(
    spec: PipelineSpec, state: State, now: datetime, key: str | None = None, *, force: bool
) -> tuple[Partition | None, str | None]:
    """The serving period with a key, else the newest whose model is due, else the newest that has begun, and why its model is to be trained.

    There is no period if none can be trained yet, and no reason if nothing is due and none is forced. Without
    `model.train.every`, the key is that of the first partition to serve; a forced training then begins with the newest
    partition, so that the model learns from all that is known.

    Raises:
        WrongUseError: The key is invalid, or the serving period has not begun.
    """
    question = Question.of(spec, state, PlanRequest(now))
    calendar = spec.periods.serving
    if key is not None:
        period = (calendar or spec.partitions.calendar).named(key)
        if period.start > now:
            msg = f"{spec.name}: the serving period {key!r} has not begun; it begins on {period.start:%Y-%m-%d %H:%M} UTC."
            raise WrongUseError(msg, hint="a model learns only from what is known when its serving period begins.")
    elif not force and (due := due_models(question)):
        return due[-1].partition, due[-1].reason
    elif calendar is not None:
        period = next(reversed(spec.periods.begun(now)), None)
    elif force:
        begun = [partition for partition in question.wanted if partition.start <= now][-1:]
        period = next((last for last in begun if spec.periods.can_train(spec.periods.window(last.start))), None)
    else:
        period = single_period(state, now)
    if force:
        return period, "asked for"
    return period, None if key is None or period is None else _why_trained(spec, state, period)


def trainings_asked_for(
    spec: PipelineSpec, state: State, now: datetime, *, force: bool
) -> list[tuple[Partition, str | None]]:
    """Every serving period that has begun, and why its model is to be trained; see `training_asked_for`."""
    if spec.periods.serving is None:
        period, reason = training_asked_for(spec, state, now, force=force)
        return [] if period is None else [(period, reason)]
    return [(period, "asked for" if force else _why_trained(spec, state, period)) for period in spec.periods.begun(now)]


def _why_trained(spec: PipelineSpec, state: State, period: Partition) -> str | None:
    """Say why the model of a serving period is to be trained, for the first time or again; None if it is not."""
    return "not trained" if state.registry.newest_of(period.key) is None else why_again(spec, state, period)


def _stale_reason(state: State, partition: Partition, run: ScoreRun, champion: Version | None) -> str | None:
    """Say why committed predictions are out of date by what is recorded and by the sources; None if they are not."""
    if table := state.incomplete.get(run.partition_key):
        return f"a file of its {table} is gone or changed"
    if champion is not None and run.model_version != champion.version:
        return f"scored by {run.model_version}, the champion is {champion.version}"
    build = state.features.get(run.partition_key)
    if build is not None and build.sha256 != run.input_hash:
        return "its features changed"
    if run.code_version != state.code_version_of(run.model_version):
        return "its declaration or the scoring code changed"
    if build is not None and (reason := features_due(state, partition)) is not None:
        return reason
    return None if run.decision_rule == state.decision_rule else "the decision rule changed"


def _due_predictions(question: Question, models: Sequence[Item], named: Version | None) -> _Scoring:
    """Find the predictions that are due, those that no model serves, and those that are stale, due or not."""
    spec, state = question.spec, question.state
    due, blocked, stale = list[Item](), list[Item](), dict[str, str]()
    rescore = named is not None or spec.predictions.rescore != "never"
    starts = sorted(item.partition.start for item in models)
    served_from = spec.periods.served.first_start
    for partition in question.wanted:  # also those that were scored when serving periods began earlier
        run, is_served = state.scores.get(partition.key), partition.start >= served_from
        if run is None and not is_served:
            continue
        stretch = state.registry.timeline.at(partition.start) if is_served else None
        champion = (named if is_served else None) or (None if stretch is None else stretch.version)
        newest = starts[at - 1] if (at := bisect_right(starts, partition.start)) else None
        awaits = newest is not None and (stretch is None or stretch.approved_from <= newest)
        reason = "missing"
        if run is not None:
            comparable = is_served or run.code_version == state.code_version_of(run.model_version)
            reason = _stale_reason(state, partition, run, champion) if comparable else None
            if awaits and reason is None:
                reason = "a newer model is due"
            if reason is not None:
                unserved = "" if champion or awaits else f"; {_unserved(spec, state.registry, partition)}"
                stale[partition.key] = reason + unserved
            if not rescore and partition.key not in state.incomplete:
                reason = None
        if question.request.force:
            reason = reason or "forced"
        if reason is None:
            continue
        if champion is None and not awaits:
            blocked.append(Item("predictions", partition, _unserved(spec, state.registry, partition)))
        else:
            due.append(Item("predictions", partition, reason, awaits_model=awaits))
    return _Scoring(due, blocked, stale)


def _unserved(spec: PipelineSpec, registry: Registry, partition: Partition) -> str:
    """Say that no model serves a partition, and since when, or what was decided of the newest version that could."""
    served_from = spec.periods.served.first_start
    if partition.start < served_from:
        first = spec.partitions.calendar.around(served_from).key
        return (
            f"no model serves it, since predictions begin with {first} now (an earlier model.train.start changes that)"
        )
    newest = registry.newest_at(partition.start)
    decision = registry.last_decision(newest.version) if newest else None
    if decision is not None and decision.action == "refused":
        return f"no model serves it: {decision.version} was refused, {decision.reason}"
    if decision is not None and decision.action == "waiting":
        return f"no model serves it: {decision.version} waits for promotion"
    return "no model serves it: no version is approved that starts so early"


def first_served(spec: PipelineSpec, registry: Registry, models: Sequence[Item] = ()) -> Partition | None:
    """The serving period of the first model: of the only one it is the one trained or due, else the first that can be."""
    if spec.periods.serving is None and not spec.partitions.snapshot:
        trained = [Partition(it.serving_period, it.serving_start, it.serving_start) for it in registry.of_model]
        periods = [*trained, *(item.partition for item in models)]
        if periods:
            return min(periods, key=lambda period: period.start)
    return spec.periods.first_service


def _with_warm_up(question: Question, models: Sequence[Item], blocked: Sequence[Item]) -> list[Item]:
    """Add the partitions that no model can serve to those that none serves; say of those before the first model when it serves.

    What was scored before the first serving period, as the pipeline was once declared, stays as it is.
    """
    spec, state = question.spec, question.state
    served_from = spec.periods.served.first_start
    early = [item for item in question.wanted if item.start < served_from and item.key not in state.scores]
    blocked = [*(Item("predictions", partition, "no model serves it") for partition in early), *blocked]
    first = first_served(spec, state.registry, models) if blocked else None
    if first is None:
        return blocked
    return [
        replace(item, reason=spec.periods.serves_from(first), warm_up=True)
        if item.partition.start < first.start and item.partition.key not in state.scores
        else item
        for item in blocked
    ]


def awaited_labels(
    spec: PipelineSpec, partition: Partition, now: datetime, sources: Callable[[Partition], Sequence[str]]
) -> str | None:
    """Say what the evaluation of a partition waits for: until its labels are mature, or for those `sources` to have a file."""
    known = spec.periods.matures(partition)
    if known > now:
        return f"{'it does not end' if spec.labels is None else 'its labels are not known'} before {known:%Y-%m-%d %H:%M} UTC"
    if names := sources(partition):
        return f"source {listed(map(repr, names))} has no file of labels for it yet"
    return None


def require_labels(
    spec: PipelineSpec, period: Partition, window: Iterable[Partition], sources: Callable[[Partition], Sequence[str]]
) -> None:
    """Refuse to train where `sources` lack files of mature labels; the DataError names all of them."""
    mature = [partition for partition in window if spec.periods.matures(partition) <= period.start]
    lacking = {partition.key: names for partition in mature if (names := sources(partition))}
    if spec.labels is None or not lacking:
        return
    names = listed({repr(name) for of_partition in lacking.values() for name in of_partition})
    msg = (
        f"{spec.name}, serving period {period.key}: the model is not trained, since source {names} has no file for "
        f"{listed(lacking)} of its training window, whose labels are known by labels.delay ({spec.labels.delay})."
    )
    hint = (
        f"add what is missing, or correct labels.delay if labels come later. If those of {min(lacking)} never come, "
        f"batch-platform drop {spec.name} --partition {min(lacking)} leaves it out of every training window."
    )
    raise DataError(msg, hint=hint)


def _due_performance(question: Question, scoring: _Scoring) -> tuple[list[Item], dict[str, str]]:
    """The partitions to evaluate, and the scored ones with mature labels that lack the files of their labels."""
    spec, state, scored = question.spec, question.state, scoring.keys
    due, awaiting = list[Item](), dict[str, str]()
    for partition in _servable(question):
        if spec.periods.matures(partition) > question.now:
            continue
        reason = "scored" if partition.key in scored else _evaluation_due(state, partition)
        if reason is None:
            continue
        awaited = awaited_labels(spec, partition, question.now, state.awaited_label_sources)
        if awaited is None:
            due.append(Item("performance", partition, reason))
        elif partition.key in state.scores:
            awaiting[partition.key] = awaited
    return due, awaiting


def _due_deliveries(question: Question, scoring: _Scoring) -> list[Item]:
    """The partitions to deliver: those that are scored now, and those whose newest commit a receiver does not hold."""
    if not (deliveries := question.spec.predictions.deliver):
        return []
    scored = {item.partition.key: item for item in scoring.due}
    due = list[Item]()
    for partition in question.wanted:
        item = scored.get(partition.key)
        for delivery in deliveries:
            reason = undelivered(question.state, delivery, partition.key) if item is None else "scored"
            if reason is not None:
                awaits = item is not None and item.awaits_model
                due.append(Item("deliveries", partition, reason, awaits_model=awaits, delivery=delivery))
    return due


def _evaluation_due(state: State, partition: Partition) -> str | None:
    """Say why the evaluation of a partition is due that is not scored now; None if it is not."""
    run, evaluation = state.scores.get(partition.key), state.evaluations.get(partition.key)
    if run is not None and (evaluation is None or evaluation.score_seq != run.seq):
        return "missing" if evaluation is None else "scored again"
    if evaluation is None:
        return None
    if state.label_versions.get(partition.key, evaluation.label_sources) != evaluation.label_sources:
        return "its labels changed"
    return state.inputs.change_since(evaluation, state.fingerprints)
