"""What is due, and in which order: features, then models and challengers, then predictions, then performance.

A pure function of the pipeline, the recorded state and a time; schedules, `run` and `status` all ask it. Once a plan
is carried out, the next plan at the same time is empty.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import listed
from batch_platform.declaration.learners import Challenger
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.windows import can_train, matures, serving_calendar, serving_periods, training_window
from batch_platform.models.registry import Registry, Version
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun


def untrained(spec: PipelineSpec, registry: Registry, serving_period: str) -> list[Challenger]:
    """The challengers of which it is not recorded that they were trained, as they are declared now, for a serving period.

    One that could not be trained is not tried again until it is declared otherwise.
    """
    tried = {
        (one.challenger, one.declared) for one in registry.challenger_trainings if one.serving_period == serving_period
    }
    return [one for one in spec.challengers if one.version is None and (one.name, one.fingerprint) not in tried]


def untrained_periods(
    spec: PipelineSpec, registry: Registry, now: datetime, wanted: Sequence[Partition], *, force: bool
) -> dict[tuple[str, datetime], list[str]]:
    """The serving periods, by key and start, for which challengers are to be trained now, and their names.

    Args:
        spec: The pipeline.
        registry: Its models.
        now: The time.
        wanted: The partitions that are to be brought up to date.
        force: Whether all periods count that serve them, and not only the newest one that has a model.
    """
    if not any(one.version is None for one in spec.challengers):
        return {}
    starts = {one.serving_period: one.serving_start for one in registry.of_model if one.serving_start <= now}
    periods = sorted(starts.items(), key=lambda period: period[1])
    begins = [start for _, start in periods]
    served = {at for partition in wanted if (at := bisect_right(begins, partition.start))}
    due = [periods[at - 1] for at in sorted(served if force else served & {len(periods)})]
    found = {(key, start): [one.name for one in untrained(spec, registry, key)] for key, start in due}
    return {period: names for period, names in found.items() if names}


Step = Literal["features", "model", "challengers", "predictions", "performance"]
STEPS: tuple[Step, ...] = ("features", "model", "challengers", "predictions", "performance")
SOURCE_CHANGED, MODEL_DUE, BUILT_AGAIN = "a source file changed", "a newer model is due", "its features are built again"
ASSET_OF: dict[Step, Step] = {"challengers": "model"}  # of the steps that are no asset of their own


@dataclass(frozen=True)
class State:
    """What is recorded of a pipeline.

    Args:
        features: The builds whose file is as recorded, by partition key.
        scores: The newest commits, by partition key.
        evaluations: The newest evaluations, by partition key.
        registry: Its models.
        features_code_version: Of the features as declared now.
        scoring_code_version: Of the predictions as declared now.
        source_versions: Versions now of sources with a file for each partition, by partition key, as recorded in builds.
        label_versions: The same of the labels' sources, as recorded in evaluations.
        relabelled: The versions that scored something and learnt from labels that were corrected since.
    """

    features: dict[str, FeatureBuild]
    scores: dict[str, ScoreRun]
    evaluations: dict[str, EvaluationRun]
    registry: Registry
    features_code_version: str
    scoring_code_version: str
    source_versions: dict[str, str] = field(default_factory=dict[str, str])
    label_versions: dict[str, str] = field(default_factory=dict[str, str])
    relabelled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Item:
    """One partition of one step that is due, and why."""

    step: Step
    partition: Partition
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is due, in order; what cannot be done, with the reason; and what is out of date, to be done or not.

    Committed predictions are stale, by partition key with the reason, if scoring them at this time would give other rows.
    """

    items: list[Item]
    blocked: list[Item]
    stale: dict[str, str] = field(default_factory=dict[str, str])

    def of(self, *steps: Step) -> list[Item]:
        """The due items of some steps, oldest first."""
        return [item for item in self.items if item.step in steps]


@dataclass(frozen=True)
class Range:
    """Consecutive partitions of one step, to be requested together."""

    step: Step
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
    force: bool = False,
) -> Plan:
    """Say what is due at a time.

    Args:
        spec: The pipeline.
        state: What is recorded.
        now: The time.
        only: The partitions to bring up to date; all that are due if None. Their upstream is planned with them.
        failed_models: Serving periods whose training failed: their partitions are scored by the model before.
        force: Whether the predictions of `only` are due even though nothing changed.
    """
    wanted = list(spec.partitions.calendar.due(now) if only is None else only)
    models = _due_models(spec, state, now, wanted, failed_models, everything=only is None)
    predictions, blocked, stale = _due_predictions(spec, state, wanted, models, force=force)
    with_model = {item.partition.key for item in models} | failed_models
    challengers = _due_challengers(spec, state, now, wanted, force=force)
    challengers = [item for item in challengers if item.partition.key not in with_model]
    windows = [training_window(spec, item.partition.start) for item in (*models, *challengers)]
    needed = {partition.key: partition for window in windows for partition in window}
    needed |= {item.partition.key: item.partition for item in predictions}
    due = sorted(needed.values(), key=lambda partition: partition.start)
    features = [Item("features", partition, reason) for partition in due if (reason := features_due(state, partition))]
    rebuilt = {item.partition.key for item in features}
    scored = {item.partition.key for item in predictions}
    only_rebuilt = rebuilt - scored
    again = [
        Item("predictions", partition, BUILT_AGAIN)
        for partition in wanted
        if partition.key in only_rebuilt and partition.key in state.scores and spec.predictions.rescore != "never"
    ]
    stale = {item.partition.key: item.reason for item in again} | stale
    predictions = sorted([*predictions, *again], key=lambda item: item.partition.start)
    performance = _due_performance(spec, state, now, wanted, {item.partition.key for item in predictions})
    return Plan(items=[*features, *models, *challengers, *predictions, *performance], blocked=blocked, stale=stale)


