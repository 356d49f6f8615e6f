"""Compiled code counts what plain arrays count, to the last row."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_platform.kernels.forest.counting import add_mixed, at_least
from batch_platform.models.contract import Contract, Signature
from batch_platform.models.counting import WORTH_COMPILING, counted_by_segment, counted_cells, counted_profile
from batch_platform.models.reference import _bins_of_output, _places, _prediction
from batch_platform.monitoring.profiles import count_at_least, number_bins, number_profile, row_hashes
from batch_platform.monitoring.segments import MOST_SEGMENTS

pytestmark = pytest.mark.unit

ROWS = pytest.mark.parametrize("rows", [WORTH_COMPILING - 1, WORTH_COMPILING])
NUMBERS = st.floats(allow_nan=False)


@given(st.lists(NUMBERS, max_size=40), st.lists(NUMBERS, max_size=9, unique=True).map(sorted))
def test_values_that_reach_an_edge_are_counted_as_by_plain_arrays(values, edges):
    array = np.array(values, dtype=np.float64)
    assert at_least(array, edges) == count_at_least(array, edges)


@ROWS
def test_a_profile_is_the_same_whether_its_rows_are_counted_by_compiled_code_or_not(rows):
    random = np.random.default_rng(rows)
    table = np.asfortranarray(random.gamma(2, size=(rows, 2)))
    table[::7, 1] = np.nan
    for column in (*table.T, np.ascontiguousarray(table)[:, 0]):
        bins = number_bins(column)
        plain = number_profile("x", "feature", bins, column)
        assert counted_profile("x", "feature", bins, column) == plain
        if not plain.nulls:
            cells = counted_cells(column, bins)
            assert cells.tolist() == np.searchsorted(bins.edges, column, side="right").tolist()
            assert counted_profile("x", "feature", bins, column, cells=cells) == plain


@ROWS
def test_segments_are_counted_the_same_by_compiled_code_or_not(rows):
    random = np.random.default_rng(rows)
    numbers = random.integers(0, MOST_SEGMENTS, rows)
    names = pl.Series([None, *(f"a name that takes some bytes: {at}" for at in range(1, MOST_SEGMENTS))])
    cells = random.integers(0, 7, rows).astype(np.uint8)
    segments = pl.DataFrame({"name": names.gather(numbers), "number": numbers, "share": numbers / 7})
    segments = segments.with_columns(day=pl.col("number").cast(pl.Date), kind=pl.col("name").cast(pl.Categorical))
    counted = counted_by_segment(segments, {"prediction": (cells, 7)}).of("prediction")
    plain = (
        pl.DataFrame({"cell": cells}).hstack(segments.cast(pl.String)).group_by(pl.exclude("cell"), "cell").len("rows")
    )
    for column in segments.columns:
        expected = dict[str | None, list[int]]()
        for value, cell, count in plain.group_by(column, "cell").agg(pl.col("rows").sum()).iter_rows():
            expected.setdefault(value, [0] * 7)[cell] = count
        assert counted[column] == expected
    too_many = pl.DataFrame({"name": range(rows)})
    assert not counted_by_segment(too_many, {"prediction": (cells, 7)}).of("prediction")


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


def test_rows_have_the_same_hash_by_compiled_code_or_not():
    rows = np.random.default_rng(5).normal(size=(20_000, 3))
    rows[:6, 0] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324]
    rows[:, 2] = np.arange(len(rows)) % 2
    columns = {"a": None, "b": None, "shop": ("east", "west")}
    np.testing.assert_array_equal(row_hashes(rows, columns, add_mixed), row_hashes(rows, columns))
    assert len(np.unique(row_hashes(rows[3:5, :1], {"a": None}, add_mixed))) == 1, "-0.0 is 0.0"
