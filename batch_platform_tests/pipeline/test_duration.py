"""How long a run is expected to take, by how long the steps of earlier runs took."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch_platform.cli.terminal import roughly
from batch_platform.pipeline.duration import expected_seconds
from batch_platform.pipeline.steps import Item
from batch_platform_tests.harness.small_pipeline import carry_out, small_pipeline

pytestmark = pytest.mark.unit

NOW = datetime(2024, 2, 11, 12, tzinfo=UTC)
BEGAN = {"first": NOW, "second": NOW + timedelta(days=1)}


def after(run_id: str, seconds: float) -> datetime:
    return BEGAN[run_id] + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The calendar, and a state whose times are known.

    The first run builds 40 partitions of features in 40 s, trains in 21 s, scores 9 partitions in 18 s. The second one builds no
    features, scores the tenth partition in 5 s, and evaluates 9 partitions in 90 s.
    """
    pipeline = small_pipeline(tmp_path_factory.mktemp("duration"))
    carry_out(pipeline, NOW)
    state = pipeline.state()
    (version,) = state.registry.versions
    scores = {
        key: replace(it, run_id="first", committed_at=after("first", 61 + 2 * number))
        for number, (key, it) in enumerate(sorted(state.scores.items()), 1)
    }
    last = max(scores)
    return pipeline.spec.partitions.calendar, replace(
        state,
        features={
            key: replace(it, run_id="first", built_at=after("first", number))
            for number, (key, it) in enumerate(sorted(state.features.items()), 1)
        },
        registry=replace(state.registry, versions=[replace(version, run_id="first", created_at=after("first", 61))]),
        scores=scores | {last: replace(scores[last], run_id="second", committed_at=after("second", 5))},
        evaluations={
            key: replace(it, run_id="second", evaluated_at=after("second", 5 + 10 * number))
            for number, (key, it) in enumerate(sorted(state.evaluations.items()), 1)
        },
    )


@pytest.mark.parametrize(
    ("due", "seconds"),
    [
        ({"features": 2}, 2 * 1.0),  # from the begin of their run
        ({"model": 1}, 21.0),  # from the last features
        ({"predictions": 3}, 3 * 2.0),  # by the run that scored most
        ({"performance": 2}, 2 * 10.0),
        ({"features": 1, "predictions": 1, "performance": 1}, 13.0),
        ({"challengers": 1}, None),  # never done
        ({"model": 10}, 210.0),
        ({"model": 11}, None),  # one model says little of so many
        ({}, 0.0),
    ],
)
def test_each_item_takes_as_long_as_where_most_of_its_step_was_done(recorded, due, seconds):
    calendar, state = recorded
    assert (len(state.features), len(state.scores), len(state.evaluations)) == (40, 10, 9)
    day = calendar.named("2024-02-20")
    items = [Item(step, day, "missing") for step, count in due.items() for _ in range(count)]
    assert expected_seconds(state, items, BEGAN.get) == pytest.approx(seconds)


def test_a_run_of_which_nobody_knows_when_it_began_says_nothing_of_its_first_step(recorded):
    calendar, state = recorded
    day = calendar.named("2024-02-20")
    unknown = {"first": None}
    assert expected_seconds(state, [Item("features", day, "missing")], unknown.get) is None
    assert expected_seconds(state, [Item("model", day, "missing")], unknown.get) == 21


@pytest.mark.parametrize(
    ("seconds", "phrase"),
    [
        (0.2, "a few seconds"),
        (47, "about 50 s"),
        (119, "about 120 s"),
        (130, "about 2 min"),
        (3600, "about 60 min"),
        (3 * 3600, "about 3 h"),
    ],
)
def test_a_length_of_time_is_as_exact_as_an_estimate(seconds, phrase):
    assert roughly(seconds) == phrase
