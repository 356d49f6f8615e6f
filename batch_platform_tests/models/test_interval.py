"""Intervals of a regression: what they promise, in seeded worlds where it is known, and what scoring makes of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from batch_platform.models.refinements.interval import (
    correlation_by_widths,
    correlation_within,
    fit_interval,
    interval_ends,
)
from batch_platform.monitoring.measures.evaluated import binomial_interval
from batch_platform.monitoring.reference import ErrorTree

WORLDS = 40  # of each kind


def noisy(random, rows):
    """Errors that grow with one column and are three times as large where another is missing."""
    matrix = random.normal(size=(rows, 4))
    matrix[random.random(rows) < 0.3, 1] = np.nan
    spread = np.exp(0.7 * matrix[:, 0]) * np.where(np.isnan(matrix[:, 1]), 3, 1)
    return matrix, matrix[:, 2], matrix[:, 2] + spread * random.normal(size=rows), spread


def heavy_tailed(random, rows):
    """Errors without a variance, skewed to one side."""
    matrix = random.normal(size=(rows, 3))
    spread = np.exp(0.7 * matrix[:, 0])
    return matrix, matrix[:, 1], matrix[:, 1] + spread * np.abs(random.standard_t(1.2, size=rows)), spread


def tied(random, rows):
    """Small counts, and the same prediction for most of them."""
    matrix = random.integers(0, 3, size=(rows, 2)).astype(np.float64)
    spread = 1 + matrix[:, 0]
    return matrix, np.where(matrix[:, 1] == 0, 0.1, 1.3), random.poisson(spread).astype(np.float64), spread


def held(learned, matrix, predicted, truth):
    low, high = interval_ends(learned, matrix, predicted)
    return (low <= truth) & (truth <= high)


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("rows", [24, 2_400])
@pytest.mark.parametrize("world", [noisy, heavy_tailed, tied])
def test_the_intervals_hold_the_declared_share_of_the_true_values(world, rows, level):
    random = np.random.default_rng(rows)
    shares, widths = list[float](), list[float]()
    for _ in range(WORLDS):
        matrix, predicted, truth, _ = world(random, rows)
        learned = fit_interval(level, matrix, predicted, truth)
        matrix, predicted, truth, _ = world(random, 400)
        shares.append(held(learned, matrix, predicted, truth).mean())
        widths.append(float(np.median(np.subtract(*interval_ends(learned, matrix, predicted)[::-1]))))
    mean, error = np.mean(shares), np.std(shares) / np.sqrt(WORLDS)
    assert mean + 3.3 * error >= level
    smallest = 12 if rows < 100 else 25 / (1 - level)  # rows of a leaf, about
    if world is not tied:  # where equal errors are held together
        assert mean - 3.3 * error <= level + 2 / smallest, "no wider than they need to be"
    assert np.isfinite(widths).all()


@pytest.mark.unit
@pytest.mark.parametrize("world", [noisy, heavy_tailed])
def test_the_width_follows_the_spread_of_the_row(world):
    random = np.random.default_rng(5)
    matrix, predicted, truth, _ = world(random, 20_000)
    learned = fit_interval(0.9, matrix, predicted, truth)
    matrix, predicted, truth, spread = world(random, 20_000)
    low, high = interval_ends(learned, matrix, predicted)
    assert spearmanr(high - low, spread).statistic > 0.8
    inside = (low <= truth) & (truth <= high)
    constant = np.abs(truth - predicted) <= np.quantile(np.abs(truth - predicted), 0.9)
    quarters = np.array_split(np.argsort(spread), 4)
    shares, of_constant = ([of[quarter].mean() for quarter in quarters] for of in (inside, constant))
    assert np.ptp(shares) < np.ptp(of_constant) / 2, "where one width for all holds too many or too few"


@pytest.mark.unit
@pytest.mark.parametrize("rows", [0, 1, 2, 9, 17])
def test_an_interval_is_infinite_where_too_few_rows_tell_its_width(rows):
    matrix, predicted, truth, _ = noisy(np.random.default_rng(0), rows)
    learned = fit_interval(0.9, matrix, predicted, truth)
    assert [*map(np.ndarray.tolist, interval_ends(learned, np.zeros((1, 4)), np.zeros(1)))] == [[-np.inf], [np.inf]]


@pytest.mark.unit
def test_rows_without_a_finite_prediction_tell_nothing():
    matrix, predicted, truth, _ = noisy(np.random.default_rng(1), 200)
    spoiled = np.insert(predicted, 50, [np.nan, np.inf]), np.insert(truth, 50, [0.0, 0.0])
    learned = fit_interval(0.9, np.insert(matrix, 50, np.zeros((2, 4)), axis=0), *spoiled)
    assert learned == fit_interval(0.9, matrix, predicted, truth)


@pytest.mark.unit
def test_the_ends_are_those_of_the_library():
    from crepes import ConformalRegressor

    random = np.random.default_rng(2)
    matrix, predicted, truth, _ = noisy(random, 6_000)
    learned = fit_interval(0.9, matrix, predicted, truth)
    tree = ErrorTree(**learned["tree"])
    assert sum(feature < 0 for feature in tree.feature) > 5
    library = ConformalRegressor().fit((truth - predicted)[1::2], bins=tree.leaves(matrix[1::2], predicted[1::2]))
    matrix, predicted, *_ = noisy(random, 3_000)
    expected = library.predict_int(predicted, bins=tree.leaves(matrix, predicted), confidence=0.9)
    np.testing.assert_array_equal(np.column_stack(interval_ends(learned, matrix, predicted)), expected)


@pytest.mark.unit
def test_law_4_a_row_has_the_same_interval_in_any_batch_and_from_the_file_of_the_bundle():
    random = np.random.default_rng(3)
    learned = fit_interval(0.9, *noisy(random, 4_000)[:3])
    matrix, predicted, *_ = noisy(random, 1_001)
    whole = np.column_stack(interval_ends(learned, matrix, predicted))
    order = random.permutation(len(matrix))
    parts = [interval_ends(learned, np.asfortranarray(matrix[at]), predicted[at]) for at in np.array_split(order, 7)]
    np.testing.assert_array_equal(np.concatenate([np.column_stack(part) for part in parts]), whole[order])
    read = json.loads(json.dumps(learned))
    arrays = {
        name: np.array(nodes, dtype=float) if name != "null_left" else nodes for name, nodes in read["tree"].items()
    }
    np.testing.assert_array_equal(np.column_stack(interval_ends(read | {"tree": arrays}, matrix, predicted)), whole)
    assert [len(end) for end in interval_ends(learned, matrix[:0], predicted[:0])] == [0, 0]


def test_scoring_needs_no_library():
    learned = fit_interval(0.9, *noisy(np.random.default_rng(4), 2_000)[:3])
    code = (
        "import json, sys, numpy as np\n"
        "from batch_platform.models.refinements.interval import interval_ends\n"
        "interval_ends(json.loads(sys.argv[1]), np.zeros((3, 4)), np.zeros(3))\n"
        "assert not {'crepes', 'pandas', 'sklearn', 'scipy.stats', 'numba'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(learned)], check=True)


def shares_outside(*, days_differ: float, noise: float, worlds: int) -> float:
    """The share of partitions whose coverage chance does not explain, in worlds of seven days to learn from and seven to judge."""
    random, outside, rows = np.random.default_rng(6), list[bool](), 300

    def days(count, noise=1.0):
        scale = noise * np.repeat(np.exp(days_differ * random.normal(size=count)), rows)
        matrix = random.normal(size=(count * rows, 2))
        return matrix, np.zeros(len(matrix)), scale * random.normal(size=len(matrix))

    for _ in range(worlds):
        learned = fit_interval(0.9, *days(7))
        judged = held(learned, *days(7))
        correlation = correlation_within(judged, np.repeat(np.arange(7), rows))
        covered = held(learned, *days(5, noise)).reshape(5, rows).sum(axis=1)
        low, high = binomial_interval(covered, np.full(5, rows), correlation)
        outside += ((high < 0.9) | (low > 0.9)).tolist()
    return float(np.mean(outside))


@pytest.mark.parametrize(
    ("days_differ", "noise", "least", "most"),
    [(0.0, 1, 0, 0.01), (0.2, 1, 0, 0.05), (0, 1.5, 0.9, 1), (0, 0.5, 0.9, 1)],
)
def test_a_world_leaves_the_band_where_it_became_noisier_or_quieter_and_else_seldom(days_differ, noise, least, most):
    share = shares_outside(days_differ=days_differ, noise=noise, worlds=100 if noise == 1 else 40)
    assert least <= share <= most


@pytest.mark.unit
@pytest.mark.parametrize(
    "partitions",
    [
        pytest.param(None, id="unknown"),
        pytest.param(np.repeat(np.arange(4), 100), id="four that differ"),
        pytest.param(np.arange(400) % 8, id="eight alike"),
        pytest.param(np.arange(400), id="a row in each"),
    ],
)
def test_rows_are_independent_unless_five_partitions_differ_by_more_than_chance(partitions):
    judged = np.repeat([True, False, True, True], 100)
    assert correlation_within(judged, partitions) == 0
    assert correlation_within(judged, np.repeat(np.arange(8), 50)) > 0.5


@pytest.mark.unit
def test_widths_learned_from_few_rows_give_no_false_alarms():
    covered = (random := np.random.default_rng(8)).binomial(1_000, random.beta(91, 10, size=2_000))
    low, high = binomial_interval(covered, np.full(2_000, 1_000), correlation_by_widths(100))
    assert np.mean((high < 0.9) | (low > 0.9)) < 0.005


@pytest.mark.unit
def test_the_band_of_independent_rows_is_the_exact_binomial_one():
    from scipy.stats import binomtest

    covered, rows = np.array([0, 1, 170, 199, 200]), np.full(5, 200)
    for *ends, hits in zip(*binomial_interval(covered, rows, 0.0), covered.tolist(), strict=True):
        exact = binomtest(hits, 200).proportion_ci(0.999, method="exact")
        assert ends == pytest.approx([exact.low, exact.high], abs=1e-9)
