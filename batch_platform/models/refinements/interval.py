"""Intervals of a regression that hold a declared share of the true values, as wide as the errors of similar rows.

Mondrian split conformal prediction (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, section 4.5). Of the
rows held out, every second one grows a small tree, which groups rows by how far their predictions are off. The others give each
leaf half the width of its intervals: of n absolute errors the k-th smallest, where k = ceil((n + 1) * level), and infinity if k is
above n. If rows to come are exchangeable with these, an interval holds the true value with at least the declared probability,
whatever the model and the distribution of its errors: on average over leaves of rows, and over the rows that were held out.

crepes computes the widths in training. Scoring looks up the leaf of a row and needs no library.
"""

import warnings
from dataclasses import asdict, replace
from math import ceil, isfinite
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.declaration.errors import TrainingRefusedError, counted
from batch_platform.declaration.importing import needed
from batch_platform.models.estimate_basis import error_tree
from batch_platform.models.refinements.refinement import Batch, Check, Learned, Refinement, Unseen
from batch_platform.monitoring.outcomes import HIGH, LOW, PARTITION, Outcomes
from batch_platform.monitoring.reference import ErrorTree, Floats

LIBRARY = "crepes"
MOST_LEAVES, MOST_SPLIT_BY = 32, 50_000  # bounds of the tree: leaves, and rows that it grows from, evenly spaced
BEYOND = 25  # rows of a leaf, at least, whose error is expected to be beyond half the width
LEAST_PARTITIONS = 5  # partitions that show how much coverage differs between them
BY_CHANCE = 0.05  # p-value from which chance explains the difference


