"""Decisions of people on versions, and their effect on partitions that are scored already."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.declaration.errors import WrongUseError
from batch_platform.models.registry import Maker, Promotion, Registry, promote, roll_back
from batch_platform.warehouse.ledger import ScoreRun
from batch_platform_tests.models.test_registry import START, at, decision, version

ME = Maker(actor="me", at=at(100), reason="because I say so")


def scored(days: int, by: str) -> ScoreRun:
    start = at(days)
    return ScoreRun(
        pipeline="small",
        partition_key=f"{start:%Y-%m-%d}",
        partition_start=start,
        partition_end=start + timedelta(days=1),
        model_version=by,
        model_sha256="m",
        input_hash="i",
        code_version="c",
        engine="local",
        rows_in=1,
        rows_scored=1,
        rows_rejected=0,
        in_sample=False,
        started_at=START,
        committed_at=START,
        run_id="r",
    )


REGISTRY = Registry(
    "small",
    [version("a", 0, 1), version("b", 10, 2), version("c", 20, 3)],
    [decision("a", "approved", 1), decision("b", "approved", 2), decision("c", "refused", 3)],
)
SCORES = {run.partition_key: run for run in [scored(5, "a"), scored(12, "b"), scored(15, "b"), scored(25, "b")]}


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


def test_a_promotion_may_hold_from_a_later_partition_on():
    made = promote(REGISTRY, SCORES, "c", ME, holds_from=at(26))
    assert made.partitions == []
    assert champions(after(made.promotion), 20, 25, 26) == ["b", "b", "c"]


def test_a_promotion_cannot_begin_before_the_serving_period():
    made = promote(REGISTRY, SCORES, "c", ME, holds_from=at(3))
    assert made.promotion.holds_from == at(20)


def test_a_version_that_serves_already_is_not_promoted_again():
    with pytest.raises(WrongUseError, match="b already serves from 2024-01-11"):
        promote(REGISTRY, SCORES, "b", ME)


def test_an_unknown_or_a_removed_version_is_refused():
    with pytest.raises(WrongUseError, match=r"no version 'x'"):
        promote(REGISTRY, SCORES, "x", ME)
    with pytest.raises(WrongUseError, match="was removed by gate"):
        promote(after(decision("c", "removed", 4)), SCORES, "c", ME)


def test_a_rollback_lets_the_version_before_serve_and_lists_what_the_withdrawn_one_scored():
    made = roll_back(REGISTRY, SCORES, ME)
    assert (made.promotion.version, made.promotion.action) == ("b", "withdrawn")
    assert (made.before.version, made.after.version) == ("b", "a")
    assert made.partitions == ["2024-01-13", "2024-01-16", "2024-01-26"]
    assert champions(after(made.promotion), 5, 12, 25) == ["a", "a", "a"]


def test_a_rollback_may_hold_from_a_partition_on_and_leaves_the_earlier_ones():
    made = roll_back(REGISTRY, SCORES, ME, holds_from=at(15))
    assert made.partitions == ["2024-01-16", "2024-01-26"]
    assert champions(after(made.promotion), 12, 14, 15, 25) == ["b", "b", "a", "a"]


def test_a_rollback_with_nothing_to_go_back_to_changes_nothing():
    alone = Registry("small", REGISTRY.versions[:1], REGISTRY.promotions[:1])
    with pytest.raises(
        WrongUseError, match="no approved version but a serves 2024-01-01 00:00 UTC; nothing is withdrawn"
    ):
        roll_back(alone, {}, ME)
    with pytest.raises(WrongUseError, match="has no champion to withdraw"):
        roll_back(Registry("small"), {}, ME)


def test_a_withdrawn_version_may_be_promoted_again():
    withdrawn = roll_back(REGISTRY, SCORES, ME, holds_from=at(15)).promotion
    back = promote(after(withdrawn), {}, "b", ME, holds_from=at(15)).promotion
    assert champions(after(withdrawn, back), 12, 15, 25) == ["b", "b", "b"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["approved", "withdrawn"]), st.integers(0, 30)),
        max_size=12,
    ),
    st.integers(0, 30),
)
def test_the_last_decision_that_holds_for_a_day_decides_which_version_serves_it(events, day):
    serving = {name: {n for n in range(31) if n >= begin} for name, begin in (("a", 0), ("b", 10))} | {"c": set()}
    promotions = list(REGISTRY.promotions)
    begins = {"a": 0, "b": 10, "c": 20}
    for seq, (name, action, begin) in enumerate(events, start=10):
        promotions.append(replace(decision(name, action, seq), holds_from=at(begin)))
        days = {n for n in range(31) if n >= max(begin, begins[name])}
        serving[name] = serving[name] | days if action == "approved" else serving[name] - days
    expected = next((name for name in ("c", "b", "a") if day in serving[name]), None)
    assert champions(Registry("small", REGISTRY.versions, promotions), day) == [expected]
