"""Estimates of performance: what they expect is what comes true on average, and their intervals hold it."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from batch_platform.models.estimate_basis import LEAST_ROWS, basis_of, basis_profile, basis_values, rising_blocks
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.reference import EstimateBasis, estimates

pytestmark = pytest.mark.unit


def drawn(task: str, rows: int, seed: int, shift: float = 0.0) -> Outcomes:
    """Rows of a model that is overconfident (of classes), or whose error depends on a feature (of a regression)."""
    random = np.random.default_rng(seed)
    feature = random.normal(shift, 1, rows)
    matrix, groups = np.column_stack([feature, random.normal(size=rows)]), np.arange(rows) * 10 // rows
    matrix[random.random(matrix.shape) < 0.05] = np.nan
    if task == "regression":
        truth = feature + random.normal(0, np.exp(np.nan_to_num(matrix[:, 0]) / 2), rows)
        return Outcomes(task, feature, truth, (), matrix, {"partition": groups})
    score, true = (1 / (1 + np.exp(-steep * feature)) for steep in (2.5, 1.0))
    positive = random.random(rows) < true
    if task == "binary":
        return Outcomes(
            task, np.column_stack([1 - score, score]), positive, [False, True], matrix, {"partition": groups}
        )
    shares = np.column_stack([score * 0.9, (1 - score) * 0.9, np.full(rows, 0.1)])
    truth = np.where(random.random(rows) < 0.05, 2, np.where(positive, 0, 1))
    return Outcomes(task, shares, truth, [0, 1, 2], matrix, {"partition": groups})


def profiled(basis: EstimateBasis, matrix, predicted):
    return basis_profile(basis, basis_values(basis, matrix, predicted))


def estimated(basis: EstimateBasis, outcomes: Outcomes):
    counted = profiled(basis, outcomes.matrix, outcomes.predicted)
    return {estimate.metric: estimate for estimate in estimates(basis.expectation, counted.histogram)}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_is_expected_comes_true_also_where_the_rows_have_shifted(task):
    basis = basis_of(drawn(task, 20_000, 1))
    assert EstimateBasis.from_json(json.loads(json.dumps(basis.to_json()))) == basis
    for shift in (0.0, 0.7):
        rows = drawn(task, 20_000, 2, shift)
        for name, estimate in estimated(basis, rows).items():
            assert estimate.low <= METRICS[name](rows) <= estimate.high, (shift, name)
            assert estimate.high - estimate.low < 0.12 * (1 + shift)
    names = {"binary": {"accuracy", "brier", "log_loss", "roc_auc"}, "multiclass": {"accuracy"}, "regression": {"mae"}}
    assert set(estimated(basis, drawn(task, 10, 3))) == names[task]
    naive = float(drawn(task, 20_000, 2).predicted.max(axis=-1).mean())
    if task == "binary":  # by the model's own word it would be right far more often
        assert naive - estimated(basis, drawn(task, 20_000, 2))["accuracy"].high > 0.05


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_intervals_of_small_partitions_hold_about_95_of_100_values(task):
    within, made = 0, 0
    for seed in range(8):
        basis = basis_of(drawn(task, 2_000, seed))
        for partition in range(40):
            rows = drawn(task, 200, 1_000 + 50 * seed + partition)
            for name, estimate in estimated(basis, rows).items():
                within += estimate.low <= METRICS[name](rows) <= estimate.high
                made += 1
    assert 0.9 < within / made < 0.99


def test_the_interval_of_a_segment_holds_what_comes_true_although_each_of_its_days_differs():
    random = np.random.default_rng(3)
    days, shops = np.divmod(np.arange(60 * 6 * 80) // 80, 6)
    difference = random.normal(0, 1, (60, 6))[days, shops]
    score = random.beta(2, 3, len(days))
    truth = random.random(len(days)) < 1 / (1 + (1 - score) / score * np.exp(-difference))
    outcomes = Outcomes(
        "binary",
        np.column_stack([1 - score, score]),
        truth,
        [False, True],
        np.zeros((len(days), 1)),
        {"partition": days},
    )
    learned = days < 30
    basis = basis_of(outcomes.at(learned), pl.DataFrame({"shop": shops[learned]}))
    assert basis is not None
    basis = EstimateBasis.from_json(json.loads(json.dumps(basis.to_json())))
    within = dict[str | None, list[bool]]()
    for day in range(30, 60):
        for shop in range(6):
            rows = outcomes.at((days == day) & (shops == shop))
            histogram = profiled(basis, rows.matrix, rows.predicted).histogram
            for column in (None, "shop"):
                for estimate in estimates(basis.expectation, histogram, column):
                    realised = METRICS[estimate.metric](rows)
                    within.setdefault(column, []).append(estimate.low <= realised <= estimate.high)
    assert np.mean(within[None]) < 0.85
    assert np.mean(within["shop"]) > 0.93


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_blocks_rise_and_a_cell_without_rows_belongs_to_the_block_before_it(cells):
    hits, rows = (np.array([of(cell) for cell in cells], dtype=np.float64) for of in (min, max))
    if not rows.any():
        return
    blocks, filled = rising_blocks(hits, rows), rows > 0
    assert blocks.tolist() == sorted(blocks)
    assert all(blocks[at] == blocks[at - 1] for at in range(1, len(cells)) if not filled[at] and filled[:at].any())
    sums, counts = (np.bincount(blocks, weights=of) for of in (hits, rows))
    expected = isotonic_regression(hits[filled] / rows[filled], sample_weight=rows[filled])
    assert (sums / counts)[blocks[filled]] == pytest.approx(expected)


def test_too_few_rows_or_a_task_without_a_truth_are_no_basis():
    assert basis_of(drawn("binary", LEAST_ROWS - 1, 8)) is None
    one_class = drawn("binary", 200, 8)
    assert basis_of(one_class.at(one_class.truth)) is None
    assert basis_of(Outcomes("outliers", np.zeros(100), None)) is None
    assert basis_of(drawn("regression", LEAST_ROWS, 8)) is not None
    assert estimates(basis_of(drawn("binary", 100, 8)).expectation, [0] * 60) == []
