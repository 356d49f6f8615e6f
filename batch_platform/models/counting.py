"""What profiles and segments count, by compiled code where it is loaded for a model's trees anyway; the counts are the same."""

import sys

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import Bins, Profile, Role, count_at_least, number_profile
from batch_platform.monitoring.segments import MOST_SEGMENTS, Cells, Numbered, numbered_values

WORTH_COMPILING = 50_000  # values of a batch; only a large partition has so many
_MOST_EDGES = 255  # of compiled cells


def counted_profile(  # noqa: PLR0913 - what is counted, and what is known of it already
    name: str,
    role: Role,
    bins: Bins,
    values: NDArray[np.float64],
    *,
    rejected: int = 0,
    cells: Cells | None = None,
) -> Profile:
    """Profile numbers [n], of which NaN is null; see `number_profile`. `cells` are their `cells_of`; none of them is then NaN."""
    count, histogram = count_at_least, None
    if cells is not None:
        histogram = tuple(np.bincount(cells, minlength=bins.cells).tolist())
    elif _is_compiled(values):
        from batch_platform.models.forest.counting import at_least as count
    return number_profile(name, role, bins, values, rejected=rejected, count=count, histogram=histogram)


def cells_of(bins: Bins, values: NDArray[np.float64]) -> Cells:
    """The cell of each number [n], none of which is NaN."""
    if _is_compiled(values) and len(bins.edges) <= _MOST_EDGES:
        from batch_platform.models.forest.counting import cells_of as compiled

        return compiled(values, bins.edges)
    return np.searchsorted(bins.edges, values, side="right")


def numbered_segments(column: pl.Series) -> Numbered | None:
    """Number the values of a column of segments; see `numbered_values`. None if there are more than MOST_SEGMENTS."""
    if not _is_compiled(column):
        return numbered_values(column)
    from batch_platform.models.forest.counting import numbered

    if (by_hash := numbered(column.hash().to_numpy(), MOST_SEGMENTS)) is None:
        return None  # equal values have equal hashes
    codes, firsts = by_hash
    values = column.gather(firsts)
    return (codes, values) if column.eq_missing(values.gather(codes)).all() else numbered_values(column)


def _is_compiled(values: NDArray[np.float64] | pl.Series) -> bool:
    return len(values) >= WORTH_COMPILING and "numba" in sys.modules
