"""Compiled code counts what plain arrays count, to the last row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.models.counting import WORTH_COMPILING, counted_profile
from batch_platform.models.forest.counting import at_least
from batch_platform.monitoring.profiles import count_at_least, number_bins, number_profile

NUMBERS = st.floats(allow_nan=False)


@given(st.lists(NUMBERS, max_size=40), st.lists(NUMBERS, max_size=9, unique=True).map(sorted))
def test_values_that_reach_an_edge_are_counted_as_by_plain_arrays(values, edges):
    array = np.array(values, dtype=np.float64)
    assert at_least(array, edges) == count_at_least(array, edges)


@pytest.mark.parametrize("rows", [WORTH_COMPILING - 1, WORTH_COMPILING])
def test_a_profile_is_the_same_whether_its_rows_are_counted_by_compiled_code_or_not(rows):
    random = np.random.default_rng(rows)
    table = np.asfortranarray(random.gamma(2, size=(rows, 2)))
    table[::7, 1] = np.nan
    for column in (*table.T, np.ascontiguousarray(table)[:, 0]):
        bins = number_bins(column)
        assert counted_profile("x", "feature", bins, column) == number_profile("x", "feature", bins, column)
