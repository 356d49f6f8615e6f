"""The state of a pipeline: read whole once, carried through a piece of work, and changed by what is recorded meanwhile."""

from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.stamp import Stamp
from batch_platform.models.promotion import Maker, roll_back
from batch_platform.operations.cleanup import drop_partitions
from batch_platform.pipeline.pipeline import Pipeline
from batch_platform.planning.plan import make_plan
from batch_platform.planning.request import PlanRequest
from batch_platform.planning.state import State
from batch_platform_tests.harness.small_pipeline import carry_out, feature_file, finished_pipeline
from batch_platform_tests.harness.tiers import crossed

NOW = datetime(2024, 2, 5, 12, tzinfo=UTC)
LATER = datetime(2024, 2, 7, 12, tzinfo=UTC)
SHORT = {"partitions": {"start": "2024-01-17"}}
LEFT_OUT = {"awaited_label_sources", "newest_change", "label_versions"}  # as looked at, or of another time


def finished(folder: Path, **overrides: object) -> Pipeline:
    return finished_pipeline(folder, NOW, **SHORT, **overrides)


def days(pipeline: Pipeline, *keys: str) -> list[Partition]:
    return [pipeline.spec.partitions.calendar.named(key) for key in keys]


def same(pipeline: Pipeline, carried: State, read: State) -> None:
    """Compare what two states hold, and what is due by them."""
    for part in ("records", "seen", "declared"):
        mine, theirs = getattr(carried, part), getattr(read, part)
        names = {field.name for field in fields(mine)} - LEFT_OUT
        assert [name for name in sorted(names) if getattr(mine, name) != getattr(theirs, name)] == []
    request = PlanRequest(LATER)
    assert make_plan(pipeline.spec, carried, request) == make_plan(pipeline.spec, read, request)


def reading(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, read by another process."""
    return Pipeline(pipeline.spec, pipeline.folder, pipeline.home)


def build_again(pipeline: Pipeline) -> None:
    list(pipeline.build_features(days(pipeline, "2024-02-01"), Stamp("built", LATER), force=True))


def score_again(pipeline: Pipeline) -> None:
    list(pipeline.score(days(pipeline, "2024-02-01", "2024-02-02"), Stamp("scored", LATER), force=True))


def do_all_that_is_due(pipeline: Pipeline) -> None:
    carry_out(pipeline, LATER, "later")


def train_again(pipeline: Pipeline) -> None:
    pipeline.train(pipeline.spec.partitions.calendar.named("2024-02-01"), Stamp("trained", LATER))


def withdraw(pipeline: Pipeline) -> None:
    train_again(pipeline)
    state = pipeline.state()
    pipeline.decide(roll_back(state.registry, state.scores, Maker("me", LATER, "wrong")).promotion, state)


def drop(pipeline: Pipeline) -> None:
    drop_partitions(pipeline, ["2024-02-02"], "me", Stamp("dropped", LATER))


@pytest.mark.parametrize(
    ("change", "by_another"),
    crossed([build_again, score_again, do_all_that_is_due, train_again, withdraw, drop], [True, False]),
)
def test_a_carried_state_is_what_a_reading_of_everything_would_give(tmp_path, change, by_another):
    pipeline = finished(tmp_path)
    with pipeline.carrying("work"):
        before = pipeline.state()
        change(reading(pipeline) if by_another else pipeline)
        assert pipeline.state() != before
        same(pipeline, pipeline.state(), reading(pipeline).state())


def test_files_are_looked_at_once_for_a_piece_of_work_and_anew_for_the_next(tmp_path):
    pipeline = finished(tmp_path)
    lost = feature_file(pipeline, "2024-02-01")
    with pipeline.carrying("work"):
        assert pipeline.state().seen.lost == {}
        lost.unlink()
        with pipeline.carrying("a step of it"):
            assert pipeline.state().seen.lost == {}
    with pipeline.carrying("work"):
        assert pipeline.state().seen.lost == {}, "the next step of the same work"
    assert [*pipeline.state().seen.lost] == ["2024-02-01"], "outside of any work"
    with pipeline.carrying("other work"):
        assert [*pipeline.state().seen.lost] == ["2024-02-01"]
