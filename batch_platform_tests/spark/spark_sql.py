"""Features that Spark computes."""

import time
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_platform.declaration.stamp import Stamp
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform_tests.harness.small_pipeline import FEATURES_SQL, small_pipeline

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

KEY, NOW = "2024-01-02", datetime(2024, 3, 2, tzinfo=UTC)
SPARK_SQL = FEATURES_SQL.replace("$", ":")


def wait_for_tasks(session: "SparkSession", tasks: int, building: Future[Any]) -> None:
    """Wait until so many tasks run; fails if what starts them ends before."""
    tracker = session.sparkContext.statusTracker()

    def running() -> int:
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        return sum(stage.numActiveTasks for stage in stages if stage)

    while running() < tasks:
        assert not building.done(), building.exception() or building.result()
        time.sleep(0.02)


ENDLESS = SPARK_SQL.replace("amount", "amount, (SELECT max(hash(id)) FROM range(0, 1000000000000)) AS slow")


def build(folder: Path, engine: Any, sql: str) -> Pipeline:
    """Build one partition of a pipeline below a folder."""
    pipeline = small_pipeline(
        folder, features_sql=sql, features={"sql": None, "spark_sql": "features.sql"}, engine=engine
    )
    day = pipeline.spec.partitions.calendar.named(KEY)
    assert [built.build.rows for built in pipeline.build_features([day], Stamp("run", NOW))] == [40]
    return pipeline
