"""Numbers, times and differences are written as people write them."""

import pytest

from batch_platform.monitoring.metrics import METRICS
from batch_platform.reports.figures import Headline
from batch_platform.reports.wording import PLAIN, between, ends, figure, plain

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.009855, 0.004873, 0.01653, ("0.010", "0.005 to 0.017")),
        (0.71234, 0.68, 0.74, ("0.71", "0.68 to 0.74")),
        (12_345.6, 11_900.0, 12_800.0, ("12,346", "11,900 to 12,800")),
        (0.71234, None, None, ("0.712", "-")),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(value, low, high, shown):
    assert (figure(value, low, high), ends(low, high)) == shown


@pytest.mark.parametrize(
    ("first", "last", "monthly", "text"),
    [
        ("1974-01-01", "1974-08-01", True, "January to August 1974"),
        ("1997-11-01", "1998-04-01", True, "November 1997 to April 1998"),
        ("2013-05-01", "2013-12-31", False, "1 May to 31 December 2013"),
        ("2013-05-01-04:00", "2013-05-01-05:00", False, "2013-05-01-04:00 to 2013-05-01-05:00"),
    ],
)
def test_times_are_written_as_people_write_them(first, last, monthly, text):
    assert between(first, last, monthly=monthly) == text


def test_every_metric_has_plain_words_with_its_term_behind():
    assert PLAIN.keys() == METRICS.keys()
    assert plain("roc_auc") == "quality of the ranking (ROC AUC)"
    assert plain("of_my_own") == "of my own"


@pytest.mark.parametrize(
    ("value", "before", "lower_is_better", "verdict"),
    [
        ((0.75, 0.70, 0.80), (0.70, 0.65, 0.75), False, ""),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), False, "better"),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), True, "worse"),
        ((0.80, None, None), (0.70, None, None), False, ""),
        ((0.80, 0.78, 0.82), (0.70, 0.68, 0.72), None, ""),
    ],
)
def test_a_difference_is_a_verdict_only_where_its_interval_says_so(value, before, lower_is_better, verdict):
    (now, low, high), (then, then_low, then_high) = value, before
    headline = Headline(
        "m", now, then, low=low, high=high, before_low=then_low, before_high=then_high, lower_is_better=lower_is_better
    )
    assert headline.verdict == verdict
