"""Tree ensembles of whatever library as plain trees, with what goes before and after their sum.

What an ensemble does to a value before it compares it, the order and the precision in which it adds its trees, and the
link behind the sum are all that one library's trees differ in from another's. `estimators` and `boosters` read them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CATEGORIES = 255  # of a column


class NotCompilableError(Exception):
    """Why a model stays with the code of its library."""


@dataclass(frozen=True)
class Tree:
    """One tree, node by node, the root first.

    Args:
        feature: The column of the matrix that a node asks for.
        threshold: A row goes left where its value is not above.
        left: The left child; below zero at a leaf.
        right: The right child.
        missing_left: Whether a missing value goes left.
        value: What a leaf gives to each output of the tree, [nodes, outputs].
        left_set: The node's row of `left_sets`; below zero where it compares with its threshold.
        left_sets: The categories that go left, by code, [sets, 256]; the last code stands for missing and unknown.
        output: The first output that the tree adds to.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float64]
    left_set: NDArray[np.int64]
    left_sets: NDArray[np.bool_]
    output: int = 0


Start = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Finish = Callable[[NDArray[np.float64]], NDArray[Any]]


@dataclass(frozen=True)
class Constant:
    """A start that is the same for every row.

    Args:
        row: What each output begins with, [outputs].
        by_output: Whether the sums of one output lie side by side in memory, not those of one row.
    """

    row: NDArray[np.float64]
    by_output: bool = False

    def __call__(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the sums to begin with."""
        sums = np.empty((len(matrix), len(self.row)), order="F" if self.by_output else "C")
        sums[:] = self.row
        return sums


@dataclass(frozen=True)
class Ensemble:
    """What a model computes: trees added up in order, on top of a start, then a finish.

    Args:
        features: How many columns the matrix has.
        trees: In the order of addition.
        start: Gives the sums to begin with, [n, outputs], for a matrix; the order of its memory is the library's.
        finish: Gives the prediction from the sums; may use their memory.
        single: Whether values are rounded to 32 bits before they are compared.
        single_sums: Whether the sum is rounded to 32 bits after each tree.
        nan_refused: Whether a matrix that holds a NaN is refused.
        infinity_refused: The same for infinities, by column; of the rounded values.
        categories: The known values of a categorical column, sorted; its codes are their positions.
        unknown_refused: Whether a matrix with another value in such a column is refused; else it counts as missing.
    """

    features: int
    trees: Sequence[Tree]
    start: Start
    finish: Finish
    single: bool
    nan_refused: bool
    infinity_refused: NDArray[np.bool_]
    categories: dict[int, NDArray[np.float64]] = field(default_factory=dict[int, NDArray[np.float64]])
    single_sums: bool = False
    unknown_refused: bool = False
