"""Exact contributions of columns to the raw score of a sum of trees: path-dependent TreeSHAP in compiled code.

The contribution of feature i to what a leaf of value v adds is its Shapley value in the game that replaces features by the
training rows' shares along the path (Lundberg et al., "From local explanations to global understanding with explainable AI for
trees", Nature Machine Intelligence 2 (2020), algorithm 2). With o_j, whether a row satisfies all conditions that the path sets to
feature j, and z_j, the product of the shares of training rows at these conditions, it is the integral over t from 0 to 1 of

    v (o_i - z_i) * product over the other features j of (t o_j + (1 - t) z_j)

since the weight of a set of s of the m - 1 others is the integral of t^s (1 - t)^(m - 1 - s). The integrand is a polynomial of
degree m - 1, so that Gauss-Legendre quadrature with m / 2 points is exact.

A tree is cut into groups of leaves that depend on at most `BITS` conditions together. A table holds the contributions of a group for
each outcome of its conditions, so that a row of data adds one row of each table, in the manner of Fast TreeSHAP v2 (Yang, 2021)
and Woodelf (Nadel and Wettenstein, 2025), which have a table for each leaf. To the leaves of large trees, and to those that
depend on more features, trees are walked, sixty-four rows of data together, in the manner of Linear TreeSHAP (Yu et al., 2022).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from batch_platform.models.forest.contribution_kernels import (
    CHUNK,
    EVERY,
    MOST_LEAVES,
    NONE,
    Groups,
    Nodes,
    aligned,
    choose_largest,
    contribute,
    fill,
    ready_to_choose,
    ready_to_contribute,
    ready_to_fill,
)
from batch_platform.models.forest.ensembles import Ensemble, Tree, require
from batch_platform.models.forest.plain import coded, joined

BITS = 8  # conditions that a group of leaves depends on at most
MOST_ENTRIES = 1 << 23  # in all tables: 64 MB
CODED_ROWS = 1 << 14  # rows that are encoded together
Tests = tuple[tuple[int, bool], ...]  # nodes, each with whether a row goes left there


@dataclass(frozen=True)
class _Group:
    """A subtree, and the path that leads to it."""

    root: int
    # By feature that the path tests: the share of training rows that pass its tests, and the tests.
    path: Mapping[int, tuple[float, Tests]]
    inner: Sequence[int]  # the inner nodes of the subtree

    @property
    def bits(self) -> int:
        """The number of conditions."""
        return len(self.path) + len(self.inner)

    @property
    def conditions(self) -> list[Tests]:
        """The conditions, in the order of the bits of an outcome: one for each feature of the path and each inner node."""
        return [*(tests for _, tests in self.path.values()), *(((node, True),) for node in self.inner)]

    def features(self, nodes: Nodes) -> list[int]:
        """The features that the conditions test, each once."""
        return list(dict.fromkeys([*self.path, *nodes.feature[list(self.inner)].tolist()]))

    def leaves(self, nodes: Nodes) -> Iterator[tuple[int, list["_Part"]]]:
        """The leaves, each with the features that decide whether a row reaches it."""
        bit = {node: 1 << at for at, node in enumerate(self.inner, start=len(self.path))}
        above = {
            feature: _Part(feature, share, 1 << at, 1 << at)
            for at, (feature, (share, _)) in enumerate(self.path.items())
        }
        ahead = [(self.root, above)]
        while ahead:
            node, parts = ahead.pop()
            if node not in bit:
                yield node, list(parts.values())
                continue
            feature = int(nodes.feature[node])
            former = parts.get(feature, _Part(feature, 1.0, 0, 0))
            for child, wanted in ((int(nodes.left[node]), bit[node]), (int(nodes.right[node]), 0)):
                share = former.share * float(nodes.share[child])
                part = _Part(feature, share, former.asked | bit[node], former.wanted | wanted)
                ahead.append((child, {**parts, feature: part}))


class _Part(NamedTuple):
    """A feature that decides whether a row reaches a leaf."""

    feature: int
    share: float  # of the training rows that pass the tests of the feature
    asked: int  # the conditions that test it, as bits of an outcome
    wanted: int  # their values where the row passes


@dataclass(frozen=True)
class TreeContributions:
    """The contributions of columns to one output of an ensemble; safe to use from several threads at once."""

    ensemble: Ensemble
    base: float  # mean of the output over the training rows, as the trees know them
    columns: int
    nodes: Nodes
    groups: Groups
    quadrature: tuple[NDArray[np.float64], NDArray[np.float64]]  # points and weights for the trees that are walked

    def of(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The contributions [rows, columns] of rows [rows, features] that the ensemble takes; with the base, they sum to the output."""
        width = _padded(self.columns)
        sums = aligned.py_func(len(inputs) * width).reshape(-1, width)
        for start in range(0, len(inputs), CODED_ROWS):
            values = coded(self.ensemble, inputs[start : start + CODED_ROWS])
            require(values is not None, "the model refuses a row")
            of_block = sums[start : start + CODED_ROWS].reshape(-1)
            contribute(values, self.nodes, self.groups, *self.quadrature, width, of_block)
        return sums[:, : self.columns]


