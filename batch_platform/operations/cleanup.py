"""Remove for good: what nothing refers to any more, what is older than its retention, and partitions or pipelines that somebody drops.

Nothing that serves, scored, challenges or may still be promoted is garbage, nor anything that a live run may be about to
record: what no ledger knows must be a day old. The disk is read and cleaned without the warehouse lock; what to remove is
checked again under the lock. Follows no link, and reads no clock.

The rows of a dropped partition and the entry that says so are one transaction. The rest follows it and can be done any number of
times, so the same call completes a drop that was killed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import duckdb

from batch_platform.declaration.errors import WarehouseError, WrongUseError
from batch_platform.declaration.operating import RetentionKind
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import left_aside, remove_unlocked
from batch_platform.models.registry import Promotion, Registry, Version, read_registry, record_decisions
from batch_platform.monitoring.measures.challengers import read_challenger_runs
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.retention import expired
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import (
    HeldPipeline,
    delete_rows,
    drop_pipeline,
    drop_rows,
    held_pipelines,
    held_rows,
    leave_mark,
    old_rows,
    require_wiped,
)
from batch_platform.warehouse.home import Home, feature_file_name, partition_of
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, created_at, read_latest
from batch_platform.warehouse.lock import left_behind, sweep
from batch_platform.warehouse.published import publish, reading_ledgers

UNRECORDED_FOR = timedelta(days=1)
_SCORED = f"SELECT DISTINCT model_version FROM {LEDGERS_SCHEMA}.score_runs WHERE pipeline = $pipeline"


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing refers to."""

    kind: Literal["staging", "bundle", "features"]
    pipeline: str  # empty for staging, which all pipelines share
    path: Path
    size: int  # bytes
    reason: str
    version: str = ""  # the version of a registered bundle, whose removal is recorded


@dataclass(frozen=True)
class _References:
    """Everything that the ledgers of one pipeline refer to."""

    registry: Registry
    scored: frozenset[str]  # versions that scored a partition, as champion or as challenger
    builds: Mapping[str, FeatureBuild]

    @classmethod
    def read(cls, con: duckdb.DuckDBPyConnection, pipeline: str) -> "_References":
        scored = {version for (version,) in con.execute(_SCORED, {"pipeline": pipeline}).fetchall()}
        scored |= {run.model_version for run in read_challenger_runs(con, pipeline) if run.model_version}
        return cls(read_registry(con, pipeline), frozenset(scored), read_latest(con, FeatureBuild, pipeline))

    def were_made_since(self, item: Garbage, at: datetime) -> bool:
        """Return whether the ledgers have come to refer to an item since it was found."""
        if item.kind == "features":
            build = self.builds.get(partition_of(item.path.name))
            return build is not None and build.built_at > at
        if not item.version:
            return any(version.version == item.path.name for version in self.registry.versions)
        return item.version in self.scored or "approved" in _actions(self.registry, item.version)


def find_garbage(
    specs: Sequence[PipelineSpec], home: Home, now: datetime, *, trained_before: datetime
) -> list[Garbage]:
    """Find what could be removed of the declared pipelines; files of other pipelines are left alone.

    Versions that were never promoted are kept unless they are older than `trained_before`, since somebody may still promote
    them. In a home that may only be read, the ledgers are those of the published copy.
    Raises WarehouseError if files are older than the ledgers, which then belong to another home and know nothing of them.
    """
    garbage = [Garbage("staging", "", path, _size(path), "its run is gone") for path in left_behind(home)]
    with reading_ledgers(home) as con:
        references = [_References.read(con, spec.name) for spec in specs]
        began = created_at(con)
    for spec, referred in zip(specs, references, strict=True):
        pinned = {challenger.version for challenger in spec.challengers if challenger.version}
        garbage += _bundles(home, referred.registry, referred.scored | pinned, now, trained_before)
        garbage += _features(home, spec, referred.builds, now)
    unknown = [item.path for item in garbage if item.pipeline and not item.version]
    if older := [path for path in unknown if path.lstat().st_mtime < began.timestamp()]:
        msg = f"{home.warehouse} was created after {older[0]} was written, so it cannot know what {home.root} held before."
        raise WarehouseError(msg, hint="put the warehouse that belongs to these files back; nothing was removed.")
    return garbage


