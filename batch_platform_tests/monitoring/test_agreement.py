"""Agreement of two models: checked against scipy, the same whatever the parts, and in bounded memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from batch_platform.monitoring.comparison import Agreed, Agreement

pytestmark = pytest.mark.unit

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=60)


def agreement(pairs, start: int = 0, whole: int = 60, most: int = 500_000) -> Agreement:
    """Of some pairs of scores, the first of them at a place of a whole; a positive score is a decision."""
    first, second = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    places = np.arange(start, start + len(first))
    return Agreement.of(places, first[:, None], second[:, None], (first > 0) != (second > 0), whole, most)


@given(SCORES)
def test_ties_have_their_mean_rank_and_constant_scores_have_no_coefficient(pairs):
    first, second = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    result = agreement(pairs).result()
    if len(pairs) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        assert result.rank_correlation is None
    else:
        assert result.rank_correlation == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert result.decisions_flipped == (pytest.approx(np.mean((first > 0) != (second > 0))) if pairs else None)


@given(SCORES, st.lists(st.integers(0, 60), max_size=4), st.integers(1, 20), st.randoms())
def test_the_agreement_on_a_whole_is_the_merge_of_its_parts_in_any_order(pairs, cuts, most, random):
    bounds = [0, *sorted(min(cut, len(pairs)) for cut in cuts), len(pairs)]
    parts = [agreement(pairs[start:end], start, len(pairs), most) for start, end in pairwise(bounds)]
    random.shuffle(parts)
    merged = sum(parts, Agreement())
    assert merged.result() == agreement(pairs, whole=len(pairs), most=most).result()
    assert sum(map(len, merged.places)) <= most


def test_the_coefficient_of_several_columns_is_their_mean_and_unknown_if_any_is_unknown():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 50, 3))
    places, constant = np.arange(50), np.zeros(50)
    expected = np.mean([spearmanr(first[:, at], second[:, at]).statistic for at in range(3)])
    assert Agreement.of(places, first, second, None, 50).result() == Agreed(pytest.approx(expected, abs=1e-12), None)
    with_constant = (np.column_stack([scores, constant]) for scores in (first, second))
    assert Agreement.of(places, *with_constant, None, 50).result() == Agreed(None, None)
