"""Intervals of metrics: they hold what they should as often as they say, also where rows of one group resemble each other."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from batch_platform.monitoring.comparison import paired_difference
from batch_platform.monitoring.metrics import METRICS, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import LEAST_UNITS, intervals, intervals_or_reasons, reach_of, wilson
from batch_platform_tests.monitoring.every_task import OUTCOMES, TASKS

pytestmark = pytest.mark.unit


def of(outcomes: Outcomes) -> dict:
    return intervals(outcomes, measure(outcomes))


def days(random: np.random.Generator, number: int, rows: int, spread: float) -> Outcomes:
    """Errors of a regression whose mean is another one each day, but 1 in all."""
    errors = 1 + np.repeat(random.normal(scale=spread, size=number), rows) + random.normal(size=number * rows)
    units = {"partition": np.repeat(np.arange(number), rows)}
    return Outcomes("regression", errors, np.zeros(number * rows), units=units)


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_with_a_weighted_form_has_an_interval_about_its_value(task):
    outcomes, found = OUTCOMES[task], of(OUTCOMES[task])
    measured = {name for name in measure(outcomes) if METRICS[name].weighted is not None}
    assert measured - set(found) <= {*("ks", "calibration_error", "lift_at_1", "decision_cost_in_hindsight")}, (
        "few rows make these better or larger than they are"
    )
    for name, value in measure(outcomes).items():
        if name in found:
            least, most = METRICS[name].bounds(outcomes)
            assert (
                METRICS[name].least
                <= least
                <= found[name].low
                <= value
                <= found[name].high
                <= most
                <= METRICS[name].most
            )
    assert found == of(outcomes), "the same rows give the same interval"


@pytest.mark.parametrize("units", [3, 5, 30, 100])
def test_an_interval_of_a_mean_is_students_whatever_the_number_of_units(units):
    values = np.random.default_rng(7).normal(size=units)
    left = (values.sum() - values) / (units - 1)
    expected = stats.t.interval(0.95, units - 1, 0, stats.sem(values))[1]
    assert reach_of(left, "row", units).even == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("hits", "rows"), [(0, 7), (7, 7), (1, 40), (13, 30)])
def test_a_rate_has_wilsons_interval(hits, rows):
    expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
    interval = wilson(hits / rows, rows)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    truth, score = np.ones(rows), np.where(np.arange(rows) < hits, 0.9, 0.1)
    found = of(Outcomes("binary", np.column_stack([1 - score, score]), truth, [0, 1]))["recall"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_rate_of_0_and_a_perfect_area_have_intervals_with_a_width_which_repeated_rows_do_not_narrow():
    truth, score = np.arange(40) % 4 == 0, np.where(np.arange(40) % 4 == 0, 0.4, 0.1)
    outcomes = Outcomes("binary", np.column_stack([1 - score, score]), truth, [False, True])
    found = of(outcomes)
    assert found["selection_rate"].low == 0 < found["selection_rate"].high
    assert 0.6 < found["roc_auc"].low < found["roc_auc"].high == 1, "only ten rows are positive"
    again = outcomes.at(np.tile(np.arange(40), 5))
    repeated = of(replace(again, units={"entity": np.tile(np.arange(40), 5)}))
    for name in ("selection_rate", "roc_auc", "log_loss"):
        assert repeated[name].low == pytest.approx(found[name].low)
        assert repeated[name].high == pytest.approx(found[name].high)


def test_fewer_units_than_three_have_no_interval_rather_than_a_false_one():
    outcomes = days(np.random.default_rng(9), LEAST_UNITS, 30, spread=0.5)
    assert "bias" in of(outcomes)
    two = outcomes.at(slice(60))
    assert not of(two)
    by_two = paired_difference("mae", two, replace(two, predicted=two.predicted + 1))
    assert (by_two.resampled_by, by_two.groups) == ("partition", 2), (
        "what is far worse than a champion shows on two days too"
    )


def test_a_difference_between_two_models_names_what_was_drawn():
    first = days(np.random.default_rng(6), 4, 60, spread=0.5)
    second = replace(first, predicted=first.predicted * 0.9)
    by_day = paired_difference("mae", first, second)
    by_row = paired_difference("mae", replace(first, units={}), second)
    assert (by_day.resampled_by, by_day.groups, by_day.rows) == ("partition", 4, 240)
    assert (by_row.resampled_by, by_row.groups, by_row.rows) == ("row", 240, 240)
    assert by_day.estimate == by_row.estimate
    assert by_day.high - by_day.low > 1.5 * (by_row.high - by_row.low)
    one_day = replace(first, units={"partition": np.zeros(240, dtype=np.int64)})
    assert paired_difference("mae", one_day, second) == by_row, "one day is not left out"


def test_an_error_whose_mean_few_rows_decide_reaches_far_up_and_has_no_interval_where_no_mean_is_finite():
    random = np.random.default_rng(12)
    even, skewed, endless = random.normal(size=300), np.exp(random.normal(size=300)), random.standard_cauchy(size=300)
    ends = {
        name: intervals_or_reasons(outcomes, measure(outcomes))["rmse"]
        for name, errors in {"even": even, "skewed": skewed, "endless": endless}.items()
        for outcomes in [Outcomes("regression", errors, np.zeros(300))]
    }
    above = {
        name: ends[name].high ** 2 / np.mean(errors**2) for name, errors in {"even": even, "skewed": skewed}.items()
    }
    assert above["even"] < 1.3
    assert above["skewed"] > 1.8
    assert ends["endless"] == "heavy tail"
