"""The cap on training rows: exactly so many, each class in proportion, the same ones every time, in their order."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.features.training_data import Sample
from batch_platform_tests.harness.tiers import examples

pytestmark = pytest.mark.unit


def drawn(frames: list[pl.DataFrame], most: int | None, by: str | None) -> pl.DataFrame:
    sample = Sample(most, by)
    for frame in frames:
        sample.add(frame)
    assert sample.seen == sum(frame.height for frame in frames)
    return pl.concat(sample.frames())


def labelled(labels: list[str], at: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"at": range(at, at + len(labels)), "label": pl.Series(labels, dtype=pl.String)})


@examples(60)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), min_size=1, max_size=8),
    st.integers(3, 60),
    st.sampled_from(["label", None]),
)
def test_a_sample_holds_so_many_rows_in_their_order_with_each_class_in_proportion(labels, most, by):
    frames, at = [], 0
    for part in labels:
        frames.append(labelled(part, at))
        at += len(part)
    sample = drawn(frames, most, by)
    assert sample.height == min(most, at)
    assert sample["at"].is_sorted()
    assert sample["at"].n_unique() == sample.height
    if by is not None and at > most:
        before, after = (Counter(pl.concat(frames)["label"]), Counter(sample["label"]))
        assert set(after) == set(before), "no class is lost while there is room"
        assert all(abs(after[name] - most * before[name] / at) <= 2 for name in before)


@pytest.mark.parametrize("by", ["label", None])
def test_the_same_rows_are_drawn_every_time_whichever_rows_are_dropped_early(by):
    frames = [labelled(["a", "b", "b", "c"] * 25, at) for at in range(0, 10_000, 100)]
    sample = drawn(frames, 150, by)
    assert sample.equals(drawn(frames, 150, by))
    assert sample.equals(drawn([pl.concat(frames)], 150, by)), "one frame or many"
    spread = Counter(at // 1000 for at in sample["at"])
    assert len(spread) == 10, "from the whole of the window"
