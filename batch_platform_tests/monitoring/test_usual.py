"""What is usual for the rows of a partition: chance and a short history raise no alarm, and a real change does."""

import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from batch_platform.monitoring.usual import (
    DAYS_OF_WEEK,
    LEAST_HISTORY,
    Past,
    unusually_many,
    usual_rows,
    usual_rows_of_first_weeks,
)
from batch_platform_tests.harness.small_pipeline import small_spec
from batch_platform_tests.pipeline.planned_states import scored

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("partitions", [6, 12])
@pytest.mark.parametrize(("mean", "spread"), [(5, 0.0), (40, 0.3), (1000, 0.1), (1000, 0.8), (1_000_000, 1.5)])
def test_fewer_than_one_in_a_hundred_partitions_like_those_before_is_unusual(partitions, mean, spread):
    random = np.random.default_rng(1)
    rows = random.poisson(mean * np.exp(spread * random.standard_normal((2000, partitions + 1)))).tolist()
    outside = sum(not usual_rows(before).holds(last) for *before, last in rows)
    assert outside < 20


def test_half_of_the_rows_none_and_twice_as_many_are_unusual_also_after_a_day_of_failure():
    steady = [900, 930, 880, 910, 905, 0, 890, 920]
    usual = usual_rows(steady)
    assert [usual.holds(rows) for rows in (0, 450, 800, 900, 1000, 1800)] == [False, False, True, True, True, False]
    assert usual.partitions == len(steady)
    assert usual_rows([0] * 8).holds(0)
    assert usual_rows(steady[: LEAST_HISTORY - 1]) is None


@pytest.mark.parametrize("weekend", [1.0, 0.3, 0.02])
def test_in_the_first_weeks_a_weekend_is_no_surprise_and_a_failure_is(weekend):
    random = np.random.default_rng(3)
    week = np.array([1, 1, 1, 1, 1, weekend, weekend])
    outside, judged = 0, 0
    for begins in range(DAYS_OF_WEEK):
        days = random.poisson(
            500 * np.exp(0.1 * random.standard_normal((50, 42))) * np.resize(np.roll(week, begins), 42)
        )
        for rows in days.tolist():
            for at in range(DAYS_OF_WEEK, len(rows)):
                usual = usual_rows_of_first_weeks(rows[:at])
                assert not usual.holds(5_000_000)
                assert weekend < 0.1 or not usual.holds(0)
                outside, judged = outside + (not usual.holds(rows[at])), judged + 1
            assert usual_rows_of_first_weeks(rows[: DAYS_OF_WEEK - 1]) is None
    assert outside < judged / 100


def test_an_hour_is_compared_with_its_hour_of_the_week_or_of_any_day():
    calendar = small_spec(partitions={"every": "hour", "start": "2024-01-01-00:00", "end": None}).partitions.calendar
    hours = calendar.due(datetime(2024, 1, 22, tzinfo=UTC))
    runs = [scored(partition, "version", "hash") for partition in hours]
    past, last = Past(calendar, runs), runs[-1]
    assert [run.partition_key[:10] for run in past.before(last, 12, alike=True)] == [
        "2024-01-01",
        "2024-01-08",
        "2024-01-15",
    ]
    of_any_day = past.before(last, 12, alike=True, weekday=False)
    assert {(run.partition_start - last.partition_start).total_seconds() % 86400 for run in of_any_day} == {0}
    assert len(of_any_day) == 12


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


def test_only_a_number_that_may_be_unusual_costs_the_import_of_scipy():
    script = """
import sys
from batch_platform.monitoring.usual import usual_rows
usual = usual_rows([900, 930, 880, 910, 905, 890, 920])
print(usual.holds(1000), "scipy" in sys.modules)
print(usual.holds(1100), usual.holds(1500), "scipy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True False", "True False True"]
