"""The models and challengers that are to be trained, and why.

Parts of the plan: pure functions of the declaration, the recorded state and a time.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from batch_platform.declaration.calendar import LONGEST, Partition
from batch_platform.declaration.errors import WrongUseError, counted, listed
from batch_platform.declaration.model import Challenger
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import ModelTraining, Registry, Version, positive_class
from batch_platform.planning.artifacts import features_due
from batch_platform.planning.request import PlanRequest, Question
from batch_platform.planning.state import State
from batch_platform.planning.steps import Item

_WITHOUT = "-without "


def untrained(spec: PipelineSpec, registry: Registry, serving_period: str) -> list[Challenger]:
    """The challengers that were not tried for a serving period as they are declared now.

    A challenger whose training failed is tried again only once its declaration changes.
    """
    tried = {
        (training.challenger, training.declared)
        for training in registry.challenger_trainings
        if training.serving_period == serving_period
    }
    return [
        challenger
        for challenger in spec.challengers
        if challenger.version is None and (challenger.name, challenger.fingerprint) not in tried
    ]


def declared_now(spec: PipelineSpec, state: State) -> str:
    """Versions of all that a model is made from; another model is due if one of them changes. See also `Inputs`."""
    return _recorded_first(spec, state) + state.declared.inputs.text


def _recorded_first(spec: PipelineSpec, state: State) -> str:
    """Hashes of the declared model, the features, the positive class, the weight and refinements, and the columns that are no features."""
    positive = "" if spec.positive is None else f"-{spec.positive!r}"
    weight = "" if spec.labels is None or spec.labels.weight is None else f"-weight {spec.labels.weight!r}"
    refinements = f"-{hashed}" if (hashed := state.declared.refinements) else ""
    without = json.dumps(sorted(name for name, rule in spec.features.columns.items() if not rule.feature))
    return (
        f"{spec.model.fingerprint}-{state.declared.features_version}{positive}{weight}{refinements}{_WITHOUT}{without}"
    )


def is_declared_now(spec: PipelineSpec, state: State, training: ModelTraining) -> bool:
    """Return whether a training was declared as one would be now, as far as is known: see `Inputs`.

    Records of still earlier releases leave open which columns are no features.
    """
    first = _recorded_first(spec, state)
    if training.declared in (first, first.partition(_WITHOUT)[0]):
        return not state.declared.inputs.changes_since(training, state.seen.fingerprints)
    return training.declared == declared_now(spec, state)


def differences(spec: PipelineSpec, state: State, version: Version) -> list[str]:
    """Name what is declared now and differs from what a version of the model was trained with."""
    searched = {} if spec.model.search is None else spec.model.search.params
    params = {name: value for name, value in json.loads(version.params).items() if name not in searched}
    declared: dict[str, tuple[object, object]] = {
        "estimator": (redact(spec.model.estimator or spec.model.build or spec.model.import_ or ""), version.estimator),
        "parameters": (json.dumps(redacted(spec.model.params), sort_keys=True), json.dumps(params, sort_keys=True)),
        "features": (state.declared.features_version, version.features_code_version),
        "positive class": (spec.positive, positive_class(version) if spec.positive is not None else None),
    }
    names = [name for name, (now, then) in declared.items() if now != then]
    trainings = [training for training in state.registry.model_trainings if training.version == version.version]
    names += state.declared.inputs.changes_since(trainings[-1], state.seen.fingerprints) if trainings else []
    others_differ = bool(trainings) and not is_declared_now(spec, state, trainings[-1])
    return names or ["model"] * others_differ  # such as a refinement, the weight, or a column that is no feature


def single_period(state: State, now: datetime) -> Partition | None:
    """The serving period of the newest version of a pipeline's only model; None if it is not trained."""
    begun = [version for version in state.registry.of_model if version.serving_start <= now]
    newest = max(begun, key=lambda version: (version.serving_start, version.seq), default=None)
    return newest and Partition(key=newest.serving_period, start=newest.serving_start, end=newest.serving_start)


def changed(spec: PipelineSpec, state: State, period: Partition) -> str | None:
    """Say what is declared now, but was not when the champion and the last model of a serving period were trained; None if nothing.

    So a training that the gate refused or that failed is not repeated until the declaration changes again.
    """
    registry, trainings = state.registry, trainings_of(spec, state.registry, period.key)
    champion = registry.champion(period.start)
    tried = [training for training in registry.model_trainings if champion and training.version == champion.version]
    if not trainings or any(is_declared_now(spec, state, training) for training in (trainings[-1], *tried)):
        return None
    versions = {version.version: version for version in registry.of_model}
    trained = [versions[training.version] for training in trainings if training.version in versions]
    names = differences(spec, state, trained[-1]) if trained else []
    return f"the declared {' and '.join(names) or 'model'} changed"


