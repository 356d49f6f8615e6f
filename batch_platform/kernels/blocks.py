"""Blocks of one shape, so that a row's score does not depend on the rows beside it.

Linear algebra libraries choose how to add up by the shape and the memory layout of a matrix, so the last digits of a row's
score would differ between a table and a part of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1024  # more make small partitions slower, fewer make large ones slower


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
