"""How far two models agree: held against scipy, whatever the batches, and in bounded memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from batch_platform.monitoring.agreement import Agreed, Agreement

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=60)


def agreement(pairs, cuts=(), most=500_000) -> Agreement:
    one, other = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    found = Agreement(most)
    for start, end in zip([0, *cuts], [*cuts, len(one)], strict=True):
        part, rest = one[start:end], other[start:end]
        found.add(part[:, None], rest[:, None], (part > 0) != (rest > 0))
    return found


@given(SCORES)
def test_ties_have_their_mean_rank_and_what_has_no_order_has_no_coefficient(pairs):
    one, other = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    found = agreement(pairs).result()
    if len(pairs) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        assert found.rank_correlation is None
    else:
        assert found.rank_correlation == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert found.decisions_flipped == (pytest.approx(np.mean((one > 0) != (other > 0))) if pairs else None)


@given(SCORES, st.lists(st.integers(0, 60), max_size=4), st.integers(1, 20))
def test_batches_change_nothing_also_where_rows_are_thinned(pairs, cuts, most):
    cuts = sorted(min(cut, len(pairs)) for cut in cuts)
    assert agreement(pairs, cuts, most).result() == agreement(pairs, (), most).result()


def test_of_many_rows_evenly_taken_ones_are_ranked_and_all_are_counted():
    random = np.random.default_rng(0)
    one = random.normal(size=10_000)
    other = one + random.normal(size=10_000)
    found = Agreement(most_rows=1_000)
    for at in range(0, 10_000, 777):
        part, rest = one[at : at + 777], other[at : at + 777]
        found.add(part[:, None], rest[:, None], (part > 0) != (rest > 0))
        assert sum(len(places) for places, _, _ in found._parts) <= 1_000
    result = found.result()
    assert result.rank_correlation == pytest.approx(spearmanr(one, other).statistic, abs=0.05)
    assert result.rank_correlation == pytest.approx(spearmanr(one[::16], other[::16]).statistic, abs=1e-12)
    assert result.decisions_flipped == np.mean((one > 0) != (other > 0))


def test_of_several_columns_it_is_the_mean_and_unknown_if_one_is():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 50, 3))
    found = Agreement()
    found.add(one, other, None)
    expected = np.mean([spearmanr(one[:, at], other[:, at]).statistic for at in range(3)])
    assert found.result() == Agreed(pytest.approx(expected, abs=1e-12), None)
    constant = Agreement()
    constant.add(np.column_stack([one, np.zeros(50)]), np.column_stack([other, np.zeros(50)]), None)
    assert constant.result() == Agreed(None, None)