def features_due(state: State, partition: Partition) -> str | None:
    """Why the features of a partition are due; None if they are not."""
    build = state.features.get(partition.key)
    if build is None:
        return "missing"
    if build.code_version != state.features_code_version:
        return "the SQL or its declaration changed"
    if state.source_versions.get(partition.key, build.sources) != build.sources:
        return SOURCE_CHANGED
    return None


def stale_reason(state: State, run: ScoreRun, champion: Version | None) -> str | None:
    """Why committed predictions are out of date; None if they are not."""
    if champion is not None and run.model_version != champion.version:
        return f"scored by {run.model_version}, the champion is {champion.version}"
    build = state.features.get(run.partition_key)
    if build is not None and build.sha256 != run.input_hash:
        return "its features changed"
    if run.code_version != state.scoring_code_version:
        return "its declaration or the scoring code changed"
    return None


def contiguous(step: Step, partitions: Iterable[Partition], limit: int | None = None) -> list[Range]:
    """Join partitions to ranges without gaps, oldest first, at most `limit` partitions in all."""
    ranges: list[list[Partition]] = []
    for partition in sorted(partitions, key=lambda partition: partition.start)[:limit]:
        if ranges and ranges[-1][-1].end == partition.start:
            ranges[-1].append(partition)
        else:
            ranges.append([partition])
    return [Range(step, tuple(members)) for members in ranges]


def _due_models(  # noqa: PLR0913 - the plan's questions
    spec: PipelineSpec,
    state: State,
    now: datetime,
    wanted: list[Partition],
    failed: AbstractSet[str],
    *,
    everything: bool,
) -> list[Item]:
    if serving_calendar(spec) is None:
        return _due_single_model(spec, state, now, wanted, failed)
    trained = {version.serving_period for version in state.registry.of_model}
    periods = serving_periods(spec, now)
    if not everything:
        begins = [period.start for period in periods]
        served = {bisect_right(begins, partition.start) for partition in wanted}
        serve = {periods[at - 1].key for at in served if at}
        periods = [period for period in periods if period.key in serve]
    return [Item("model", period, "not trained") for period in periods if period.key not in trained | failed]


def _due_single_model(
    spec: PipelineSpec, state: State, now: datetime, wanted: list[Partition], failed: AbstractSet[str]
) -> list[Item]:
    """One model for all: trained once, before the first partition that it can serve."""
    if state.registry.of_model:
        return []
    for partition in wanted:
        if (
            partition.start <= now
            and partition.key not in failed
            and can_train(spec, training_window(spec, partition.start))
        ):
            period = Partition(key=partition.key, start=partition.start, end=partition.start)
            return [Item("model", period, "not trained")]
    return []


def _due_challengers(
    spec: PipelineSpec, state: State, now: datetime, wanted: list[Partition], *, force: bool
) -> list[Item]:
    calendar = serving_calendar(spec)
    return [
        Item(
            "challengers",
            Partition(key=key, start=start, end=start) if calendar is None else calendar.named(key),
            f"not trained: {listed(names)}",
        )
        for (key, start), names in untrained_periods(spec, state.registry, now, wanted, force=force).items()
    ]


def _due_predictions(
    spec: PipelineSpec, state: State, wanted: list[Partition], models: list[Item], *, force: bool
) -> tuple[list[Item], list[Item], dict[str, str]]:
    """What is to be scored, what no model serves, and what is stale whether it is to be scored again or not."""
    due: list[Item] = []
    blocked: list[Item] = []
    stale: dict[str, str] = {}
    starts = sorted(item.partition.start for item in models)
    for partition in wanted:
        run = state.scores.get(partition.key)
        champion = state.registry.champion(partition.start)
        newest = starts[at - 1] if (at := bisect_right(starts, partition.start)) else None
        awaits = newest is not None and (champion is None or champion.serving_start < newest)
        reason = "missing" if run is None else stale_reason(state, run, champion)
        if run is not None:
            if partition.key in state.features:
                reason = reason or features_due(state, partition)
            if awaits:
                reason = reason or MODEL_DUE
            if reason is not None:
                stale[partition.key] = reason
            if spec.predictions.rescore == "never":
                reason = None
        if force:
            reason = reason or "forced"
        if reason is None:
            continue
        if champion is None and not awaits:
            blocked.append(Item("predictions", partition, "no model serves it"))
        else:
            due.append(Item("predictions", partition, reason))
    return due, blocked, stale


def _due_performance(
    spec: PipelineSpec, state: State, now: datetime, wanted: list[Partition], scored: AbstractSet[str]
) -> list[Item]:
    due: list[Item] = []
    for partition in wanted:
        if matures(spec, partition) > now:
            continue
        run, evaluated = state.scores.get(partition.key), state.evaluations.get(partition.key)
        if partition.key in scored:
            due.append(Item("performance", partition, "scored"))
        elif run is not None and (evaluated is None or evaluated.score_seq != run.seq):
            due.append(Item("performance", partition, "missing" if evaluated is None else "scored again"))
        elif evaluated and state.label_versions.get(partition.key, evaluated.label_sources) != evaluated.label_sources:
            due.append(Item("performance", partition, "its labels changed"))
    return due
