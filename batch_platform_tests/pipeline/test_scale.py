"""Ten thousand partitions: work grows with their number, not with its square."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.spec import PipelineSpec
from batch_platform.models.registry import Promotion, Registry, Version
from batch_platform.pipeline.plan import make_plan
from batch_platform.pipeline.state import State
from batch_platform.pipeline.status import status_of
from batch_platform.pipeline.wanted import PlanRequest
from batch_platform.warehouse.home import Home
from batch_platform.warehouse.ledger import FeatureBuild, ScoreRun
from batch_platform_tests.harness.small_pipeline import small_spec

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
        features={partition.key: build(partition) for partition in partitions},
        scores={partition.key: score(partition) for partition in partitions},
        evaluations={},
        registry=Registry("small", versions, [approval(version) for version in versions]),
        features_code_version="code",
        scoring_code_version="code",
    )


def build(partition: Partition) -> FeatureBuild:
    return FeatureBuild("small", partition.key, 1, "x", 1, "code", "{}", START, "run")


def score(partition: Partition) -> ScoreRun:
    model = f"{partition.start:%Y-%m-%d}-m"
    return ScoreRun(
        "small",
        partition.key,
        partition.start,
        partition.end,
        model,
        "m",
        "x",
        "code",
        "local",
        1,
        1,
        0,
        False,
        START,
        START,
        "run",
        1,
    )


def version(day: datetime) -> Version:
    name, key = f"{day:%Y-%m-%d}-m", f"{day:%Y-%m-%d}"
    return Version(
        "small",
        name,
        key,
        day,
        "m",
        "sklearn",
        "binary",
        "e",
        "{}",
        START,
        day - timedelta(days=1),
        1,
        1,
        "{}",
        "code",
        day,
        "run",
    )


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


def test_status_of_ten_thousand_partitions_names_each_of_them():
    spec, now = hourly(), START + timedelta(hours=MANY)
    state = recorded(spec, MANY, done=True)
    report = status_of(spec, state, make_plan(spec, state, PlanRequest(now)), now)
    assert report.counts == {"scored": MANY}
    assert len(report.partitions) == MANY


def test_partitions_are_made_once_however_often_they_are_asked_for():
    calendar = hourly().partitions.calendar
    first = calendar.due(START + timedelta(hours=MANY))
    again = calendar.within(START, START + timedelta(hours=MANY))
    assert all(item is repeated for item, repeated in zip(first, again, strict=True))
    assert calendar.named(first[-1].key) is first[-1]


def test_a_path_is_found_without_following_every_folder_above_the_home(tmp_path, monkeypatch):
    home = Home(tmp_path / "home").create()
    monkeypatch.setattr("os.path.realpath", None)  # not to be called where nothing is a link
    assert home.feature_file("small", "2024-01-01", "ab" * 32).name == "2024-01-01.abababababab.parquet"
