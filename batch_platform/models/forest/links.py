"""What a library does to the sums of its trees, each way by a name that can be written down.

The exponentials of NumPy and of the C library may round otherwise; who asks for which is part of the name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
LinkName = Literal[
    "value", "values", "probability", "probabilities", "softmax", "C softmax", "exponential", "C exponential"
]


@dataclass(frozen=True)
class Link:
    """A finish of sums [n, outputs].

    Args:
        name: `value` and `values` are the sums, [n] or [n, outputs]; `probability` is the logistic function of the sums [n],
            and `probabilities` that of both classes [n, 2]; `softmax` [n, outputs]; `exponential` [n].
        divisor: Of the sums, before all else: how many trees a mean is of.
        steepness: Of the logistic function.
    """

    name: LinkName
    divisor: int = 1
    steepness: float = 1.0

    def __call__(self, sums: Sums) -> NDArray[Any]:
        """Give the prediction; uses the memory of the sums."""
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
    """As scikit-learn does it; in which order classes are added follows from the memory."""
    parts = sums - sums.max(axis=1, keepdims=True)
    np.exp(parts, out=parts)
    parts /= parts.sum(axis=1, keepdims=True)
    return parts


def _c_softmax(sums: Sums) -> Sums:
    """As LightGBM does it: class after class."""
    parts = _c_exponentials(sums - sums.max(axis=1, keepdims=True))
    return parts / reduce(np.add, parts.T)[:, None]


def _c_exponentials(values: Sums) -> Sums:
    from batch_platform.models.forest.exponentials import exponentials  # it imports numba

    return exponentials(values)


_LINKS: dict[str, Callable[[Sums], NDArray[Any]]] = {
    "value": lambda sums: sums[:, 0],
    "values": lambda sums: sums,
    "softmax": _softmax,
    "C softmax": _c_softmax,
    "exponential": lambda sums: np.exp(sums[:, 0]),
    "C exponential": lambda sums: _c_exponentials(sums)[:, 0],
}
