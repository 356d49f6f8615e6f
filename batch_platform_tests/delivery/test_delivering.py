"""The step that delivers: what it records, when a partition is due again, and what a kill or a slow receiver leaves."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from batch_platform.declaration.errors import DeliveryError
from batch_platform.delivery.files import PARQUET
from batch_platform.delivery.known import SINKS
from batch_platform.pipeline.health import health_of
from batch_platform.pipeline.measured import Measured
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.set_apart import error_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.lock import Patience, locked
from batch_platform.warehouse.published import open_published
from batch_platform_tests.delivery.receivers import POSTGRESQL, execute
from batch_platform_tests.delivery.rows import KEYS, NOW, STAMP, deliver_keys
from batch_platform_tests.harness.small_pipeline import finished_pipeline, small_spec


def due(pipeline: Pipeline) -> list[tuple[str, str]]:
    plan = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW))
    return [(item.partition.key, item.reason) for item in plan.items]


def at_receiver(pipeline: Pipeline) -> list[tuple[str, int]]:
    rows = pl.scan_parquet(pipeline.folder / "out/late/", hive_partitioning=True, try_parse_hive_dates=False)
    return rows.select(pl.col("partition_key").cast(pl.String), "id").sort(pl.all()).collect().rows()


def published(pipeline: Pipeline) -> list[tuple[str, int]]:
    with open_published(pipeline.home) as con:
        return con.sql("SELECT partition_key, id FROM small.predictions ORDER BY ALL").fetchall()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return finished_pipeline(tmp_path, NOW, predictions=to("parquet"))


def test_what_is_scored_is_due_until_it_is_delivered_and_again_once_the_delivery_is_declared_differently(pipeline):
    assert due(pipeline) == [(key, "missing") for key in KEYS]
    aspects = {aspect.name: aspect for aspect in health_of(pipeline.spec, pipeline.state(), NOW, Measured()).aspects}
    assert aspects["delivered"].text == "3 partitions not delivered to 'late'"
    deliver_keys(pipeline, *KEYS)
    assert due(pipeline) == []
    assert at_receiver(pipeline) == published(pipeline)
    assert "delivered" not in {it.name for it in health_of(pipeline.spec, pipeline.state(), NOW, Measured()).aspects}
    renamed = {"deliver": [{"parquet": "out/late", "name": "late", "columns": {"score": "risk"}}]}
    other = Pipeline(small_spec(predictions=to("parquet") | renamed), pipeline.folder, pipeline.home)
    assert due(other) == [(key, "its declaration changed") for key in KEYS]


def test_deliveries_that_fail_are_told_by_their_first_cause_and_the_range_of_their_partitions(pipeline, monkeypatch):
    def refuse(target, _rows):
        raise ValueError("ABC"[KEYS.index(target.partition_key)])

    monkeypatch.setitem(SINKS, "parquet", replace(PARQUET, replace=refuse))
    cause = r"^small, partition 2024-02-01: it is not delivered to 'late': ValueError: A\. 2 more"
    with pytest.raises(DeliveryError, match=rf"{cause} partitions failed too: 2024-02-02 to 2024-02-03\. Hint: "):
        deliver_keys(pipeline, *KEYS)
    error = error_of(pipeline.spec, pipeline.state(), [STAMP.run_id], deliveries=True)
    assert re.match(rf"{cause} deliveries failed too: delivered_late 2024-02-02 to 2024-02-03\. Hint: ", str(error))


def to(kind: str) -> dict[str, Any]:
    """The declaration of a delivery to a folder, or to the PostgreSQL of the environment."""
    block = {"uri": os.environ.get(POSTGRESQL, ""), "table": "late"} if kind == "sql" else "out/late"
    return {"keep": ["shop"], "deliver": [{kind: block, "name": "late"}]}


def main() -> None:
    """Deliver a partition, and die once the receiver has it."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    sink = SINKS[kind]

    def dying(target, rows):
        sink.replace(target, rows)
        os.kill(os.getpid(), signal.SIGKILL)

    SINKS[kind] = replace(sink, replace=dying)
    deliver_keys(Pipeline(small_spec(predictions=to(kind)), folder / "project", Home(folder / "home")), KEYS[0])


@pytest.mark.parametrize("kind", ["parquet", pytest.param("sql", marks=pytest.mark.full)])
def test_killed_between_the_commit_of_the_receiver_and_our_record_the_next_run_leaves_one_copy(kind, tmp_path, request):
    if kind == "sql":
        request.getfixturevalue("postgresql")

    def there() -> list[tuple[str, int]]:
        in_table = "SELECT partition_key, id FROM late ORDER BY 1, 2"
        return execute(in_table).rows() if kind == "sql" else at_receiver(pipeline)

    pipeline = finished_pipeline(tmp_path, NOW, predictions=to(kind))
    killed = subprocess.run([sys.executable, "-m", __name__, str(tmp_path), kind], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {key for key, _ in there()} == {KEYS[0]}
    assert not pipeline.state().deliveries
    assert due(pipeline) == [(key, "missing") for key in KEYS]
    deliver_keys(pipeline, *KEYS)
    assert there() == published(pipeline)
    assert [row.rows for row in pipeline.state().deliveries.values()] == [40, 40, 40]
    assert due(pipeline) == []


def test_a_receiver_that_takes_its_time_does_not_hold_the_warehouse(pipeline, monkeypatch):
    free = list[str]()

    def slow(target, rows):
        with locked(Patience(pipeline.home, 0)):
            free.append(target.partition_key)
        PARQUET.replace(target, rows)

    monkeypatch.setitem(SINKS, "parquet", replace(PARQUET, replace=slow))
    deliver_keys(pipeline, *KEYS)
    assert free == KEYS


if __name__ == "__main__":
    main()
