"""What is due, and in which order: features, then models and challengers, then predictions, then performance.

A pure function of the pipeline, the recorded state and a time; schedules, `run` and `status` all ask it. Once a plan
is carried out, the next plan at the same time is empty.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from batch_platform.declaration.calendar import LONGEST, Partition
from batch_platform.declaration.errors import WrongUseError, listed
from batch_platform.declaration.redaction import redact, redacted
from batch_platform.declaration.spec import Challenger, PipelineSpec
from batch_platform.declaration.windows import (
    can_train,
    first_service,
    matures,
    serving_calendar,
    serving_periods,
    training_window,
)
from batch_platform.features.fingerprints import Fingerprints, ReadBy, Taken
from batch_platform.models.registry import ModelTraining, Registry, Version
from batch_platform.warehouse.dropping import DroppedPartition
from batch_platform.warehouse.failures import FailedStep, Failure
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun

Step = Literal["features", "model", "challengers", "predictions", "performance"]
STEPS: tuple[Step, ...] = ("features", "model", "challengers", "predictions", "performance")
ASSET_OF: dict[Step, Step] = {"challengers": "model"}  # steps without an asset of their own


@dataclass(frozen=True)
class State:
    """What is recorded of a pipeline, and what its files look like; mappings are by partition key."""

    features: dict[str, FeatureBuild]  # newest builds whose file is as recorded
    scores: dict[str, ScoreRun]  # newest commits
    evaluations: dict[str, EvaluationRun]  # newest evaluations
    registry: Registry
    features_code_version: str  # as declared now
    scoring_code_version: str  # as declared now
    lost: dict[str, FeatureBuild] = field(default_factory=dict[str, FeatureBuild])  # their file is not as recorded
    # Current versions of the sources with a file per partition, in the form that builds and evaluations record.
    source_versions: dict[str, str] = field(default_factory=dict[str, str])
    label_versions: dict[str, str] = field(default_factory=dict[str, str])
    changed: dict[str, str] = field(default_factory=dict[str, str])  # which source of many partitions has other rows
    gone: dict[str, str] = field(default_factory=dict[str, str])  # what a build read and is no longer there
    fingerprints: Taken = field(default_factory=dict[tuple[ReadBy, str], Fingerprints])
    relabelled: frozenset[str] = frozenset()  # versions that scored something and learned from labels corrected since
    over: frozenset[str] = frozenset()  # snapshots that cannot be taken again: a newer one is due
    # Of the newest attempt at a step of a partition.
    failures: dict[tuple[FailedStep, str], Failure] = field(default_factory=dict[tuple[FailedStep, str], Failure])
    declared: str = ""  # hash of the declaration as it is now
    dropped: Mapping[str, DroppedPartition] = field(default_factory=dict[str, DroppedPartition])  # and not made since

    @property
    def standing_failures(self) -> list[Failure]:
        """The failures that another attempt may meet again, because nothing was declared differently since."""
        return [failure for failure in self.failures.values() if failure.declared == self.declared]


@dataclass(frozen=True)
class Item:
    """A partition for which a step is due, and why."""

    step: Step
    partition: Partition
    reason: str
    awaits_model: bool = False  # the model that is to score it is not trained yet
    warm_up: bool = False  # it lies before the first model that has enough to learn from


@dataclass(frozen=True)
class Plan:
    """What is due, and what readers of a committed partition should know, by its key."""

    items: list[Item]  # in the order in which they have to be done
    blocked: list[Item]  # predictions that no model serves, of which some are warm-up
    # Why scoring a committed partition now would give other rows; also where `rescore` forbids it.
    stale: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, *steps: Step) -> list[Item]:
        """The due items of some steps, oldest first."""
        return [item for item in self.items if item.step in steps]


@dataclass(frozen=True)
class Request:
    """Consecutive partitions for which the same steps are due, to be done in one run."""

    steps: tuple[Step, ...]
    partitions: tuple[Partition, ...]

    @property
    def first(self) -> str:
        """Key of the oldest partition."""
        return self.partitions[0].key

    @property
    def last(self) -> str:
        """Key of the newest partition."""
        return self.partitions[-1].key


def make_plan(  # noqa: PLR0913 - the plan's questions
    spec: PipelineSpec,
    state: State,
    now: datetime,
    *,
    only: Iterable[Partition] | None = None,
    failed_models: AbstractSet[str] = frozenset(),
    version: Version | None = None,
    force: bool = False,
    train: Partition | None = None,
    serve_all: bool = False,
) -> Plan:
    """Plan what is due at a time: for `only` some partitions, with whatever upstream they lack, or for all not dropped.

    The previous model scores the partitions of serving periods whose training failed. A `version` scores every partition in
    place of its champion, and no model is trained then. With `force`, features and predictions are due even though nothing
    changed. The model of the serving period `train` is due in any case. With `serve_all`, a pipeline's only model has to
    serve the oldest of `only` that has enough history before it; otherwise it is trained on all that is mature.
    """
    wanted, state = _wanted(spec, state, now, only)
    models, challengers = list[Item](), list[Item]()
    if version is None:
        models = _due_models(spec, state, now, wanted, failed_models, everything=only is None, serve_all=serve_all)
        if train is not None:
            models = [item for item in models if item.partition.key != train.key]
            models = sorted([*models, Item("model", train, "asked for")], key=lambda item: item.partition.start)
        with_model = {item.partition.key for item in models} | failed_models
        challengers = _due_challengers(spec, state, now, wanted, force=force)
        challengers = [item for item in challengers if item.partition.key not in with_model]
    predictions, blocked, stale = _due_predictions(spec, state, wanted, models, version, force=force)
    scored = {item.partition.key for item in predictions}
    forced = {partition.key: partition for partition in wanted} if force else {}
    windows = [training_window(spec, item.partition.start, state.dropped) for item in (*models, *challengers)]
    windows.append([partition for partition in wanted if partition.key in state.dropped])  # named, to be made again
    needed = {partition.key: partition for window in windows for partition in window}
    needed |= forced | {item.partition.key: item.partition for item in predictions}
    features: list[Item] = []
    for partition in sorted(needed.values(), key=lambda partition: partition.start):
        reason = features_due(state, partition) or ("forced" if partition.key in forced else None)
        if reason is not None:
            features.append(Item("features", partition, reason))
    rebuilt = {item.partition.key for item in features} - scored
    again = [
        Item("predictions", partition, "its features are built again")
        for partition in wanted
        if partition.key in rebuilt and partition.key in state.scores and spec.predictions.rescore != "never"
    ]
    predictions = sorted([*predictions, *again], key=lambda item: item.partition.start)
    performance = _due_performance(spec, state, now, wanted, {item.partition.key for item in predictions})
    stale = {item.partition.key: item.reason for item in again} | stale
    remarks = state.gone | {key: _remark(spec, state, run) for key, run in state.scores.items()}
    remarks = {key: remark for key, remark in remarks.items() if remark and key not in stale}
    return Plan([*features, *models, *challengers, *predictions, *performance], blocked, stale, remarks)


def _remark(spec: PipelineSpec, state: State, run: ScoreRun) -> str:
    """What readers of a committed partition should know although scoring it now would change nothing."""
    remarks = [state.gone[run.partition_key]] if run.partition_key in state.gone else []
    if run.model_version in state.relabelled:
        remarks.append(f"its model {run.model_version} learned from labels that were corrected since")
    budget = spec.features.rejected_budget
    if budget.is_exceeded(run.rows_rejected, run.rows_in):
        remarks.append(
            f"{run.rows_rejected} of its {run.rows_in} rows are rejected, more than max_rejected ({budget}) allows now; "
            "it was published before"
        )
    return "; ".join(remarks)


def requests(
    items: Iterable[Item], *, limit: int | None = None, failed: AbstractSet[tuple[str, str]] = frozenset()
) -> list[Request]:
    """Join due items to runs: ranges of partitions without gaps, those with most steps first, then oldest first.

    All steps of a partition are done in the same run. A `limit` takes the oldest partitions. A partition of which a step
    `failed` in its last run is requested alone where a range would begin with it, so that it does not hold up those behind it.
    """
    due: dict[Partition, set[Step]] = {}
    for item in items:
        due.setdefault(item.partition, set()).add(item.step)
    groups: dict[tuple[Step, ...], list[Partition]] = {}
    for partition in sorted(due, key=lambda partition: partition.start)[:limit]:
        groups.setdefault(tuple(step for step in STEPS if step in due[partition]), []).append(partition)
    planned: list[Request] = []
    for steps in sorted(groups, key=lambda steps: (-len(steps), STEPS.index(steps[0]))):
        for partitions in ranges(groups[steps]):
            apart = len(partitions) > 1 and any((step, partitions[0].key) in failed for step in steps)
            parts = (partitions[:1], partitions[1:]) if apart else (partitions,)
            planned += [Request(steps, part) for part in parts]
    return planned


def ranges(partitions: Iterable[Partition]) -> list[tuple[Partition, ...]]:
    """Join partitions to ranges without gaps, oldest first."""
    joined: list[list[Partition]] = []
    for partition in sorted(partitions, key=lambda partition: partition.start):
        if joined and joined[-1][-1].end == partition.start:
            joined[-1].append(partition)
        else:
            joined.append([partition])
    return [tuple(members) for members in joined]


def features_due(state: State, partition: Partition) -> str | None:
    """Why the features of a partition are due; None if they are not."""
    build = state.features.get(partition.key)
    if build is None:
        return "missing"
    if partition.key in state.over:
        return None
    if build.code_version != state.features_code_version:
        return "the SQL or its declaration changed"
    if partition.key in state.gone:  # building it again would leave it empty
        return None
    if state.source_versions.get(partition.key, build.sources) != build.sources:
        return "a source file changed"
    return state.changed.get(partition.key)


def open_partitions(spec: PipelineSpec, state: State, now: datetime) -> list[Partition]:
    """The partitions that are due at a time, oldest first; of snapshots, those that were taken, also if dropped, and the newest."""
    due = spec.partitions.calendar.due(now)
    if not spec.partitions.snapshot:
        return due
    held = {*state.features, *state.scores, *state.dropped, *(item.key for item in due[-1:])}
    return [item for item in due if item.key in held]


def with_snapshots_over(spec: PipelineSpec, state: State, now: datetime) -> State:
    """The state that knows which snapshots stay as they were taken: all but the newest that is due at a time."""
    newest = {partition.key for partition in spec.partitions.calendar.due(now)[-1:]}
    return replace(state, over=frozenset(state.features.keys() - newest)) if spec.partitions.snapshot else state


def require_takeable(spec: PipelineSpec, partitions: Iterable[Partition], now: datetime) -> None:
    """Refuse to take a snapshot of a past that no table holds any more; raises WrongUseError."""
    due = spec.partitions.calendar.due(now)
    if spec.partitions.snapshot and (late := [partition.key for partition in partitions if partition not in due[-1:]]):
        msg = f"{spec.name}: the snapshot {listed(late)} can no longer be taken: its sources hold what they hold now."
        hint = f"take the newest one: batch-platform run {spec.name} --partition {due[-1].key}" if due else None
        raise WrongUseError(msg, hint=hint)


def _wanted(
    spec: PipelineSpec, state: State, now: datetime, only: Iterable[Partition] | None
) -> tuple[list[Partition], State]:
    """The partitions to plan for, and the state that knows which snapshots are over."""
    if not spec.partitions.snapshot:
        due = [item for item in spec.partitions.calendar.due(now) if item.key not in state.dropped]
        return due if only is None else list(only), state
    held, state = open_partitions(spec, state, now), with_snapshots_over(spec, state, now)
    asked = [item for item in held if item.key not in state.dropped] if only is None else list(only)
    wanted = [partition for partition in asked if partition in held]
    if asked and not wanted:
        require_takeable(spec, asked, now)
    return wanted, state


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
    """Hashes of the declared model and of the features, and the positive class: another model would be trained if one changes."""
    positive = "" if spec.positive is None else f"-{spec.positive!r}"
    return f"{spec.model.fingerprint}-{state.features_code_version}{positive}"


def differences(spec: PipelineSpec, state: State, version: Version) -> list[str]:
    """What is declared now and differs from what a version of the model was trained with."""
    declared: dict[str, tuple[object, object]] = {
        "estimator": (redact(spec.model.estimator or spec.model.build or spec.model.import_ or ""), version.estimator),
        "parameters": (json.dumps(redacted(spec.model.params), sort_keys=True), version.params),
        "features": (state.features_code_version, version.features_code_version),
        "positive class": (spec.positive, version.positive if spec.positive is not None else None),
    }
    return [name for name, (now, then) in declared.items() if now != then]


def training_asked_for(
    spec: PipelineSpec, state: State, now: datetime, key: str | None = None, *, force: bool
) -> tuple[Partition | None, str | None]:
    """The serving period with a key, or the newest one that has begun, and why its model is to be trained.

    There is no period if none can be trained yet, and no reason if nothing is due and none is forced. Without
    `model.train.every`, the key is that of the first partition to serve; a forced training then begins with the newest
    partition, so that the model learns from all that is known.

    Raises:
        WrongUseError: The key is invalid, or the serving period has not begun.
    """
    train = spec.model.train.model_copy(update={"retrain": "when_changed"})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"train": train})})
    calendar, due = serving_calendar(spec), _wanted(spec, state, now, None)[0]
    if key is not None:
        period = (calendar or spec.partitions.calendar).named(key)
        if period.start > now:
            msg = f"{spec.name}: the serving period {key!r} has not begun; it begins on {period.start:%Y-%m-%d %H:%M} UTC."
            raise WrongUseError(msg, hint="a model learns only from what is known when its serving period begins.")
    elif calendar is not None:
        period = next(reversed(serving_periods(spec, now)), None)
    elif force:
        begun = [partition for partition in due if partition.start <= now][-1:]
        period = next((last for last in begun if can_train(spec, training_window(spec, last.start))), None)
    else:
        items = _due_single_model(spec, state, now, due, frozenset(), serve_all=False)
        return (items[0].partition, items[0].reason) if items else (_single_period(state, now), None)
    if period is None or force:
        return period, "asked for"
    return period, "not trained" if state.registry.newest_of(period.key) is None else changed(spec, state, period)


def _single_period(state: State, now: datetime) -> Partition | None:
    """The serving period of the newest version of a pipeline's only model; None if it is not trained."""
    begun = [version for version in state.registry.of_model if version.serving_start <= now]
    newest = max(begun, key=lambda version: (version.serving_start, version.seq), default=None)
    return newest and Partition(key=newest.serving_period, start=newest.serving_start, end=newest.serving_start)


