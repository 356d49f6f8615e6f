"""Ten thousand partitions: work grows with their number, not with its square."""

import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest

from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Promotion, Registry, Version
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.state import State
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.ledger import FeatureBuild
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.pipeline.planned_states import scored

pytestmark = pytest.mark.unit

START = datetime(2024, 1, 1, tzinfo=UTC)
FEW, MANY = 2_500, 10_000


def hourly() -> PipelineSpec:
    """A model for each day, so that there are many partitions and many models."""
    train = {"every": "day", "window": "all", "evaluate": "7 days"}
    return small_spec(
        partitions={"every": "hour", "start": "2024-01-01", "end": None, "timezone": "UTC"}, model={"train": train}
    )


def recorded(spec: PipelineSpec, hours: int, *, done: bool) -> State:
    """The state of so many hours: everything done, or nothing."""
    partitions = spec.partitions.calendar.due(START + timedelta(hours=hours)) if done else []
    days = [START + timedelta(days=day) for day in range(hours // 24 + 1)] if done else []
    versions = [version(day) for day in days]
    return State(
        features={it.key: FeatureBuild("small", it.key, 1, "x", 1, "code", "{}", START, "run") for it in partitions},
        scores={it.key: scored(it, f"{it.start:%Y-%m-%d}-m", "x", "code", 1) for it in partitions},
        evaluations={},
        registry=Registry("small", versions, [approval(version) for version in versions]),
        features_code_version="code",
        scoring_code_version="code",
    )


def version(day: datetime) -> Version:
    names = {"pipeline": "small", "version": f"{day:%Y-%m-%d}-m", "serving_period": f"{day:%Y-%m-%d}"}
    unknown = {field.name: "" for field in fields(Version)} | {"seq": 0, "params": "{}", "metrics": "{}"}
    trained = {"trained_from": START, "trained_until": day - timedelta(days=1), "rows_trained": 1}
    return Version(**unknown | names | trained | {"serving_start": day, "created_at": day})


def approval(version: Version) -> Promotion:
    return Promotion("small", version.version, "approved", "", "{}", "gate", version.created_at, "run")


def processor_time(work: Callable[[], object]) -> float:
    """The shortest of three runs, since the machine does other work too."""
    seconds: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


@pytest.mark.parametrize("done", [True, False], ids=["all done", "first start"])
def test_planning_grows_with_the_partitions_and_not_with_their_square(done: bool):
    took: list[float] = []
    for hours in (FEW, MANY):
        spec, now = hourly(), START + timedelta(hours=hours)
        state = recorded(spec, hours, done=done)
        took.append(processor_time(lambda spec=spec, state=state, now=now: make_plan(spec, state, PlanRequest(now))))
        plan = make_plan(spec, state, PlanRequest(now))
        assert len(plan.of("features")) == (0 if done else hours)
    assert took[1] / took[0] < 2 * MANY / FEW, took
