"""What LightGBM 4 does to the sum of its trees, to the bits that it gives.

Its exponentials are the C library's, which may round otherwise than numpy's; so they are compiled here to calls of it.
"""

# pyright: basic, reportMissingImports=none
# numba publishes no types.

import math
from functools import partial, reduce
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from batch_platform.forest.compiling import MATRIX, OPTIONS, OUT, make_ready
from batch_platform.forest.ensembles import Finish, NotCompilableError

_SAME = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")
_EXPONENTIAL = ("poisson", "gamma", "tweedie")


def link_of(objective: str, *, averaged: int) -> Finish:
    """What makes predictions [n] or [n, classes] of sums [n, outputs].

    Args:
        objective: As the model's file tells it, with its parameters.
        averaged: The rounds over which the mean is taken; 1 where trees only add up.

    Raises:
        NotCompilableError: The objective is not known here.
    """
    name, *rest = objective.split()
    params = {key: value for key, _, value in (one.partition(":") for one in rest)}
    if name in ("binary", "multiclassova", "cross_entropy"):
        link = partial(_sigmoid, steepness=float(params.get("sigmoid", "1")))
    elif name == "multiclass":
        link = _softmax
    elif name in _EXPONENTIAL:
        link = _exponentials
    elif name in _SAME and "sqrt" not in rest:
        link = _same
    else:
        msg = f"what its objective {objective!r} does to a sum is not known here"
        raise NotCompilableError(msg)

    def finish(sums: NDArray[np.float64]) -> NDArray[Any]:
        if averaged > 1:
            sums /= averaged
        found = link(sums)
        return found[:, 0] if found.shape[1] == 1 else found

    return finish


def _same(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums


def _sigmoid(sums: NDArray[np.float64], steepness: float) -> NDArray[np.float64]:
    return 1 / (1 + _exponentials(-steepness * sums))


def _softmax(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    parts = _exponentials(sums - sums.max(axis=1, keepdims=True))
    total = reduce(np.add, parts.T)  # class after class, as LightGBM adds them
    return parts / total[:, None]


def _exponentials(values: NDArray[np.float64]) -> NDArray[np.float64]:
    make_ready(_write_exponentials, MATRIX, OUT)
    out = np.empty_like(values)
    _write_exponentials(values, out)
    return out


@numba.njit(**OPTIONS)
def _write_exponentials(values, out):
    for r in range(values.shape[0]):
        for o in range(values.shape[1]):
            out[r, o] = math.exp(values[r, o])
