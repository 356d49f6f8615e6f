"""The plan of what is due, in order: features, then models and challengers, then predictions, then performance and deliveries.

A pure function of the declaration, the state and a request; schedules, `run` and `status` all ask it. For each step in order and
each key: is its artifact due (`artifacts.py`), and is it held (`holds.py`)? Once a plan is carried out, the next plan by the same
request is empty.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Version
from batch_platform.planning.artifacts import code_version_of, features_due, performance_of, predictions_of, undelivered
from batch_platform.planning.holds import awaited_labels, unserved, with_warm_up
from batch_platform.planning.remarks import remarks_on
from batch_platform.planning.request import PlanRequest, Question
from batch_platform.planning.retention import why_left
from batch_platform.planning.state import State
from batch_platform.planning.steps import Item, Step
from batch_platform.planning.trainings import changed, due_challengers, due_models, training_asked_for


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
    version = None if request.model is None else state.registry.named(request.model)
    models, outdated = ([], {}) if version else _models(question)
    with_model = {item.partition.key for item in models} | request.failed_models  # challengers are trained with it
    challengers = [] if version else due_challengers(question)
    learning = [*models, *(item for item in challengers if item.partition.key not in with_model)]
    scoring, blocked, stale = _predictions(question, models, version)
    features = _features(question, learning, scoring)
    again = _built_again(question, scoring, features)
    scoring = sorted([*scoring, *again], key=_start)
    stale = {item.partition.key: item.reason for item in again} | stale
    performance, awaiting = _performance(question, scoring)
    return Plan(
        items=[*features, *learning, *scoring, *performance, *_deliveries(question, scoring)],
        blocked=with_warm_up(question, models, blocked),
        stale=stale,
        awaiting=awaiting,
        remarks=remarks_on(question, stale, awaiting),
        expired=why_left(spec, question.expired),
        outdated=outdated,
    )


def remaining(
    spec: PipelineSpec, state: State, request: PlanRequest, run_ids: Collection[str], plan: Plan | None = None
) -> Plan:
    """Plan what is left of a request once models are trained, without what failed in some runs.

    The previous model scores for a model that could not be trained. The `plan` by which the runs began stands where it
    trains nothing.
    """
    failures = [failure for failure in state.failures.values() if failure.run_id in run_ids]
    failed_models = {failure.partition_key for failure in failures if failure.step == "model"}
    failed = {failure.partition_key for failure in failures if failure.step in ("features", "predictions")}
    if plan is None or plan.of("model", "challengers"):
        plan = make_plan(spec, state, replace(request, retrain=False, failed_models=failed_models))
    items = [item for item in plan.items if item.partition.key not in failed and not item.awaits_model]
    return replace(plan, items=items)


def _models(question: Question) -> tuple[list[Item], dict[str, str]]:
    """The serving periods whose model is due, and why those should be trained again that are declared as before."""
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
    return sorted([*(item for item in due if item.partition.key not in keys), *asked], key=_start), outdated


def _predictions(
    question: Question, models: Sequence[Item], named: Version | None
) -> tuple[list[Item], list[Item], dict[str, str]]:
    """The predictions that are due, those that no model serves, and why predictions are stale, due or not."""
    spec, state = question.spec, question.state
    due, blocked, stale = list[Item](), list[Item](), dict[str, str]()
    rescore = named is not None or spec.predictions.rescore != "never"
    starts = sorted(item.partition.start for item in models)
    for partition in question.partitions:  # also those that were scored when serving periods began earlier
        run, is_served = state.scores.get(partition.key), question.is_servable(partition)
        if run is None and not is_served:
            continue
        stretch = state.registry.timeline.at(partition.start) if is_served else None
        champion = (named if is_served else None) or (None if stretch is None else stretch.version)
        newest = starts[at - 1] if (at := bisect_right(starts, partition.start)) else None
        awaits = newest is not None and (stretch is None or stretch.approved_from <= newest)
        comparable = run is None or is_served or run.code_version == code_version_of(state, run.model_version)
        reason = predictions_of(state, partition, champion).reason if comparable else None
        if run is not None:
            if awaits and reason is None:
                reason = "a newer model is due"
            if reason is not None:
                hold = "" if champion or awaits else f"; {unserved(spec, state.registry, partition)}"
                stale[partition.key] = reason + hold
            if not rescore and partition.key not in state.incomplete:
                reason = None
        if question.request.force:
            reason = reason or "forced"
        if reason is None:
            continue
        if champion is None and not awaits:
            blocked.append(Item("predictions", partition, unserved(spec, state.registry, partition)))
        else:
            due.append(Item("predictions", partition, reason, awaits_model=awaits))
    return due, blocked, stale


def _features(question: Question, learning: Sequence[Item], scoring: Sequence[Item]) -> list[Item]:
    """The partitions whose features are due: to learn from, to score, or to make again what was dropped and is named.

    With `recheck`, also those that no model serves and whose sources changed: the next model learns from them.
    """
    state, request = question.state, question.request
    windows = [question.spec.periods.window(item.partition.start, state.dropped) for item in learning]
    windows.append([partition for partition in question.partitions if partition.key in state.dropped])
    if request.recheck:
        current = {
            key for key, build in state.features.items() if build.code_version == state.declared.features_version
        }
        windows.append([partition for partition in question.partitions if partition.key in current])
    forced = {partition.key: partition for partition in question.partitions} if request.force else {}
    needed = {partition.key: partition for window in windows for partition in window} | forced
    needed |= {item.partition.key: item.partition for item in scoring}
    reasons = {key: features_due(state, needed[key]) or ("forced" if key in forced else None) for key in needed}
    due = [Item("features", needed[key], reason) for key, reason in reasons.items() if reason is not None]
    return sorted(due, key=_start)


def _built_again(question: Question, scoring: Sequence[Item], features: Sequence[Item]) -> list[Item]:
    """The scored partitions that are not due for themselves, and whose features are built again to learn from."""
    if question.spec.predictions.rescore == "never":
        return []
    rebuilt = {item.partition.key for item in features} - {item.partition.key for item in scoring}
    return [
        Item("predictions", partition, "its features are built again")
        for partition in question.partitions
        if partition.key in rebuilt and partition.key in question.state.scores and question.is_servable(partition)
    ]


def _performance(question: Question, scoring: Sequence[Item]) -> tuple[list[Item], dict[str, str]]:
    """The partitions to evaluate, and the scored ones with mature labels that lack the files of their labels."""
    spec, state, scored = question.spec, question.state, {item.partition.key for item in scoring}
    due, awaiting = list[Item](), dict[str, str]()
    for partition in question.partitions:
        if not question.is_servable(partition) or spec.periods.matures(partition) > question.now:
            continue
        artifact = performance_of(state, partition)
        reason = "scored" if partition.key in scored else artifact and artifact.reason
        if reason is None:
            continue
        awaited = awaited_labels(spec, partition, question.now, state.seen.awaited_label_sources)
        if awaited is None:
            due.append(Item("performance", partition, reason))
        elif partition.key in state.scores:
            awaiting[partition.key] = awaited
    return due, awaiting


def _deliveries(question: Question, scoring: Sequence[Item]) -> list[Item]:
    """The partitions to deliver: those that are scored now, and those whose newest commit a receiver does not hold."""
    scored = {item.partition.key: item for item in scoring}
    due = list[Item]()
    for partition in question.partitions:
        item = scored.get(partition.key)
        for delivery in question.spec.predictions.deliver:
            reason = undelivered(question.state, delivery, partition.key) if item is None else "scored"
            if reason is not None:
                awaits = item is not None and item.awaits_model
                due.append(Item("deliveries", partition, reason, awaits_model=awaits, delivery=delivery))
    return due


def _start(item: Item) -> datetime:
    return item.partition.start
