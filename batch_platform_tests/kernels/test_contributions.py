"""The contributions of columns to the sum of trees: the Shapley values of their definition, and those of the boosters' own code."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pytest

from batch_platform.kernels.forest.compiled import coded
from batch_platform.kernels.forest.contributions import TreeContributions, contributions_to
from batch_platform.kernels.forest.ensembles import Ensemble, NotCompilableError, Tree
from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.refinements.reasons import largest
from batch_platform_tests.harness.tiers import crossed
from batch_platform_tests.kernels.random_trees import MODELS, Shape, learned, table

EXACT = 1e-9
SHAPES = [
    Shape(seed=1, columns=5, classes=3, trees=4, missing=0.2, categories=5),
    Shape(seed=2, columns=4, classes=2, trees=3, leaves=200, depth=20, missing=0.2, rows=250),
    Shape(seed=3, columns=3, classes=2, trees=6, leaves=2, depth=1),
    Shape(seed=4, columns=1, classes=2, trees=2, depth=3, missing=0.2),
    Shape(seed=5, columns=5, classes=2, trees=3, leaves=31, depth=5, categories=200),
]


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def explained(of: Ensemble, output: int) -> TreeContributions:
    return contributions_to(of, output, range(of.features), of.features)


def expected(tree: Tree, output: int, row: np.ndarray, known: frozenset[int], node: int = 0) -> float:
    """The mean of a tree over the training rows that follow a row in the known columns, as its covers tell it."""
    if tree.left[node] < 0:
        return float(tree.value[node, output - tree.output])
    left, right, feature = int(tree.left[node]), int(tree.right[node]), int(tree.feature[node])
    if feature not in known:
        shares = tree.cover[[left, right]] / (tree.cover[node] or 1.0)  # XGBoost may grow nodes of no weight
        return sum(
            share * expected(tree, output, row, known, child)
            for share, child in zip(shares.tolist(), (left, right), strict=True)
        )
    value = row[feature]
    if tree.left_set[node] >= 0:
        goes_left = tree.left_sets[tree.left_set[node], int(value)]
    else:
        goes_left = tree.missing_left[node] if np.isnan(value) else value <= tree.threshold[node]
    return expected(tree, output, row, known, left if goes_left else right)


def by_definition(of: Ensemble, output: int, row: np.ndarray) -> np.ndarray:
    """The Shapley values [columns] of a row, summed over all sets of columns."""
    trees = [tree for tree in of.trees if tree.output <= output < tree.output + tree.value.shape[1]]
    columns, divisor = range(of.features), getattr(of.finish, "divisor", 1)
    worth = {
        known: sum(expected(tree, output, row, known) for tree in trees) / divisor
        for size in range(of.features + 1)
        for known in map(frozenset, combinations(columns, size))
    }
    values = np.zeros(of.features)
    for known, without in worth.items():
        others = of.features - len(known) - 1
        weight = factorial(len(known)) * factorial(others) / factorial(of.features) if others >= 0 else 0
        for column in set(columns) - known:
            values[column] += weight * (worth[known | {column}] - without)
    return values


def require_exact(of: Ensemble, matrix: np.ndarray) -> None:
    """Compare the contributions with their definition, and their sum with that of the trees."""
    sums = of.start(matrix)
    rows = coded(of, matrix)
    assert rows is not None
    for output in range(len(of.start.row)):
        by_tree = explained(of, output)
        found = by_tree.of(matrix)
        defined = np.array([by_definition(of, output, row) for row in rows])
        np.testing.assert_allclose(found, defined, rtol=0, atol=EXACT)
        every = frozenset(range(of.features))
        trees = [tree for tree in of.trees if tree.output <= output < tree.output + tree.value.shape[1]]
        total = [sum(expected(tree, output, row, every) for tree in trees) for row in rows]
        raw = (sums[:, output] + total) / getattr(of.finish, "divisor", 1)
        np.testing.assert_allclose(by_tree.base + found.sum(axis=1), raw, rtol=0, atol=EXACT)


KINDS = [name for name in MODELS if not name.startswith(("isolation", "imputed")) and "scaled" not in name]


@pytest.mark.parametrize(("name", "shape"), crossed(KINDS, SHAPES))
def test_contributions_are_shapley_values(name: str, shape: Shape):
    ensemble = learned(name, shape).parts().ensemble
    require_exact(ensemble, table(shape, 4, missing=not ensemble.nan_refused))


@pytest.mark.parametrize(("classes", "categories"), [(2, 0), (3, 70)])
def test_contributions_equal_those_of_lightgbm(classes: int, categories: int):
    shape = Shape(seed=7, rows=900, columns=9, classes=classes, trees=20, missing=0.1, categories=categories)
    predictor: Any = learned("lightgbm, classes", shape)
    of, rows = predictor.parts().ensemble, table(shape, 300)
    own = predictor.run(rows, pred_contrib=True).reshape(len(rows), -1, shape.columns + 1)
    for output in range(own.shape[1]):
        by_tree = explained(of, output)
        np.testing.assert_allclose(by_tree.of(rows), own[:, output, :-1], rtol=0, atol=EXACT)
        np.testing.assert_allclose(by_tree.base, own[:, output, -1], rtol=0, atol=EXACT)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["histogram", "random forest"])
def test_a_row_has_the_same_contributions_in_every_batch(name: str):
    shape = Shape(seed=9, rows=900, columns=12, trees=8, leaves=200, depth=12, missing=0.1)
    of = learned(f"{name}, classes", shape).parts().ensemble
    by_tree, rows = explained(of, 0), table(shape, 1500)
    whole = by_tree.of(rows)
    assert whole[700:765].tobytes() == by_tree.of(rows[700:765]).tobytes()
    assert whole[3:4].tobytes() == by_tree.of(rows[3:4]).tobytes()
    assert by_tree.of(rows[:0]).shape == (0, 12)


@pytest.mark.unit
def test_trees_without_covers_have_no_contributions():
    of = learned("histogram, classes", SHAPES[0]).parts().ensemble
    with pytest.raises(NotCompilableError, match="how many training rows"):
        explained(replace(of, trees=[replace(tree, cover=np.zeros_like(tree.cover)) for tree in of.trees]), 0)


@pytest.mark.unit
def test_the_largest_contributions_come_first_and_of_equal_ones_the_first_column():
    rows = np.array([[1.0, -3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 5.0, -5.0]])
    assert largest(rows, 3).tolist() == [[1, 3, 2], [0, 1, 2], [2, 3, 0]]
    assert largest(rows, 4).tolist() == [[1, 3, 2, 0], [0, 1, 2, 3], [2, 3, 0, 1]]