def remove_garbage(garbage: Sequence[Garbage], home: Home, stamp: Stamp) -> list[Garbage]:
    """Remove garbage that was looked for at `stamp.at`, except what the ledgers refer to since; returns what was removed.

    The check and the record that versions are removed are one transaction: a version promoted before it stays, and a version
    cannot be promoted after it.
    After a WarehouseBusyError nothing is removed.
    """
    removable = list(garbage)
    if pipelines := {item.pipeline for item in garbage if item.pipeline}:
        with Warehouse(home).transaction() as con:
            references = {name: _References.read(con, name) for name in pipelines}
            removable = [
                item
                for item in garbage
                if not item.pipeline or not references[item.pipeline].were_made_since(item, stamp.at)
            ]
            record_decisions(con, [_removal(item, stamp) for item in removable if item.version])
    for item in removable:
        if item.kind == "staging":
            sweep(item.path)
        elif item.kind == "features":
            remove_unlocked(item.path)
        else:
            home.remove(item.path)
    return removable


@dataclass(frozen=True)
class OldRows:
    """Rows of a kind that are older than their retention, with what is removed of them."""

    pipeline: str
    kind: RetentionKind
    partitions: list[str]  # keys, oldest first
    rows: int  # rows of tables and ledgers; of features, feature files


def remove_old_rows(pipeline: Pipeline, stamp: Stamp, *, dry_run: bool = False) -> list[OldRows]:
    """Remove what is older than its declared retention at `stamp.at`; with `dry_run`, only say what that is.

    The ledger of evaluations and the metrics of months and quarters stay. Raises WarehouseError if the rows are removed, but
    their bytes could not be.
    """
    name, home, removed = pipeline.spec.name, pipeline.home, list[OldRows]()
    old = expired(pipeline.spec, pipeline.state(), stamp.at) if pipeline.spec.retention else {}
    if not old:
        return []
    with pipeline.warehouse.transaction() as con:
        all_held: dict[RetentionKind, dict[str, dict[str, int]]] = {
            kind: old_rows(con, name, kind, [it.key for it in partitions]) for kind, partitions in old.items()
        }
        for kind, held in all_held.items():
            if keys := sorted({key for counts in held.values() for key in counts}):
                removed.append(OldRows(name, kind, keys, sum(sum(counts.values()) for counts in held.values())))
            if keys and not dry_run:
                files = home.features(name).glob("[!.]*.parquet") if kind == "features" else ()
                leave_mark(home, name, [path.name for path in files if partition_of(path.name) in keys])
                delete_rows(con, name, held)
    if (removed or home.wiping.exists()) and not dry_run:
        pipeline.conclude(stamp.now())
        require_wiped(home)
    return removed


def _removal(item: Garbage, stamp: Stamp) -> Promotion:
    return Promotion(
        pipeline=item.pipeline,
        version=item.version,
        action="removed",
        reason=item.reason,
        evidence="{}",
        actor="gc",
        decided_at=stamp.now(),
        run_id=stamp.run_id,
    )


def _bundles(
    home: Home, registry: Registry, scored: frozenset[str], now: datetime, trained_before: datetime
) -> Iterator[Garbage]:
    registered = {version.version: version for version in registry.versions}
    newest = {registry.challengers.get(version.version): version.version for version in registry.versions}
    for folder in filter(home.knows, _inside(home.bundles(registry.pipeline))):
        version = registered.get(folder.name)
        if version is None and _untouched_since(folder, now - UNRECORDED_FOR):
            yield Garbage("bundle", registry.pipeline, folder, _size(folder), "never registered: its run was killed")
        elif version is not None and version.version not in newest.values() and version.version not in scored:
            reason = _never_promoted(registry, version, trained_before)
            if reason is not None:
                yield Garbage("bundle", registry.pipeline, folder, _size(folder), reason, version.version)


def _never_promoted(registry: Registry, version: Version, before: datetime) -> str | None:
    """Say why a version that scored nothing can go; None if it was promoted once, or is too young."""
    actions = _actions(registry, version.version)
    if "removed" in actions:
        return "removed before, but not completely"
    if "approved" in actions or version.created_at >= before:
        return None
    return f"never promoted, trained on {version.created_at:%Y-%m-%d}"