def fit_interval(level: float, matrix: Floats, predicted: Floats, truth: Floats) -> Learned:
    """Learn from rows held out, encoded [n, columns], with their predictions and true values [n].

    Raises WrongUseError if crepes is not installed.

    Returns:
        level: Share of the true values that the intervals hold.
        rows: Number of rows that gave the widths.
        tree: An `ErrorTree`, the `error` of whose leaves is half the width of an interval.
    """
    finite = np.isfinite(predicted)
    matrix, predicted, errors = matrix[finite], predicted[finite], np.abs(truth - predicted)[finite]
    split = np.arange(0, len(errors), 2)
    tree = _grouping(level, matrix, predicted, errors, split[:: len(split) // MOST_SPLIT_BY + 1])
    leaves, others = tree.leaves(matrix[1::2], predicted[1::2]), errors[1::2]
    half = np.where(np.array(tree.feature) < 0, half_widths(level, others, leaves, len(tree.feature)), 0.0)
    return {"level": level, "rows": len(others), "tree": asdict(replace(tree, error=tuple(half.tolist())))}


def _grouping(level: float, matrix: Floats, predicted: Floats, errors: Floats, split: NDArray[np.int64]) -> ErrorTree:
    """A tree that groups rows by the rank of their error, which outliers do not sway; a single leaf if rows are few."""
    smallest = ceil(BEYOND / (1 - level))
    if len(split) < 2 * smallest:
        return ErrorTree((-1,), (0.0,), (-1,), (-1,), (False,), (0.0,))
    ranks = np.searchsorted(np.sort(errors[split]), errors[split]).astype(np.float64)
    return error_tree(matrix[split], predicted[split], ranks, MOST_LEAVES, smallest)


def half_widths(level: float, errors: Floats, leaves: NDArray[np.int64], nodes: int) -> Floats:
    """Half the width of the intervals of each node of a tree, given absolute errors of rows and their leaves [n].

    Infinite for a leaf that too few of the rows reached.
    """
    reached, half = np.unique(leaves), np.full(nodes, np.inf)
    with warnings.catch_warnings():  # importing crepes changes the filters
        with needed(LIBRARY, extra="interval"):
            from crepes import ConformalRegressor
        warnings.simplefilter("ignore")  # crepes warns of leaves with too few rows
        conformal = ConformalRegressor().fit(errors, bins=leaves)
        half[reached] = conformal.predict_int(np.zeros(len(reached)), bins=reached, confidence=level)[:, 1]
    return half


def correlation_within(held: NDArray[np.bool_], partitions: NDArray[np.integer] | None) -> float:
    """The correlation of two rows of a partition to come in whether their intervals hold, by the method of moments.

    `held` tells it of rows [n] that neither the model nor the widths were learned from, and `partitions` numbers their
    partitions, if they are known. 0 unless at least LEAST_PARTITIONS differ by more than chance explains (chi-square test of
    homogeneity).
    """
    from scipy.special import chdtrc

    share = held.mean()
    if partitions is None or not 0 < share < 1:
        return 0.0
    numbers, chance = np.unique(partitions, return_inverse=True)[1], share * (1 - share)
    counts, of_partition = np.bincount(numbers), np.bincount(numbers, weights=held)
    pairs, known, squares = float((counts * (counts - 1)).sum()), len(counts), (of_partition - counts * share) ** 2
    if known < LEAST_PARTITIONS or not pairs or chdtrc(known - 1, (squares / counts).sum() / chance) >= BY_CHANCE:
        return 0.0
    beyond = (squares - counts * chance).sum() / (pairs * chance)
    # The correlation of one more partition beside the mean of the known ones.
    return float(np.clip(beyond * (known + 1) / (known - 1), 0, 1))


def correlation_by_widths(rows: int) -> float:
    """The correlation of rows to come, in whether intervals hold that share a width which `rows` independent rows gave.

    Such a width holds more than the level in all partitions, or less: the share of all true values has a beta distribution.
    """
    return 1 / (rows + 2)


def interval_ends(learned: Learned, matrix: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """The ends [n] of the intervals of encoded rows [n, columns] with their predictions [n]; infinite if the width is."""
    half = ErrorTree(**learned["tree"]).errors(matrix, predicted)
    return predicted - half, predicted + half


def _fit(level: float, unseen: Unseen) -> Learned:
    if unseen.signature.task != "regression":
        msg = f"predictions.interval: only a regression has intervals, and this is a {unseen.signature.task} model."
        raise TrainingRefusedError(msg, hint="leave predictions.interval out, or declare a regression.")
    truth = np.empty(0) if unseen.truth is None else unseen.truth.astype(np.float64)
    return fit_interval(level, unseen.matrix[: len(truth)], _values(unseen.raw)[: len(truth)], truth)


def _values(raw: NDArray[Any]) -> Floats:
    return np.asarray(raw, dtype=np.float64).reshape(len(raw))


def _columns(learned: Learned, batch: Batch) -> list[pl.Series]:
    ends = interval_ends(learned, batch.matrix, _values(batch.raw))
    return [pl.Series(name, values, dtype=pl.Float64) for name, values in zip((LOW, HIGH), ends, strict=True)]


def _check(learned: Learned, _: Outcomes, outcomes: Outcomes) -> Check:
    """Measure coverage and width on rows that neither the model nor the widths were learned from."""
    level, rows = learned["level"], learned["rows"]
    if outcomes.matrix is None or outcomes.truth is None:
        return Check()
    low, high = interval_ends(learned, outcomes.matrix, _values(outcomes.predicted))
    held, width = (low <= outcomes.labels) & (outcomes.labels <= high), float((high - low).mean())
    return Check(
        {
            "level": level,
            "rows": rows,
            "correlation": correlation_within(held, outcomes.units.get(PARTITION)),
            "rows_judged": len(held),
            "coverage": float(held.mean()),
            "mean_width": width if isfinite(width) else "infinite",
        }
    )


def _remark(learned: Learned) -> str:
    """Say that all intervals are infinite, and how many rows would have given them a width."""
    feature, half = (np.asarray(learned["tree"][name], dtype=np.float64) for name in ("feature", "error"))
    if np.isfinite(half[feature < 0]).any():
        return ""
    level, rows = learned["level"], counted(learned["rows"], "row")
    least = ceil(round(level / (1 - level), 6))
    return f"the interval is infinite: {rows} to learn its width from, at least {least:,} are needed"


INTERVAL = Refinement(
    name="interval",
    declared=lambda spec: spec.predictions.interval,
    fit=_fit,
    columns=_columns,
    check=_check,
    remark=_remark,
    holds_out=True,
)
