"""The coverage of intervals: in worlds whose truth is known, 95% intervals hold it in 93 to 97 of 100 samples.

Each world is drawn again and again, and has the dependence between rows that the intervals must take account of.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from batch_platform.monitoring.comparison import paired_differences
from batch_platform.monitoring.metrics import METRICS, measure
from batch_platform.monitoring.outcomes import Outcomes
from batch_platform.monitoring.resampling import intervals

pytestmark = pytest.mark.unit

Random = np.random.Generator
World = Callable[
    [Random, int], tuple[Outcomes, Outcomes]
]  # two models on the same rows, given how many times as many units
OF_CLASSES = ("accuracy", "roc_auc", "brier", "log_loss", "average_precision", "recall", "f1")
OF_NUMBERS = ("mae", "rmse", "bias", "r2", "error_p50")


def binary(random: Random, difficulty: np.ndarray, units: dict[str, np.ndarray], base: float = -0.5):
    """Two classifiers of rows, of which the second knows less; rows of one difficulty are missed together."""
    rows = len(difficulty)
    known, hidden = random.normal(size=(2, rows))
    truth = (random.random(rows) < 1 / (1 + np.exp(-(base + 2 * known + hidden + difficulty)))).astype(int)
    scores = 1 / (1 + np.exp(-(base + 2 * known + hidden))), 1 / (1 + np.exp(-(base + 2 * known)))
    return tuple(
        Outcomes("binary", np.column_stack([1 - score, score]), truth, [0, 1], units=units, positions=truth)
        for score in scores
    )


def regression(random: Random, difficulty: np.ndarray, units: dict[str, np.ndarray]):
    """Two regressions, of which the second knows less."""
    known, hidden, chance = random.normal(size=(3, len(difficulty)))
    truth = 3 * known + hidden + difficulty + chance
    return tuple(Outcomes("regression", predicted, truth, units=units) for predicted in (3 * known + hidden, 3 * known))


def rows(number: int, of=binary, **options) -> World:
    return lambda random, times: of(random, np.zeros(number * times), {}, **options)


def customers(of=binary) -> World:
    """300 customers in twelve snapshots, whose difficulty lasts."""

    def draw(random: Random, times: int):
        entity = np.tile(np.arange(300 * times), 12)
        difficulty = random.normal(scale=2, size=300 * times)[entity]
        return of(random, difficulty, {"entity": entity, "partition": np.repeat(np.arange(12), 300 * times)})

    return draw


def groups(of=binary) -> World:
    """80 groups of a partition, of 1 to 15 rows each."""

    def draw(random: Random, times: int):
        group = np.repeat(np.arange(80 * times), random.integers(1, 16, 80 * times))
        return of(random, random.normal(scale=2, size=80 * times)[group], {"group": group})

    return draw


def days(number: int, correlation: float, of=binary) -> World:
    """Days of 40 rows, whose difficulty follows that of the day before."""

    def draw(random: Random, times: int):
        day = np.repeat(np.arange(number * times), 40)
        difficulty = random.normal(size=number * times)
        for at in range(1, len(difficulty)):
            difficulty[at] = correlation * difficulty[at - 1] + np.sqrt(1 - correlation**2) * difficulty[at]
        return of(random, 1.5 * difficulty[day], {"partition": day, "entity": np.arange(len(day))})

    return draw


def weighted(world: World) -> World:
    """The rows of a world with very different weights; those with a large weight are predicted worse."""

    def draw(random: Random, times: int):
        first, second = world(random, times)
        error = np.abs(first.predicted.reshape(len(first.predicted), -1)[:, -1] - first.labels)
        weights = np.exp(random.normal(scale=0.6, size=len(error)) + 0.3 * error)
        return replace(first, weights=weights), replace(second, weights=weights)

    return draw


def skewed(number: int, spread: float) -> World:
    """Labels whose logarithm is normal, around predictions that are right on average."""

    def draw(random: Random, times: int):
        truth = np.exp(spread * random.normal(size=number * times) - spread**2 / 2)
        return tuple(Outcomes("regression", np.full(number * times, value), truth) for value in (1.0, 1.1))

    return draw


def heavy(number: int) -> World:
    """Errors with Student's t of three degrees of freedom."""

    def draw(random: Random, times: int):
        truth = random.standard_t(3, size=number * times)
        return tuple(Outcomes("regression", random.normal(scale=0.5, size=len(truth)), truth) for _ in range(2))

    return draw


def crossed(random: Random, times: int):
    """100 customers on each of 20 days, whose difficulties add up; of more, both are more."""
    times = round(times**0.5)
    entity, day = np.tile(np.arange(100 * times), 20 * times), np.repeat(np.arange(20 * times), 100 * times)
    difficulty = random.normal(size=100 * times)[entity] + random.normal(size=20 * times)[day]
    return regression(random, difficulty, {"entity": entity, "partition": day})


