"""Learn what whole rows of the training data are like: how their columns go together, and how often partitions repeat rows."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.native_threads import one_thread
from batch_platform.models.contract import Contract
from batch_platform.monitoring.profiles import LEAST_ROWS, MOST_COLUMNS, Categories, Components, RowReference, sketch_of

LEAST_PARTITIONS = 7  # fewer do not tell what is usual
MOST_PARTITIONS = 100  # the newest
_MOST_LEARNED_FROM = 50_000  # rows, evenly spaced
_SMALLEST = 0.05  # variance that is added to that of a component, so that what hardly varies does not decide


def categories_of(contract: Contract) -> Categories:
    """The categories of each column of a contract; None for a number."""
    return {column.name: column.categories if column.type == "category" else None for column in contract.columns}


def row_reference(
    contract: Contract, matrix: NDArray[np.float64], starts: NDArray[np.datetime64] | None, *, sampled: bool
) -> RowReference:
    """The reference for whole rows like these encoded ones [n, columns], given the start of the partition of each if it is known.

    Rows that are `sampled` do not tell which of them a partition repeats.
    """
    components = _components(matrix[:: -(-len(matrix) // _MOST_LEARNED_FROM) or 1, :MOST_COLUMNS])
    if starts is None:
        return RowReference(components)
    columns, partitions = categories_of(contract), np.unique(starts)[-MOST_PARTITIONS:]
    sketches = [sketch_of(matrix[starts == start], columns) for start in partitions]
    large = [sketch for sketch in sketches if sketch.rows >= LEAST_ROWS]
    if len(large) < LEAST_PARTITIONS:
        return RowReference(components)
    loose = [components.looseness(sketch) for sketch in large] if components else []
    logs = np.log([value for value in loose if value])
    middle = float(np.median(logs)) if len(logs) >= LEAST_PARTITIONS else None
    same = any(before.identity == after.identity for before, after in pairwise(sketches))
    return RowReference(
        components,
        None if middle is None else float(np.exp(middle)),
        None if middle is None else float(np.exp(np.abs(logs - middle).max())),
        None if sampled else max(sketch.repeated for sketch in large),
        None if sampled else same,
    )


def _components(matrix: NDArray[np.float64]) -> Components | None:
    """The principal components of rows [n, columns]; None with fewer than two columns that vary, or too few rows."""
    from sklearn.decomposition import PCA

    with np.errstate(over="ignore", invalid="ignore"):
        known = ~np.isnan(matrix)
        counts = np.maximum(1, known.sum(axis=0))
        middle = np.where(known, matrix, 0.0).sum(axis=0) / counts
        scale = np.sqrt(np.where(known, np.square(matrix - middle), 0.0).sum(axis=0) / counts)
    usable = np.isfinite(middle) & np.isfinite(scale) & (scale > 0)
    if usable.sum() < 2 or len(matrix) < max(LEAST_ROWS, 5 * matrix.shape[1]):  # noqa: PLR2004 - nothing goes together otherwise
        return None
    plain = Components(tuple(np.where(usable, middle, 0.0).tolist()), tuple(np.where(usable, scale, 0.0).tolist()), ())
    with one_thread():
        fitted = PCA().fit(plain.standardised(matrix))
    axes = fitted.components_ / np.sqrt(fitted.explained_variance_ + _SMALLEST)[:, None]
    return Components(plain.middle, plain.scale, tuple(map(tuple, axes.tolist())))
