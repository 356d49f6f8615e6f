"""The health of a pipeline: whether the newest partition is scored in time, and what is unusual about the newest ones.

A partition is compared with earlier partitions only, so its judgement is the same whenever it is scored. The clock is read
by whoever asks whether a pipeline is fresh.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import counted, listed, number
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Version
from batch_platform.monitoring.measure import Aspect, Health, Judgement
from batch_platform.monitoring.measures.drift import DRIFT, PartitionDrift, drift_aspect
from batch_platform.monitoring.measures.estimates import ESTIMATES, estimated_metric, in_words
from batch_platform.monitoring.measures.health import CHAMPION_AGE, champion_age, rejected_share, volume
from batch_platform.monitoring.measures.performance import PERFORMANCE
from batch_platform.monitoring.metrics import default_metric
from batch_platform.monitoring.usual import Past
from batch_platform.pipeline.measured import Measured, newest_of
from batch_platform.planning.artifacts import undelivered
from batch_platform.planning.state import State
from batch_platform.planning.trainings import first_served
from batch_platform.warehouse.failures import Failure

A_FEW = 3  # failures of a step that are named one by one


def health_of(
    spec: PipelineSpec, state: State, now: datetime, measured: Measured, failures: Sequence[Failure] = ()
) -> Health:
    """The health of a pipeline at a time, where `failures` are the attempts that failed at what is still due."""
    aspects = [freshness(spec, state, now)]
    if failures:
        of_steps = [_failed(step, failures) for step in sorted({failure.step for failure in failures})]
        text = f"failed: {'; '.join(of_steps)}"
        aspects.insert(0, Aspect("failures", "fail", text, numbers={"failures": len(failures)}))
    aspects = [*_sources(state, measured), *aspects]
    if waiting := {
        delivery.name: len(keys)
        for delivery in spec.predictions.deliver
        if (keys := [key for key in state.scores if undelivered(state, delivery, key)])
    }:
        text = "; ".join(f"{counted(count, 'partition')} not delivered to {name!r}" for name, count in waiting.items())
        aspects.append(Aspect("delivered", "warn", text, numbers=waiting))
    newest = newest_of(state, state.scores)
    if newest is not None:
        run = state.scores[newest]
        past = Past(spec.partitions.calendar, state.scores.values())
        drift = DRIFT.of(measured.newest) or PartitionDrift(run)
        may_be_empty = spec.monitoring.allows_empty(newest)
        aspects += [volume(past, run, may_be_empty=may_be_empty), rejected_share(past, run), drift_aspect(spec, drift)]
    if (performance := _performance(spec, state, measured)) is not None:
        aspects.append(performance)
    if newest is not None and newest not in state.evaluations:
        aspects += _estimated_performance(spec, state.registry.named(state.scores[newest].model_version), measured)
    last_end = spec.partitions.calendar.last_end
    champion = state.registry.champion(now)
    if champion is not None:
        at = now if last_end is None or now < last_end else state.scores[newest].partition_end if newest else None
        if at is not None:  # after the end of a calendar, age is counted up to the newest scored partition
            aspects.append(champion_age(spec, champion, at))
        if guesses := state.registry.not_better_than_guessing(champion.version):
            aspects.append(Aspect("better_than_guessing", "warn", f"the model {champion.version} is {guesses}"))
    return Health.of(_with_failed_checks(aspects, newest, measured))


def _with_failed_checks(aspects: Sequence[Aspect], newest: str | None, measured: Measured) -> list[Aspect]:
    """Add the checks that the newest partitions failed, unless an aspect warns of the same; the age of a model is judged as of now."""
    of_newest = [
        check
        for check in measured.failed
        if check.partition_key == (measured.evaluated if check.asset == "performance" else newest)
        and check.check != CHAMPION_AGE.name
    ]
    failed = {
        check.check: Aspect(
            check.check, check.level, f"{check.check} on {check.partition_key}: {check.text}", check.partition_key
        )
        for check in of_newest
    }
    stand = [aspect for aspect in aspects if not (aspect.passed and aspect.name in failed)]
    return [*stand, *(aspect for name, aspect in failed.items() if name not in {other.name for other in stand})]


def _failed(step: str, failures: Sequence[Failure]) -> str:
    """The failures of a step in words: a few by their keys, more by their number and the first and last key."""
    keys = [failure.partition_key for failure in failures if failure.step == step]
    if len(keys) <= A_FEW:
        return f"{step} {listed(keys)}"
    return f"{step} {len(keys):,} times between {min(keys)} and {max(keys)}"


def _sources(state: State, measured: Measured) -> Iterator[Aspect]:
    """The sources that are gone, and those of which nobody knows whether they changed."""
    if measured.gone:
        yield Aspect("sources", "fail", f"the source {listed(map(repr, measured.gone))} is gone")
    if state.seen.unread:
        names, why = (
            listed(map(repr, state.seen.unread)),
            " ".join(error.message for error in state.seen.unread.values()),
        )
        text = f"it is not known whether the rows of {names} changed: {why.rstrip('.')}"
        yield Aspect("sources", "warn", text)


def freshness(spec: PipelineSpec, state: State, now: datetime) -> Aspect:
    """Judge whether the newest partition that must be scored by a time is scored, whatever else was scored meanwhile.

    Partitions that were dropped, and those before the first model, need not be scored. Without `monitoring.fresh_by`, a
    partition that is late is worth a warning; with it, it fails.
    """
    partition = newest_required(spec, state, now)
    newest = newest_of(state, state.scores)
    if partition is None and newest is None:
        return Aspect("fresh", None, "nothing is scored yet")
    if partition is None or partition.key in state.scores:
        return Aspect("fresh", "none", f"fresh ({newest})", newest)
    by = spec.periods.deadline(partition).astimezone(spec.partitions.calendar.zone)
    last = "nothing is scored yet" if newest is None else f"the newest scored partition is {newest}"
    text = f"{partition.key} is not scored, which was expected by {by:%Y-%m-%d %H:%M}; {last}"
    return Aspect("fresh", "fail" if spec.monitoring.fresh_by else "warn", text, partition.key)


def newest_required(spec: PipelineSpec, state: State, now: datetime) -> Partition | None:
    """The newest partition that must be scored by a time; None if there is none.

    A snapshot that was not taken can no longer be: none before the newest one that is scored must be.
    """
    first = first_served(spec, state.registry)
    if first is None:
        return None
    taken = [run.partition_start for run in state.scores.values()] if spec.partitions.snapshot else []
    begin = max(first.start, spec.periods.served.first_start, *taken)
    for partition in reversed(spec.partitions.calendar.due(now)):
        if partition.start < begin:
            return None
        if partition.key not in state.dropped and spec.periods.deadline(partition) <= now:
            return partition
    return None


def _performance(spec: PipelineSpec, state: State, measured: Measured) -> Aspect | None:
    """The gate's metric of the newest measured partition; None if it is not known."""
    rows, key = measured.performance, measured.evaluated
    if rows is None or not rows.height:
        return None
    task = state.registry.named(rows["model_version"][0]).task
    metric = spec.model.promote.metric or default_metric(task)
    value = dict(zip(rows["metric"], rows["value"], strict=True)).get(metric)
    if value is None:
        return None
    text, numbers = f"{metric} {value:.4f} on {key}", {metric: value}
    if rows["in_sample"].any():
        return Aspect("performance", None, f"{text}, on rows that the model learned from", key, numbers)
    check = PERFORMANCE.check(spec)
    judgement = None if check is None else check.judge(rows, task)
    if not isinstance(judgement, Judgement):
        return Aspect("performance", None, text, key, numbers)
    if judgement.passed:
        return Aspect("performance", "none", text, key, numbers)
    text += f" is {'above' if judgement.lower_is_better else 'below'} {number(judgement.bound)}"
    return Aspect("performance", "warn", text, key, numbers)


def _estimated_performance(spec: PipelineSpec, version: Version, measured: Measured) -> list[Aspect]:
    """The expected gate's metric of a partition whose labels are not known, or else its accuracy."""
    estimated = ESTIMATES.of(measured.newest)
    if estimated is None:
        return []
    by_metric = {estimate.metric: estimate for estimate in estimated.metrics}
    metric = estimated_metric(spec.model.promote.metric or default_metric(version.task), by_metric)
    if metric is None:
        return []
    estimate = by_metric[metric]
    text = in_words(estimate, estimated.records)
    numbers = {estimate.metric: estimate.estimate, "low": estimate.low, "high": estimate.high}
    return [Aspect("estimated_performance", None, text, estimate.partition_key, numbers)]
