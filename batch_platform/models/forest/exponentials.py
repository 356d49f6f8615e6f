"""Exponentials as the C library rounds them: libraries that are written in C++ ask it, numpy has its own."""

# pyright: basic, reportMissingImports=none
# numba publishes no types.

import math

import numba
import numpy as np
from numpy.typing import NDArray

from batch_platform.models.forest.compiling import MATRIX, OPTIONS, OUT, make_ready


def exponentials(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponential of each of [n, outputs]."""
    make_ready(_write_exponentials, MATRIX, OUT)
    out = np.empty_like(values)
    _write_exponentials(values, out)
    return out


@numba.njit(**OPTIONS)
def _write_exponentials(values, out):
    for r in range(values.shape[0]):
        for o in range(values.shape[1]):
            out[r, o] = math.exp(values[r, o])
