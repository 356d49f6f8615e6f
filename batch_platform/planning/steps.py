"""The steps that are due for partitions, and how they are joined to runs."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.predictions import Delivery

Step = Literal["features", "model", "challengers", "predictions", "performance", "deliveries"]
STEPS: tuple[Step, ...] = ("features", "model", "challengers", "predictions", "performance", "deliveries")
TASKS: dict[Step, tuple[str, str]] = {  # the verb and the noun that announce them
    "features": ("build features of", "partition"),
    "model": ("train", "model"),
    "challengers": ("train the challengers of", "serving period"),
    "predictions": ("score", "partition"),
    "performance": ("evaluate", "partition"),
    "deliveries": ("deliver", "partition"),
}
ASSET_OF: dict[str, Step] = {"challengers": "model"}  # steps without an asset of their own


@dataclass(frozen=True)
class Item:
    """A partition for which a step is due, and why."""

    step: Step
    partition: Partition
    reason: str
    awaits_model: bool = False  # the model that is to score it is not trained yet
    again: bool = False  # the serving period has a model, which is out of date
    warm_up: bool = False  # it lies before the first model that has enough to learn from
    delivery: Delivery | None = None

    @property
    def name(self) -> str:
        """Name under which failures and progress are told: that of the step, or the asset of the delivery."""
        return self.step if self.delivery is None else self.delivery.asset


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