def contributions_to(
    ensemble: Ensemble, output: int, owner: Sequence[int], columns: int, outputs: int = 1
) -> TreeContributions:
    """Prepare the contributions to an output, given the column, of so many, that each feature of the trees counts for.

    The output is what comes before the link: the sum of the trees, or their mean if the link divides it. It is one of so many
    `outputs` that are explained.

    Raises:
        NotCompilableError: It is not known how many training rows reached each node.
    """
    trees = [tree for tree in ensemble.trees if tree.output <= output < tree.output + tree.value.shape[1]]
    whole, roots = joined(trees)
    require(
        (whole.cover[roots][whole.left[roots] >= 0] > 0).all(),
        "it does not say how many training rows reached each node",
    )
    divisor = getattr(ensemble.finish, "divisor", 1)
    value = np.concatenate([tree.value[:, output - tree.output] for tree in trees]) / divisor
    share, inner = np.ones(len(value)), whole.left >= 0
    for child in (whole.left[inner], whole.right[inner]):
        share[child] = np.divide(
            whole.cover[child], whole.cover[inner], out=np.zeros(len(child)), where=whole.cover[inner] > 0
        )
    reach, depth = _reached(whole, roots, share)
    nodes = Nodes(
        feature=whole.feature,
        threshold=whole.threshold,
        left=whole.left,
        right=whole.right,
        missing_left=whole.missing_left,
        left_set=whole.left_set,
        left_sets=whole.left_sets,
        value=value,
        share=share,
        first=np.append(roots, len(value)),
        depth=np.maximum.reduceat(depth, roots),
        owner=np.array(owner, np.int64),
    )
    ready_to_fill()
    groups = _grouped(nodes, MOST_ENTRIES // outputs)
    ready_to_contribute(nodes, groups)
    walked = [
        np.unique(nodes.feature[first:end][groups.walked[first:end] & inner[first:end]])
        for first, end in pairwise(nodes.first)
    ]
    tests = np.minimum(nodes.depth, [len(features) for features in walked]).max(
        initial=0
    )  # no path tests more features
    base = float(ensemble.start.row[output] / divisor + (reach * value)[~inner].sum())
    return TreeContributions(ensemble, base, columns, nodes, groups, _quadrature(int(tests)))


def _reached(
    nodes: Tree, roots: NDArray[np.int64], share: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The share of all training rows that reached each node, and the depth of each node."""
    reach, depth, level = np.ones(len(share)), np.zeros(len(share), np.int64), roots
    while len(level):
        parents = level[nodes.left[level] >= 0]
        for child in (nodes.left[parents], nodes.right[parents]):
            reach[child], depth[child] = reach[parents] * share[child], depth[parents] + 1
        level = np.concatenate([nodes.left[parents], nodes.right[parents]])
    return reach, depth


def _quadrature(features: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1], exact for paths with so many features."""
    points, weights = np.polynomial.legendre.leggauss(max(1, -(-features // 2)))
    return (points + 1) / 2, weights / 2


def _padded(columns: int) -> int:
    return -(-columns // CHUNK) * CHUNK


def _grouped(nodes: Nodes, most: int) -> Groups:
    """Cut the trees into groups, of fewer conditions if the tables would grow too large otherwise."""
    places = nodes.owner // CHUNK * CHUNK
    bits, cut, walked, chunks, sizes = (
        BITS + 1,
        list[list[_Group]](),
        np.empty(0, np.bool_),
        list[list[int]](),
        [most + 1],
    )
    while sum(sizes) > most:
        bits -= 1
        walked = np.zeros(len(nodes.left), np.bool_)
        cut = [_cut(nodes, int(root), int(end), bits, walked) for root, end in pairwise(nodes.first)]
        chunks = [np.unique(places[group.features(nodes)]).tolist() for tree in cut for group in tree]
        sizes = [CHUNK * len(own) << group.bits for group, own in zip(chain(*cut), chunks, strict=True)]
    groups = list(chain(*cut))
    conditions = [group.conditions for group in groups]
    tests = [test for of_group in conditions for of_condition in of_group for test in of_condition]
    tables = np.cumsum([0, *sizes])
    laid_out = Groups(
        first=np.cumsum([0, *map(len, cut)]),
        first_test=np.cumsum([0, *(sum(map(len, of_group)) for of_group in conditions)]),
        node=np.array([node for node, _ in tests], np.int64),
        against=np.array([NONE if left else EVERY for _, left in tests], np.uint64),
        complete=np.array(
            [test is of_condition[-1] for of_group in conditions for of_condition in of_group for test in of_condition],
            np.bool_,
        ),
        first_chunk=np.cumsum([0, *map(len, chunks)]),
        chunk=np.array([first for own in chunks for first in own], np.int64),
        table=tables[:-1],
        entries=aligned.py_func(int(tables[-1])),
        walked=walked,
    )
    quadratures = [_quadrature(features) for features in range(BITS + 1)]
    for group, own, table in zip(groups, chunks, tables.tolist(), strict=False):
        size = CHUNK * len(own)
        for leaf, parts in group.leaves(nodes):
            column = nodes.owner[[part.feature for part in parts]]
            fill(
                laid_out.entries[table : table + (size << group.bits)].reshape(-1, size),
                np.searchsorted(own, column // CHUNK * CHUNK) * CHUNK + column % CHUNK,
                np.array([part.share for part in parts]),
                np.array([part.asked for part in parts]),
                np.array([part.wanted for part in parts]),
                nodes.value[leaf],
                *quadratures[len(parts)],
            )
    return laid_out


def _cut(nodes: Nodes, root: int, end: int, bits: int, walked: NDArray[np.bool_]) -> list[_Group]:
    """The groups of a tree, of so many conditions at most; marks the nodes of leaves that are in none."""
    if end - root >= 2 * MOST_LEAVES:
        walked[root:end] = True
        return []
    groups: list[_Group] = []
    ahead: list[tuple[int, dict[int, tuple[float, Tests]]]] = [(root, {})]
    while ahead:
        node, path = ahead.pop()
        inner = _inner(nodes, node)
        if not inner and len(path) > bits:
            walked[[node, *(above for _, tests in path.values() for above, _ in tests)]] = True
        elif not inner or len(path) + len(inner) <= bits:
            groups += [_Group(node, path, inner)] if path or inner else []  # a single leaf depends on nothing
        else:
            feature = int(nodes.feature[node])
            share, tests = path.get(feature, (1.0, ()))
            for child, left in ((int(nodes.left[node]), True), (int(nodes.right[node]), False)):
                ahead.append((child, {**path, feature: (share * float(nodes.share[child]), (*tests, (node, left)))}))
    return groups


def _inner(nodes: Nodes, root: int) -> list[int]:
    """The inner nodes of a subtree."""
    inner, ahead = list[int](), [root]
    while ahead:
        node = ahead.pop()
        if nodes.left[node] >= 0:
            inner.append(node)
            ahead += [int(nodes.left[node]), int(nodes.right[node])]
    return inner


def largest(contributions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The columns [rows, count] with the largest contributions [rows, columns] by absolute value; the first of equal ones."""
    ready_to_choose()
    places = np.zeros((len(contributions), count), np.int64)
    choose_largest(contributions, places)
    return places
