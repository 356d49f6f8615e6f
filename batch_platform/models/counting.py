"""Profiles of numbers by compiled code, where it is loaded for a model's trees anyway; the counts are the same."""

import sys

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Bins, Profile, Role, count_at_least, number_profile

WORTH_COMPILING = 50_000  # values of a batch; only a large partition has so many


def counted_profile(name: str, role: Role, bins: Bins, values: NDArray[np.float64], *, rejected: int = 0) -> Profile:
    """Profile numbers [n], of which NaN is null; see `number_profile`."""
    count = count_at_least
    if len(values) >= WORTH_COMPILING and "numba" in sys.modules:
        from batch_platform.models.forest.counting import at_least as count
    return number_profile(name, role, bins, values, rejected=rejected, count=count)
