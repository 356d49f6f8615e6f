"""Tree ensembles of any library as plain trees, with the start and the finish of their sum.

Libraries differ only in what they do to a value before they compare it, in the order and the precision in which they add trees, and in
the link after the sum. `estimators` and `boosters` read their models into this form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST_CATEGORIES = 255  # per column


class NotCompilableError(Exception):
    """The reason why a model stays with its library's own code."""


@dataclass(frozen=True)
class Tree:
    """One tree, node by node, the root first.

    Args:
        feature: The column of the matrix that a node tests.
        threshold: A row goes left if its value is not above.
        left: The left child; below zero at a leaf.
        right: The right child.
        missing_left: Whether a missing value goes left.
        value: What a leaf adds to each output of the tree, [nodes, outputs].
        left_set: The node's row of `left_sets`; below zero if it compares with its threshold.
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
        row: The initial value of each output, [outputs].
        by_output: Whether the sums of one output, not those of one row, are contiguous in memory.
    """

    row: NDArray[np.float64]
    by_output: bool = False

    def __call__(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the initial sums, [rows, outputs]."""
        sums = np.empty((len(matrix), len(self.row)), order="F" if self.by_output else "C")
        sums[:] = self.row
        return sums


@dataclass(frozen=True)
class Ensemble:
    """What a model computes: trees added up in order, on top of a start, then a finish.

    Args:
        features: The number of columns of the matrix.
        trees: In the order of addition.
        start: Returns the initial sums of a matrix, [rows, outputs], in the memory order of the library.
        finish: Returns the prediction for the sums; may use their memory.
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


@dataclass(frozen=True)
class Parts:
    """What a model does to a matrix.

    Args:
        steps: Transformers in front of the trees; each may work in place.
        columns: Number of columns of the matrix.
        ensemble: The trees.
    """

    steps: Sequence[Callable[[NDArray[np.float64]], Any]]
    columns: int
    ensemble: Ensemble


Sums = NDArray[np.float64]
LinkName = Literal[
    "value", "values", "probability", "probabilities", "softmax", "C softmax", "exponential", "C exponential"
]


@dataclass(frozen=True)
class Link:
    """A finish that can be written down by name. NumPy and the C library may round exponentials differently: `C` is the latter.

    Args:
        name: `value` and `values` are the sums, [rows] or [rows, outputs]; `probability` is the logistic function of the sums
            [rows], and `probabilities` that of both classes [rows, 2]; `softmax` [rows, outputs]; `exponential` [rows].
        divisor: Of the sums, before anything else: the number of trees if the result is a mean.
        steepness: Of the logistic function.
    """

    name: LinkName
    divisor: int = 1
    steepness: float = 1.0

    def __call__(self, sums: Sums) -> NDArray[Any]:
        """Return the prediction; uses the memory of the sums."""
        if self.divisor != 1:
            sums /= self.divisor
        if self.name == "probability":
            return _probability(sums, self.steepness)
        if self.name == "probabilities":
            of_second = _probability(sums, self.steepness)
            return np.column_stack([1 - of_second, of_second])
        return _LINKS[self.name](sums)


def _probability(sums: Sums, steepness: float) -> Sums:
    return 1 / (1 + _c_exponentials(-(steepness * sums))[:, 0])


def _softmax(sums: Sums) -> Sums:
    """As scikit-learn computes it; the order in which classes are added follows from the memory layout."""
    parts = sums - sums.max(axis=1, keepdims=True)
    np.exp(parts, out=parts)
    parts /= parts.sum(axis=1, keepdims=True)
    return parts


def _c_softmax(sums: Sums) -> Sums:
    """As LightGBM computes it: class after class."""
    parts = _c_exponentials(sums - sums.max(axis=1, keepdims=True))
    return parts / reduce(np.add, parts.T)[:, None]


def _c_exponentials(values: Sums) -> Sums:
    from batch_platform.models.forest.kernels import exponentials  # imports numba

    return exponentials(values)


_LINKS: dict[str, Callable[[Sums], NDArray[Any]]] = {
    "value": lambda sums: sums[:, 0],
    "values": lambda sums: sums,
    "softmax": _softmax,
    "C softmax": _c_softmax,
    "exponential": lambda sums: np.exp(sums[:, 0]),
    "C exponential": lambda sums: _c_exponentials(sums)[:, 0],
}