WORLDS = {
    "200 rows": (rows(200), OF_CLASSES),
    "200 rows of a regression": (rows(200, regression), OF_NUMBERS),
    "300 customers": (customers(), OF_CLASSES),
    "300 customers of a regression": (customers(regression), OF_NUMBERS),
    "80 groups": (groups(), OF_CLASSES),
    "80 groups of a regression": (groups(regression), OF_NUMBERS),
    "400 weighted rows": (weighted(rows(400)), OF_CLASSES),
    "400 weighted rows of a regression": (
        weighted(rows(400, regression)),
        ("mae", "rmse", "error_p50", "bias", "r2"),
    ),
    "80 weighted groups": (weighted(groups()), OF_CLASSES),
    "30 independent days": (days(30, 0), OF_CLASSES),
    "90 days like the day before": (days(90, 0.7), OF_CLASSES),
    "90 days of a regression": (days(90, 0.7, regression), OF_NUMBERS),
    "100 customers on 20 days": (crossed, ("bias", "error_p50", "mae", "rmse")),
}
# Worlds in which few rows count. Some intervals are wider than they need be; all hold the truth in about 93 of 100 samples at least.
WIDE = {
    "40 rows": (rows(40), ("accuracy", "roc_auc", "brier", "log_loss")),
    "400 weighted rows of a regression, ends": (weighted(rows(400, regression)), ("error_p10", "error_p90")),
    "200 rows, 3% of them positive": (rows(200, base=-5.2), ("f1", "recall", "accuracy")),
    "1,000 rows, 3% of them positive": (rows(1_000, base=-5.2), ("f1", "recall", "accuracy", "precision")),
    **{
        f"{number:,} rows with labels of spread {spread}": (skewed(number, spread), ("rmse", "mae"))
        for number in (200, 1_000, 5_000)
        for spread in (0.5, 0.8, 1.0)
    },
    "5,000 rows with heavy tails": (heavy(5_000), ("mae", "bias")),
}


def coverage(world: World, metrics: tuple[str, ...], samples: int, seed: int = 0) -> dict[str, float]:
    """The share of the samples of a world in which the interval of each metric, and of its difference, holds the truth."""
    random = np.random.default_rng(seed)
    many = [world(random, 400) for _ in range(2)]
    truth = {name: np.mean([[METRICS[name](one) for one in pair] for pair in many], axis=0) for name in metrics}
    held, made = Counter[str](), Counter[str]()
    for _ in range(samples):
        first, second = world(random, 1)
        found = intervals(first, measure(first, only=metrics))
        compared = [
            name for name in metrics if not name.startswith("error_p")
        ]  # the difference of two quantiles moves in jumps
        differences = paired_differences(compared, first, second)
        for name in metrics:
            value, other = truth[name]
            shown = {name: (found.get(name), value), f"difference of {name}": (differences.get(name), value - other)}
            for label, (interval, expected) in shown.items():
                if interval is not None:
                    made[label] += 1
                    held[label] += interval.low <= expected <= interval.high
    return {name: held[name] / made[name] for name in made}


def coverage_of_rare(samples: int, *, in_units: bool) -> float:
    """The share of the intervals of a rate near 0 that hold it; the interval of a rate near 1 is the same from 1 downwards."""
    random, held = np.random.default_rng(0), 0
    for _ in range(samples):
        rate, units = random.uniform(0.005, 0.05), random.integers(40, 300)
        unit = np.repeat(np.arange(units), random.integers(1, 6, units) if in_units else 1)
        rates = random.beta(3 * rate, 3 * (1 - rate), units)[unit] if in_units else np.full(units, rate)
        score = np.where(random.random(len(unit)) < rates, 0.9, 0.1)
        shares, truth = np.column_stack([1 - score, score]), np.zeros(len(unit), int)
        outcomes = Outcomes("binary", shares, truth, [0, 1], units={"entity": unit})
        found = intervals(outcomes, measure(outcomes, only=("accuracy", "selection_rate")))
        held += found["selection_rate"].low <= rate <= found["selection_rate"].high
        assert found["accuracy"].low == pytest.approx(1 - found["selection_rate"].high)
    return held / samples


def outside(shares: dict[str, float]) -> dict[str, float]:
    """The shares that are not between 93 and 97%, give or take the half percent by which 1,000 samples err."""
    return {name: share for name, share in shares.items() if not 0.925 <= share <= 0.975}


@pytest.mark.release
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_and_differences_hold_the_truth_in_93_to_97_of_100_samples(name):
    assert outside(coverage(*WORLDS[name], 1_000)) == {}


@pytest.mark.release
@pytest.mark.parametrize("name", WIDE)
def test_where_few_rows_count_intervals_and_differences_hold_the_truth_in_93_of_100_samples(name):
    shares = coverage(*WIDE[name], 1_000)
    assert all(share >= 0.92 for share in shares.values()), shares


@pytest.mark.parametrize("in_units", [False, True])
def test_the_interval_of_a_rate_near_0_or_1_holds_it_in_93_to_97_of_100_samples(in_units):
    assert 0.93 <= coverage_of_rare(1_000, in_units=in_units) <= 0.97


@pytest.mark.parametrize(
    "name",
    [
        "200 rows",
        "80 groups",
        "400 weighted rows",
        "200 rows, 3% of them positive",
        "200 rows with labels of spread 0.8",
        "100 customers on 20 days",
        *(
            pytest.param(it, marks=pytest.mark.full)
            for it in ("300 customers of a regression", "90 days of a regression")
        ),
    ],
)
def test_a_few_samples_of_each_kind_of_world_are_held_about_as_often(name):
    world, metrics = {**WORLDS, **WIDE}[name]
    shares = coverage(world, metrics[:2], 100, seed=1)
    assert all(0.89 <= share <= 1 for share in shares.values()), shares
