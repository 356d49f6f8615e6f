"""What the kernels read: how rows become ranks, and trees in one of two forms; plain arrays and numbers only."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Encoding(NamedTuple):
    """How rows become ranks; the first four by feature."""

    kind: NDArray[np.uint8]
    levels: NDArray[np.int64]  # of the search for a rank; 0 where no tree asks for the feature
    level_start: NDArray[np.int64]  # [features, most levels], into `cuts`
    columns: NDArray[np.int64]  # [features, 2]: the column where missing is least, the one where it is `missing`; or -1
    cuts: NDArray[np.float64]
    missing: NDArray[np.int64]
    single: bool  # whether values are rounded to 32 bits first
    width: int  # how many columns of ranks


class Masks(NamedTuple):
    """Trees of few leaves; what a row that goes right clears are the leaves to the left."""

    first_node: NDArray[np.int64]  # [trees + 1]
    cut: NDArray[np.uint16]
    column: NDArray[np.int64]
    keep: NDArray[Any]
    first_test: NDArray[np.int64]  # [trees + 1]; tests for sets of categories, 64 to a word
    test_column: NDArray[np.int64]
    test_word: NDArray[np.uint16]
    test_set: NDArray[np.uint64]
    test_keep: NDArray[Any]
    first_value: NDArray[np.int64]  # [trees + 1]; the leaves of a tree for one output, then for the next
    output: NDArray[np.int64]  # [trees]: the first that a tree adds to
    value: NDArray[np.float64]
    width: int  # outputs of a tree
    single: bool  # whether the sum is rounded to 32 bits after each tree


class Descent(NamedTuple):
    """Trees of any size; children stand side by side, leaves point at themselves."""

    node: NDArray[np.uint64]
    root: NDArray[np.int64]  # [trees]
    depth: NDArray[np.int64]  # [trees]
    sets: NDArray[np.uint64]  # four words for each: the categories that go right
    output: NDArray[np.int64]  # [trees]: the first that a tree adds to
    value: NDArray[np.float64]  # [nodes * width]
    width: int  # outputs of a tree
    single: bool  # as above
