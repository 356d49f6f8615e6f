"""Leakage: features that may contain the outcome, because each of them alone nearly decides the label.

A warning, not a proof: a person who knows when the values of a column become known has to decide. A column is judged by
its order, by its categories, and by whether it has a value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.agreement import spearman

NEARLY = 0.999
MAX_ROWS = 20_000  # larger data are thinned to evenly spaced rows
MIN_ROWS = 20  # fewer may agree by chance
MIN_ROWS_OF_A_CLASS = 5
MIN_SEEN_AGAIN = 0.5  # categories that rarely recur, such as names, say nothing about later rows
MAX_BINS = 100
Values = NDArray[np.float64]


def nearly_deciding(matrix: Values, categorical: Sequence[bool], truth: NDArray[Any], *, classes: bool) -> list[int]:
    """Positions of the columns that alone nearly decide the label.

    A column decides between two classes by the area under its ROC curve, in either direction; it decides a number by its
    rank correlation (Spearman), and many classes if it separates each class from all others. Categories, and numbers
    where there are many classes, are replaced by the mean label in one half of the rows and judged on the other half.

    `matrix` holds encoded rows [n, columns] with NaN for missing values, `categorical` says for each column whether its
    numbers are positions of categories, and `classes` whether the labels in `truth` [n] are classes rather than numbers.
    """
    step = -(-len(matrix) // MAX_ROWS)
    matrix, truth = matrix[::step], truth[::step]
    labels = np.unique(truth) if classes else np.empty(0)
    many = len(labels) > 2  # noqa: PLR2004 - more than yes and no
    targets = [(truth == label).astype(np.float64) for label in (labels if many else labels[1:])]
    targets = targets or [truth.astype(np.float64)]
    decides = _separates if classes else _orders
    deciding: list[int] = []
    for position, values in enumerate(matrix.T):
        binned = values if categorical[position] else _bins(values) if many else None
        if all(_decided(values, binned, target, decides) for target in targets):
            deciding.append(position)
    return deciding


def _decided(values: Values, binned: Values | None, target: Values, decides: Callable[[Values, Values], bool]) -> bool:
    known = ~np.isnan(values)
    predicted, actual = (values[known], target[known]) if binned is None else _by_category(binned, target)
    return decides(predicted, actual) or decides(known.astype(np.float64), target)


def _by_category(values: Values, target: Values) -> tuple[Values, Values]:
    """The mean target of each category in every other row, for the rows in between whose category occurred; and their target."""
    learn, judge = values[::2], values[1::2]
    count = int(np.nanmax(values)) + 1 if not np.isnan(values).all() else 0
    known = ~np.isnan(learn)
    categories = learn[known].astype(np.int64)
    rows = np.bincount(categories, minlength=count)
    sums = np.bincount(categories, weights=target[::2][known], minlength=count)
    means = np.divide(sums, rows, out=np.full(count, np.nan), where=rows > 0)
    judged = ~np.isnan(judge)
    predicted = means[judge[judged].astype(np.int64)]
    seen = ~np.isnan(predicted)
    if seen.sum() < MIN_SEEN_AGAIN * len(seen):
        return np.empty(0), np.empty(0)
    return predicted[seen], target[1::2][judged][seen]


def _bins(values: Values) -> Values:
    """Numbers as at most MAX_BINS categories, in their order."""
    binned, known = np.full(len(values), np.nan), ~np.isnan(values)
    if known.any():
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, MAX_BINS)))
        binned[known] = np.searchsorted(edges, values[known])
    return binned


def _separates(values: Values, positive: Values) -> bool:
    from sklearn.metrics import roc_auc_score

    of_a_class = min(positive.sum(), len(positive) - positive.sum())
    if len(values) < MIN_ROWS or of_a_class < MIN_ROWS_OF_A_CLASS or np.ptp(values) == 0:
        return False
    area = float(roc_auc_score(positive, values))
    return max(area, 1 - area) >= NEARLY


def _orders(values: Values, target: Values) -> bool:
    coefficient = spearman(values, target) if len(values) >= MIN_ROWS else None
    return coefficient is not None and abs(coefficient) >= NEARLY
