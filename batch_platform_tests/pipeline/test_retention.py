"""Retention: old rows go for good, what is still needed stays, and nothing that went is missing afterwards."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batch_platform.declaration.stamp import Stamp
from batch_platform.models.registry import Registry
from batch_platform.operations.cleanup import remove_old_rows
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.pipeline.status import status_of
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.retention import expired
from batch_platform.planning.state import Declared, Records, State
from batch_platform.warehouse.recovery import verify
from batch_platform_tests.harness.small_pipeline import finished_pipeline, small_spec
from batch_platform_tests.pipeline.customers import CUSTOMERS, customers, customers_of, holding

NOW = datetime(2024, 3, 3, 12, tzinfo=UTC)
STAMP = Stamp("gc", NOW)
WEEKLY = {"train": {"every": "week", "window": "16 days", "evaluate": "7 days"}}
RETENTION = {"features": "10 days", "predictions": "20 days", "rejected_rows": "5 days"}


def overrides(**further: Any) -> dict[str, Any]:
    shared = {"features": CUSTOMERS["features"], "predictions": {"keep": ["shop", "customer"]}, "model": WEEKLY}
    return shared | further


def finished(tmp_path: Path, **further: Any) -> Pipeline:
    declared = overrides(**{name: value for name, value in further.items() if name != "retention"})
    pipeline = finished_pipeline(tmp_path, NOW, events=customers(), features_sql=CUSTOMERS["features_sql"], **declared)
    return replace(pipeline, spec=small_spec(**overrides(**{"retention": RETENTION} | further)))


def conditions(pipeline: Pipeline, now: datetime = NOW) -> dict[str, tuple[str, str]]:
    state = pipeline.state()
    status = status_of(pipeline.spec, state, make_plan(pipeline.spec, state, PlanRequest(now)), now)
    return {line.partition: (line.condition, line.reason) for line in status.partitions}


def due(pipeline: Pipeline, now: datetime = NOW) -> list[tuple[str, str]]:
    return [
        (item.step, item.partition.key) for item in make_plan(pipeline.spec, pipeline.state(), PlanRequest(now)).items
    ]


def test_old_rows_are_removed_to_the_last_byte_and_nothing_is_missing_afterwards(tmp_path):
    pipeline = finished(tmp_path)
    home, before = pipeline.home, pipeline.state()
    gone, kept = customers_of(pipeline, "2024-02-05"), customers_of(pipeline, "2024-02-20")
    assert due(pipeline) == [], "before rows are removed, too"
    announced = remove_old_rows(pipeline, STAMP, dry_run=True)
    assert pipeline.state().scores == before.scores
    removed = remove_old_rows(pipeline, STAMP)
    assert removed == announced
    assert {old.kind: (old.partitions[0], old.partitions[-1]) for old in removed} == {
        "features": (min(before.features), "2024-02-09"),  # the newest model learned from the 10th on
        "predictions": (min(before.scores), "2024-02-11"),
        "rejected_rows": ("2024-01-25", "2024-02-26"),
    }
    after = pipeline.state()
    assert after.scores == {key: run for key, run in before.scores.items() if key > "2024-02-11"}
    assert after.features == {key: build for key, build in before.features.items() if key > "2024-02-09"}
    assert holding(home, *gone) == set()
    assert holding(home, *kept)
    assert verify(home).differing == ()
    with pipeline.warehouse.open() as con:
        ((oldest,),) = con.execute("SELECT min(partition_key) FROM small.rejected_rows").fetchall()
    assert oldest > "2024-02-26"

    stands = conditions(pipeline)
    assert stands["2024-02-05"] == ("expired", "older than retention.predictions (20 days), left as it is")
    assert stands["2024-02-12"] == ("scored", "")
    assert Counter(condition for condition, _ in stands.values()).keys() == {"expired", "scored"}
    assert due(pipeline) == due(pipeline, NOW + timedelta(days=3)) == []
    assert remove_old_rows(pipeline, STAMP) == []
    period = pipeline.spec.partitions.calendar.named("2024-02-26")
    assert pipeline.train(period, Stamp("again", NOW)).version.rows_trained > 0, "its training window is there"

    named = pipeline.spec.partitions.calendar.named("2024-02-05")
    again = make_plan(pipeline.spec, pipeline.state(), PlanRequest(NOW, only=[named]))
    assert {(item.step, item.partition.key) for item in again.items} >= {
        ("features", named.key),
        ("predictions", named.key),
    }


@pytest.mark.unit
def test_predictions_wait_until_they_are_measured_and_rejected_rows_do_not():
    spec = small_spec(retention={"predictions": "10 days", "rejected_rows": "10 days"})
    days = [partition.key for partition in spec.partitions.calendar.due(NOW - timedelta(days=10))]
    state = State(
        Records(Registry("small"), scores=dict.fromkeys(days), evaluations=dict.fromkeys(days[:-3])),
        Declared("features", "scoring"),
    )
    old = expired(spec, state, NOW)
    assert [partition.key for partition in old["predictions"]] == days[:-3]
    assert [partition.key for partition in old["rejected_rows"]] == days
