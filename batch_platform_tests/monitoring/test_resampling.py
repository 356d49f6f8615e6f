"""Intervals of metrics: they hold what they should as often as they say, also where rows of one group resemble each other."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from batch_platform.monitoring.comparison import paired_difference
from batch_platform.monitoring.metrics import METRICS, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import MANY_GROUPS, MAX_ROWS, intervals, widened
from batch_platform_tests.monitoring.test_metrics import OUTCOMES, TASKS

pytestmark = pytest.mark.unit


def of(outcomes: Outcomes) -> dict:
    return intervals(outcomes, measure(outcomes))


def days(random: np.random.Generator, number: int, rows: int, spread: float) -> Outcomes:
    """Errors of a regression whose mean is another one each day, but 1 in all."""
    errors = 1 + np.repeat(random.normal(scale=spread, size=number), rows) + random.normal(size=number * rows)
    groups = np.repeat(np.arange(number), rows)
    return Outcomes("regression", errors, np.zeros(number * rows), groups=groups, grouped_by="partition")


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_with_a_weighted_form_has_an_interval_about_its_value(task):
    outcomes, found = OUTCOMES[task], of(OUTCOMES[task])
    assert set(found) == {name for name in measure(outcomes) if METRICS[name].weighted is not None}
    for name, value in measure(outcomes).items():
        if name in found:
            assert METRICS[name].least <= found[name].low <= value <= found[name].high <= METRICS[name].most
    assert found == of(outcomes), "the same rows give the same interval"


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    random, held = np.random.default_rng(3), 0
    for _ in range(200):
        interval = of(Outcomes("regression", 1 + random.normal(size=60), np.zeros(60)))["bias"]
        held += interval.low <= 1 <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_rows_of_one_day_are_drawn_together_and_few_days_make_a_wide_interval():
    random, by_day, by_row = np.random.default_rng(4), 0, 0
    for _ in range(100):
        outcomes = days(random, 8, 30, spread=0.5)
        grouped, single = of(outcomes)["bias"], of(replace(outcomes, groups=None))["bias"]
        by_day += grouped.low <= 1 <= grouped.high
        by_row += single.low <= 1 <= single.high
    assert by_day / 100 >= 0.88
    assert by_row / 100 < 0.7, "rows that are drawn one by one promise too much"


@pytest.mark.parametrize("groups", [4, 8, 30, 120])
def test_an_interval_from_few_groups_is_widened_as_students_distribution_is(groups):
    ratio = stats.t.ppf(0.975, groups - 1) / stats.norm.ppf(0.975)
    assert widened(groups) == pytest.approx(ratio * np.sqrt(groups / (groups - 1)), rel=0.01)
    assert widened(MANY_GROUPS) == 1


def test_a_difference_between_two_models_names_what_was_drawn():
    first = days(np.random.default_rng(5), 8, 30, spread=0.5)
    second = replace(first, predicted=first.predicted * 0.9)
    by_day = paired_difference("mae", first, second)
    by_row = paired_difference("mae", replace(first, groups=None), second)
    assert (by_day.resampled_by, by_day.groups, by_day.rows) == ("partition", 8, 240)
    assert (by_row.resampled_by, by_row.groups, by_row.rows) == ("row", 240, 240)
    assert by_day.estimate == by_row.estimate
    assert by_day.high - by_day.low > 1.5 * (by_row.high - by_row.low)
    one_day = replace(first, groups=np.zeros(240, dtype=np.int64))
    assert paired_difference("mae", one_day, second) == by_row, "one day cannot be drawn again"


def test_the_interval_of_many_rows_is_as_narrow_as_their_number_makes_it():
    random = np.random.default_rng(6)
    widths = []
    for rows in (MAX_ROWS, 16 * MAX_ROWS):
        interval = of(Outcomes("regression", random.normal(size=rows), np.zeros(rows)))["rmse"]
        widths.append(interval.high - interval.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_rows_of_an_unknown_class_are_drawn_for_metrics_of_decisions_only():
    outcomes = OUTCOMES["multiclass"]
    strange = replace(outcomes, truth=np.where(np.arange(len(outcomes.predicted)) % 3 == 0, "new", outcomes.truth))
    values, found = measure(strange), of(strange)
    assert set(found) == set(values)
    assert all(found[name].low < value < found[name].high for name, value in values.items())
