"""What is usual for the rows of a partition: chance and a short history raise no alarm, and a real change does."""

import numpy as np
import pytest
from scipy.special import stdtrit

from batch_platform.monitoring.usual import _STUDENT, LEAST_HISTORY, unusually_many, usual_rows

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


def test_the_quantiles_that_are_kept_so_that_status_need_not_import_scipy_are_those_of_scipy():
    assert {degrees: round(float(stdtrit(degrees, 0.9995)), 3) for degrees in _STUDENT} == _STUDENT