def changed(spec: PipelineSpec, state: State, period: Partition) -> str | None:
    """What is declared now and was neither the champion of a serving period nor its last training; None if nothing is known to.

    So a training that the gate refused or that failed is not repeated until the declaration changes again.
    """
    registry, trainings = state.registry, trainings_of(spec, state.registry, period.key)
    champion = registry.champion(period.start)
    tried = [training for training in registry.model_trainings if champion and training.version == champion.version]
    if not trainings or declared_now(spec, state) in {training.declared for training in (trainings[-1], *tried)}:
        return None
    versions = {version.version: version for version in registry.of_model}
    trained = [versions[training.version] for training in trainings if training.version in versions]
    names = differences(spec, state, trained[-1]) if trained else []
    return f"the declared {' and '.join(names) or 'model'} changed"


def trainings_of(spec: PipelineSpec, registry: Registry, serving_period: str) -> list[ModelTraining]:
    """The recorded trainings of the model for a serving period, oldest first.

    Where there is only one model, those for later periods too, since any of them may be the newest; of snapshots, all.
    """
    if serving_calendar(spec) is None:
        named = spec.partitions.calendar.named
        since = None if spec.partitions.snapshot else named(serving_period).start
        return [
            training
            for training in registry.model_trainings
            if since is None or named(training.serving_period).start >= since
        ]
    return [training for training in registry.model_trainings if training.serving_period == serving_period]