def trainings_of(spec: PipelineSpec, registry: Registry, serving_period: str) -> list[ModelTraining]:
    """The recorded trainings of the model for a serving period, oldest first.

    Where there is only one model, those for later periods too, since any of them may be the newest; of snapshots, all.
    """
    if spec.periods.serving is None:
        named = spec.partitions.calendar.named
        since = None if spec.partitions.snapshot else named(serving_period).start
        return [
            training
            for training in registry.model_trainings
            if since is None or named(training.serving_period).start >= since
        ]
    return [training for training in registry.model_trainings if training.serving_period == serving_period]


def due_models(question: Question) -> list[Item]:
    """The serving periods whose model is not trained or is out of date, and the newest one if another model is declared.

    Of those in which some of the wanted partitions lie, or of all that have begun if the request names no partitions. The
    newest one of these is not trained again if there is a model of a later one.
    """
    spec, state, failed = question.spec, question.state, question.request.failed_models
    if spec.periods.serving is None:
        return due_single_model(question)
    trained = {version.serving_period: version for version in state.registry.of_model}  # the newest one of each
    periods, everything = spec.periods.begun(question.now), question.request.only is None
    if not everything:
        begins = [period.start for period in periods]
        served = {bisect_right(begins, partition.start) for partition in question.partitions}
        periods = [period for at, period in enumerate(periods, start=1) if at in served]
    has_later = any(version.serving_start > periods[-1].start for version in trained.values()) if periods else True
    newest = None if has_later else periods[-1].key
    if gone := {*question.expired.get("features", ())}:  # retention removes them
        periods = [period for period in periods if gone.isdisjoint(spec.periods.window(period.start))]
    asked = {newest} | state.registry.refused_on.keys()
    asked |= {key for key, version in trained.items() if knows_too_much(spec, version) is not None}
    asked &= trained.keys() - failed
    due = [Item("model", period, "not trained") for period in periods if period.key not in trained.keys() | failed]
    again = [
        Item("model", period, reason, again=True)
        for period in periods
        if period.key in asked
        and (reason := (why_again if period.key == newest else outdated)(spec, state, period)) is not None
        and (everything or _all_from(question, period))
    ]
    return sorted([*due, *again], key=lambda item: item.partition.start)


def _all_from(question: Question, period: Partition) -> bool:
    """Return whether all due partitions that a model of a serving period scores are wanted: it is to score each of them anew.

    Of those of later periods, only what is scored: a model of their own is to score the others.
    """
    keys = {partition.key for partition in question.partitions} | question.state.dropped.keys()
    scored = question.state.scores.keys()
    is_only = period.end == period.start  # of a pipeline's only model a period is where it begins
    served = [
        it.key
        for it in question.due
        if it.start >= period.start and (is_only or it.start < period.end or it.key in scored)
    ]
    return bool(served) and keys.issuperset(served)


def why_again(spec: PipelineSpec, state: State, period: Partition) -> str | None:
    """Say why the model of a serving period is to be trained again; None if it is not."""
    return changed(spec, state, period) or outdated(spec, state, period)


def knows_too_much(spec: PipelineSpec, version: Version) -> str | None:
    """Say what a version learned from before it was known, as the delay of labels is declared now; None if nothing."""
    if spec.labels is None or spec.partitions.snapshot or not version.rows_trained:  # an imported model learns nothing
        return None
    known = spec.labels.maturity.after(version.trained_until, spec.partitions.calendar.zone)
    if known <= version.serving_start:
        return None
    return (
        f"learned from labels that were not known by {version.serving_period} with labels.delay {spec.labels.maturity}"
    )


def outdated(spec: PipelineSpec, state: State, period: Partition) -> str | None:
    """Say why a model that is declared as before is to be trained again; None if it is not, or if too little is left to learn from.

    Either it knows too much, or no version of the period serves and its training window changed since the last training, which
    was refused or failed.
    """
    newest, trainings = state.registry.newest_of(period.key), trainings_of(spec, state.registry, period.key)
    failed = bool(trainings) and trainings[-1].version is None
    window = spec.periods.window(period.start, state.dropped)
    if newest is None or not spec.periods.can_train(window):
        return None
    standing = {(failure.step, failure.partition_key) for failure in state.standing_failures}
    if (known := knows_too_much(spec, newest)) is not None:
        return None if failed and ("model", period.key) in standing else f"{newest.version} {known}"
    then = state.registry.refused_on.get(period.key)
    if not then or spec.partitions.snapshot or not is_declared_now(spec, state, trainings[-1]):
        return None
    now = {key: build.sha256 for key, build in state.features.items()}
    other = [
        partition
        for partition in window
        if ("features", partition.key) not in standing  # it cannot be built, so another training would learn the same
        and (features_due(state, partition) is not None or then.get(partition.key) not in (None, now[partition.key]))
    ]
    since = "its training failed" if failed else f"{newest.version} was refused"
    return f"{counted(len(other), 'partition')} of its training window changed since {since}" if other else None


