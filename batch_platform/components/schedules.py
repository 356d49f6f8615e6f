"""Jobs, and the schedules that keep a pipeline up to date: each tick asks `plan.py` what is due and requests it.

A tick requests every partition that is due, oldest first, in ranges without gaps, up to a limit, leaving out what a
run in progress holds. So down-time, failures and a first start from an empty home need no hand work; and since a range
stops at the first partition that fails, that one is requested alone the next time, and holds up none behind it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from batch_platform.components import runs
from batch_platform.components.events import tell_committed
from batch_platform.components.wiring import PIPELINE_TAG, Wiring, note_found
from batch_platform.errors import listed
from batch_platform.partitions import Partition
from batch_platform.plan import ASSET_OF, Item, Kind, Plan, State, contiguous, make_plan, training_window
from batch_platform.redaction import redacted
from batch_platform.scoring import Stamp
from batch_platform.spec import PipelineSpec

_GAPS = "Where nothing is due, the tick is skipped and says why; what was missed while this was off is made up for."
_DEFAULT_CRONS = {"hour": "5 * * * *", "day": "0 5 * * *", "week": "0 5 * * 0", "month": "0 5 1 * *"}


@dataclass(frozen=True)
class Tick:
    """One look at a pipeline: what is due, and what is under way."""

    wiring: Wiring
    state: State
    plan: Plan  # does not wait for models whose training failed
    retried: Plan  # the same, with those models
    held: frozenset[runs.Target]  # by a run that is queued or in progress
    failed: frozenset[runs.Target]  # in the newest finished run about it
    evaluated_at: str


@dataclass(frozen=True)
class Request:
    """Consecutive partitions of some assets, to be brought up to date in one run."""

    assets: tuple[Kind, ...]
    partitions: tuple[Partition, ...]


def build_jobs(wiring: Wiring) -> dict[str, UnresolvedAssetJobDefinition]:
    """The jobs of a pipeline, by what they bring up to date."""
    name = wiring.spec.name

    def job(
        suffix: str, description: str, *assets: str, config: dict[str, Any] | None = None
    ) -> UnresolvedAssetJobDefinition:
        return dg.define_asset_job(
            f"{name}_{suffix}",
            selection=dg.AssetSelection.assets(*(wiring.key(asset) for asset in assets)),
            description=description,
            config=config,
            tags={PIPELINE_TAG: name},
            executor_def=dg.in_process_executor,
        )

    return {
        "predictions": job(
            "score", "Builds the features of partitions and scores them by their champions.", "features", "predictions"
        ),
        "training": job(
            "train",
            "Trains the model of a serving period and judges it by the gate. The parameters shown are those declared; "
            "other ones count for that training only.",
            "model",
            config=_declared_parameters(wiring),
        ),
        "performance": job(
            "evaluate", "Measures the predictions of partitions whose labels are known by now.", "performance"
        ),
    }


def build_schedules(wiring: Wiring, jobs: Mapping[str, UnresolvedAssetJobDefinition]) -> list[dg.ScheduleDefinition]:
    """One schedule for each job, stopped until it is switched on."""
    spec = wiring.spec
    cron = spec.predictions.schedule or _DEFAULT_CRONS[spec.partitions.every]
    return [
        _schedule(
            wiring,
            jobs["predictions"],
            cron,
            _scoring_requests,
            f"Builds and scores every partition that is missing, failed or stale, oldest first. {_GAPS}",
        ),
        _schedule(
            wiring,
            jobs["training"],
            spec.model.train.schedule,
            _training_requests,
            f"Trains the model of every serving period that has none, once its features are built. {_GAPS}",
        ),
        _schedule(
            wiring,
            jobs["performance"],
            cron,
            _performance_requests,
            f"Measures every scored partition whose labels {_known(spec)} by then. {_GAPS}",
        ),
    ]


def _declared_parameters(wiring: Wiring) -> dict[str, Any] | None:
    """What the launchpad shows of a training: the declared parameters, unless there are none or a secret is among them."""
    params = wiring.spec.model.params
    if not params or redacted(params) != params:
        return None
    return {"ops": {f"{wiring.spec.name}__model": {"config": {"params": params}}}}


def _known(spec: PipelineSpec) -> str:
    return f"are known ({spec.labels.delay} after its end)" if spec.labels else "are not needed"


def _schedule(
    wiring: Wiring,
    job: UnresolvedAssetJobDefinition,
    cron: str,
    requests: Callable[[Tick], list[Request]],
    description: str,
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{job.name}_when_due",
        job=job,
        cron_schedule=cron,
        execution_timezone=wiring.spec.partitions.timezone,
        description=description,
        tags={PIPELINE_TAG: wiring.spec.name},
    )
    def tick(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        look = look_at(wiring, context)
        found = list(requests(look))
        for request in found:
            yield _run_request(look, request)
        if not found:
            yield dg.SkipReason(_reason(look))

    return tick


def look_at(wiring: Wiring, context: dg.ScheduleEvaluationContext) -> Tick:
    """What is due at a tick's own time.

    A model whose training failed is asked for again by the schedule of training, while the predictions no longer wait
    for it: the model before it serves.
    """
    held = runs.held(wiring, context.instance)  # before the state: what ends in between is then seen as done
    failed = frozenset(runs.failures(wiring, context.instance))
    state = wiring.pipeline().state()
    tell_committed(wiring, context.instance, state, held)
    now = context.scheduled_execution_time
    failed_models = frozenset(key for asset, key in failed if asset == "model")
    plan = make_plan(wiring.spec, state, now, failed_models=failed_models)
    note_found(wiring, state, plan, Stamp("schedule", now))
    return Tick(
        wiring=wiring,
        state=state,
        plan=plan,
        retried=make_plan(wiring.spec, state, now),
        held=held,
        failed=failed,
        evaluated_at=now.isoformat(),
    )


def _scoring_requests(tick: Tick) -> list[Request]:
    wanted = [*tick.plan.of("features"), *tick.retried.of("features")]
    features = {item.partition.key: item.partition for item in wanted}
    awaits = _awaiting_models(tick)
    scores = {item.partition.key: item.partition for item in tick.plan.of("predictions") if not awaits(item)}
    busy = {key for asset, key in tick.held if asset in ("features", "predictions")}
    groups: dict[tuple[Kind, ...], list[Partition]] = {
        ("features", "predictions"): [scores[key] for key in features.keys() & scores.keys() - busy],
        ("features",): [features[key] for key in features.keys() - scores.keys() - busy],
        ("predictions",): [scores[key] for key in scores.keys() - features.keys() - busy],
    }
    return _limited(tick, groups)


def _training_requests(tick: Tick) -> list[Request]:
    lacking = {item.partition.key for item in tick.retried.of("features")}
    spec = tick.wiring.spec
    periods = [
        item.partition
        for item in tick.retried.of("model")
        if not any(partition.key in lacking for partition in training_window(spec, item.partition.start))
    ]
    busy = {key for asset, key in tick.held if asset == "model"}
    if busy and tick.wiring.serving_periods is None:
        return []
    challenged = [
        item.partition
        for item in tick.retried.of("challengers")
        if not any(partition.key in lacking for partition in training_window(spec, item.partition.start))
    ]
    groups: dict[tuple[Kind, ...], list[Partition]] = {
        ("model",): [period for period in periods if period.key not in busy],
        ("challengers",): [period for period in challenged if period.key not in busy],
    }
    return _limited(tick, groups)


def _performance_requests(tick: Tick) -> list[Request]:
    left_out = {item.partition.key for item in tick.plan.of("predictions")}
    left_out |= {key for asset, key in tick.held if asset in ("predictions", "performance")}
    due = [item.partition for item in tick.plan.of("performance") if item.partition.key not in left_out]
    return _limited(tick, {("performance",): due})


def _limited(tick: Tick, groups: Mapping[tuple[Kind, ...], list[Partition]]) -> list[Request]:
    """The oldest partitions of all groups, as many as one tick may request, in ranges without gaps."""
    tagged = [(partition, assets) for assets, partitions in groups.items() for partition in partitions]
    oldest = sorted(tagged, key=lambda pair: pair[0].start)[: tick.wiring.spec.predictions.limit]
    return [
        Request(assets=assets, partitions=partitions)
        for assets in groups
        for found in contiguous(assets[-1], [partition for partition, of in oldest if of == assets])
        for partitions in _set_apart(tick, assets, found.partitions)
    ]


def _set_apart(
    tick: Tick, assets: tuple[Kind, ...], partitions: tuple[Partition, ...]
) -> Iterable[tuple[Partition, ...]]:
    """A range, without its first partition if that is where the run before stopped."""
    first, others = partitions[:1], partitions[1:]
    if others and any((asset, first[0].key) in tick.failed for asset in assets):
        return first, others
    return (partitions,)


def _awaiting_models(tick: Tick) -> Callable[[Item], bool]:
    """Tells whether a partition is to be scored by a model that is not trained yet."""
    due = sorted(item.partition.start for item in tick.plan.of("model"))

    def awaits(item: Item) -> bool:
        newest = due[: bisect_right(due, item.partition.start)][-1:]
        champion = tick.state.registry.champion(item.partition.start)
        return bool(newest) and (champion is None or champion.serving_start < newest[0])

    return awaits


def _run_request(tick: Tick, request: Request) -> dg.RunRequest:
    first, last = request.partitions[0].key, request.partitions[-1].key
    selection = [tick.wiring.key(ASSET_OF.get(asset, asset)) for asset in request.assets]
    run_key = f"{tick.evaluated_at} {'+'.join(request.assets)} {first}..{last}"
    config: dict[str, Any] = {"challengers_only": True} if request.assets == ("challengers",) else {}
    single = "model" in {path.path[-1] for path in selection} and tick.wiring.serving_periods is None
    if single:
        config["until"] = first
    run_config = {"ops": {f"{tick.wiring.spec.name}__model": {"config": config}}} if config else None
    if single:
        return dg.RunRequest(run_key=run_key, run_config=run_config)
    tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    return dg.RunRequest(run_key=run_key, asset_selection=selection, tags=tags, run_config=run_config)


def _reason(tick: Tick) -> str:
    """Why a tick requests nothing."""
    if tick.held:
        return f"Under way: {listed({key or asset for asset, key in tick.held})}; nothing else is due."
    waiting = [
        f"{len(items)} of {kind}" for kind in ("features", "model", "predictions") if (items := tick.retried.of(kind))
    ]
    if waiting:
        return f"Nothing can be done here yet; due elsewhere: {', '.join(waiting)}."
    if tick.plan.blocked:
        return f"Nothing is due; no model serves {len(tick.plan.blocked)} partitions, the last {tick.plan.blocked[-1].partition.key}."
    return "Nothing is due: every partition is up to date."
