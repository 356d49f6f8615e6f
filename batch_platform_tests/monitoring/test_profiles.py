"""Law 12 on any numbers and categories: a profile of a whole is the merge of the profiles of its parts."""

from collections.abc import Sequence
from itertools import pairwise
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import (
    CELLS,
    Bins,
    Profile,
    category_bins,
    category_profile,
    merged_profiles,
    number_bins,
    number_profile,
)

pytestmark = pytest.mark.unit

NUMBERS = st.lists(st.one_of(st.just(nan), st.integers(-3, 3), st.floats(-1e9, 1e9)), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=5)
KNOWN = ["a", "b", "c", "d"]


def of_numbers(values: Sequence[float] | NDArray[np.float64], bins: Bins) -> Profile:
    return number_profile("amount", "feature", bins, np.asarray(values, dtype=np.float64), rejected=len(values) % 3)


def of_codes(codes: Sequence[float], bins: Bins) -> Profile:
    """Of the missing codes, about half are null and the others unknown."""
    nulls = sum(map(isnan, codes)) // 2
    return category_profile("shop", "feature", bins, np.asarray(codes, dtype=np.float64), KNOWN, nulls=nulls)


def require_same(whole: Profile, merged: Profile, scale: float) -> None:
    """Everything equal but the moments, which are within the stated tolerance."""
    assert merged.bins == whole.bins
    for name in ("rows", "low", "high", "histogram"):
        assert getattr(merged, name) == getattr(whole, name), name
    assert merged.nulls + merged.unknown == whole.nulls + whole.unknown
    if whole.mean is None or whole.squares is None:
        assert merged.mean is None
        return
    assert merged.mean == pytest.approx(whole.mean, abs=1e-12 * scale)
    assert merged.squares == pytest.approx(whole.squares, abs=1e-12 * scale**2 * whole.rows)


@given(NUMBERS, NUMBERS, CUTS, st.randoms())
def test_law_12_a_profile_of_a_whole_is_the_merge_of_the_profiles_of_its_parts(learned, values, cuts, random):
    bins, scale = (
        number_bins(np.array(learned, dtype=np.float64)),
        max((abs(v) for v in values if not isnan(v)), default=1.0),
    )
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [of_numbers(values[start:end], bins) for start, end in pairwise(bounds)]
    random.shuffle(parts)
    (merged,) = merged_profiles([part] for part in parts)
    require_same(of_numbers(values, bins), merged, scale)
    assert merged.rejected == sum(part.rejected for part in parts)
    assert merged.rows == merged.nulls + merged.unknown + sum(merged.histogram)
    others, (rest, *_) = (
        merged.without(parts[0]),
        [*merged_profiles([part] for part in parts[1:]), of_numbers([], bins)],
    )
    assert (others.rows, others.nulls, others.histogram) == (rest.rows, rest.nulls, rest.histogram)


@given(st.lists(st.sampled_from([nan, 0, 1, 2, 3]), max_size=30), CUTS, st.sets(st.sampled_from(KNOWN)))
def test_law_12_holds_for_categories(codes, cuts, named):
    bins = Bins(categories=tuple(sorted(named)))
    bounds = [0, *sorted(min(cut, len(codes)) for cut in cuts), len(codes)]
    (merged,) = merged_profiles([of_codes(codes[start:end], bins)] for start, end in pairwise(bounds))
    require_same(of_codes(codes, bins), merged, 1.0)
    assert merged.rows == merged.nulls + merged.unknown + sum(merged.histogram)
    counted = dict(zip([*(bins.categories or ()), "other"], merged.histogram, strict=True))
    assert all(counted[name] == codes.count(KNOWN.index(name)) for name in named)


def test_bins_hold_about_equally_many_values_and_frequent_values_have_a_cell_of_their_own():
    random = np.random.default_rng(5)
    inside = of_numbers(values := random.normal(size=100_000), number_bins(values)).histogram
    assert (len(inside), inside[0], inside[-1]) == (CELLS + 2, 0, 0)
    assert max(inside) - min(inside[1:-1]) <= 2
    mostly_zero = np.where(random.random(100_000) < 0.7, 0.0, random.exponential(size=100_000))
    assert int((mostly_zero == 0).sum()) in of_numbers(mostly_zero, number_bins(mostly_zero)).histogram
    months = random.integers(1, 13, 1000).astype(float)
    counts = of_numbers(months, number_bins(months)).histogram
    assert list(counts) == [0, *np.bincount(months.astype(int))[1:].tolist(), 0]
    assert of_numbers([0.5, 13.0], number_bins(months)).histogram[::13] == (1, 1), "below and above what was learned"


@pytest.mark.parametrize(
    "values", [[], [nan], [7.0], [7.0, 7.0], [5e-324, 0.0], [-1.7e308, 1.7e308], [1.0, np.nextafter(1.0, 2)]]
)
def test_bins_of_odd_columns_count_every_value(values):
    bins = number_bins(np.array(values))
    profile = of_numbers(values, bins)
    assert sum(profile.histogram) == profile.values == sum(not isnan(value) for value in values)
    assert list(bins.edges) == sorted({*bins.edges})
    assert profile.histogram[0] == 0
    assert Profile.from_json(profile.to_json()).histogram == profile.histogram


def test_the_most_frequent_categories_are_named_and_a_profile_survives_json():
    names = [f"{number:03}" for number in range(100)]
    bins = category_bins({name: number for number, name in enumerate(names)})
    assert bins.categories == tuple(names[-30:])
    profile = category_profile("shop", "feature", bins, np.array([99.0, 3.0, nan, nan]), names, nulls=1)
    assert (profile.histogram[-2:], profile.nulls, profile.unknown) == ((1, 1), 1, 1)
    assert Profile.from_json(profile.to_json()) == profile
    numbers = of_numbers(values := np.array([0.1, 1 / 3]), number_bins(values))
    assert Profile.from_json(numbers.to_json()) == numbers
