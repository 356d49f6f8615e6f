"""Tree ensembles of any library as plain trees, with the start and the finish of their sum, and the file that stores them.

Libraries differ only in what they do to a value before they compare it, in the order and the precision in which they add trees, and in
the link after the sum. `estimators` and `boosters` read their models into this form.

As a file of its bundle, the trees of a model can score without the library that grew them. Beside the trees, the file holds digests of
what the library itself answered for the generated rows of every proof. Some models cannot be stored this way: those with transformers
in front of the trees, or with a finish that only the library knows.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST_CATEGORIES = 255  # per column
FEW = 10_000  # exponentials that are sooner computed one by one than a compiler is imported
LEAF = -1  # stands for the children of a leaf
TREES_FILE = "trees.npz"
_BY_NODE = ("feature", "threshold", "left", "right", "missing_left", "left_set", "value", "cover")
_STORED = {"feature": np.int32, "left": np.int32, "right": np.int32, "left_set": np.int32}
_FLAGS = ("single", "single_sums", "nan_refused", "unknown_refused")


class NotCompilableError(Exception):
    """The reason why a model stays with its library's own code."""


class MalformedError(NotCompilableError):
    """The contradiction in the trees of a model."""


def require(condition: object, reason: str) -> None:
    """Leave a model to its library, for a reason, unless a condition holds; raises NotCompilableError."""
    if not condition:
        raise NotCompilableError(reason)


def require_agreement(condition: object, contradiction: str) -> None:
    """Refuse a model whose fields contradict each other, unless a condition holds; raises MalformedError."""
    if not condition:
        raise MalformedError(contradiction)


def is_within(indices: NDArray[Any], count: int) -> bool:
    """Return whether all indices are those of a list with `count` members."""
    return bool(((indices >= 0) & (indices < count)).all())


@dataclass(frozen=True)
class Tree:
    """One tree, node by node, the root first."""

    feature: NDArray[np.int64]  # the column of the matrix that a node tests
    threshold: NDArray[np.float64]  # a row goes left if its value is not above
    left: NDArray[np.int64]  # the left child; LEAF at a leaf
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]  # whether a missing value goes left
    value: NDArray[np.float64]  # what a leaf adds to each output of the tree, [nodes, outputs]
    left_set: NDArray[np.int64]  # the node's row of `left_sets`; below zero if it compares with its threshold
    left_sets: NDArray[np.bool_]  # the categories that go left, by code, [sets, 256]; the last: missing and unknown
    cover: NDArray[np.float64]  # number or weight of the training rows that reached a node
    output: int = 0  # the first output that the tree adds to


Sums = NDArray[np.float64]  # [rows, outputs]
Finish = Callable[[Sums], NDArray[Any]]


