"""Removal of rows from the tables of Dagster's event log, checked against Dagster 1.13.27.

Dagster removes the records of a run only as a whole, with the newest materializations of its partitions. The tables and the
storages are private; each function says which public alternative there is. A test pins each use.
"""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_platform.components.dagster_internals import FINISHED_STATUSES, NOT_FINISHED_STATUSES

if TYPE_CHECKING:
    from sqlalchemy import Connection

_AT_ONCE = 5_000  # runs that one transaction clears
EMPTY_BYTES = 16_384  # size of a log without events, at most
_UNFINISHED = dg.RunsFilter(statuses=[*NOT_FINISHED_STATUSES])


@dataclass(frozen=True)
class OldRecords:
    """Records of old runs that can be removed, or were."""

    runs: int
    size: int  # bytes of events and logs


def wipe_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey, keys: Sequence[str]) -> None:
    """Remove what Dagster recorded of partitions of an asset: materializations, observations and results of checks.

    The public `instance.wipe_asset_partitions` is not implemented by the event logs of Dagster's open source.
    """
    try:
        instance.wipe_asset_partitions(asset, keys)
    except NotImplementedError:
        from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable

        storage: Any = instance.event_log_storage
        with storage.index_connection() as con:
            for table in (SqlEventLogStorageTable, AssetCheckExecutionsTable):
                of_asset = table.c.asset_key == asset.to_string()
                con.execute(table.delete().where(of_asset, table.c.partition.in_(keys)))
        instance.wipe_asset_cached_status([asset])


def forget_planned(
    instance: dg.DagsterInstance, run_id: str, check: dg.AssetCheckKey, partition_keys: Sequence[str] | None = None
) -> bool:
    """Remove the announcements that a run will check some partitions, which results of their own would otherwise have to replace.

    Without `partition_keys`, all announcements of the check by the run.

    Dagster announces every check for each partition of a run, and shows an announcement without a result as a skipped check.
    Returns False, and removes nothing, where the event log is no SQL database of Dagster's own. No public alternative.
    """
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Results

    if (storage := _sql_storage(instance)) is None:
        return False
    planned = (
        Results.c.asset_key == check.asset_key.to_string(),
        Results.c.check_name == check.name,
        Results.c.run_id == run_id,
        Results.c.execution_status == "PLANNED",
        *([] if partition_keys is None else [Results.c.partition.in_(partition_keys)]),
    )
    with storage.index_connection() as con:
        con.execute(Results.delete().where(*planned))
    return True


def forget_planned_partitions(
    instance: dg.DagsterInstance, run_id: str, asset: dg.AssetKey, partition_keys: Collection[str]
) -> None:
    """Remove the announcements that a run will make and check some partitions of an asset.

    Dagster shows what a run announced and did not make as failed, if the run fails for another reason. No public alternative.
    """
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Results
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events

    if not partition_keys or (storage := _sql_storage(instance)) is None:
        return
    to_be_made = Events.c.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value
    with storage.index_connection() as con:
        for table, announced in ((Events, to_be_made), (Results, Results.c.execution_status == "PLANNED")):
            of_run = (table.c.asset_key == asset.to_string(), table.c.run_id == run_id)
            con.execute(table.delete().where(*of_run, announced, table.c.partition.in_(partition_keys)))


def forget_runs(
    instance: dg.DagsterInstance, tag: str, values: Collection[str], before: datetime, *, dry_run: bool = False
) -> OldRecords:
    """Remove what Dagster recorded of the finished runs with a tag that nothing has changed since a time.

    Nothing is removed of a run with a step whose op lacks the tag: such a step is the user's, and so is its log.

    What the UI shows of assets stays: the newest materialization and observation of each partition, the newest result of each
    check and the newest of the partitions of a check, and where a run failed, that a partition was to be made. A run that has one of
    these stays in the list of runs, without its log; any other is deleted. With `dry_run` nothing is removed.

    The public `instance.delete_run` removes the newest materializations too, after which partitions look as if they were never made.
    """
    storage: Any = _sql_storage(instance)
    have_tag = cache(partial(_all_steps_have, instance, tag))
    runs = [
        record.dagster_run
        for value in values
        for record in instance.get_run_records(
            dg.RunsFilter(statuses=[*FINISHED_STATUSES], tags={tag: value}, updated_before=before)
        )
        if have_tag(record.dagster_run.execution_plan_snapshot_id)
    ]
    if storage is None or not runs:
        return OldRecords(0, 0)
    cleared, size = 0, 0
    for at in range(0, len(runs), _AT_ONCE):
        some = runs[at : at + _AT_ONCE]
        with storage.index_connection() as con:
            removed, kept = _clear(con, some, dry_run=dry_run)
        for run in some:
            shard = Path(storage.path_for_shard(run.run_id)) if storage.is_run_sharded else None
            of_log = sum(file.stat().st_size for file in _files(shard)) if shard else 0
            cleared += run.run_id in removed or of_log > EMPTY_BYTES
            size += removed.get(run.run_id, 0) + (of_log if of_log > EMPTY_BYTES else 0)
            if dry_run:
                continue
            if run.run_id not in kept:
                instance.delete_run(run.run_id)
            if shard:
                _empty(shard, keep=run.run_id in kept)
            with suppress(NotImplementedError):
                instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    return OldRecords(cleared, size)


