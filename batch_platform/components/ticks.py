"""What a schedule does at a tick: it asks `plan.py` what is due, and requests it or says why not.

A tick requests every partition that is due, oldest first, in ranges without gaps, up to a limit, leaving out what a
run in progress holds. So down-time, failures and a first start from an empty home need no hand work; and since a range
stops at the first partition that fails, that one is requested alone the next time, and holds up none behind it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import dagster as dg

from batch_platform.components import runs
from batch_platform.components.events import tell_committed
from batch_platform.components.jobs import DUTY_OF, MAKES, Duty, schedule_name
from batch_platform.components.wiring import Wiring, note_found
from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import listed
from batch_platform.declaration.stamp import Stamp
from batch_platform.declaration.windows import training_window
from batch_platform.pipeline.plan import STEPS, Item, Plan, State, Step, contiguous, make_plan

_WAITED_FOR: frozenset[Step] = frozenset({"features", "model", "predictions"})  # by other steps


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

    assets: tuple[Step, ...]
    partitions: tuple[Partition, ...]


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


def requests_of(duty: Duty, tick: Tick) -> list[Request]:
    """Which runs a schedule asks for."""
    return {"score": _scoring_requests, "train": _training_requests, "evaluate": _performance_requests}[duty](tick)


def skip_reason(duty: Duty, tick: Tick) -> str:
    """Why a schedule asks for none: what its own work waits for, and which schedule does that."""
    if tick.held:
        return f"Under way: {listed({key or asset for asset, key in tick.held})}; nothing else can be done here yet."
    due: dict[Step, str] = {step: f"{len(items)} of {step}" for step in STEPS if (items := tick.retried.of(step))}
    own: list[Step] = [step for step in due if step in MAKES[duty]]
    others: list[Step] = [step for step in due if step in _WAITED_FOR and step not in own]
    if own:
        first: list[Step] = [step for step in others if STEPS.index(step) < STEPS.index(own[-1])]
        waiting = ", ".join(due[step] for step in own)
        return f"Nothing can be done here yet: {waiting}, waiting for {_by_schedule(tick, first, due)}."
    if others:
        return f"Nothing is due here; elsewhere: {_by_schedule(tick, others, due)}."
    if tick.plan.blocked:
        return f"Nothing is due; no model serves {len(tick.plan.blocked)} partitions, the last {tick.plan.blocked[-1].partition.key}."
    return "Nothing is due: every partition is up to date."


def _by_schedule(tick: Tick, steps: Iterable[Step], due: Mapping[Step, str]) -> str:
    """How much is due of some steps, and the schedule that does it."""
    return ", ".join(f"{due[step]} ({schedule_name(tick.wiring.spec.name, DUTY_OF[step])})" for step in steps)


def _scoring_requests(tick: Tick) -> list[Request]:
    wanted = [*tick.plan.of("features"), *tick.retried.of("features")]
    features = {item.partition.key: item.partition for item in wanted}
    awaits = _awaiting_models(tick)
    scores = {item.partition.key: item.partition for item in tick.plan.of("predictions") if not awaits(item)}
    busy = {key for asset, key in tick.held if asset in ("features", "predictions")}
    groups: dict[tuple[Step, ...], list[Partition]] = {
        ("features", "predictions"): [scores[key] for key in features.keys() & scores.keys() - busy],
        ("features",): [features[key] for key in features.keys() - scores.keys() - busy],
        ("predictions",): [scores[key] for key in scores.keys() - features.keys() - busy],
    }
    return _limited(tick, groups)


def _training_requests(tick: Tick) -> list[Request]:
    lacking = {item.partition.key for item in tick.retried.of("features")}
    busy = {key for asset, key in tick.held if asset == "model"}
    if busy and tick.wiring.serving_periods is None:
        return []

    def ready(step: Step) -> list[Partition]:
        """The serving periods whose history is built and that no run trains for."""
        return [
            item.partition
            for item in tick.retried.of(step)
            if item.partition.key not in busy
            and not any(one.key in lacking for one in training_window(tick.wiring.spec, item.partition.start))
        ]

    return _limited(tick, {("model",): ready("model"), ("challengers",): ready("challengers")})


def _performance_requests(tick: Tick) -> list[Request]:
    left_out = {item.partition.key for item in tick.plan.of("predictions")}
    left_out |= {key for asset, key in tick.held if asset in ("predictions", "performance")}
    due = [item.partition for item in tick.plan.of("performance") if item.partition.key not in left_out]
    return _limited(tick, {("performance",): due})


def _limited(tick: Tick, groups: Mapping[tuple[Step, ...], list[Partition]]) -> list[Request]:
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
    tick: Tick, assets: tuple[Step, ...], partitions: tuple[Partition, ...]
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
