"""Trees laid out as the kernels read them: one search for the rank of each value, then integers only.

Trees of at most 64 leaves become leaf masks, all others nodes to descend. The layout is derived from the plain trees whenever it is
needed and never stored; nothing here changes what the trees compute.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import typeof
from numba.core.errors import NumbaError
from numpy.typing import NDArray

from batch_platform.kernels.forest import kernels
from batch_platform.kernels.forest.ensembles import (
    MOST_CATEGORIES,
    Ensemble,
    NotCompilableError,
    Tree,
    require,
    require_sound,
)
from batch_platform.kernels.forest.kernels import Descent, Encoding, Kernel, Masks

# Kernels by the number of bits of a mask, which has a bit for each leaf of a tree.
MASK_KERNELS = {32: kernels.leaf_masks_32, 64: kernels.leaf_masks_64}
LAST_CUT = (1 << (64 - kernels.CUT_SHIFT)) - 1  # the largest cut of a packed node: no rank is above
MISSING_RANK = {"leaf masks": 0xFFFF, "descent": LAST_CUT}
Layout = Literal["leaf masks", "descent"]


@dataclass(frozen=True)
class Flat:
    """An ensemble as flat arrays, with the kernel that evaluates them."""

    kernel_name: str
    encoding: Encoding
    trees: Masks | Descent
    kernel: Kernel

    def prepare(self) -> None:
        """Compile the kernel or load it, on any thread; raises NotCompilableError if the compiler fails."""
        try:
            kernels.make_ready(self.kernel, kernels.MATRIX, typeof(self.encoding), typeof(self.trees), kernels.OUT)
        except NumbaError as error:
            msg = f"the compiler fails: {' '.join(str(error).split())}"
            raise NotCompilableError(msg) from error

    def add(self, matrix: NDArray[np.float64], sums: NDArray[np.float64]) -> bool:
        """Add all trees to the sums [rows, outputs] of a matrix [rows, features]; False, and unusable sums, if a row is refused."""
        return bool(self.kernel(matrix, self.encoding, self.trees, sums))


@dataclass(frozen=True)
class _Tested:
    """Tests of the trees in each column of the matrix."""

    # By column: its distinct thresholds, or the known values of a categorical column; sorted.
    cuts: list[NDArray[np.float64]]
    # The column of ranks, by column of the matrix and by whether a missing value goes right, [features, 2]; below zero if no
    # tree tests it.
    column: NDArray[np.int64]


def flatten(ensemble: Ensemble) -> Flat:
    """Lay an ensemble out; raises NotCompilableError if it is too large for the layout, or its nodes form no trees."""
    require_sound(ensemble)
    leaves = max(int((tree.left < 0).sum()) for tree in ensemble.trees)
    tested = _tested(ensemble)
    bits = next((bits for bits in MASK_KERNELS if leaves <= bits), None)
    if bits and max(map(len, tested.cuts), default=0) < MISSING_RANK["leaf masks"]:
        masks = _masks(ensemble, tested, np.dtype(f"uint{bits}"))
        return Flat(f"leaf masks of {bits} bits", _encoding(ensemble, tested, "leaf masks"), masks, MASK_KERNELS[bits])
    sets = bool(ensemble.categories)
    name, kernel = ("descent with sets", kernels.descent_with_sets) if sets else ("descent", kernels.descent)
    return Flat(name, _encoding(ensemble, tested, "descent"), _descent(ensemble, tested), kernel)


def _tested(ensemble: Ensemble) -> _Tested:
    inner = [tree.left >= 0 for tree in ensemble.trees]
    feature = _joined((tree.feature[at] for tree, at in zip(ensemble.trees, inner, strict=True)), np.int64)
    threshold = _joined((tree.threshold[at] for tree, at in zip(ensemble.trees, inner, strict=True)), np.float64)
    right = ~_joined((tree.missing_left[at] for tree, at in zip(ensemble.trees, inner, strict=True)), np.bool_)
    order = np.argsort(feature, kind="stable")
    bounds = np.searchsorted(feature[order], np.arange(ensemble.features + 1))
    cuts: list[NDArray[np.float64]] = []
    column = np.full((ensemble.features, 2), -1)
    width = 0
    for at in range(ensemble.features):
        nodes = order[bounds[at] : bounds[at + 1]]
        categorical = at in ensemble.categories
        cuts.append(ensemble.categories[at] if categorical else np.unique(threshold[nodes]))
        for way in (0, 1):
            if len(nodes) and (way == 1 if categorical else (right[nodes] == way).any()):
                column[at, way] = width
                width += 1
    return _Tested(cuts, column)


def _encoding(ensemble: Ensemble, tested: _Tested, layout: Layout) -> Encoding:
    flags = np.zeros(ensemble.features, np.uint8)
    flags[:] |= np.uint8(kernels.NAN_REFUSED if ensemble.nan_refused else 0)
    flags[ensemble.infinity_refused] |= np.uint8(kernels.INFINITY_REFUSED)
    unknown = kernels.UNKNOWN_REFUSED if ensemble.unknown_refused else 0
    flags[list(ensemble.categories)] |= np.uint8(kernels.CATEGORIES | unknown)
    searches = [
        _search(cuts) if (columns >= 0).any() else [] for cuts, columns in zip(tested.cuts, tested.column, strict=True)
    ]
    start = np.zeros((ensemble.features, max(1, *map(len, searches))), np.int64)
    place = 0
    for at, levels in enumerate(searches):
        for level, cuts in enumerate(levels):
            start[at, level] = place
            place += len(cuts)
    missing = np.full(ensemble.features, MISSING_RANK[layout])
    for at, known in ensemble.categories.items():
        missing[at] = len(known)  # the code after the known ones: few categories fit into one word
    return Encoding(
        kind=flags,
        levels=np.array([len(levels) for levels in searches], np.int64),
        level_start=start,
        columns=tested.column,
        cuts=_joined((cuts for levels in searches for cuts in levels), np.float64),
        missing=missing,
        single=ensemble.single,
        width=int(tested.column.max(initial=-1)) + 1,
    )


def _search(cuts: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The levels of a search among sorted cuts, the widest last; each node has `FAN` cuts, padded with infinity."""
    levels: list[NDArray[np.float64]] = []
    while True:
        nodes = len(cuts) // kernels.FAN + 1  # the last node has room left for values above all cuts
        padded = np.full(nodes * kernels.FAN, np.inf)
        padded[: len(cuts)] = cuts
        levels.insert(0, padded)
        if nodes == 1:
            return levels
        cuts = padded[kernels.FAN - 1 : -1 : kernels.FAN]  # a value above the last cut of a node is in a later node


