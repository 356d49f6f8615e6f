"""The compiled code that adds up the contributions of columns to sums of trees, on any number of threads at once.

Everything that a kernel calls is in this one file, and each function has one signature, for the reasons that `kernels` gives.
"""

# pyright: basic, reportMissingImports=none
# numba publishes no types, and what it compiles is typed by the signature.

from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import typeof, types
from numpy.typing import NDArray

from batch_platform.kernels.forest.kernels import MATRIX, OPTIONS, everywhere, intrinsic, make_ready, pointer

LANES = 64  # rows that go through a tree together
BLOCK = 1024  # rows that go through one tree before the next, a multiple of LANES: the sums stay in the cache
LINE = 8  # numbers in a line of the cache
EVERY, NONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
_NUMBERS = types.Array(types.float64, 1, "C")
_VALUES = ir.VectorType(ir.DoubleType(), LANES)


class Nodes(NamedTuple):
    """The nodes of all trees that add to an output, in the order of the trees."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]  # below zero at a leaf
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    left_set: NDArray[np.int64]  # below zero if the node compares with its threshold
    left_sets: NDArray[np.bool_]  # [sets, 256]
    value: NDArray[np.float64]  # what a leaf adds
    share: NDArray[np.float64]  # share of its parent's training rows that reached a node
    first: NDArray[np.int64]  # [trees + 1]: the first node of a tree is its root
    depth: NDArray[np.int64]  # [trees]
    points: NDArray[np.int64]  # [trees]: number of points of the quadrature that is exact for the tree
    owner: NDArray[np.int64]  # [features]: the column that a feature counts for


class _Walked(NamedTuple):
    """Memory for a walk: by depth, what holds on the path to a node; the root stands for a feature that was not tested."""

    node: NDArray[np.int64]
    step: NDArray[np.int64]  # number of children that were entered
    before: NDArray[np.int64]  # depth of the edge above that tests the same feature
    last: NDArray[np.int64]  # [features]: depth of the last edge that tests a feature
    share: NDArray[np.float64]
    holds: NDArray[np.uint64]  # the lanes that pass all tests of the edge's feature so far
    product: NDArray[np.float64]  # [depth, point, LANES]
    total: NDArray[np.float64]  # likewise
    added: NDArray[np.float64]  # [column, LANES]


@intrinsic
def _at_most(_, tile, at, threshold, missing):
    """The lanes with a value that is at most a threshold, and those without one if `missing` has all bits."""

    def generate(context, builder, signature, arguments):
        array, start, scalar, mask = arguments
        values = builder.load(pointer(context, builder, tile, array, start, _VALUES), align=8)
        lanes = ir.IntType(LANES)
        below = builder.bitcast(builder.fcmp_ordered("<=", values, everywhere(builder, scalar, LANES)), lanes)
        absent = builder.bitcast(builder.fcmp_unordered("uno", values, values), lanes)
        return builder.or_(below, builder.and_(absent, mask))

    return types.uint64(tile, types.uintp, types.float64, types.uint64), generate


def _chosen(builder, now, before, both, lost, neither):
    """A vector of one of three numbers: for lanes in both masks, in the former one only, and in neither."""
    bits = ir.VectorType(ir.IntType(1), LANES)
    of_all, of_some, of_none = (everywhere(builder, scalar, LANES) for scalar in (both, lost, neither))
    return builder.select(
        builder.bitcast(now, bits), of_all, builder.select(builder.bitcast(before, bits), of_some, of_none)
    )


@intrinsic
def _multiply(_, out, to, values, at, now, before, both, lost, neither):
    """Write values, each times the factor of its lane."""

    def generate(context, builder, signature, arguments):
        target, place, array, start, *chosen = arguments
        factors = _chosen(builder, *chosen)
        loaded = builder.load(pointer(context, builder, values, array, start, _VALUES), align=8)
        builder.store(builder.fmul(loaded, factors), pointer(context, builder, out, target, place, _VALUES), align=8)
        return context.get_dummy_value()

    lanes, number = types.uint64, types.float64
    return types.void(out, types.intp, values, types.intp, lanes, lanes, number, number, number), generate


@intrinsic
def _add_lanes(_, out, to, values, at, now, before, both, lost):
    """Add values, each times the factor of its lane, which is 0 in neither mask."""

    def generate(context, builder, signature, arguments):
        target, place, array, start, *chosen = arguments
        now, before, both, lost = chosen
        factors = _chosen(builder, now, before, both, lost, ir.Constant(ir.DoubleType(), 0.0))
        loaded = builder.load(pointer(context, builder, values, array, start, _VALUES), align=8)
        sums = pointer(context, builder, out, target, place, _VALUES)
        builder.store(builder.fadd(builder.load(sums, align=8), builder.fmul(loaded, factors)), sums, align=8)
        return context.get_dummy_value()

    lanes, number = types.uint64, types.float64
    return types.void(out, types.intp, values, types.intp, lanes, lanes, number, number), generate


@numba.njit(**OPTIONS)
def _sides(tiles, rows, features, tree, nodes, left):
    """Write the lanes that go left at each node of a tree, tile by tile."""
    root = nodes.first[tree]
    count = nodes.first[tree + 1] - root
    for first in range(0, rows, LANES):
        for node in range(count):
            at = np.uintp(root + node)
            if nodes.left[at] < 0:
                continue
            place = np.uintp(first * features + nodes.feature[at] * LANES)
            if nodes.left_set[at] < 0:
                lanes = _at_most(tiles, place, nodes.threshold[at], EVERY if nodes.missing_left[at] else NONE)
            else:
                lanes, members = NONE, np.uintp(nodes.left_set[at])
                for lane in range(np.uintp(LANES)):
                    lanes |= np.uint64(nodes.left_sets[members, np.uintp(tiles[place + lane])]) << lane
            left[first // LANES * count + node] = lanes


@numba.njit(**OPTIONS)
def _walk(rows, tree, nodes, left, width, sums, points, weights, path):
    """Add the contributions of the leaves of a tree, node by node.

    A leaf adds its value times the product over the features of t o + (1 - t) z, at each point t. On the way up, each edge has
    the sum of that over the leaves below it. Where it is the last edge of its feature above a leaf, division by the factor of the
    feature leaves the product over the others. What an earlier edge of the feature will add for the same leaves is
    taken off here.
    """
    node, step, before, last = path.node, path.step, path.before, path.last
    share, holds, product, total, added = path.share, path.holds, path.product, path.total, path.added
    root, size = nodes.first[tree], len(points) * LANES
    for begin in range(0, rows, LANES):
        sides = begin // LANES * (nodes.first[tree + 1] - root) - root
        added[:] = 0
        last[:] = 0
        depth, node[0], step[0], share[0], holds[0] = 0, root, 0, 1.0, EVERY
        product[:size] = 1
        while True:
            at = node[depth]
            feature = nodes.feature[at]
            if nodes.left[at] < 0:
                for point in range(len(points)):
                    amount, place = nodes.value[at] * weights[point], depth * size + point * LANES
                    _multiply(total, place, product, place, EVERY, EVERY, amount, amount, amount)
            elif step[depth] <= 1:
                if step[depth] == 0:
                    total[depth * size : (depth + 1) * size] = 0
                below, former = depth + 1, last[feature]
                child = nodes.right[at] if step[depth] else nodes.left[at]
                lanes = left[sides + at] ^ (EVERY if step[depth] else NONE)
                step[depth] += 1
                node[below], step[below], before[below], last[feature] = child, 0, former, below
                z_old = share[former]
                z = z_old * nodes.share[child]
                share[below], holds[below] = z, holds[former] & lanes
                for point in range(len(points)):
                    t = points[point]
                    old = t + (1 - t) * z_old
                    both, lost, neither = (t + (1 - t) * z) / old, (1 - t) * z / old, nodes.share[child]
                    place = below * size + point * LANES
                    _multiply(product, place, product, place - size, holds[below], holds[former], both, lost, neither)
                depth = below
                continue
            if depth == 0:
                break
            former, feature = before[depth], nodes.feature[node[depth - 1]]
            z, z_old = share[depth], share[former]
            for point in range(len(points)):
                t = points[point]
                old = (1 - z_old) / (t + (1 - t) * z_old)
                both, lost = (1 - z) / (t + (1 - t) * z) - old, -1 / (1 - t) - old
                place = depth * size + point * LANES
                _add_lanes(total, place - size, total, place, EVERY, EVERY, 1.0, 1.0)
                _add_lanes(added, nodes.owner[feature] * LANES, total, place, holds[depth], holds[former], both, lost)
            last[feature] = former
            depth -= 1
        for row in range(min(LANES, rows - begin)):
            for column in range(width):
                sums[(begin + row) * width + column] += added[column * LANES + row]


@numba.njit(**OPTIONS)
def _aligned(count):
    """Zeros that begin where a vector does: one that lies across two lines of the cache takes twice as long."""
    zeros = np.zeros(count + LINE)
    first = -(zeros.ctypes.data // zeros.itemsize) % LINE
    return zeros[first : first + count]


@numba.njit(**OPTIONS)
def contribute(values, nodes, points, weights, width, sums):
    """Add the contributions of coded values [rows, features] to the sums, of which each row has `width`.

    `points` and `weights` are those of the quadratures of one point, of two and so on.
    """
    rows, features = values.shape
    depths, most, size = nodes.depth.max() + 1, np.diff(nodes.first).max(), nodes.points.max() * LANES
    tiles = _aligned(features * BLOCK)
    left = np.zeros(most * (BLOCK // LANES), np.uint64)
    path = _Walked(
        node=np.zeros(depths, np.int64),
        step=np.zeros(depths, np.int64),
        before=np.zeros(depths, np.int64),
        last=np.zeros(features, np.int64),
        share=np.ones(depths),
        holds=np.zeros(depths, np.uint64),
        product=_aligned(depths * size),
        total=_aligned(depths * size),
        added=_aligned(width * LANES),
    )
    for start in range(0, rows, BLOCK):
        held = min(BLOCK, rows - start)
        for first in range(0, held, LANES):
            for feature in range(features):
                for row in range(min(LANES, held - first)):
                    tiles[first * features + feature * LANES + row] = values[start + first + row, feature]
        own = sums[start * width :]
        for tree in range(len(nodes.depth)):
            _sides(tiles, held, features, tree, nodes, left)
            count = nodes.points[tree]
            end = count * (count + 1) // 2  # quadratures of fewer points come before
            _walk(held, tree, nodes, left, width, own, points[end - count : end], weights[end - count : end], path)


def ready_to_contribute(nodes: Nodes) -> None:
    """Compile `contribute` or load it."""
    make_ready(contribute, MATRIX, typeof(nodes), _NUMBERS, _NUMBERS, types.int64, _NUMBERS)