def _all_steps_have(instance: dg.DagsterInstance, tag: str, plan: str | None) -> bool:
    """Return whether the ops of all steps of an execution plan bear a tag; False for a run without a recorded plan.

    No public alternative: a run names its assets, but neither the checks of others nor the ops in it.
    """
    if plan is None:
        return False
    recorded = instance.get_execution_plan_snapshot(plan)
    executed = {*recorded.step_keys_to_execute}
    return all(tag in (step.tags or {}) for step in recorded.steps if step.key in executed)


def _clear(con: "Connection", runs: Sequence[dg.DagsterRun], *, dry_run: bool) -> tuple[dict[str, int], set[str]]:
    """Remove events and results of checks of runs; returns the bytes by run, and the runs of which some are kept."""
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Results
    from dagster._core.storage.event_log.schema import AssetEventTagsTable as Tags
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from sqlalchemy import and_, func, or_, select

    made = [dg.DagsterEventType.ASSET_MATERIALIZATION.value, dg.DagsterEventType.ASSET_OBSERVATION.value]
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value
    ids = [run.run_id for run in runs]
    failed = [run.run_id for run in runs if run.status == dg.DagsterRunStatus.FAILURE]
    newest = (
        select(func.max(Events.c.id))
        .where(Events.c.asset_key.is_not(None), Events.c.dagster_event_type.in_([*made, planned]))
        .group_by(Events.c.asset_key, Events.c.dagster_event_type, Events.c.partition)
    )
    shown = or_(Events.c.dagster_event_type.in_(made), Events.c.run_id.in_(failed))
    results = select(func.max(Results.c.id)).group_by(
        Results.c.asset_key, Results.c.check_name, Results.c.partition.is_(None)
    )
    kept, size = set[str](), dict[str, int]()
    for table, text, stays in (
        (Events, Events.c.event, and_(Events.c.id.in_(newest), shown)),
        (Results, Results.c.evaluation_event, Results.c.id.in_(results)),
    ):
        of_runs = table.c.run_id.in_(ids)
        kept |= {run_id for (run_id,) in con.execute(select(table.c.run_id).distinct().where(of_runs, stays))}
        for run_id, length in con.execute(
            select(table.c.run_id, func.sum(func.length(text))).where(of_runs, ~stays).group_by(table.c.run_id)
        ):
            size[run_id] = size.get(run_id, 0) + (length or 0)
        if not dry_run:
            if table is Events:
                con.execute(Tags.delete().where(Tags.c.event_id.in_(select(Events.c.id).where(of_runs, ~stays))))
            con.execute(table.delete().where(of_runs, ~stays))
    return size, kept


def _empty(shard: Path, *, keep: bool) -> None:
    """Remove the log of a run, also one that Dagster made without events when it deleted the run.

    If the run is kept, one table without rows stays: a webserver that has read the log expects it.
    """
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.schema import CreateTable

    if not keep:
        for file in _files(shard):
            file.unlink(missing_ok=True)
        return
    aside = shard.with_name(f".{shard.name}")
    aside.unlink(missing_ok=True)
    with create_engine(f"sqlite:///{aside}", poolclass=NullPool).begin() as con:
        con.execute(CreateTable(Events))
    for end in ("-wal", "-shm"):  # first, so that nothing of the former log is applied to the new one
        shard.with_name(shard.name + end).unlink(missing_ok=True)
    aside.replace(shard)


def _files(shard: Path) -> Iterator[Path]:
    """The files of a database of SQLite that there are."""
    return (path for end in ("", "-wal", "-shm") if (path := shard.with_name(shard.name + end)).exists())


def compact(instance: dg.DagsterInstance) -> int:
    """Give the free pages of SQLite's index of events back to the disk; returns the number of bytes.

    Nothing is done while a run is queued or in progress, whose events would wait, or where another process holds the file.
    """
    storage: Any = _sql_storage(instance)
    if storage is None or not storage.is_run_sharded or instance.get_runs_count(_UNFINISHED):
        return 0
    file = Path(storage.path_for_shard("index"))
    before = file.stat().st_size
    with closing(sqlite3.connect(file, timeout=0)) as con, suppress(sqlite3.OperationalError):
        con.execute("VACUUM")
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return before - file.stat().st_size


def _sql_storage(instance: dg.DagsterInstance) -> Any:  # noqa: ANN401 - a private type
    """The event log, if it is a SQL database of Dagster's own; otherwise None."""
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    return storage if isinstance(storage, SqlEventLogStorage) else None