def _masks(ensemble: Ensemble, tested: _Tested, mask: np.dtype[Any]) -> Masks:
    trees = ensemble.trees
    every = (1 << mask.itemsize * 8) - 1
    cut: list[int] = []
    column: list[int] = []
    keep: list[int] = []
    tests: list[tuple[int, int, int, int]] = []
    first_node, first_test, values = [0], [0], list[NDArray[np.float64]]()
    for tree in trees:
        leaves, spans = _left_to_right(tree)
        rank = _ranks(tree, tested)
        for node, (first, end) in spans:
            cleared = every ^ ((1 << end) - (1 << first))
            at = tree.feature[node]
            if (left_set := tree.left_set[node]) >= 0:
                words = _right_words(tree.left_sets[left_set], len(tested.cuts[at]))
                tests += [(tested.column[at, 1], word, bits, cleared) for word, bits in enumerate(words) if bits]
            else:
                cut.append(rank[node])
                column.append(tested.column[at, int(not tree.missing_left[node])])
                keep.append(cleared)
        first_node.append(len(cut))
        first_test.append(len(tests))
        values.append(tree.value[leaves].T.ravel())
    test_column, test_word, test_set, test_keep = zip(*tests, strict=True) if tests else ((), (), (), ())
    return Masks(
        first_node=np.array(first_node, np.int64),
        cut=np.array(cut, np.uint16),
        column=np.array(column, np.int64),
        keep=np.array(keep, mask),
        first_test=np.array(first_test, np.int64),
        test_column=np.array(test_column, np.int64),
        test_word=np.array(test_word, np.uint16),
        test_set=np.array(test_set, np.uint64),
        test_keep=np.array(test_keep, mask),
        first_value=np.cumsum([0, *map(len, values)]),
        output=np.array([tree.output for tree in trees], np.int64),
        value=np.concatenate(values),
        width=trees[0].value.shape[1],
        single=ensemble.single_sums,
    )


