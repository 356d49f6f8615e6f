"""Exact contributions of columns to the raw score of a sum of trees: path-dependent TreeSHAP in compiled code.

The contribution of feature i to what a leaf of value v adds is its Shapley value in the game that replaces features by the
training rows' shares along the path (Lundberg et al., "From local explanations to global understanding with explainable AI for
trees", Nature Machine Intelligence 2 (2020), algorithm 2). With o_j, whether a row satisfies all conditions that the path sets to
feature j, and z_j, the product of the shares of training rows at these conditions, it is the integral over t from 0 to 1 of

    v (o_i - z_i) * product over the other features j of (t o_j + (1 - t) z_j)

since the weight of a set of s of the m - 1 others is the integral of t^s (1 - t)^(m - 1 - s). The integrand is a polynomial of
degree m - 1, so that Gauss-Legendre quadrature with m / 2 points is exact.

Trees are walked, sixty-four rows of data together, in the manner of Linear TreeSHAP (Yu et al., 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from batch_platform.kernels.forest.compiled import coded, joined
from batch_platform.kernels.forest.contribution_kernels import Nodes, contribute, ready_to_contribute
from batch_platform.kernels.forest.ensembles import Ensemble, Tree, require

CODED_ROWS = 1 << 14  # rows that are encoded together


@dataclass(frozen=True)
class TreeContributions:
    """The contributions of columns to one output of an ensemble; safe to use from several threads at once."""

    ensemble: Ensemble
    base: float  # mean of the output over the training rows, as the trees know them
    columns: int
    nodes: Nodes
    quadratures: tuple[NDArray[np.float64], NDArray[np.float64]]  # points and weights

    def of(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The contributions [rows, columns] of rows [rows, features] that the ensemble takes; with the base, they sum to the output."""
        sums = np.zeros((len(inputs), self.columns))
        for start in range(0, len(inputs), CODED_ROWS):
            values = coded(self.ensemble, inputs[start : start + CODED_ROWS])
            require(values is not None, "the model refuses a row")
            of_block = sums[start : start + CODED_ROWS].reshape(-1)
            contribute(values, self.nodes, *self.quadratures, self.columns, of_block)
        return sums


def contributions_to(ensemble: Ensemble, output: int, owner: Sequence[int], columns: int) -> TreeContributions:
    """Prepare the contributions to an output, given the column, of so many, that each feature of the trees counts for.

    The output is what comes before the link: the sum of the trees, or their mean if the link divides it.

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
    first, depth = np.append(roots, len(value)), np.maximum.reduceat(depth, roots)
    tested = [len(np.unique(whole.feature[start:end][inner[start:end]])) for start, end in pairwise(first)]
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
        first=first,
        depth=depth,
        points=np.maximum(1, -(-np.minimum(depth, tested) // 2)),  # no path tests more features
        owner=np.array(owner, np.int64),
    )
    ready_to_contribute(nodes)
    base = float(ensemble.start.row[output] / divisor + (reach * value)[~inner].sum())
    return TreeContributions(ensemble, base, columns, nodes, _quadratures(int(nodes.points.max())))


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


def _quadratures(most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1], of one point, of two, and so on: n are exact for paths with 2n features."""
    rules = [np.polynomial.legendre.leggauss(count) for count in range(1, most + 1)]
    points, weights = map(np.concatenate, zip(*rules, strict=True))
    return (points + 1) / 2, weights / 2