def _stale_reason(state: State, run: ScoreRun, champion: Version | None) -> str | None:
    """Why committed predictions are out of date by what is recorded; None if they are not."""
    if champion is not None and run.model_version != champion.version:
        return f"scored by {run.model_version}, the champion is {champion.version}"
    build = state.features.get(run.partition_key)
    if build is not None and build.sha256 != run.input_hash:
        return "its features changed"
    if run.code_version != state.scoring_code_version:
        return "its declaration or the scoring code changed"
    return None


def _due_models(  # noqa: PLR0913 - the plan's questions
    spec: PipelineSpec,
    state: State,
    now: datetime,
    wanted: list[Partition],
    failed: AbstractSet[str],
    *,
    everything: bool,
    serve_all: bool,
) -> list[Item]:
    if serving_calendar(spec) is None:
        return _due_single_model(spec, state, now, wanted, failed, serve_all=serve_all)
    trained = {version.serving_period for version in state.registry.of_model}
    periods = serving_periods(spec, now)
    newest = periods[-1:]
    if not everything:
        begins = [period.start for period in periods]
        served = {bisect_right(begins, partition.start) for partition in wanted}
        serve = {periods[at - 1].key for at in served if at}
        periods = [period for period in periods if period.key in serve]
    due = [Item("model", period, "not trained") for period in periods if period.key not in trained | failed]
    again = [period for period in newest if period in periods and period.key in trained - failed]
    again = [period for period in again if everything or _all_from(spec, state, now, wanted, period)]
    return due + _to_train_again(spec, state, again)


