"""Compiled code counts what plain arrays count, to the last row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.models.contract import Contract, Signature
from batch_platform.models.counting import WORTH_COMPILING, counted_profile
from batch_platform.models.forest.counting import at_least
from batch_platform.models.reference import _bins_of_output, _places, _prediction
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


@pytest.mark.parametrize("task", ["binary", "regression", "outliers", "multiclass", "clustering"])
def test_the_cells_of_segments_are_those_of_the_profile(task):
    random = np.random.default_rng(5)
    raw = {
        "binary": np.column_stack([1 - (score := random.random(900)), score]),
        "multiclass": random.dirichlet([1, 2, 3], 900),
        "clustering": np.where(np.arange(900) < 600, random.integers(0, 3, 900), random.integers(0, 5, 900)),
    }.get(task, random.normal(size=900))
    signature = Signature(task, ["a", "b", "c"] if task == "multiclass" else [], Contract(()))
    bins = _bins_of_output(raw[:600], signature)
    profile, (places, cells) = _prediction(raw, signature, bins, 0), _places(raw, signature, bins)
    assert np.bincount(places, minlength=cells).tolist() == [*profile.histogram, profile.unknown]
    assert (profile.unknown > 0) == (task == "clustering")