def due_single_model(question: Question) -> list[Item]:
    """The pipeline's only model: trained once, see `_first_served`, and again if its declaration changes.

    Where it has to serve partitions before those that it serves, another one is trained for them. A model of snapshots is
    trained on the newest one, once per training period.
    """
    spec, state, snapshot = question.spec, question.state, question.spec.partitions.snapshot
    period = single_period(state, question.now)
    served_from = min((version.serving_start for version in state.registry.of_model), default=None)
    if served_from is not None and question.request.serve_all and not snapshot:
        first = _first_served(question)
        if first is not None and first.start < served_from:
            return [Item("model", first, "not trained for it")]
    old = snapshot and _is_model_old(spec, state, question.partitions)
    if snapshot:
        question = replace(question, partitions=question.partitions[-1:])
    if period is not None and not old:
        if snapshot and question.partitions and question.partitions[-1].start >= period.start:
            period = _begins_with(question.partitions[-1])
        complete = period.key not in question.request.failed_models and _all_from(question, period)
        reason = why_again(spec, state, period) if complete else None
        return [] if reason is None else [Item("model", period, reason, again=True)]
    if state.registry.of_model and not old:
        return []
    first = _first_served(question)
    return [] if first is None else [Item("model", first, "not trained")]


def _begins_with(partition: Partition) -> Partition:
    """The serving period of a pipeline's only model that serves from a partition on."""
    return Partition(key=partition.key, start=partition.start, end=partition.start)


def _first_served(question: Question) -> Partition | None:
    """The serving period of a first model: from which of the wanted partitions on it serves.

    The newest partition with mature labels decides, so that the model learns from all that is known and one partition
    shows how good it is; else the newest one. To serve all, the oldest decides; so it does for a model that learns nothing.
    """
    spec, request = question.spec, question.request
    candidates = [partition for partition in question.partitions if partition.start <= question.now]
    if not request.serve_all and spec.model.import_ is None:
        mature = [partition for partition in candidates if spec.periods.matures(partition) <= question.now]
        candidates = [*mature[-1:], *candidates[-1:]]
    trainable = (
        _begins_with(partition)
        for partition in candidates
        if partition.key not in request.failed_models and spec.periods.can_train(spec.periods.window(partition.start))
    )
    return next(trainable, None)


def _is_model_old(spec: PipelineSpec, state: State, wanted: Sequence[Partition]) -> bool:
    """Return whether the newest snapshot lies in another training period than the newest model, or there is no model."""
    starts = [version.serving_start for version in state.registry.of_model]
    every = spec.model.train.every
    if not starts or every is None or not wanted:
        return not starts
    calendar = spec.partitions.calendar
    periods = replace(calendar, every=every, start=calendar.start - LONGEST[every].nominal, end=None)
    return periods.holding(max(starts)) != periods.holding(wanted[-1].start) and max(starts) < wanted[-1].start


def due_challengers(question: Question) -> list[Item]:
    """Serving periods whose challengers are to be trained: the newest one that has a model; with force, each of them."""
    spec, state = question.spec, question.state
    if not any(challenger.version is None for challenger in spec.challengers):
        return []
    calendar = spec.periods.serving
    starts = {version.serving_period: version.serving_start for version in state.registry.of_model}
    periods = sorted((start, key) for key, start in starts.items() if start <= question.now)
    begins = [start for start, _ in periods]
    served = {at for partition in question.partitions if (at := bisect_right(begins, partition.start))}
    items: list[Item] = []
    for start, key in (periods[at - 1] for at in sorted(served if question.request.force else served & {len(periods)})):
        if names := [challenger.name for challenger in untrained(spec, state.registry, key)]:
            period = Partition(key=key, start=start, end=start) if calendar is None else calendar.named(key)
            items.append(Item("challengers", period, f"not trained: {listed(names)}"))
    return items


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
        begun = [partition for partition in question.partitions if partition.start <= now][-1:]
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


def first_served(spec: PipelineSpec, registry: Registry, models: Sequence[Item] = ()) -> Partition | None:
    """The serving period of the first model: of the only one it is the one trained or due, else the first that can be."""
    if spec.periods.serving is None and not spec.partitions.snapshot:
        trained = [Partition(it.serving_period, it.serving_start, it.serving_start) for it in registry.of_model]
        periods = [*trained, *(item.partition for item in models)]
        if periods:
            return min(periods, key=lambda period: period.start)
    return spec.periods.first_service
