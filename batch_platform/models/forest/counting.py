"""The compiled code that counts how many values reach each edge of a profile: four edges in one pass over the values."""

# pyright: basic, reportMissingImports=none
# numba publishes no types, and what it compiles is typed by the signature.

from collections.abc import Sequence

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from batch_platform.models.forest.kernels import OPTIONS, make_ready

_TOGETHER = 4  # edges
_VALUES = types.Array(types.float64, 1, "C", readonly=True)
_COUNTS = types.Array(types.int64, 1, "C")


@numba.njit(**OPTIONS)
def _count(values, edges, reached):  # noqa: ANN001, ANN202 - typed by the signature
    for at in range(0, len(edges), 4):
        first, second, third, fourth = edges[at], edges[at + 1], edges[at + 2], edges[at + 3]
        of_first, of_second, of_third, of_fourth = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for row in range(len(values)):
            value = values[row]
            of_first += value >= first
            of_second += value >= second
            of_third += value >= third
            of_fourth += value >= fourth
        reached[at], reached[at + 1], reached[at + 2], reached[at + 3] = of_first, of_second, of_third, of_fourth


def at_least(values: NDArray[np.float64], edges: Sequence[float]) -> list[int]:
    """How many values [n], none of them NaN, reach each edge."""
    make_ready(_count, _VALUES, _VALUES, _COUNTS)
    padded = np.full(-(-len(edges) // _TOGETHER) * _TOGETHER, np.inf)
    padded[: len(edges)] = edges
    reached = np.zeros(len(padded), dtype=np.int64)
    _count(np.ascontiguousarray(values), padded, reached)
    return reached[: len(edges)].tolist()
