"""Runs as Dagster records them: which partitions they hold, and which failed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from batch_platform.components.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    FINISHED_STATUSES,
    NOT_FINISHED_STATUSES,
    PARTITION_NAME_TAG,
)
from batch_platform.components.jobs import MAKES, MAKES_ALL, assets_of, is_of_job, name_of_whole
from batch_platform.components.processes import dead_runs
from batch_platform.components.reporting import REPORT
from batch_platform.components.wiring import PIPELINE_TAG, Wiring
from batch_platform.declaration.calendar import Calendar
from batch_platform.declaration.errors import WrongUseError

RECENT = 200  # finished runs in which failures are looked for
PARTITIONS_TAG = (
    "batch_platform/partitions"  # shown in the list of runs, where Dagster's own tags of a range are hidden
)
_TO = "..."  # between the first and the last partition of a range
# Asset and partition key; the key is "" if a run leaves it open, or if the asset has no partitions.
Target = tuple[str, str]


def held(wiring: Wiring, instance: dg.DagsterInstance) -> frozenset[Target]:
    """The targets of queued and running runs, whoever started them; a run whose process is gone holds nothing."""
    statuses = [status for status in NOT_FINISHED_STATUSES if status != dg.DagsterRunStatus.NOT_STARTED]
    dead = {run.run_id for run in dead_runs(instance)}
    runs = [run for run in instance.get_runs(filters=dg.RunsFilter(statuses=statuses)) if run.run_id not in dead]
    made = (target for run in runs for target in (*targets(wiring, run), *_upstream(wiring, run)))
    return frozenset((asset, key) for asset, key in made if asset != REPORT)


@dataclass(frozen=True)
class Ended:
    """A finished run, or one whose process is gone."""

    run: dg.DagsterRun
    at: datetime | None  # None for a run that Dagster still takes for one in progress


def failures(wiring: Wiring, instance: dg.DagsterInstance) -> dict[Target, str]:
    """Targets whose newest finished run failed or died, with that run's id."""
    newest = newest_ended(wiring, instance)
    return {target: it.run.run_id for target, it in newest.items() if it.run.status != dg.DagsterRunStatus.SUCCESS}


def newest_ended(wiring: Wiring, instance: dg.DagsterInstance) -> dict[Target, Ended]:
    """The newest run of each target that finished or died.

    The runs of a pipeline bear its tag, so that runs of others do not hide them. A run that was started in the UI and
    ended before its first step has no tag; such a run is found among the newest of all.
    """
    records = [
        record
        for tags in ({PIPELINE_TAG: wiring.spec.name}, None)
        for record in instance.get_run_records(
            filters=dg.RunsFilter(statuses=FINISHED_STATUSES, tags=tags), limit=RECENT
        )
    ]
    newest = {target: Ended(run, None) for run in dead_runs(instance) for target in targets(wiring, run)}
    for record in sorted(records, key=lambda record: record.storage_id, reverse=True):
        at = None if record.end_time is None else datetime.fromtimestamp(record.end_time, UTC)
        for target in targets(wiring, record.dagster_run):
            newest.setdefault(target, Ended(record.dagster_run, at))
    return newest


def targets(wiring: Wiring, run: dg.DagsterRun) -> Iterator[Target]:
    """The pipeline's assets and partitions that a run is about."""
    for asset in _assets(wiring, run):
        for key in _keys(wiring, asset, run):
            yield asset, key


def _upstream(wiring: Wiring, run: dg.DagsterRun) -> Iterator[Target]:
    """The features and models that a run of a job may make on the way."""
    if is_of_job(run, wiring, "score"):
        yield from (("features", key) for key in _keys(wiring, "predictions", run))
    if is_of_job(run, wiring, "train"):
        periods = [wiring.serving_period(key) for key in _keys(wiring, "model", run) if key]
        windows = [wiring.spec.periods.window(period.start) for period in periods]
        yield from {("features", partition.key) for window in windows for partition in window}
    if run.job_name != name_of_whole(wiring.spec.name) or not (keys := _keys(wiring, "predictions", run)):
        return
    calendar, periods = wiring.spec.partitions.calendar, wiring.spec.periods.serving
    last = max(calendar.named(key).end for key in keys)
    yield from (("features", partition.key) for partition in calendar.within(calendar.first_start, last))
    if periods is None:
        yield "model", ""
    else:
        yield from (("model", period.key) for period in periods.due(last) if period.start < last)


def range_tag(context: dg.AssetExecutionContext) -> dict[str, str]:
    """A tag that shows the partitions of a run over a range; Dagster itself shows the partition of any other run."""
    if PARTITION_NAME_TAG in context.run.tags or not context.has_partition_key_range:
        return {}
    first, last = context.partition_key_range
    return {PARTITIONS_TAG: shown_range(first, last)}


def shown_range(first: str, last: str) -> str:
    """A range as people read it; a tick's requests are told apart by it."""
    return first if first == last else f"{first}{_TO}{last}"


def keys_of_range(calendar: Calendar, shown: str) -> list[str]:
    """The keys of a shown range; empty if it was shown while other partitions were declared."""
    first, _, last = shown.partition(_TO)
    try:
        begin, end = calendar.named(first), calendar.named(last or first)
    except WrongUseError:
        return []
    return [partition.key for partition in calendar.within(begin.start, end.end)]


def _assets(wiring: Wiring, run: dg.DagsterRun) -> list[str]:
    name = wiring.spec.name
    keys = run.asset_selection or wiring.keys(
        MAKES_ALL
        if run.job_name == name_of_whole(name)
        else [asset for duty in MAKES if is_of_job(run, wiring, duty) for asset in assets_of(duty)]
    )
    named = [key.path[1] for key in keys if key.path[0] == name and len(key.path) > 1]
    return [asset for asset in named if asset != "drift"]  # it is made and fails with the predictions


def _keys(wiring: Wiring, asset: str, run: dg.DagsterRun) -> list[str]:
    if asset == REPORT:
        return [""]
    if asset == "model" and wiring.serving_periods is None:
        ops: Any = run.run_config.get("ops", {})
        return [ops.get(f"{wiring.spec.name}__model", {}).get("config", {}).get("until") or ""]
    if (key := run.tags.get(PARTITION_NAME_TAG)) is not None:
        return [key]
    first, last = run.tags.get(ASSET_PARTITION_RANGE_START_TAG), run.tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if first is None or last is None:
        return []
    calendar = wiring.spec.partitions.calendar
    if asset == "model":
        calendar = wiring.spec.periods.serving or calendar
    return keys_of_range(calendar, shown_range(first, last))