def _actions(registry: Registry, version: str) -> set[str]:
    return {event.action for event in registry.promotions if event.version == version}


def _features(home: Home, spec: PipelineSpec, builds: Mapping[str, FeatureBuild], now: datetime) -> Iterator[Garbage]:
    folder = home.features(spec.name)
    for path in left_aside(folder):
        yield Garbage("features", spec.name, path, _size(path), "its run is gone")
    for path in filter(home.knows, _inside(folder)):
        if not path.name.startswith("."):
            reason = _not_needed(path, spec, builds, now - UNRECORDED_FOR)
            if reason is not None:
                yield Garbage("features", spec.name, path, _size(path), reason)


def _not_needed(path: Path, spec: PipelineSpec, builds: Mapping[str, FeatureBuild], before: datetime) -> str | None:
    """Say why a feature file can go; None if a build refers to it, or a run may be about to record it or still read it."""
    key = partition_of(path.name)
    build = builds.get(key)
    try:
        spec.partitions.calendar.named(key)
    except WrongUseError:
        return f"{key} is no longer a partition"
    if (build is not None and path.name == feature_file_name(key, build.sha256)) or not _untouched_since(path, before):
        return None
    if build is None:
        return "never recorded: its run was killed"
    return f"replaced by the build of {build.built_at:%Y-%m-%d}" if build.built_at < before else None


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else []


def _untouched_since(path: Path, before: datetime) -> bool:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) < before


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(frozen=True)
class HeldPartitions:
    """Rows and files of a home that belong to some partitions."""

    partitions: list[str]  # keys of the partitions with rows or files, in order
    rows: dict[str, int]  # number of rows by table
    files: list[Path]  # feature files, those of earlier builds too
    size: int  # bytes of the files


def held_partitions(pipeline: Pipeline, partition_keys: Collection[str]) -> HeldPartitions:
    """Say what there is to delete of some partitions."""
    with pipeline.warehouse.open() as con:
        held = held_rows(con, pipeline.spec.name, partition_keys)
    files = _files(pipeline, partition_keys)
    keys = {key for counts in held.values() for key in counts} | {partition_of(file.name) for file in files}
    rows = {table: sum(counts.values()) for table, counts in held.items()}
    return HeldPartitions(sorted(keys), rows, files, sum(file.stat().st_size for file in files))


def drop_partitions(pipeline: Pipeline, partition_keys: Collection[str], actor: str, stamp: Stamp) -> None:
    """Delete partitions for good; those of which the warehouse holds nothing get no entry.

    They are not made again before somebody names them, and no model learns from them any more.
    """
    name, files = pipeline.spec.name, _files(pipeline, partition_keys)
    with pipeline.warehouse.transaction() as con:
        leave_mark(pipeline.home, name, [file.name for file in files])
        drop_rows(con, name, partition_keys, actor, stamp)
    for file in (*files, *left_aside(pipeline.home.features(name))):  # what killed builds left may hold the rows too
        remove_unlocked(file)
    pipeline.conclude(stamp.now())
    require_wiped(pipeline.home)


def find_orphans(declared: Collection[str], home: Home) -> dict[str, HeldPipeline]:
    """The pipelines in a home that are not declared, by name."""
    with reading_ledgers(home) as con:
        return {name: held for name, held in held_pipelines(con).items() if name not in declared}


def drop_pipelines(home: Home, names: Collection[str]) -> None:
    """Remove pipelines from a home for good: features, bundles, tables and ledgers; the same call completes a killed one."""
    if not names:
        return
    with Warehouse(home).transaction() as con:
        leave_mark(home)
        for name in names:
            for folder in (home.features(name), home.bundles(name)):
                home.clear(folder)
            with suppress(OSError):  # files of tables stay until no published copy names them
                home.features(name).parent.rmdir()
            drop_pipeline(con, name)
    publish(home)
    require_wiped(home)


def _files(pipeline: Pipeline, partition_keys: Collection[str]) -> list[Path]:
    folder = pipeline.home.features(pipeline.spec.name)
    files = sorted(filter(pipeline.home.knows, folder.iterdir())) if folder.is_dir() else []
    return [file for file in files if not file.name.startswith(".") and partition_of(file.name) in partition_keys]
