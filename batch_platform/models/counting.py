"""Counts for profiles and segments, by compiled code where a model's trees have loaded it anyway; the counts are the same."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.monitoring.profiles import (
    Bins,
    Categories,
    Profile,
    Role,
    RowSketch,
    cells_of,
    count_at_least,
    number_profile,
    sketch_of,
)
from batch_platform.monitoring.segments import MOST_SEGMENTS, Cells, CountsByValue, Places, SegmentCounts

WORTH_COMPILING = 50_000  # values of a batch; only a large partition has so many
_MOST_EDGES = 254  # limit of the compiled code: cells are bytes, and nulls have a cell of their own


def counted_profile(  # noqa: PLR0913 - what is counted, and what is known of it already
    name: str,
    role: Role,
    bins: Bins,
    values: NDArray[np.float64],
    *,
    rejected: int = 0,
    cells: Cells | None = None,
) -> Profile:
    """Profile numbers [n], of which NaN is null; see `number_profile`. `cells` are their `counted_cells`; none of them is then NaN."""
    count, histogram = count_at_least, None
    if cells is not None:
        histogram = tuple(np.bincount(cells, minlength=bins.cells).tolist())
    elif _is_compiled(values):
        from batch_platform.kernels.forest.counting import at_least as count
    return number_profile(name, role, bins, values, rejected=rejected, count=count, histogram=histogram)


def counted_cells(values: NDArray[np.float64], bins: Bins) -> Cells:
    """The cell of each number [n], none of which is NaN; see `cells_of`."""
    if _is_compiled(values) and len(bins.edges) <= _MOST_EDGES:
        from batch_platform.kernels.forest.counting import cells_of as compiled

        return compiled(values, bins.edges)
    return cells_of(values, bins.edges)


def sketched(matrix: NDArray[np.float64], columns: Categories) -> RowSketch:
    """Sketch encoded rows [n, columns]; see `sketch_of`."""
    mix = None
    if _is_compiled(matrix):
        from batch_platform.kernels.forest.counting import add_mixed as mix
    return sketch_of(matrix, columns, mix)


def counted_by_segment(segments: pl.DataFrame, places: Mapping[Role, Places]) -> SegmentCounts:
    """Count rows by each of some columns, given the cells of each row by role."""
    by_segment = dict[tuple[Role, str], CountsByValue | None]()
    for column in segments.get_columns():
        values = numbered(column)
        texts = [] if values is None else values[1].to_list()
        for role, of_rows in places.items():
            by_segment[role, column.name] = (
                None if values is None else dict(zip(texts, _crossed(values[0], len(texts), of_rows), strict=True))
            )
    return SegmentCounts(by_segment)


def numbered(column: pl.Series) -> tuple[NDArray[np.int64], pl.Series] | None:
    """The number of each row's value [n], and the value of each number as text; None if there are more than MOST_SEGMENTS.

    Compiled code holds values with the same hash of 64 bits to be equal: of 1,000 values, two different ones have the same
    hash with a probability of 3e-14.
    """
    if not column.dtype.is_integer():  # compared as text, since 0.0 and -0.0 are equal numbers
        column = column.cast(pl.String)
    if _is_compiled(column):
        from batch_platform.kernels.forest.counting import numbered as numbered_hashes

        by_hash = numbered_hashes(column.hash().to_numpy(), MOST_SEGMENTS)
        return None if by_hash is None else (by_hash[0], column.gather(by_hash[1]).cast(pl.String))
    groups = pl.DataFrame({"value": column}).with_row_index("row").group_by("value").agg("row")
    if groups.height > MOST_SEGMENTS:
        return None
    numbers = np.empty(len(column), dtype=np.int64)
    rows, values = groups["row"].explode().to_numpy(), np.arange(groups.height)
    numbers[rows] = np.repeat(values, groups["row"].list.len().to_numpy())
    return numbers, groups["value"].cast(pl.String)


def _crossed(numbers: NDArray[np.int64], values: int, places: Places) -> NDArray[np.int64]:
    """Count the rows of each number in each cell [values, cells], given the number and the cell of each row."""
    of_rows, cells = places
    if _is_compiled(of_rows) and of_rows.dtype == np.uint8:
        from batch_platform.kernels.forest.counting import crossed

        return crossed(numbers, values, of_rows.astype(np.uint8, copy=False), cells)
    return np.bincount(numbers * cells + of_rows, minlength=values * cells).reshape(values, cells)


def _is_compiled(values: NDArray[Any] | pl.Series) -> bool:
    return len(values) >= WORTH_COMPILING and "numba" in sys.modules
