"""What lies in a home and nothing refers to any more; and its removal.

Nothing that serves, scored, challenges or may still be promoted is touched, nor anything that a live run may be about to record:
what no ledger knows must have lain there for a day. Follows no link, and reads no clock.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import left_aside, remove_unlocked
from batch_platform.models.registry import Promotion, Registry, Version, read_registry, record_decisions
from batch_platform.scoring.challenger_tables import read_challenger_runs
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.home import Home, feature_file_name, partition_of
from batch_platform.warehouse.ledger import LEDGERS_SCHEMA, FeatureBuild, read_latest
from batch_platform.warehouse.staging import left_behind, sweep

UNRECORDED_FOR = timedelta(days=1)
_SCORED = f"SELECT DISTINCT model_version FROM {LEDGERS_SCHEMA}.score_runs WHERE pipeline = $pipeline"


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing refers to."""

    kind: Literal["staging", "bundle", "features"]
    pipeline: str  # "" in staging, which all share
    path: Path
    size: int  # bytes
    reason: str
    version: str = ""  # of a registered bundle, whose removal is recorded


def find_garbage(
    specs: Sequence[PipelineSpec], home: Home, now: datetime, *, trained_before: datetime
) -> list[Garbage]:
    """What could be removed.

    Args:
        specs: The declared pipelines; what lies there of others is left alone.
        home: Where to look.
        now: The time.
        trained_before: Younger versions that were never promoted are kept: somebody may still promote them.

    Raises:
        WarehouseBusyError: Another process kept the warehouse for too long.
    """
    home.create()
    found = [Garbage("staging", "", path, _size(path), "its run is gone") for path in left_behind(home)]
    with Warehouse(home).open() as con:
        for spec in specs:
            registry = read_registry(con, spec.name)
            scored = {version for (version,) in con.execute(_SCORED, {"pipeline": spec.name}).fetchall()}
            scored |= {run.model_version for run in read_challenger_runs(con, spec.name) if run.model_version}
            scored |= {one.version for one in spec.challengers if one.version}
            found += _bundles(home, registry, scored, now, trained_before)
            found += _features(home, spec, read_latest(con, FeatureBuild, spec.name), now)
    return found


def remove_garbage(garbage: Sequence[Garbage], home: Home, stamp: Stamp) -> None:
    """Remove what was found; that a registered version is gone is recorded first.

    Raises:
        WarehouseBusyError: Another process kept the warehouse for too long; nothing is removed.
    """
    decisions = [
        Promotion(
            pipeline=one.pipeline,
            version=one.version,
            action="removed",
            reason=one.reason,
            evidence="{}",
            actor="gc",
            decided_at=stamp.now(),
            run_id=stamp.run_id,
        )
        for one in garbage
        if one.version
    ]
    if decisions:
        with Warehouse(home).transaction() as con:
            record_decisions(con, decisions)
    for one in garbage:
        if one.kind == "staging":
            sweep(one.path)
        elif one.kind == "features":
            remove_unlocked(one.path)
        elif one.path.is_dir() and not one.path.is_symlink():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)


def _bundles(
    home: Home, registry: Registry, scored: AbstractSet[str], now: datetime, trained_before: datetime
) -> Iterator[Garbage]:
    registered = {version.version: version for version in registry.versions}
    newest = {registry.challengers.get(version.version): version.version for version in registry.versions}
    for folder in _inside(home.models / registry.pipeline):
        version = registered.get(folder.name)
        if version is None and _untouched_since(folder, now - UNRECORDED_FOR):
            yield Garbage("bundle", registry.pipeline, folder, _size(folder), "never registered: its run was killed")
        elif version is not None and version.version not in newest.values() and version.version not in scored:
            reason = _never_promoted(registry, version, trained_before)
            if reason is not None:
                yield Garbage("bundle", registry.pipeline, folder, _size(folder), reason, version.version)


def _never_promoted(registry: Registry, version: Version, before: datetime) -> str | None:
    """Why a version that scored nothing can go; None if it was promoted once, or is too young."""
    decided = [event.action for event in registry.promotions if event.version == version.version]
    if "removed" in decided:
        return "removed before, but not wholly"
    if "approved" in decided or version.created_at >= before:
        return None
    return f"never promoted, trained on {version.created_at:%Y-%m-%d}"


def _features(home: Home, spec: PipelineSpec, builds: Mapping[str, FeatureBuild], now: datetime) -> Iterator[Garbage]:
    folder = home.features(spec.name)
    for path in left_aside(folder):
        yield Garbage("features", spec.name, path, _size(path), "its run is gone")
    for path in _inside(folder):
        if path.suffix != ".parquet" or path.name.startswith("."):
            continue
        key = partition_of(path.name)
        build = builds.get(key)
        if not _is_partition(spec, key):
            yield Garbage("features", spec.name, path, _size(path), f"{key} is no longer a partition")
        elif build is not None and path.name == feature_file_name(key, build.sha256):
            continue
        elif _untouched_since(path, now - UNRECORDED_FOR):
            if build is None:
                yield Garbage("features", spec.name, path, _size(path), "never recorded: its run was killed")
            elif build.built_at < now - UNRECORDED_FOR:  # no run that began before it reads the file any more
                yield Garbage(
                    "features", spec.name, path, _size(path), f"replaced by the build of {build.built_at:%Y-%m-%d}"
                )


def _is_partition(spec: PipelineSpec, key: str) -> bool:
    try:
        spec.partitions.calendar.named(key)
    except WrongUseError:
        return False
    return True


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else []


def _untouched_since(path: Path, before: datetime) -> bool:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) < before


def _size(path: Path) -> int:
    files = [path] if not path.is_dir() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
