"""The basis of estimates of performance: learned from rows that a model has not seen, and kept in its bundle.

The score that is served stays as it is. Of two classes, the score itself is divided into cells; of several, the probability of
the most probable class; of a regression, the absolute error that a small tree expects by the features and the prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nextafter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from batch_platform.models.counting import counted_cells, counted_profile, numbered
from batch_platform.monitoring.metrics import METRICS
from batch_platform.monitoring.outcomes import PARTITION, Outcomes
from batch_platform.monitoring.profiles import Bins, Profile, number_bins
from batch_platform.monitoring.reference import ErrorTree, EstimateBasis, Expectation, Floats, MeanMetric, expected
from batch_platform.monitoring.resampling import TWO_SIDED
from batch_platform.monitoring.segments import Cells, Places

CELLS = 50  # cells of a score
LEAST_ROWS = 50  # rows to learn from, at least LEAST_OF_A_CLASS of each of two classes
LEAST_OF_A_CLASS = 5
LEAVES, ROWS_PER_LEAF = 16, 25  # bounds of the tree: at most so many leaves, at least so many rows each
MOST_SPLIT_BY = 50_000  # rows from which the splits of the tree are learned, evenly spaced
LEAST_PARTITIONS, MOST_PARTITIONS = 5, 30  # partitions that show how far estimates are off
_MOST_LEARNED_FROM = 30  # segments of a column, those with most rows
_LEAST_PARTITION = 10  # rows
_NAMES = {"binary": "confidence", "multiclass": "confidence", "regression": "expected_error"}
_LARGEST = float(np.finfo(np.float32).max)  # greatest value that scikit-learn's trees take
_TINY = float(np.finfo(np.float64).eps)  # probability below which the log loss does not grow, as in `log_loss`


def basis_values(basis: EstimateBasis, matrix: Floats, raw: NDArray[Any] | None) -> Floats:
    """Compute what is divided into cells [n], of encoded rows [n, columns] and what the model returned for them (None without rows)."""
    return np.empty(0) if raw is None else _values(basis.task, basis.tree, matrix, raw)


def basis_profile(basis: EstimateBasis, values: Floats, places: Places | None = None) -> Profile:
    """Count values [n] in the cells; `places` are theirs if they are known."""
    cells = None if places is None else places[0]
    return counted_profile(_NAMES[basis.task], "estimate", basis.expectation.bins, values, cells=cells)


def basis_places(basis: EstimateBasis, values: Floats) -> Places:
    """The cells of values [n]."""
    return counted_cells(values, basis.expectation.bins), basis.expectation.bins.cells


def basis_of(
    outcomes: Outcomes, segments: pl.DataFrame | None = None, partitions: pl.Series | None = None
) -> EstimateBasis | None:
    """Learn from rows that a model has not seen, with their truth and encoding, and the values of columns by which they are broken down.

    `partitions` are the starts of their partitions; if left out, those that their units tell.

    None if they are too few, if the task has no truth, or if errors are too large to be squared. Rows without a finite score are
    left out, since they are rejected when they are scored.
    """
    if outcomes.task not in _NAMES or outcomes.truth is None:
        return None
    segments = pl.DataFrame() if segments is None else segments
    if partitions is not None:
        units = {**outcomes.units, PARTITION: partitions.to_physical().to_numpy()}
        outcomes = replace(outcomes, units=units)
    kept = np.asarray(np.isfinite(outcomes.predicted).reshape(len(outcomes.predicted), -1).all(axis=1))
    if outcomes.task == "binary":
        kept &= outcomes.of_known_class
    rows = outcomes if kept.all() else outcomes.at(kept)
    segments = segments.filter(kept) if segments.width else segments
    if len(rows.predicted) < LEAST_ROWS or rows.matrix is None:
        return None
    if rows.task == "regression":
        return _of_regression(rows, rows.matrix, segments)
    values = _values(rows.task, None, rows.matrix, rows.predicted)
    right = rows.predicted.argmax(axis=1) == rows.true_positions
    hits = rows.true_positions == 1 if rows.task == "binary" else right
    if rows.task == "binary" and min(hits.sum(), len(hits) - hits.sum()) < LEAST_OF_A_CLASS:
        return None
    bins = number_bins(values, CELLS)
    if rows.task == "binary":  # a cell holds no rows of two decisions
        above = nextafter(0.5, 1)
        inside = {above} if bins.edges[0] < above < bins.edges[-1] else set[float]()
        bins = Bins(edges=tuple(sorted({*bins.edges, *inside})))
    return EstimateBasis(rows.task, _with_usual(_of_classes(rows.task, bins, values, hits), rows, values, segments))


def _of_regression(rows: Outcomes, matrix: Floats, segments: pl.DataFrame) -> EstimateBasis | None:
    """A tree whose splits are learned from every second row, and the errors of its leaves from the others.

    So the errors are not too small where the splits follow chance (Athey and Imbens, Recursive Partitioning for Heterogeneous
    Causal Effects, 2016).
    """
    predicted = np.asarray(rows.predicted, dtype=np.float64).reshape(len(rows.predicted))
    with np.errstate(over="ignore"):
        errors, honest = np.abs(rows.labels - predicted), np.arange(len(predicted)) % 2 == 1
        if not np.isfinite(np.square(errors).sum()):
            return None
    split = np.flatnonzero(~honest)
    split = split[:: -(-len(split) // MOST_SPLIT_BY)]
    tree = error_tree(matrix[split], predicted[split], errors[split])
    leaves = tree.leaves(matrix, predicted)
    sums, count = (
        np.bincount(leaves[honest], weights=of, minlength=len(tree.error)) for of in (errors[honest], honest[honest])
    )
    whole = float(errors[honest].mean())  # error of a leaf that no other row reaches
    tree = replace(tree, error=tuple(np.where(count > 0, sums / np.maximum(1, count), whole).tolist()))
    values = tree.errors(matrix, predicted)
    expectation = _of_errors(Bins(edges=tuple(np.unique(values).tolist())), values[honest], errors[honest])
    return EstimateBasis(rows.task, _with_usual(expectation, rows, values, segments), tree)


def _values(task: str, tree: ErrorTree | None, matrix: Floats, raw: NDArray[Any]) -> Floats:
    """The value of each row that is divided into cells."""
    if task == "binary":
        return np.ascontiguousarray(raw[:, -1], dtype=np.float64)
    if tree is None:
        return np.asarray(raw.max(axis=1), dtype=np.float64)
    return tree.errors(matrix, np.asarray(raw, dtype=np.float64).reshape(len(raw)))


def _of_classes(task: str, bins: Bins, values: Floats, hits: NDArray[np.bool_]) -> Expectation:
    """Learn what came true in the cells of a probability: how often a row was positive, or the most probable class right."""
    cells = counted_cells(values, bins)
    rows, hits_of_cell = (np.bincount(cells, weights=of, minlength=bins.cells) for of in (np.ones(len(cells)), hits))
    blocks = rising_blocks(hits_of_cell, rows)
    rows_of_block, hits_of_block = (np.bincount(blocks, weights=of) for of in (rows, hits_of_cell))
    rate = (hits_of_block / rows_of_block)[blocks]
    smooth = (hits_of_block + 1) / (rows_of_block + 2)  # so that a block without positives is not held to be certain
    chance = smooth * (1 - smooth)
    if task == "multiclass":
        losses = {"accuracy": (np.ones(bins.cells), np.zeros(bins.cells))}
    else:
        score = np.clip(values, _TINY, 1 - _TINY)
        decided = (values > 0.5).astype(np.float64)  # noqa: PLR2004 - the more probable class
        losses = {
            "accuracy": (_by_cell(bins, cells, decided), _by_cell(bins, cells, 1 - decided)),
            "brier": (_by_cell(bins, cells, (1 - values) ** 2), _by_cell(bins, cells, values**2)),
            "log_loss": (_by_cell(bins, cells, -np.log(score)), _by_cell(bins, cells, -np.log(1 - score))),
        }
    means = {
        name: MeanMetric(
            loss=tuple((rate * positive + (1 - rate) * negative).tolist()),
            spread=tuple((chance[blocks] * (positive - negative) ** 2).tolist()),
            contrast=tuple((positive - negative).tolist()),
        )
        for name, (positive, negative) in losses.items()
    }
    return Expectation(
        bins=bins,
        blocks=tuple(blocks.tolist()),
        doubt=tuple((chance / (rows_of_block + 3)).tolist()),
        means=means,
        rate=tuple(rate.tolist()) if task == "binary" else None,
    )


def rising_blocks(hits: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
    """The block of each cell, so that the share of hits rises from block to block: isotonic regression.

    A cell without rows belongs to the block before it.
    """
    from sklearn.isotonic import isotonic_regression

    filled = np.flatnonzero(rows)
    rates = isotonic_regression(hits[filled] / rows[filled], sample_weight=rows[filled])
    blocks = np.cumsum(np.diff(rates, prepend=rates[:1]) > 0, dtype=np.int64)
    return blocks[np.maximum(0, np.searchsorted(filled, np.arange(len(rows)), side="right") - 1)]


def _of_errors(bins: Bins, values: Floats, errors: Floats) -> Expectation:
    """Learn the absolute error in the cells, each of which is a leaf of the tree."""
    cells = counted_cells(values, bins)
    loss, squares, rows = (
        _by_cell(bins, cells, errors),
        _by_cell(bins, cells, errors**2),
        np.bincount(cells, minlength=bins.cells),
    )
    spread = np.maximum(0.0, squares - loss**2)
    mean = MeanMetric(tuple(loss.tolist()), tuple(spread.tolist()), (1.0,) * bins.cells)
    doubt = spread / np.maximum(1, rows)
    return Expectation(bins, tuple(range(bins.cells)), tuple(doubt.tolist()), {"mae": mean})


def _by_cell(bins: Bins, cells: Cells, values: Floats) -> Floats:
    """The mean of the values of each cell; a cell without any has that of the nearest cell below, or else above."""
    rows, sums = np.bincount(cells, minlength=bins.cells), np.bincount(cells, weights=values, minlength=bins.cells)
    filled = np.flatnonzero(rows)
    nearest = filled[np.maximum(0, np.searchsorted(filled, np.arange(bins.cells), side="right") - 1)]
    return sums[nearest] / rows[nearest]


def _clustered(expectation: Expectation, rows: Outcomes, cells: Cells) -> Expectation:
    """The same with what rows of one entity or group share: by how much their sums vary more than those of independent rows.

    The design effect (Kish, Survey Sampling, 1965), of units within partitions for chance, and of whole units for what was learned.
    """
    if rows.task == "regression":
        beyond = np.abs(rows.labels - rows.predicted.reshape(-1)) - np.asarray(expectation.means["mae"].loss)[cells]
    elif expectation.rate is not None:
        beyond = (rows.true_positions == 1) - np.asarray(expectation.rate)[cells]
    else:
        beyond = (rows.predicted.argmax(axis=1) == rows.true_positions) - np.asarray(
            expectation.means["accuracy"].loss
        )[cells]

    def effect(units: NDArray[np.int64], contrast: Floats) -> float:
        sums = np.bincount(units, weights=beyond * contrast)
        return max(1.0, float(sums @ sums) / max(float((beyond * contrast) @ (beyond * contrast)), _TINY))

    of_rows = {name: np.unique(numbers, return_inverse=True)[1] for name, numbers in rows.units.items()}
    partitions = of_rows.pop(PARTITION, np.zeros(len(cells), dtype=np.int64))
    units = next(iter(of_rows.values()), partitions)
    if not of_rows or units.max() < LEAST_PARTITIONS:
        return expectation
    within = np.unique(units * (partitions.max() + 1) + partitions, return_inverse=True)[1]
    contrasts = {name: np.asarray(mean.contrast)[cells] for name, mean in expectation.means.items()}
    effects = {name: (effect(within, of), effect(units, of)) for name, of in contrasts.items()}
    return replace(expectation, clustered=effects)


def _with_usual(expectation: Expectation, rows: Outcomes, values: Floats, segments: pl.DataFrame) -> Expectation:
    """The same with how far the estimates of the partitions were off, beyond chance; as it is if they are not known."""
    cells, numbers = counted_cells(values, expectation.bins), rows.units.get(PARTITION)
    expectation = _clustered(expectation, rows, cells)
    if numbers is None:
        return expectation
    partitions = np.unique(numbers)
    if len(partitions) < LEAST_PARTITIONS:
        return expectation
    chosen = partitions[:: -(-len(partitions) // MOST_PARTITIONS)]
    parts = [np.flatnonzero(numbers == partition) for partition in chosen]
    of_segments = dict[str, Mapping[str, float]]()
    for column in segments.get_columns():
        if (by_value := numbered(column)) is not None:
            numbers = by_value[0]
            largest = np.argsort(-np.bincount(numbers), kind="stable")[:_MOST_LEARNED_FROM]
            members = [part[numbers[part] == number] for part in parts for number in largest]
            of_segments[column.name] = _differences(expectation, rows, cells, members)
    return replace(expectation, usual=_differences(expectation, rows, cells, parts), usual_of_segments=of_segments)


def _differences(
    expectation: Expectation, rows: Outcomes, cells: Cells, parts: Sequence[NDArray[np.int64]]
) -> dict[str, float]:
    """The standard deviation of the estimates of parts of the rows from what came true, beyond chance, by metric.

    It is that of a further part, of which the mean of these tells little if they are few, as far as Student's t is wider than the
    normal distribution.
    """
    from scipy.special import stdtrit

    beyond = dict[str, list[float]]()
    for members in parts:
        if len(members) < _LEAST_PARTITION:
            continue
        outcomes, counts = rows.at(members), np.bincount(cells[members], minlength=expectation.bins.cells)
        for name, (value, variance) in expected(expectation, counts.tolist()).items():
            if (realised := METRICS[name](METRICS[name].rows_of(outcomes))) is not None:
                beyond.setdefault(name, []).append((realised - value) ** 2 - variance)
    return {
        name: float(
            np.sqrt(max(0.0, np.mean(of)) * (len(of) + 1) / (len(of) - 1)) * stdtrit(len(of) - 1, 0.975) / TWO_SIDED
        )
        for name, of in beyond.items()
        if len(of) >= LEAST_PARTITIONS
    }


def error_tree(
    matrix: Floats, predicted: Floats, errors: Floats, leaves: int = LEAVES, rows_per_leaf: int = ROWS_PER_LEAF
) -> ErrorTree:
    """Fit a tree for the absolute error to encoded rows and their predictions; its leaves have no error yet."""
    from sklearn.tree import DecisionTreeRegressor

    table = np.clip(np.column_stack([matrix, predicted]), -_LARGEST, _LARGEST)
    smallest = max(rows_per_leaf, len(predicted) // (4 * leaves))
    learner = DecisionTreeRegressor(max_leaf_nodes=leaves, min_samples_leaf=smallest, random_state=0)
    nodes: Any = learner.fit(table, errors).tree_
    return ErrorTree(
        feature=tuple(max(-1, feature) for feature in nodes.feature.tolist()),
        # A threshold is infinite where only rows without a value go to the other side; JSON has no infinity.
        threshold=tuple(np.nan_to_num(nodes.threshold).tolist()),
        left=tuple(nodes.children_left.tolist()),
        right=tuple(nodes.children_right.tolist()),
        null_left=tuple(map(bool, nodes.missing_go_to_left.tolist())),
        error=(0.0,) * nodes.node_count,
    )
