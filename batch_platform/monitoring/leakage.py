"""Leakage: features that may contain the outcome, because they tell the label too well.

A suspicion, not a proof: a person who knows when the values of a column become known has to decide. A column is judged by
its order, by its categories, by whether it has a value, and by how nearly it repeats the classes; two numbers by their sum
and difference.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_platform.monitoring.agreement import spearman
from batch_platform.monitoring.metrics import weighted_area

NEARLY = 0.999
COPIED, COPIED_AT_LEAST = 0.94, 0.92  # share of a class that a noisy copy gets right: on average, and in every class
MAX_ROWS = 20_000  # larger data are thinned to evenly spaced rows
MIN_ROWS = 20  # fewer may agree by chance
MIN_ROWS_OF_A_CLASS = 5
MIN_ROWS_OF_A_COPIED_CLASS = 20
MIN_ROWS_OF_A_MODEL = 50  # a good model is perfect on a few rows
MIN_SEEN_AGAIN = 0.5  # categories that rarely recur, such as names, say nothing about later rows
MAX_BINS = 100
MAX_CLASSES = 50
MAX_ADDENDS = 200  # columns of which any two may add up to the label
Values = NDArray[np.float64]


@dataclass(frozen=True)
class SuspectedLeak:
    """Features that may contain the outcome."""

    columns: tuple[str, ...]  # none if only the metrics of the whole model are suspicious
    reason: str  # follows the names of the columns in a sentence
    allowed: bool = False  # whether `model.allow_suspected_leaks` names the columns

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SuspectedLeak":
        """Read what was recorded as plain values."""
        return cls(tuple(values["columns"]), values["reason"], allowed=values["allowed"])

    def __str__(self) -> str:
        """Say in one clause what is suspicious."""
        return f"{' and '.join(self.columns) or 'the model'} {self.reason}"


def suspected_leaks(
    matrix: Values, names: Sequence[str], categorical: Sequence[bool], truth: NDArray[Any], *, classes: bool
) -> list[SuspectedLeak]:
    """The columns that tell the label too well, each once and with its strongest reason; arguments as for `nearly_deciding`."""
    step = max(1, -(-len(matrix) // MAX_ROWS))
    matrix, truth = matrix[::step], truth[::step]
    reasons = dict.fromkeys(
        nearly_deciding(matrix, categorical, truth, classes=classes), "alone nearly decides the label"
    )
    for position, values in enumerate(matrix.T if classes else ()):
        if position not in reasons and (share := _copied(values, truth)) is not None:
            reasons[position] = f"repeats the label with few exceptions ({share:.1%} of each class on average)"
    leaks = [SuspectedLeak((names[at],), reasons[at]) for at in sorted(reasons)]
    if truth.dtype.kind in "biuf":
        numeric = [at for at in range(len(names)) if not categorical[at] and at not in reasons][:MAX_ADDENDS]
        pairs = _adding_up(matrix[:, numeric], truth.astype(np.float64))
        leaks += [SuspectedLeak((names[numeric[left]], names[numeric[right]]), how) for left, right, how in pairs]
    return leaks


def null_with_the_label(nulls: Mapping[str, int], rows: int, filled: Sequence[str]) -> list[SuspectedLeak]:
    """The columns that are null in exactly the rows whose label is not known.

    `nulls` counts by column the nulls in the `rows` without a label; `filled` names the columns that have no null in any
    row with a label.
    """
    reason = f"is null exactly where the label is ({rows:,} rows)"
    exact = [name for name in filled if rows >= MIN_ROWS and nulls.get(name) == rows]
    return [SuspectedLeak((name,), reason) for name in exact]


def nearly_perfect(metrics: Mapping[str, float], rows: int) -> list[SuspectedLeak]:
    """The model itself, if a metric of its `rows` evaluation rows is too good; the fewest rows of a class count, if it has any."""
    perfect = [name for name in ("roc_auc", "r2") if metrics.get(name, 0.0) >= NEARLY]
    if not perfect or rows < MIN_ROWS_OF_A_MODEL:
        return []
    return [SuspectedLeak((), f"is nearly perfect ({perfect[0]} {metrics[perfect[0]]:.4f} on {rows:,} rows)")]


def nearly_deciding(matrix: Values, categorical: Sequence[bool], truth: NDArray[Any], *, classes: bool) -> list[int]:
    """Positions of the columns that alone nearly decide the label.

    A column decides between two classes by the area under its ROC curve, in either direction; it decides a number by its
    rank correlation (Spearman), and many classes if it separates each class from all others. Categories, and numbers
    where there are many classes, are replaced by the mean label in one half of the rows and judged on the other half.

    `matrix` holds encoded rows [n, columns] with NaN for missing values, `categorical` says for each column whether its
    numbers are positions of categories, and `classes` whether the labels in `truth` [n] are classes rather than numbers.
    """
    step = max(1, -(-len(matrix) // MAX_ROWS))
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
    of_a_class = min(positive.sum(), len(positive) - positive.sum())
    if len(values) < MIN_ROWS or of_a_class < MIN_ROWS_OF_A_CLASS or np.ptp(values) == 0:
        return False
    area = float(weighted_area(positive > 0, values)(np.ones(len(values))))
    return max(area, 1 - area) >= NEARLY


def _orders(values: Values, target: Values) -> bool:
    coefficient = spearman(values, target) if len(values) >= MIN_ROWS else None
    return coefficient is not None and abs(coefficient) >= NEARLY


def _copied(values: Values, truth: NDArray[Any]) -> float | None:
    """The mean share of each class that a column with one value per class gets right; None if it is no noisy copy."""
    known = ~np.isnan(values)
    labels, of_label = np.unique(truth[known], return_inverse=True)
    distinct = np.unique(values[known])
    if not 1 < len(labels) == len(distinct) <= MAX_CLASSES or known.sum() < len(values) / 2:
        return None
    counts = np.zeros((len(labels), len(distinct)))
    np.add.at(counts, (of_label, np.searchsorted(distinct, values[known])), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    best, right = shares.argmax(axis=1), shares.max(axis=1)
    if len(set(best.tolist())) < len(labels) or counts.sum(axis=1).min() < MIN_ROWS_OF_A_COPIED_CLASS:
        return None
    return float(right.mean()) if right.mean() >= COPIED and right.min() >= COPIED_AT_LEAST else None


def _adding_up(columns: Values, target: Values) -> Iterator[tuple[int, int, str]]:
    """The pairs of columns whose sum or difference is the target, in its most frequent value and elsewhere, and how."""
    values, counts = np.unique(target, return_counts=True)
    usual = target == values[counts.argmax()]
    if len(target) < MIN_ROWS or min((~usual).sum(), usual.sum() + len(values)) < MIN_ROWS_OF_A_CLASS:
        return
    rounding = 1e-9 * float(np.abs(target).max())
    others = np.flatnonzero(~usual)
    few = others[:: max(1, len(others) // MIN_ROWS)]

    def are_target(left: Values, right: Values, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether the sums of the first axis are the target of these rows, wherever they are known."""
        sums = left + right
        known, actual = ~np.isnan(sums), target[rows].reshape(-1, *[1] * (sums.ndim - 1))
        count = known.sum(axis=0)
        wrong = ((np.abs(sums - actual) > rounding) & known).sum(axis=0)
        return (count > len(sums) / 2) & (wrong <= (1 - NEARLY) * count)

    varied = [at for at, values in enumerate(columns.T) if len(np.unique(values[~np.isnan(values)])) > 1]
    part = columns[few][:, varied]
    signs = {(1, 1): "add up to", (1, -1): "differ by", (-1, 1): "differ by"}
    likely = [
        are_target(first * part[:, :, None], second * part[:, None, :], few) for first, second in signs
    ]  # combinations of all pairs
    for left, right in np.argwhere(np.triu(np.any(likely, axis=0), 1)):
        pair = columns[:, varied[left]], columns[:, varied[right]]
        for (first, second), how, of_few in zip(signs, signs.values(), likely, strict=True):
            whole = (
                are_target(first * pair[0][rows], second * pair[1][rows], rows)
                for rows in (others, np.flatnonzero(usual))
            )
            if of_few[left, right] and all(whole):
                yield varied[left], varied[right], f"{how} the label"