def _all_from(spec: PipelineSpec, state: State, now: datetime, wanted: Iterable[Partition], period: Partition) -> bool:
    """Whether all due partitions that a model of a serving period scores are wanted: it is to score each of them anew."""
    keys = {partition.key for partition in wanted} | state.dropped.keys()
    served = [partition for partition in spec.partitions.calendar.due(now) if partition.start >= period.start]
    return bool(served) and all(partition.key in keys for partition in served)


def _to_train_again(spec: PipelineSpec, state: State, periods: Iterable[Partition]) -> list[Item]:
    """The serving periods whose model was trained with another declaration."""
    if spec.model.train.retrain == "never":
        return []
    return [Item("model", period, reason) for period in periods if (reason := changed(spec, state, period))]


def _due_single_model(  # noqa: PLR0913 - the plan's questions
    spec: PipelineSpec,
    state: State,
    now: datetime,
    wanted: list[Partition],
    failed: AbstractSet[str],
    *,
    serve_all: bool,
) -> list[Item]:
    """The pipeline's only model: trained once, see `_first_served`, and again if its declaration changes.

    Where it has to serve partitions before those that it serves, another one is trained for them. A model of snapshots is
    trained on the newest one, once per training period.
    """
    period = _single_period(state, now)
    served_from = min((version.serving_start for version in state.registry.of_model), default=None)
    if served_from is not None and serve_all and not spec.partitions.snapshot:
        first = _first_served(spec, now, wanted, failed, serve_all=True)
        if first is not None and first.start < served_from:
            return [Item("model", first, "not trained for it")]
    old = spec.partitions.snapshot and _is_model_old(spec, state, wanted)
    if spec.partitions.snapshot:
        wanted = wanted[-1:]
    if period is not None and not old:
        if spec.partitions.snapshot and wanted and wanted[-1].start >= period.start:
            period = Partition(key=wanted[-1].key, start=wanted[-1].start, end=wanted[-1].start)
        complete = period.key not in failed and _all_from(spec, state, now, wanted, period)
        return _to_train_again(spec, state, [period] if complete else [])
    if state.registry.of_model and not old:
        return []
    first = _first_served(spec, now, wanted, failed, serve_all=serve_all)
    return [] if first is None else [Item("model", first, "not trained")]


