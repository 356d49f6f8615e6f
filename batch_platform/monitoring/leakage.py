"""Features that may know the outcome: columns of which each, alone, nearly decides the label.

A warning and not a proof: such a column is looked at by whoever knows when its values come into being. Each is judged
by what a simple reader could make of it: its order, its categories, or only whether it has a value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEARLY = 0.999
MOST_ROWS = 20_000  # of a long window, evenly spaced
LEAST_ROWS = 20  # fewer may agree by chance
LEAST_OF_A_CLASS = 5
LEAST_SEEN_AGAIN = 0.5  # categories that hardly ever come back, such as names, tell nothing of rows to come
MOST_BINS = 100
Values = NDArray[np.float64]


def nearly_deciding(matrix: Values, categorical: Sequence[bool], truth: NDArray[Any], *, classes: bool) -> list[int]:
    """The positions of the columns that alone nearly decide the label.

    Of two classes a column decides by the area under its ROC curve, in either direction; of a number by its rank
    correlation (Spearman); of many classes if it tells each from all others. Categories, and numbers where there are many
    classes, are read as how often the label was what it was in one half of the rows, and judged on the other half.

    Args:
        matrix: Encoded rows [n, columns]; NaN where a row has no value.
        categorical: For each column, whether its numbers are positions of categories.
        truth: The labels [n].
        classes: Whether they are classes, and not numbers.
    """
    step = -(-len(matrix) // MOST_ROWS)
    matrix, truth = matrix[::step], truth[::step]
    labels = np.unique(truth) if classes else np.empty(0)
    many = len(labels) > 2  # noqa: PLR2004 - more than yes and no
    aims = [(truth == label).astype(np.float64) for label in (labels if many else labels[1:])] or [
        truth.astype(np.float64)
    ]
    decides = _separates if classes else _orders
    found: list[int] = []
    for at, values in enumerate(matrix.T):
        binned = values if categorical[at] else _bins(values) if many else None
        if all(_decided(values, binned, aim, decides) for aim in aims):
            found.append(at)
    return found


def _decided(values: Values, binned: Values | None, aim: Values, decides: Callable[[Values, Values], bool]) -> bool:
    known = ~np.isnan(values)
    read, held = (values[known], aim[known]) if binned is None else _by_category(binned, aim)
    return decides(read, held) or decides(known.astype(np.float64), aim)


def _by_category(values: Values, aim: Values) -> tuple[Values, Values]:
    """The mean aim of each category in every other row, for the rows in between whose category was seen; and their aim."""
    learn, judge = values[::2], values[1::2]
    count = int(np.nanmax(values)) + 1 if not np.isnan(values).all() else 0
    known = ~np.isnan(learn)
    at = learn[known].astype(np.int64)
    rows = np.bincount(at, minlength=count)
    sums = np.bincount(at, weights=aim[::2][known], minlength=count)
    means = np.divide(sums, rows, out=np.full(count, np.nan), where=rows > 0)
    found = ~np.isnan(judge)
    read = means[judge[found].astype(np.int64)]
    seen = ~np.isnan(read)
    if seen.sum() < LEAST_SEEN_AGAIN * len(seen):
        return np.empty(0), np.empty(0)
    return read[seen], aim[1::2][found][seen]


def _bins(values: Values) -> Values:
    """Numbers as at most so many categories, in their order."""
    binned, known = np.full(len(values), np.nan), ~np.isnan(values)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, MOST_BINS)))
        binned[known] = np.searchsorted(edges, values[known])
    return binned


def _separates(values: Values, positive: Values) -> bool:
    from sklearn.metrics import roc_auc_score

    of_a_class = min(positive.sum(), len(positive) - positive.sum())
    if len(values) < LEAST_ROWS or of_a_class < LEAST_OF_A_CLASS or np.ptp(values) == 0:
        return False
    area = float(roc_auc_score(positive, values))
    return max(area, 1 - area) >= NEARLY


def _orders(values: Values, target: Values) -> bool:
    if len(values) < LEAST_ROWS or np.ptp(values) == 0 or np.ptp(target) == 0:
        return False
    ranks = np.vstack([_ranks(values), _ranks(target)])
    correlations: Values = np.asarray(np.corrcoef(ranks), dtype=np.float64)
    return bool(abs(correlations[0, 1]) >= NEARLY)


def _ranks(values: Values) -> Values:
    """Ranks from 0 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: Values = np.cumsum(counts, dtype=np.float64)
    shared -= (counts + 1) / 2
    return shared[inverse]