def _left_to_right(tree: Tree) -> tuple[list[int], list[tuple[int, tuple[int, int]]]]:
    """The leaves from left to right, and for each inner node the span of those below its left child."""
    leaves: list[int] = []
    spans: list[tuple[int, tuple[int, int]]] = []
    ahead = [(0, -1)]  # a node to visit, or one whose left side is done, with the first leaf of that side
    while ahead:
        node, first = ahead.pop()
        if first >= 0:
            spans.append((node, (first, len(leaves))))
            ahead.append((int(tree.right[node]), -1))
        elif tree.left[node] < 0:
            leaves.append(node)
        else:
            ahead += [(node, len(leaves)), (int(tree.left[node]), -1)]
    return leaves, spans


def _descent(ensemble: Ensemble, tested: _Tested) -> Descent:
    trees = ensemble.trees
    packed: list[NDArray[np.uint64]] = []
    values: list[NDArray[np.float64]] = []
    sets: list[NDArray[np.uint64]] = []
    depths: list[int] = []
    fits = tested.column.max(initial=-1) < 1 << kernels.COLUMN_BITS and max(map(len, tested.cuts)) < LAST_CUT
    require(fits, "it tests more columns or thresholds than a node has room for")
    for tree in trees:
        order, left, depth = _level_by_level(tree)
        require(len(order) <= 1 << kernels.LEFT_BITS, f"a tree of {len(order)} nodes is too large")
        inner, by_set = tree.left[order] >= 0, tree.left_set[order] >= 0
        cut = np.where(by_set, tree.left_set[order] + len(sets), _ranks(tree, tested)[order])
        column = tested.column[tree.feature[order], np.where(by_set | ~tree.missing_left[order], 1, 0)]
        packed.append(
            left.astype(np.uint64)
            | np.where(inner, column, 0).astype(np.uint64) << np.uint64(kernels.LEFT_BITS)
            | by_set.astype(np.uint64) << np.uint64(kernels.SET_SHIFT)
            | np.where(inner, cut, LAST_CUT).astype(np.uint64) << np.uint64(kernels.CUT_SHIFT)
        )
        values.append(tree.value[order].ravel())
        known = np.zeros(len(tree.left_sets), np.int64)
        known[tree.left_set[order][by_set]] = [len(tested.cuts[at]) for at in tree.feature[order][by_set]]
        sets += [
            np.array(_right_words(left, count), np.uint64)
            for left, count in zip(tree.left_sets, known.tolist(), strict=True)
        ]
        depths.append(depth)
    return Descent(
        node=np.concatenate(packed),
        root=np.cumsum([0, *map(len, packed[:-1])]),
        depth=np.array(depths, np.int64),
        sets=_joined(sets, np.uint64),
        output=np.array([tree.output for tree in trees], np.int64),
        value=np.concatenate(values),
        width=trees[0].value.shape[1],
        single=ensemble.single_sums,
    )


def _level_by_level(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The nodes in their new order, the new number of each node's left child, and the depth.

    The right child follows the left one; a leaf is its own left child.
    """
    levels = [np.zeros(1, np.int64)]
    lefts: list[NDArray[np.int64]] = []
    begun = 1
    while True:
        level = levels[-1]
        inner = tree.left[level] >= 0
        number = begun - len(level) + np.arange(len(level))
        lefts.append(np.where(inner, begun + 2 * (np.cumsum(inner) - 1), number))
        parents = level[inner]
        if not len(parents):
            return np.concatenate(levels), np.concatenate(lefts), len(levels) - 1
        levels.append(np.column_stack([tree.left[parents], tree.right[parents]]).ravel())
        begun += 2 * len(parents)


def _ranks(tree: Tree, tested: _Tested) -> NDArray[np.int64]:
    """The position of each inner node's threshold among those of its column; 0 elsewhere."""
    ranks = np.zeros(len(tree.left), np.int64)
    inner = (tree.left >= 0) & (tree.left_set < 0)
    for at in np.unique(tree.feature[inner]).tolist():
        nodes = inner & (tree.feature == at)
        ranks[nodes] = np.searchsorted(tested.cuts[at], tree.threshold[nodes])
    return ranks


def _right_words(left: NDArray[np.bool_], known: int) -> list[int]:
    """The codes that go right, as four words of 64 bits; missing and unknown come after the known codes."""
    right = np.zeros(MOST_CATEGORIES + 1, np.bool_)
    right[:known] = ~left[:known]
    right[known] = ~left[MOST_CATEGORIES]
    return np.packbits(right.reshape(4, 64), axis=1, bitorder="little").view("<u8").ravel().tolist()


def _joined(parts: Iterable[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])
