"""Drift: equal to scipy's measures within the bins, quiet on small samples of the same data, and not on a shift."""

import json
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2, entropy, ks_2samp

from batch_platform.declaration.monitored import Drift
from batch_platform.monitoring.divergence import USUAL_MARGIN, Divergence, divergences, usual_of
from batch_platform.monitoring.profiles import (
    Profile,
    RowReference,
    category_bins,
    category_profile,
    number_bins,
    number_profile,
)
from batch_platform.monitoring.reference import ReferenceProfile

pytestmark = pytest.mark.unit

ROWS = 50_000
SHOPS = [f"{number:02}" for number in range(60)]
BOUNDS = Drift().bounds("any")


def training(random: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Columns of odd kinds; `shop` holds positions of categories, a few of them unknown."""
    shop = random.zipf(1.5, ROWS) - 1.0
    return {
        "normal": random.normal(size=ROWS),
        "skewed": random.lognormal(sigma=2, size=ROWS),
        "mostly_zero": np.where(random.random(ROWS) < 0.7, 0.0, random.exponential(size=ROWS)),
        "month": random.integers(1, 13, ROWS).astype(float),
        "with_nulls": np.where(random.random(ROWS) < 0.1, np.nan, random.standard_cauchy(ROWS)),
        "rare": (random.random(ROWS) < 0.002).astype(float),
        "shop": np.where(shop < len(SHOPS), shop, np.nan),
    }


@pytest.fixture(scope="module")
def learned() -> dict[str, NDArray[np.float64]]:
    return training(np.random.default_rng(17))


def profiler(learned: dict[str, NDArray[np.float64]], name: str) -> partial[Profile]:
    """How a column is profiled."""
    if name != "shop":
        return partial(number_profile, name, "feature", number_bins(learned[name]))
    codes = learned[name][~np.isnan(learned[name])].astype(int)
    bins = category_bins(dict(zip(SHOPS, np.bincount(codes, minlength=len(SHOPS)).tolist(), strict=True)))
    return partial(category_profile, name, "feature", bins, known=SHOPS, nulls=0)


def compared(profile: partial[Profile], base: NDArray[np.float64], *samples: NDArray[np.float64]) -> list[Divergence]:
    reference = profile(values=base) if profile.func is number_profile else profile(codes=base)
    parts = [profile(values=part) if profile.func is number_profile else profile(codes=part) for part in samples]
    return [found for found in divergences([(part, reference) for part in parts]) if found is not None]


@pytest.mark.parametrize(
    ("rows", "samples"), [pytest.param(100, 2000, marks=pytest.mark.full), (1000, 1000), (100_000, 30)]
)
def test_samples_of_the_training_data_raise_no_alarm(learned, rows, samples):
    random = np.random.default_rng(rows)
    for name, values in learned.items():
        drawn = (values[random.integers(0, ROWS, rows)] for _ in range(samples))
        levels = [part.level(BOUNDS) for part in compared(profiler(learned, name), values, *drawn)]
        assert (len(levels), levels.count("none") > 0.99 * samples) == (samples, True), name


def test_a_shift_of_a_quarter_of_a_standard_deviation_in_one_feature_of_twenty_is_found():
    random = np.random.default_rng(3)
    before, after = random.normal(size=(ROWS, 20)), random.normal(size=(10_000, 20))
    after[:, 7] += 0.25
    levels: list[str] = []
    for column in range(20):
        profile = partial(number_profile, f"x{column}", "feature", number_bins(before[:, column]))
        (divergence,) = compared(profile, before[:, column], after[:, column])
        levels.append(divergence.level(BOUNDS))
    assert levels == ["warn" if column == 7 else "none" for column in range(20)]


@pytest.mark.parametrize(
    "broken",
    [np.full(500, np.nan), np.full(500, 1.0), np.random.default_rng(1).normal(size=500) * 1000],
    ids=["all null", "constant", "another unit"],
)
def test_a_broken_feature_fails_also_in_a_small_partition(learned, broken):
    for size in (30, 500):
        (divergence,) = compared(profiler(learned, "normal"), learned["normal"], broken[:size])
        assert divergence.level(BOUNDS) == "fail"


@pytest.mark.parametrize(
    ("bounds", "usual", "level"),
    [((0.1, 0.14), 0.0, "fail"), ((0.1, 0.25), 0.0, "warn"), ((0.2, 0.25), 0.0, "none"), ((0.1, 0.14), 0.1, "none")],
)
def test_what_chance_and_habit_explain_of_a_difference_counts_for_no_alarm(bounds, usual, level):
    half_by_chance = Divergence(psi=0.3, expected=0.15, p_value=1e-9, jensen_shannon=0.2, ks=0.1)
    assert half_by_chance.level(bounds, usual) == level


def test_few_partitions_are_beyond_what_is_usual_however_many_are_known():
    random = np.random.default_rng(8)
    for partitions, most in (7, 0.03), (28, 0.02), (100, 0.01), (365, 0.003):
        for distances in (random.exponential(size=(2000, partitions)), np.abs(random.normal(size=(2000, partitions)))):
            beyond = np.array([USUAL_MARGIN * usual_of(known) for known in distances])
            assert (distances[::-1, 0] > beyond).mean() < most
    assert usual_of([2.0, *np.zeros(400)]) == 2.0, "of many the highest one"
    assert usual_of([2.0] * 7) == pytest.approx(2.0 * np.log(1000) / (363 / 140) / USUAL_MARGIN)


def test_measures_equal_those_of_scipy_within_the_error_of_the_bins(learned):
    random = np.random.default_rng(11)
    for name in ("normal", "skewed", "mostly_zero", "month"):
        base, values = learned[name], learned[name][random.integers(0, ROWS, 20_000)] * 1.1
        profile = profiler(learned, name)
        (divergence,) = compared(profile, base, values)
        own, other = (np.array(profile(values=part).histogram) for part in (values, base))
        p, q = own / own.sum(), other / other.sum()
        assert divergence.jensen_shannon == pytest.approx(jensenshannon(p, q, base=2), abs=1e-9)
        smooth = [(counts + 0.5) / (counts + 0.5).sum() for counts in (own[own + other > 0], other[own + other > 0])]
        assert divergence.psi == pytest.approx(entropy(*smooth) + entropy(*reversed(smooth)), rel=1e-9)
        exact = float(ks_2samp(values, base).statistic)
        assert divergence.ks is not None
        assert exact - max(p.max(), q.max()) <= divergence.ks <= exact + 1e-12


def test_the_p_value_is_that_of_the_chi_square_distribution():
    base, values = np.repeat(np.arange(8.0), 5000), np.repeat(np.arange(8.0), [140, 110, 125, 130, 120, 115, 135, 190])
    (divergence,) = compared(partial(number_profile, "x", "feature", number_bins(base)), base, values)
    counts = np.array([np.bincount(part.astype(int)) for part in (values, base)])
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert divergence.p_value < 1e-3
    assert divergence.p_value == pytest.approx(chi2.sf(statistic, 7), rel=1e-9)


def test_the_reference_of_an_earlier_version_is_read_without_its_other_baselines(learned):
    profile = profiler(learned, "normal")(values=learned["normal"])
    reference = ReferenceProfile((profile,), profile, usual=(0.1,), distances={"2024-02-01": 0.2}, moves=(None,))
    values = json.loads(reference.to_json())
    for name in ("usual", "moves", "distances"):
        values[name]["previous"] = values[name]["reference"]
    del values["rows"], values["apart"]
    read = ReferenceProfile.from_json(json.dumps(values).encode())
    assert (read.usual, read.moves, read.distances) == (reference.usual, reference.moves, reference.distances)
    assert read.rows == RowReference()
