"""Better, worse, or cannot tell: the words, the numbers behind them, and how many rows would be needed."""

import numpy as np
import pytest

from batch_platform.monitoring.comparison import Difference, Verdict
from batch_platform.monitoring.outcomes import Outcomes

pytestmark = pytest.mark.unit

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


def test_a_metric_that_is_not_defined_for_the_rows_gives_no_verdict():
    score = np.full((4, 2), 0.5)
    of_one_class = Outcomes("binary", score, np.ones(4, dtype=bool), [False, True])
    assert Verdict.on("roc_auc", of_one_class, of_one_class) is None
