"""A project whose pipeline has ten thousand hourly partitions, all done: one is real, the others are recorded like it.

The others have what `status`, the schedules and the UI read: rows in the ledgers, feature files and events. They have
no predictions.
"""

import os
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from sqlalchemy import select

from batch_platform.cli.instance import prepare_instance
from batch_platform.cli.project import Project, find_project
from batch_platform.components.wiring import Wiring
from batch_platform.declaration.calendar import Partition
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.warehouse.ledger import EvaluationRun, FeatureBuild, ScoreRun, append, read_latest
from batch_platform_tests.harness.dagster_project import write_dagster_project
from batch_platform_tests.harness.small_pipeline import feature_file, small_events

PIPELINE = "small"
MADE = "2024-01-08-00:00"  # the first hour that the model serves
PARTITIONS = 10_008  # 417 days
ASSETS = ("features", "predictions", "performance")
AFTER_ALL = datetime(2025, 3, 1, tzinfo=UTC)


def write_hourly_project(folder: Path) -> Path:
    """Write the project, in which nothing has run."""
    return write_dagster_project(
        folder,
        events=small_events(last=date(2024, 1, 10), rows_per_day=480),
        partitions={"every": "hour", "start": "2024-01-01", "end": "2025-02-21", "timezone": "UTC"},
        labels={"delay": "1 hour"},
        model={"train": {"every": None, "evaluate": "1 day"}},
    )


def fill(folder: Path) -> None:
    """Record every partition after the one that a run has made as a copy of it."""
    project = find_project(folder)
    wiring = project.pipeline(PIPELINE)
    pipeline = wiring.pipeline()
    others = _record(pipeline)
    file = feature_file(pipeline, MADE)
    for partition in others:
        os.link(file, file.with_name(file.name.replace(MADE, partition.key)))
    pipeline.conclude(AFTER_ALL)
    tell(project, wiring, [partition.key for partition in others])


def tell(project: Project, wiring: Wiring, keys: list[str]) -> None:
    """Report the partitions to Dagster as materialized: the first and the last to Dagster itself, which takes 1 ms each.

    Those between are copies of what it stored of the first.
    """
    first, *between, last = keys
    with dg.DagsterInstance.from_config(str(prepare_instance(project.home))) as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, SqliteEventLogStorage)
        for asset in ASSETS:
            instance.report_runless_asset_event(dg.AssetMaterialization(wiring.key(asset), partition=first))
        with storage.index_connection() as con:
            columns = [column for column in SqlEventLogStorageTable.columns if column.name != "id"]
            stored = con.execute(select(*columns).where(SqlEventLogStorageTable.c.partition == first)).mappings().all()
            assert len(stored) == len(ASSETS)
            copies = [
                {**row, "partition": key, "event": row["event"].replace(first, key)}
                for row in stored
                for key in between
            ]
            con.execute(SqlEventLogStorageTable.insert(), copies)
        for asset in ASSETS:
            instance.report_runless_asset_event(dg.AssetMaterialization(wiring.key(asset), partition=last))


def _record(pipeline: Pipeline) -> list[Partition]:
    """Add the ledger rows of the partitions after the one that was made; returns the partitions."""
    calendar = pipeline.spec.partitions.calendar
    others = calendar.within(calendar.named(MADE).end, AFTER_ALL)
    with pipeline.warehouse.transaction() as con:
        build = read_latest(con, FeatureBuild, PIPELINE)[MADE]
        run = read_latest(con, ScoreRun, PIPELINE)[MADE]
        evaluation = read_latest(con, EvaluationRun, PIPELINE)[MADE]
        append(con, [replace(build, partition_key=partition.key) for partition in others], "features")
        runs = [
            replace(run, partition_key=hour.key, partition_start=hour.start, partition_end=hour.end) for hour in others
        ]
        numbers = append(con, runs, "predictions")
        append(
            con,
            [
                replace(evaluation, partition_key=hour.key, score_seq=number, rows_labelled=evaluation.rows_scored)
                for hour, number in zip(others, numbers, strict=True)
            ],
            "performance",
        )
    return others
