"""Delete partitions of a pipeline, or a whole one, for good: rows, files and what the published copies hold of them.

The rows and the entry that says so are one transaction. The rest follows it and can be done any number of times, so the
same call completes a drop that was killed.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batch_platform.declaration.stamp import Stamp
from batch_platform.features.lake import left_aside, remove_unlocked
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.database import Warehouse
from batch_platform.warehouse.deletion import (
    HeldPipeline,
    drop_pipeline,
    drop_rows,
    held_pipelines,
    held_rows,
    leave_mark,
    require_wiped,
)
from batch_platform.warehouse.home import Home, partition_of
from batch_platform.warehouse.published import publish, reading_ledgers


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
