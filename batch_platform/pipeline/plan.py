"""What is due, and in which order: features, then models and challengers, then predictions, then performance.

A pure function of the pipeline, the recorded state and a time; schedules, `run` and `status` all ask it. Once a plan
is carried out, the next plan at the same time is empty.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import DataError, WrongUseError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.windows import (
    can_train,
    first_service,
    matures,
    served_calendar,
    serving_calendar,
    serving_periods,
    training_window,
)
from batch_platform.models.registry import Registry, Version
from batch_platform.pipeline.state import State, features_due
from batch_platform.pipeline.steps import Item, Step
from batch_platform.pipeline.trainings_due import (
    changed,
    due_challengers,
    due_models,
    due_single_model,
    knows_too_much,
    single_period,
    why_again,
)
from batch_platform.warehouse.ledger import ScoreRun


@dataclass(frozen=True)
class Plan:
    """What is due, and what readers of a committed partition should know, by its key."""

    items: list[Item]  # in the order in which they have to be done
    blocked: list[Item]  # predictions that no model serves, of which some are warm-up
    # Why scoring a committed partition now would give other rows; also where `rescore` forbids it.
    stale: Mapping[str, str] = field(default_factory=dict[str, str])
    # What the evaluation of a scored partition waits for although its labels should be known.
    awaiting: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: Mapping[str, str] = field(default_factory=dict[str, str])
    # Why a model should be trained again although its declaration is the same, by serving period; also with `retrain: never`.
    outdated: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, *steps: Step) -> list[Item]:
        """The due items of some steps, oldest first."""
        return [item for item in self.items if item.step in steps]


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
    models, challengers, outdated = list[Item](), list[Item](), dict[str, str]()
    if version is None:
        models = due_models(spec, state, now, wanted, failed_models, everything=only is None, serve_all=serve_all)
        again = {item.partition.key: item for item in models if item.again}
        outdated = {key: it.reason for key, it in again.items() if changed(spec, state, it.partition) is None}
        if spec.model.train.retrain == "never":
            models = [item for item in models if not item.again]
        if train is not None:
            models = [item for item in models if item.partition.key != train.key]
            models = sorted([*models, Item("model", train, "asked for")], key=lambda item: item.partition.start)
        with_model = {item.partition.key for item in models} | failed_models
        challengers = due_challengers(spec, state, now, wanted, force=force)
        challengers = [item for item in challengers if item.partition.key not in with_model]
    served_from = served_calendar(spec).first_start
    servable = [partition for partition in wanted if partition.start >= served_from]
    predictions, blocked, stale = _due_predictions(spec, state, servable, models, version, force=force)
    blocked = _with_warm_up(spec, state, models, wanted, blocked)
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
        for partition in servable
        if partition.key in rebuilt and partition.key in state.scores and spec.predictions.rescore != "never"
    ]
    predictions = sorted([*predictions, *again], key=lambda item: item.partition.start)
    performance, awaiting = _due_performance(spec, state, now, servable, {item.partition.key for item in predictions})
    stale = {item.partition.key: item.reason for item in again} | stale
    knowing = {version.version: knows_too_much(spec, version) for version in state.registry.versions}
    remarks = state.gone | {
        key: _remark(spec, state, run, awaiting=awaiting.get(key), known=knowing.get(run.model_version))
        for key, run in state.scores.items()
    }
    remarks = {key: remark for key, remark in remarks.items() if remark and key not in stale}
    items = [*features, *models, *challengers, *predictions, *performance]
    return Plan(items, blocked, stale, awaiting, remarks, outdated)


def _remark(spec: PipelineSpec, state: State, run: ScoreRun, *, awaiting: str | None, known: str | None) -> str:
    """Say what readers of a committed partition should know although scoring it now would change nothing.

    Its evaluation may be `awaiting` something, and `known` says what its model learned from too early; see `knows_too_much`.
    """
    remarks = [state.gone[run.partition_key]] if run.partition_key in state.gone else []
    remarks += [] if awaiting is None else [f"its evaluation waits: {awaiting}"]
    if run.model_version in state.relabelled:
        remarks.append(f"its model {run.model_version} learned from labels that were corrected since")
    if known is not None:
        remarks.append(f"its model {run.model_version} {known}")
    budget = spec.features.rejected_budget
    if budget.is_exceeded(run.rows_rejected, run.rows_in):
        remarks.append(
            f"{run.rows_rejected} of its {run.rows_in} rows are rejected, more than max_rejected ({budget}) allows now; "
            "it was published before"
        )
    return "; ".join(remarks)


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
        items = due_single_model(spec, state, now, due, frozenset(), serve_all=False)
        return (items[0].partition, items[0].reason) if items else (single_period(state, now), None)
    if period is None or force:
        return period, "asked for"
    return period, "not trained" if state.registry.newest_of(period.key) is None else why_again(spec, state, period)


def _stale_reason(state: State, run: ScoreRun, champion: Version | None) -> str | None:
    """Why committed predictions are out of date by what is recorded; None if they are not."""
    if table := state.incomplete.get(run.partition_key):
        return f"a file of its {table} is gone or changed"
    if champion is not None and run.model_version != champion.version:
        return f"scored by {run.model_version}, the champion is {champion.version}"
    build = state.features.get(run.partition_key)
    if build is not None and build.sha256 != run.input_hash:
        return "its features changed"
    if run.code_version != state.scoring_code_version:
        return "its declaration or the scoring code changed"
    return None


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
        stretch = state.registry.timeline.at(partition.start)
        champion = version or (None if stretch is None else stretch.version)
        newest = starts[at - 1] if (at := bisect_right(starts, partition.start)) else None
        awaits = newest is not None and (stretch is None or stretch.approved_from <= newest)
        reason = "missing"
        if run is not None:
            reason = _stale_reason(state, run, champion)
            if partition.key in state.features:
                reason = reason or features_due(state, partition)
            if awaits:
                reason = reason or "a newer model is due"
            if reason is not None:
                stale[partition.key] = reason
            if not rescore and partition.key not in state.incomplete:
                reason = None
        if force:
            reason = reason or "forced"
        if reason is None:
            continue
        if champion is None and not awaits:
            blocked.append(Item("predictions", partition, _unserved(state.registry, partition)))
        else:
            due.append(Item("predictions", partition, reason, awaits_model=awaits))
    return due, blocked, stale


def _unserved(registry: Registry, partition: Partition) -> str:
    """Say that no model serves a partition, and what was decided of the newest version that could."""
    newest = registry.newest_at(partition.start)
    decision = registry.last_decision(newest.version) if newest else None
    if decision is not None and decision.action == "refused":
        return f"no model serves it: {decision.version} was refused, {decision.reason}"
    if decision is not None and decision.action == "waiting":
        return f"no model serves it: {decision.version} waits for promotion"
    return "no model serves it"


def first_served(spec: PipelineSpec, registry: Registry, models: Sequence[Item] = ()) -> Partition | None:
    """The serving period of the first model: of the only one it is the one trained or due, else the first that can be."""
    if serving_calendar(spec) is None and not spec.partitions.snapshot:
        trained = [Partition(it.serving_period, it.serving_start, it.serving_start) for it in registry.of_model]
        periods = [*trained, *(item.partition for item in models)]
        if periods:
            return min(periods, key=lambda period: period.start)
    return first_service(spec)


def _with_warm_up(
    spec: PipelineSpec, state: State, models: Sequence[Item], wanted: Sequence[Partition], blocked: Sequence[Item]
) -> list[Item]:
    """What no model serves, with what no model can serve; of partitions before the first model, when it serves.

    What was scored before the first serving period, as the pipeline was once declared, stays as it is.
    """
    served_from = served_calendar(spec).first_start
    early = [item for item in wanted if item.start < served_from and item.key not in state.scores]
    blocked = [*(Item("predictions", partition, "no model serves it") for partition in early), *blocked]
    first = first_served(spec, state.registry, models) if blocked else None
    if first is None:
        return blocked
    return [
        replace(item, reason=f"the first model serves from {first.key}", warm_up=True)
        if item.partition.start < first.start
        else item
        for item in blocked
    ]


def awaited_labels(
    spec: PipelineSpec, partition: Partition, now: datetime, sources: Callable[[Partition], Sequence[str]]
) -> str | None:
    """Say what the evaluation of a partition waits for: until its labels are mature, or for those `sources` to have a file."""
    known = matures(spec, partition)
    if known > now:
        return f"{'it does not end' if spec.labels is None else 'its labels are not known'} before {known:%Y-%m-%d %H:%M} UTC"
    if names := sources(partition):
        return f"source {listed(map(repr, names))} has no file of labels for it yet"
    return None


def require_labels(
    spec: PipelineSpec, period: Partition, window: Iterable[Partition], sources: Callable[[Partition], Sequence[str]]
) -> None:
    """Refuse to train where `sources` lack files of mature labels; the DataError names all of them."""
    mature = [partition for partition in window if matures(spec, partition) <= period.start]
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


def _due_performance(
    spec: PipelineSpec, state: State, now: datetime, wanted: list[Partition], scored: AbstractSet[str]
) -> tuple[list[Item], dict[str, str]]:
    """The partitions to evaluate, and the scored ones with mature labels that lack the files of their labels."""
    due, awaiting = list[Item](), dict[str, str]()
    for partition in wanted:
        if matures(spec, partition) > now:
            continue
        reason = "scored" if partition.key in scored else _evaluation_due(state, partition)
        if reason is None:
            continue
        awaited = awaited_labels(spec, partition, now, state.awaited_label_sources)
        if awaited is None:
            due.append(Item("performance", partition, reason))
        elif partition.key in state.scores:
            awaiting[partition.key] = awaited
    return due, awaiting


def _evaluation_due(state: State, partition: Partition) -> str | None:
    """Say why the evaluation of a partition is due that is not scored now; None if it is not."""
    run, evaluation = state.scores.get(partition.key), state.evaluations.get(partition.key)
    if run is not None and (evaluation is None or evaluation.score_seq != run.seq):
        return "missing" if evaluation is None else "scored again"
    if (
        evaluation is None
        or state.label_versions.get(partition.key, evaluation.label_sources) == evaluation.label_sources
    ):
        return None
    return "its labels changed"
