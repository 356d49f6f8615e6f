"""The coverage of intervals: in worlds whose truth is known, 95% intervals hold it in 93 to 97 of 100 samples.

Each world is drawn again and again, and has the dependence between rows that the intervals must take account of.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from batch_platform.monitoring.comparison import paired_difference
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


WORLDS = {
    "200 rows": (rows(200), OF_CLASSES),
    "200 rows of a regression": (rows(200, regression), OF_NUMBERS),
    "300 customers": (customers(), OF_CLASSES),
    "300 customers of a regression": (customers(regression), OF_NUMBERS),
    "80 groups": (groups(), OF_CLASSES),
    "80 groups of a regression": (groups(regression), OF_NUMBERS),
    "400 weighted rows": (weighted(rows(400)), OF_CLASSES),
    "400 weighted rows of a regression": (weighted(rows(400, regression)), OF_NUMBERS),
    "90 days like the day before": (days(90, 0.7), OF_CLASSES),
    "90 days of a regression": (days(90, 0.7, regression), OF_NUMBERS),
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
        differences = {name: paired_difference(name, first, second) for name in compared}
        for name in metrics:
            value, other = truth[name]
            shown = {name: (found.get(name), value), f"difference of {name}": (differences.get(name), value - other)}
            for label, (interval, expected) in shown.items():
                if interval is not None:
                    made[label] += 1
                    held[label] += interval.low <= expected <= interval.high
    return {name: held[name] / made[name] for name in made}


def outside(shares: dict[str, float]) -> dict[str, float]:
    """The shares that are not between 93 and 97%, give or take the half percent by which 1,000 samples err."""
    return {name: share for name, share in shares.items() if not 0.925 <= share <= 0.975}


@pytest.mark.release
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_and_differences_hold_the_truth_in_93_to_97_of_100_samples(name):
    assert outside(coverage(*WORLDS[name], 1_000)) == {}


@pytest.mark.parametrize(
    "name",
    [
        "200 rows",
        "80 groups",
        "400 weighted rows",
        pytest.param("300 customers of a regression", marks=pytest.mark.full),
        pytest.param("90 days of a regression", marks=pytest.mark.full),
    ],
)
def test_a_few_samples_of_each_kind_of_world_are_held_about_as_often(name):
    world, metrics = WORLDS[name]
    shares = coverage(world, metrics[:2], 100, seed=1)
    assert all(0.89 <= share <= 1 for share in shares.values()), shares
