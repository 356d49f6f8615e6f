"""Challengers that were not trained with the model of a serving period: which ones, for which periods.

Those of a model that is not trained yet are trained with it and are not spoken of here. Reads no clock.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime

from batch_platform.learners import Challenger
from batch_platform.partitions import Partition
from batch_platform.registry import Registry
from batch_platform.spec import PipelineSpec


def untrained(spec: PipelineSpec, registry: Registry, serving_period: str) -> list[Challenger]:
    """The challengers of which it is not recorded that they were trained, as they are declared now, for a serving period.

    One that could not be trained is not tried again until it is declared otherwise.
    """
    tried = {(one.challenger, one.declared) for one in registry.challenged if one.serving_period == serving_period}
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
