"""Decisions of people on versions, and their effect on partitions that are scored already."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.calendar import Partition
from batch_platform.declaration.errors import WrongUseError
from batch_platform.models.promotion import Maker, decided, promote, roll_back, scores_on_timeline
from batch_platform.models.registry import Promotion, Registry
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform_tests.models.decisions import at, decision, version
from batch_platform_tests.pipeline.planned_states import scored

pytestmark = pytest.mark.unit

ME = Maker(actor="me", at=at(100), reason="because I say so")


def scored_on(days: int, by: str) -> ScoreRun:
    start = at(days)
    return scored(Partition(f"{start:%Y-%m-%d}", start, start + timedelta(days=1)), by, "i")


REGISTRY = Registry(
    "small",
    [version("a", 0, 1), version("b", 10, 2), version("c", 20, 3)],
    [decision("a", "approved", 1), decision("b", "approved", 2), decision("c", "refused", 3)],
)
SCORES = {
    run.partition_key: run for run in [scored_on(5, "a"), scored_on(12, "b"), scored_on(15, "b"), scored_on(25, "b")]
}


def after(event: Promotion, *more: Promotion) -> Registry:
    return Registry("small", REGISTRY.versions, [*REGISTRY.promotions, event, *more])


def champions(registry: Registry, *days: int) -> list[str | None]:
    return [champion.version if (champion := registry.champion(at(day))) else None for day in days]


def test_a_refused_version_that_is_promoted_serves_its_period_and_the_refusal_stays_on_record():
    made = promote(REGISTRY, SCORES, "c", ME)
    assert (made.before.version, made.after.version) == ("b", "c")
    assert made.partitions == ["2024-01-26"]
    assert made.promotion.reason == "because I say so; the gate had refused it: because"
    assert champions(after(made.promotion), 5, 15, 19, 20, 25) == ["a", "b", "b", "c", "c"]


def test_an_unknown_or_a_removed_version_is_refused():
    with pytest.raises(WrongUseError, match=r"no version 'x'"):
        promote(REGISTRY, SCORES, "x", ME)
    with pytest.raises(WrongUseError, match="was removed by gate"):
        promote(after(decision("c", "removed", 4)), SCORES, "c", ME)


def test_a_rollback_with_nothing_to_go_back_to_changes_nothing():
    alone = Registry("small", REGISTRY.versions[:1], REGISTRY.promotions[:1])
    with pytest.raises(
        WrongUseError, match="no approved version but a serves 2024-01-01 00:00 UTC; nothing is withdrawn"
    ):
        roll_back(alone, {}, ME)
    with pytest.raises(WrongUseError, match="has no champion to withdraw"):
        roll_back(Registry("small"), {}, ME)


def test_an_older_version_that_is_promoted_from_a_partition_on_serves_from_there_until_the_next_model():
    newer = after(decision("c", "approved", 4))
    made = promote(newer, SCORES, "a", ME, holds_from=at(15))
    assert (made.before.version, made.after.version, made.until, made.following.version) == ("b", "a", at(20), "c")
    assert made.partitions == ["2024-01-16"]
    assert champions(decided(newer, made.promotion), 5, 12, 14, 15, 19, 20, 25) == ["a", "b", "b", "a", "a", "c", "c"]
    last = promote(newer, SCORES, "a", ME, holds_from=at(24))
    assert (last.until, champions(decided(newer, last.promotion), 20, 23, 24, 99)) == (None, ["c", "c", "a", "a"])


def test_a_rollback_withdraws_what_serves_at_the_named_partition_and_not_a_later_version():
    newer = after(decision("c", "approved", 4))
    made = roll_back(newer, SCORES, ME, holds_from=at(15))
    assert (made.promotion.version, made.after.version, made.until, made.following.version) == ("b", "a", at(20), "c")
    assert champions(decided(newer, made.promotion), 12, 15, 19, 20) == ["b", "a", "a", "c"]
    with pytest.raises(WrongUseError, match="no approved version but a serves 2024-01-06"):
        roll_back(newer, SCORES, ME, holds_from=at(5))
    with pytest.raises(WrongUseError, match="no champion to withdraw at 2023-12-31"):
        roll_back(newer, SCORES, ME, holds_from=at(-1))


def test_a_rollback_of_a_promotion_leaves_what_the_version_served_before():
    promoted = decided(REGISTRY, promote(REGISTRY, SCORES, "a", ME, holds_from=at(15)).promotion)
    made = roll_back(promoted, SCORES, ME)
    assert (made.promotion.version, made.promotion.holds_from) == ("a", at(15))
    assert champions(decided(promoted, made.promotion), 5, 12, 15, 25) == ["a", "b", "b", "b"]


def test_the_timeline_says_which_version_serves_when_and_what_each_decision_makes_stale():
    registry = decided(REGISTRY, promote(REGISTRY, SCORES, "a", ME, holds_from=at(15)).promotion)
    lines = [
        (line.stretch.version.version, line.stretch.begin, line.stretch.end, line.scored, line.stale)
        for line in scores_on_timeline(registry, SCORES)
    ]
    assert lines == [
        ("a", at(0), at(10), ["2024-01-06"], []),
        ("b", at(10), at(15), ["2024-01-13"], []),
        ("a", at(15), None, ["2024-01-16", "2024-01-26"], ["2024-01-16", "2024-01-26"]),
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["approved", "withdrawn"]), st.integers(0, 30)),
        max_size=12,
    )
)
def test_a_version_serves_from_its_last_approval_until_the_next_unless_it_was_withdrawn_since(events):
    begins = {"a": 0, "b": 10, "c": 20}
    made = [("a", "approved", 0), ("b", "approved", 10), *events]
    decisions = [
        replace(decision(name, action, n), holds_from=at(begin)) for n, (name, action, begin) in enumerate(made)
    ]
    for day in range(31):
        serving = (
            None  # what a reader finds who goes through the days up to this one and through the decisions, in order
        )
        for begin in range(day + 1):
            for number, (name, action, first) in enumerate(made):
                withdrawn = any(
                    (other, against) == (name, "withdrawn") and until <= day
                    for other, against, until in made[number + 1 :]
                )
                if action == "approved" and max(first, begins[name]) == begin and not withdrawn:
                    serving = name
        assert champions(Registry("small", REGISTRY.versions, decisions), day) == [serving]