@dataclass(frozen=True)
class Constant:
    """The start of a sum, which is the same for every row."""

    row: NDArray[np.float64]  # the initial value of each output, [outputs]
    by_output: bool = False  # whether the sums of one output, not those of one row, are contiguous in memory

    def __call__(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the initial sums, [rows, outputs]."""
        sums = np.empty((len(matrix), len(self.row)), order="F" if self.by_output else "C")
        sums[:] = self.row
        return sums


@dataclass(frozen=True)
class Ensemble:
    """The computation of a model: trees added up in order, on top of a start, then a finish."""

    features: int  # number of columns of the matrix
    trees: Sequence[Tree]  # order of addition
    start: Constant
    finish: Finish  # returns the prediction for the sums; may use their memory
    single: bool  # whether values are rounded to 32 bits before they are compared
    nan_refused: bool  # whether a matrix that holds a NaN is refused
    infinity_refused: NDArray[np.bool_]  # the same for infinities, by column; of the rounded values
    # By categorical column: its known values, sorted; their positions are its codes.
    categories: dict[int, NDArray[np.float64]] = field(default_factory=dict[int, NDArray[np.float64]])
    single_sums: bool = False  # whether the sum is rounded to 32 bits after each tree
    unknown_refused: bool = False  # whether a matrix with another value in such a column is refused; else it is missing


@dataclass(frozen=True)
class Parts:
    """The computation of a model on a matrix."""

    steps: Sequence[Callable[[NDArray[np.float64]], Any]]  # transformers in front of the trees; may work in place
    columns: int  # number of columns of the matrix
    ensemble: Ensemble


def require_sound(ensemble: Ensemble) -> None:
    """Raise MalformedError if an index leads out of a tree, or a tree out of the columns and outputs of its ensemble."""
    outputs = len(ensemble.start.row)
    for at, tree in enumerate(ensemble.trees):
        if (problem := _problem(tree, ensemble.features, outputs)) is not None:
            msg = f"tree {at} {problem}"
            raise MalformedError(msg)


def _problem(tree: Tree, features: int, outputs: int) -> str | None:
    inner = tree.left >= 0
    by_node = (tree.feature, tree.threshold, tree.right, tree.missing_left, tree.value, tree.left_set, tree.cover)
    if any(len(values) != len(tree.left) for values in by_node):
        return "has lists of different lengths"
    if (tree.left < LEAF).any() or not _forms_tree(tree.left, tree.right, inner):
        return "has nodes that lie outside of it, or that several nodes lead to"
    if not is_within(tree.feature[inner], features):
        return f"splits by a column beyond its {features}"
    if (tree.left_set >= len(tree.left_sets)).any():
        return "splits by sets of categories that it does not hold"
    if not 0 <= tree.output <= outputs - tree.value.shape[1]:
        return f"adds to outputs beyond its {outputs}"
    return None


def _forms_tree(left: NDArray[np.int64], right: NDArray[np.int64], inner: NDArray[np.bool_]) -> bool:
    """Return whether every path from the root, the first node, ends at a leaf: no cycle, no second parent, no child outside."""
    children = np.concatenate([left[inner], right[inner]])
    lies_inside = is_within(children - 1, len(left) - 1)
    return len(left) > 0 and lies_inside and len(np.unique(children)) == len(children)


LinkName = Literal[
    "value", "values", "probability", "probabilities", "softmax", "C softmax", "exponential", "C exponential"
]


@dataclass(frozen=True)
class Link:
    """A finish that can be stored by name.

    `value` and `values` are the sums, [rows] or [rows, outputs]; `probability` is the logistic function of the sums [rows], and
    `probabilities` that of both classes [rows, 2]; `softmax` [rows, outputs]; `exponential` [rows]. NumPy and the C library may
    round exponentials differently: `C` names the C library's.
    """

    name: LinkName
    divisor: int = 1  # divides the sums first: the number of trees if the result is a mean
    steepness: float = 1.0  # slope of the logistic function

    def __call__(self, sums: Sums) -> NDArray[Any]:
        """Return the prediction; uses the memory of the sums."""
        if self.divisor != 1:
            sums /= self.divisor
        if self.name == "probability":
            return _probability(sums, self.steepness)
        if self.name == "probabilities":
            of_second = _probability(sums, self.steepness)
            return np.column_stack([1 - of_second, of_second])
        return _LINKS[self.name](sums)


def _probability(sums: Sums, steepness: float) -> Sums:
    return 1 / (1 + c_exponentials(-(steepness * sums))[:, 0])


def _softmax(sums: Sums) -> Sums:
    """As scikit-learn computes it; the order in which classes are added follows from the memory layout."""
    parts = sums - sums.max(axis=1, keepdims=True)
    np.exp(parts, out=parts)
    parts /= parts.sum(axis=1, keepdims=True)
    return parts


def _c_softmax(sums: Sums) -> Sums:
    """As LightGBM computes it: class after class."""
    parts = c_exponentials(sums - sums.max(axis=1, keepdims=True))
    return parts / reduce(np.add, parts.T)[:, None]


def c_exponentials(values: Sums) -> Sums:
    """The exponential of each number, as the C library rounds it."""
    if values.size <= FEW:  # Python's own come from the C library, too
        return np.reshape([_c_exponential(value) for value in values.ravel().tolist()], values.shape)
    from batch_platform.kernels.forest.kernels import exponentials  # imports numba

    return exponentials(values)


def _c_exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


_LINKS: dict[str, Callable[[Sums], NDArray[Any]]] = {
    "value": lambda sums: sums[:, 0],
    "values": lambda sums: sums,
    "softmax": _softmax,
    "C softmax": _c_softmax,
    "exponential": lambda sums: np.exp(sums[:, 0]),
    "C exponential": lambda sums: c_exponentials(sums)[:, 0],
}


def as_decisions(sums: Sums, finish: Finish | None = None) -> Sums:
    """Sums [rows, outputs] before a finish as a decision function: [rows] of one output."""
    if isinstance(finish, Link) and finish.divisor != 1:
        sums /= finish.divisor
    return sums[:, 0] if sums.shape[1] == 1 else sums


@dataclass(frozen=True)
class StoredTrees:
    """The content of a file of trees."""

    parts: Parts  # the trees alone, without steps in front
    digests: list[str]  # digest of the library's answer for each matrix of generated rows, in order


def trees_file(parts: Parts, digests: Sequence[str]) -> bytes:
    """Return the file of a model's trees; empty if they cannot be stored."""
    ensemble = parts.ensemble
    if parts.steps or not isinstance(ensemble.finish, Link):
        return b""
    header = {
        "features": ensemble.features,
        "by_output": ensemble.start.by_output,
        "link": asdict(ensemble.finish),
        "digests": list(digests),
        **{name: getattr(ensemble, name) for name in _FLAGS},
    }
    columns = sorted(ensemble.categories)
    arrays: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "start": ensemble.start.row,
        "infinity_refused": ensemble.infinity_refused,
        "category_column": np.array(columns, np.int32),
        "category_count": np.array([len(ensemble.categories[at]) for at in columns], np.int32),
        "category": np.concatenate([np.empty(0), *(ensemble.categories[at] for at in columns)]),
        "nodes": np.array([len(tree.left) for tree in ensemble.trees], np.int32),
        "sets": np.array([len(tree.left_sets) for tree in ensemble.trees], np.int32),
        "left_sets": np.packbits(np.concatenate([tree.left_sets for tree in ensemble.trees]), axis=1),
        "output": np.array([tree.output for tree in ensemble.trees], np.int32),
    }
    for name in _BY_NODE:
        joined = np.concatenate([getattr(tree, name) for tree in ensemble.trees])
        arrays[name] = joined.astype(_STORED.get(name, joined.dtype))
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_trees(data: bytes) -> StoredTrees:
    """Read a file whose hash was checked."""
    with np.load(BytesIO(data), allow_pickle=False) as file:
        arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
    arrays.setdefault("cover", np.full(len(arrays["feature"]), np.nan))  # bundles of format 4 do not have it
    header = json.loads(arrays["header"].tobytes())
    counts = np.cumsum(arrays["category_count"])[:-1]
    columns = arrays["category_column"].tolist()
    categories = dict(zip(columns, np.split(arrays["category"], counts), strict=True)) if columns else {}
    ensemble = Ensemble(
        features=header["features"],
        trees=list(_trees(arrays)),
        start=Constant(arrays["start"], header["by_output"]),
        finish=Link(**header["link"]),
        infinity_refused=arrays["infinity_refused"],
        categories=categories,
        **{name: header[name] for name in _FLAGS},
    )
    return StoredTrees(Parts([], ensemble.features, ensemble), header["digests"])


def _trees(arrays: dict[str, NDArray[Any]]) -> Iterator[Tree]:
    wide: dict[str, NDArray[Any]] = arrays | {name: arrays[name].astype(np.int64) for name in _STORED}
    unpacked = np.unpackbits(arrays["left_sets"], axis=1).astype(np.bool_)
    node = first_set = 0
    for nodes, sets, output in zip(*(arrays[name].tolist() for name in ("nodes", "sets", "output")), strict=True):
        by_node = {name: wide[name][node : node + nodes] for name in _BY_NODE}
        yield Tree(**by_node, left_sets=unpacked[first_set : first_set + sets], output=output)
        node, first_set = node + nodes, first_set + sets
