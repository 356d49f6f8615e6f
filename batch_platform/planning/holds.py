"""Holds: what keeps a step of a partition that is due from being done, in a sentence, and what lifts it.

| hold | lifted by |
| --- | --- |
| warm-up: no model has enough to learn from | nothing: the first model learns from these partitions |
| unserved: refused, waiting, or served only later | a promotion, another training, an earlier `model.train.start` |
| labels: not mature, or their file is missing | time, or the file |
| left: dropped or expired | naming the partition |

A source that is gone is no input any more (see `artifacts.py`), and a step that failed is left out of what remains of a run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import BatchPlatformError, DataError, NoChampionError, listed
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Registry
from batch_platform.planning.request import Question
from batch_platform.planning.state import State
from batch_platform.planning.steps import Item
from batch_platform.planning.trainings import first_served

Waiting = Callable[[Partition], Sequence[str]]  # gives the sources of labels that have no file of a partition yet


def unserved(spec: PipelineSpec, registry: Registry, partition: Partition) -> str:
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


def with_warm_up(question: Question, models: Sequence[Item], blocked: Sequence[Item]) -> list[Item]:
    """Add the partitions that no model can serve to those that none serves; say of those before the first model when it serves.

    What was scored before the first serving period, as the pipeline was once declared, stays as it is.
    """
    periods, state = question.spec.periods, question.state
    begin = periods.served.first_start
    early = [item for item in question.partitions if item.start < begin and item.key not in state.scores]
    blocked = [*(Item("predictions", partition, "no model serves it") for partition in early), *blocked]
    first = first_served(question.spec, state.registry, models) if blocked else None
    if first is None:
        return blocked
    return [
        replace(item, reason=periods.serves_from(first), warm_up=True)
        if item.partition.start < first.start and item.partition.key not in state.scores
        else item
        for item in blocked
    ]


def awaited_labels(spec: PipelineSpec, partition: Partition, now: datetime, sources: Waiting) -> str | None:
    """Say what the evaluation of a partition waits for: until its labels are mature, or for those `sources` to have a file."""
    known = spec.periods.matures(partition)
    if known > now:
        return f"{'it does not end' if spec.labels is None else 'its labels are not known'} before {known:%Y-%m-%d %H:%M} UTC"
    if names := sources(partition):
        return f"source {listed(map(repr, names))} has no file of labels for it yet"
    return None


def require_labels(spec: PipelineSpec, period: Partition, window: Iterable[Partition], sources: Waiting) -> None:
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


def unserved_error(
    state: State, asked: Iterable[Partition], blocked: Sequence[Item], *, named: bool
) -> BatchPlatformError | None:
    """The error that no model serves some of the partitions that were asked for; None if nobody has to act on that.

    - Nobody has to act on a warm-up: it only counts where the partitions were `named` and none of them is scored.
    - Any other partition that was named counts, for example one whose model waits for promotion.
    - If everything that can be scored was asked for, such a partition counts only where nothing is scored: once a later model
      serves, the partitions before it stay as they are.

    Args:
        state: The state once everything else is done.
        asked: The partitions that were asked for.
        blocked: Those that no model serves, by the plan of what is left.
        named: Whether somebody named the partitions, as a run that is launched in Dagster does.
    """
    nothing_scored = all(partition.key not in state.scores for partition in asked)
    unserved = [item for item in blocked if not item.warm_up or (named and nothing_scored)]
    if not unserved or not (named or nothing_scored):
        return None
    error = _no_champion(state, unserved[0])
    if error is not None:
        error.set_apart = tuple(item.partition.key for item in unserved)
    return error


def _no_champion(state: State, item: Item) -> BatchPlatformError | None:
    """The error about one partition, with what makes a model serve it; None if a model serves it after all."""
    pipeline, partition = state.registry.pipeline, item.partition
    if partition.key in state.scores:
        msg = f"{pipeline}, partition {partition.key}: its predictions stay as they were scored; {item.reason}."
        return NoChampionError(msg, hint=f"batch-platform drop {pipeline} --partition {partition.key} removes them.")
    try:
        state.registry.require_champion(partition.start, partition.key)
    except NoChampionError as error:
        return error
    return None
