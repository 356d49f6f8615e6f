"""The interface of a loaded model, plain numbers in and plain numbers out; and the blocks of one shape in which it scores.

Linear algebra libraries choose how to add up by the shape and the memory layout of a matrix, so the last digits of a row's
score would differ between a table and a part of it. In blocks of one shape they do not depend on the rows beside it.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1024  # more make small partitions slower, fewer make large ones slower


class Predictor(Protocol):
    """A loaded model.

    It fits nothing and keeps nothing between calls. Several threads may call it at once; on each of them, its library uses one thread.
    """

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[Any]:
        """Return class probabilities [rows, classes], values [rows] of a regression, or clusters [rows] of a clustering.

        For outliers, return how odd each row is [rows]: above 0 it is an outlier.
        """
        ...


@runtime_checkable
class DecidingPredictor(Predictor, Protocol):
    """A predictor of a library whose classifiers may have a decision function."""

    def decide(self, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the decision function [rows] of two classes or [rows, classes] of more; None if the model has none."""
        ...


def decisions(predictor: Predictor, matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The decision function of a classifier for rows; None if it has none."""
    return predictor.decide(matrix) if isinstance(predictor, DecidingPredictor) else None


def in_blocks(matrix: NDArray[Any], predict: Callable[[NDArray[Any]], Any], size: int = BLOCK_ROWS) -> NDArray[Any]:
    """Predict in blocks of the same number of rows, stored by column; `predict` may change the block that it is given.

    The last block is filled up with copies of its rows, whose predictions are dropped.
    """
    parts: list[NDArray[Any]] = []
    for start in range(0, max(len(matrix), 1), size):  # no rows at all still tell the shape of the prediction
        rows = matrix[start : start + size]
        block = np.zeros((size, *rows.shape[1:]), rows.dtype, order="F")
        if len(rows):
            block[:] = rows if len(rows) == size else rows[np.resize(np.arange(len(rows)), size)]
        parts.append(np.asarray(predict(block))[: len(rows)])
    return np.concatenate(parts)