def _first_served(
    spec: PipelineSpec, now: datetime, wanted: Sequence[Partition], failed: AbstractSet[str], *, serve_all: bool
) -> Partition | None:
    """The serving period of a first model: from which of the wanted partitions on it serves.

    The newest partition with mature labels decides, so that the model learns from all that is known and one partition
    shows how good it is; else the newest one. To serve all, the oldest decides; so it does for a model that learns nothing.
    """
    candidates = [partition for partition in wanted if partition.start <= now]
    if not serve_all and spec.model.import_ is None:
        mature = [partition for partition in candidates if matures(spec, partition) <= now]
        candidates = [*mature[-1:], *candidates[-1:]]
    return next(
        (
            Partition(key=partition.key, start=partition.start, end=partition.start)
            for partition in candidates
            if partition.key not in failed and can_train(spec, training_window(spec, partition.start))
        ),
        None,
    )


def _is_model_old(spec: PipelineSpec, state: State, wanted: Sequence[Partition]) -> bool:
    """Whether the newest snapshot lies in another training period than the newest model, or there is no model."""
    starts = [version.serving_start for version in state.registry.of_model]
    every = spec.model.train.every
    if not starts or every is None or not wanted:
        return not starts
    calendar = spec.partitions.calendar
    periods = replace(calendar, every=every, start=calendar.start - LONGEST[every].nominal, end=None)
    return periods.holding(max(starts)) != periods.holding(wanted[-1].start) and max(starts) < wanted[-1].start


