"""What is usual for the rows of a partition: chance and a short history raise no alarm, and a real change does."""

from datetime import UTC, datetime

import numpy as np
import pytest

from batch_platform.monitoring.usual import LEAST_HISTORY, Past, unusually_many, usual_rows
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.pipeline.planned_states import scored

pytestmark = pytest.mark.unit


WEEK = (1000, 1000, 1000, 1000, 1000, 300, 300)


def test_from_the_ninth_day_on_half_of_the_rows_and_twice_as_many_are_unusual_and_a_weekend_is_not():
    random = np.random.default_rng(3)
    days = random.poisson(np.resize(WEEK, 70) * np.exp(0.1 * random.standard_normal((50, 70)))).tolist()
    alarms = dict.fromkeys((1.0, 0.5, 2.0), 0)
    for rows in days:
        assert usual_rows(rows[:0], rows[:7]) is None
        for at in range(8, 70):
            usual = usual_rows(rows[at % 7 : at : 7], rows[:at])
            for share in alarms if at % 7 < 5 or at >= 28 else (1.0, 0.5):
                alarms[share] += not usual.holds(round(rows[at] * share))
    assert alarms[1.0] < 5, "of 3,100 days"
    assert alarms[0.5] > 0.9 * 50 * 62
    assert alarms[2.0] > 0.9 * 50 * (62 - 6)


def test_a_day_of_failure_and_few_rows_do_not_mislead():
    steady = [900, 930, 880, 910, 905, 0, 890, 920]
    usual = usual_rows(steady, steady)
    assert [usual.holds(rows) for rows in (0, 450, 800, 900, 1000, 1800)] == [False, False, True, True, True, False]
    assert usual_rows([0], steady).holds(900), "the only one of this weekday was at fault"
    assert usual_rows([0] * 8, [0] * 8).holds(0)
    few = np.random.default_rng(1).poisson(5, (2000, 9)).tolist()
    assert sum(not usual_rows(before, before).holds(last) for *before, last in few) < 50


@pytest.mark.parametrize(("every", "hour"), [("hour", "-09:00"), ("day", "")])
def test_an_hour_and_a_weekday_are_those_of_local_clocks_also_across_a_change_of_clocks(every, hour):
    """In Berlin, summer time began on 31 March."""
    declared = {"every": every, "start": "2024-03-18", "end": None}
    calendar = small_spec(partitions=declared).partitions.calendar
    runs = [scored(partition, "version", "hash") for partition in calendar.due(datetime(2024, 4, 9, tzinfo=UTC))]
    last = next(run for run in runs if run.partition_key == f"2024-04-08{hour}")
    alike = [run.partition_key for run in Past(calendar, runs).before(last, 12, alike=True)]
    assert alike == [f"2024-{monday}{hour}" for monday in ("03-18", "03-25", "04-01")]


def test_rejected_rows_are_unusual_only_beyond_chance_and_beyond_every_partition_before():
    clean = [(0, 900)] * 10
    assert [unusually_many(rejected, 900, clean) for rejected in (0, 1, 2, 5, 900)] == [False, False, False, True, True]
    assert not unusually_many(5, 900, clean[: LEAST_HISTORY - 1]), "little is known"
    bursts = [(0, 900)] * 9 + [(90, 900)]
    assert not unusually_many(95, 900, bursts)
    assert unusually_many(200, 900, bursts)
    random = np.random.default_rng(2)
    drawn = random.binomial(400, 0.02, (3000, 8)).tolist()
    alarms = sum(unusually_many(last, 400, [(rejected, 400) for rejected in before]) for *before, last in drawn)
    assert alarms < 3
