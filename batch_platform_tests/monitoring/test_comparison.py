"""Two models on the same rows: the paired difference beside scikit-learn's metrics, the verdict in words, and the agreement beside SciPy."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from batch_platform.monitoring.comparison import Agreed, Agreement, Difference, Verdict, paired_difference
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform_tests.monitoring.every_task import OUTCOMES

pytestmark = pytest.mark.unit

ROWS = 400
TRUTH = np.random.default_rng(1).integers(0, 2, ROWS)
POSITIVE = np.random.default_rng(2).uniform(size=ROWS).round(2)
CASES = [(name, task) for name, metric in METRICS.items() for task in metric.tasks]


def binary(positive: np.ndarray, truth: np.ndarray = TRUTH) -> Outcomes:
    return Outcomes("binary", np.column_stack([1 - positive, positive]), truth, [0, 1])


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_estimate_is_the_difference_of_the_metrics(name, task):
    first = OUTCOMES[task]
    second = replace(first, predicted=np.roll(first.predicted, 7, axis=0))
    difference, metric = paired_difference(name, first, second), METRICS[name]
    if metric.weighted is None:
        assert difference is None
    else:
        assert difference.estimate == pytest.approx(metric.value(first) - metric.value(second), abs=1e-12)
        assert difference.low <= difference.estimate <= difference.high


def test_the_interval_of_a_clear_difference_excludes_zero_and_pairing_makes_it_narrow():
    good = np.where(TRUTH == 1, 0.9, 0.1) + np.random.default_rng(3).normal(scale=0.02, size=ROWS)
    difference = paired_difference("brier", binary(good), binary(POSITIVE))
    assert difference.high < 0
    narrow = paired_difference("brier", binary(good), binary(good - 0.01))
    assert narrow.high - narrow.low < (difference.high - difference.low) / 10, "the same rows are hard for both"


@pytest.mark.parametrize(("metric", "truth"), [("roc_auc", np.zeros(50, int)), ("silhouette", np.arange(50) % 2)])
def test_a_metric_that_is_not_defined_has_no_interval(metric, truth):
    score = np.linspace(0, 1, 50)
    assert paired_difference(metric, binary(score, truth), binary(score[::-1], truth)) is None


VERDICTS = [  # metric, value, other, ends of the interval, the verdict
    ("roc_auc", 0.744, 0.731, (0.008, 0.018), "better"),
    ("roc_auc", 0.744, 0.741, (-0.002, 0.008), "cannot tell"),
    ("roc_auc", 0.731, 0.744, (-0.018, -0.008), "worse"),
    ("roc_auc", 0.744, 0.744, (0.0, 0.0), "cannot tell"),
    ("mae", 23.9, 17.3, (5.0, 8.1), "worse"),
    ("mae", 17.3, 23.9, (-8.1, -5.0), "better"),
    ("bias", 0.5, 1.0, (-0.6, -0.4), "better"),
    ("bias", -1.0, -0.5, (-0.6, -0.4), "worse"),
    ("bias", -3.0, 1.0, (-5.0, -3.0), "worse"),
]


def verdict(metric="roc_auc", value=0.744, other=0.731, ends=(0.008, 0.018), **drawn) -> Verdict:
    difference = Difference(metric, value - other, *ends, 12_030, **drawn)
    return Verdict(metric, value, other, 12_030, difference)


@pytest.mark.parametrize(("metric", "value", "other", "ends", "word"), VERDICTS)
def test_the_whole_interval_decides_and_an_error_is_better_if_it_is_lower(metric, value, other, ends, word):
    assert verdict(metric, value, other, ends).word == word


def test_a_verdict_is_read_aloud():
    assert verdict().beside("champion 2013-03-01-3f9c1a2b") == (
        "better than champion 2013-03-01-3f9c1a2b: roc_auc 0.744 against 0.731 on 12,030 rows "
        "(difference 0.013, between 0.008 and 0.018)"
    )
    assert verdict("mae", 1_234.5, 1_203.1, (5.0, 90.0)).beside("champion V") == (
        "worse than champion V: mae 1,234 against 1,203 on 12,030 rows (difference 31, between 5 and 90)"
    )
    unclear = verdict(value=0.744, other=0.741, ends=(-0.0021, 0.0078))
    assert unclear.beside("champion V") == (
        "not clearly better or worse than champion V: roc_auc 0.744 against 0.741 on 12,030 rows "
        "(difference 0.003, between -0.002 and 0.008)"
    )
    assert unclear.beside("guessing (mean)", unclear="not better than").startswith(
        "not better than guessing (mean): roc"
    )
    by_day = verdict(value=0.75, other=0.74, ends=(-0.01, 0.03), resampled_by="partition", groups=14)
    assert " on 12,030 rows of 14 partitions (" in by_day.beside("champion V")
    needed = "; about 29 partitions would be needed to see a difference of 0.02 in 8 of 10 cases"
    assert by_day.beside("champion V", worth=0.02).endswith(f"){needed}")
    alone = Verdict("silhouette", 0.41, 0.39, 840, None)
    assert alone.beside("champion V") == (
        "not clearly better or worse than champion V: silhouette 0.410 against 0.390 on 840 rows (no interval can be computed)"
    )


def test_the_stated_number_of_rows_shows_the_difference_worth_seeing_in_8_of_10_cases():
    def pair(rows: int, seed: int, noise: float) -> Verdict:
        random = np.random.default_rng(seed)
        truth = random.normal(size=rows)
        first, second = (Outcomes("regression", truth + sd * random.normal(size=rows), truth) for sd in (noise, 1.0))
        decided = Verdict.on("mae", first, second)
        assert decided is not None
        return decided

    worth = 0.1 * (2 / np.pi) ** 0.5  # what a tenth more noise costs
    equal = [pair(150, seed, 1.0).units_needed(worth) for seed in range(40)]
    asked = int(np.median([int(needed.split()[1].replace(",", "")) for needed in equal if needed]))
    told = [pair(asked, seed, 1.1).word for seed in range(200)]
    assert 0.7 < told.count("worse") / len(told) < 0.9


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