def _due_challengers(
    spec: PipelineSpec, state: State, now: datetime, wanted: Sequence[Partition], *, force: bool
) -> list[Item]:
    """Serving periods whose challengers are to be trained: the newest one that has a model; with force, each of them."""
    if not any(challenger.version is None for challenger in spec.challengers):
        return []
    calendar = serving_calendar(spec)
    starts = {version.serving_period: version.serving_start for version in state.registry.of_model}
    periods = sorted((start, key) for key, start in starts.items() if start <= now)
    begins = [start for start, _ in periods]
    served = {at for partition in wanted if (at := bisect_right(begins, partition.start))}
    items: list[Item] = []
    for start, key in (periods[at - 1] for at in sorted(served if force else served & {len(periods)})):
        if names := [challenger.name for challenger in untrained(spec, state.registry, key)]:
            period = Partition(key=key, start=start, end=start) if calendar is None else calendar.named(key)
            items.append(Item("challengers", period, f"not trained: {listed(names)}"))
    return items


def _due_predictions(  # noqa: PLR0913 - the plan's questions
    spec: PipelineSpec,
    state: State,
    wanted: list[Partition],
    models: list[Item],
    version: Version | None,
    *,
    force: bool,
) -> tuple[list[Item], list[Item], dict[str, str]]:
    """What is to be scored, what no model serves, and what is stale whether it is to be scored again or not."""
    due: list[Item] = []
    blocked: list[Item] = []
    stale: dict[str, str] = {}
    rescore = version is not None or spec.predictions.rescore != "never"
    starts = sorted(item.partition.start for item in models)
    for partition in wanted:
        run = state.scores.get(partition.key)
        champion = version or state.registry.champion(partition.start)
        newest = starts[at - 1] if (at := bisect_right(starts, partition.start)) else None
        awaits = newest is not None and (champion is None or champion.serving_start <= newest)
        reason = "missing"
        if run is not None:
            reason = _stale_reason(state, run, champion)
            if partition.key in state.features:
                reason = reason or features_due(state, partition)
            if awaits:
                reason = reason or "a newer model is due"
            if reason is not None:
                stale[partition.key] = reason
            if not rescore:
                reason = None
        if force:
            reason = reason or "forced"
        if reason is None:
            continue
        if champion is None and not awaits:
            blocked.append(Item("predictions", partition, "no model serves it"))
        else:
            due.append(Item("predictions", partition, reason, awaits_model=awaits))
    first = _first_service(spec, state.registry, models) if blocked else None
    return due, _with_warm_up(first, blocked), stale


def _first_service(spec: PipelineSpec, registry: Registry, models: Sequence[Item]) -> Partition | None:
    """The serving period of the first model: of the only one it is the one trained or due, else the first that can be."""
    if serving_calendar(spec) is None and not spec.partitions.snapshot:
        trained = [Partition(it.serving_period, it.serving_start, it.serving_start) for it in registry.of_model]
        periods = [*trained, *(item.partition for item in models)]
        if periods:
            return min(periods, key=lambda period: period.start)
    return first_service(spec)


def _with_warm_up(first: Partition | None, blocked: list[Item]) -> list[Item]:
    """What no model serves; of partitions before the first model, when it serves."""
    if first is None:
        return blocked
    return [
        replace(item, reason=f"the first model serves from {first.key}", warm_up=True)
        if item.partition.start < first.start
        else item
        for item in blocked
    ]


def _due_performance(
    spec: PipelineSpec, state: State, now: datetime, wanted: list[Partition], scored: AbstractSet[str]
) -> list[Item]:
    due: list[Item] = []
    for partition in wanted:
        if matures(spec, partition) > now:
            continue
        run, evaluation = state.scores.get(partition.key), state.evaluations.get(partition.key)
        if partition.key in scored:
            due.append(Item("performance", partition, "scored"))
        elif run is not None and (evaluation is None or evaluation.score_seq != run.seq):
            due.append(Item("performance", partition, "missing" if evaluation is None else "scored again"))
        elif (
            evaluation is not None
            and state.label_versions.get(partition.key, evaluation.label_sources) != evaluation.label_sources
        ):
            due.append(Item("performance", partition, "its labels changed"))
    return due
