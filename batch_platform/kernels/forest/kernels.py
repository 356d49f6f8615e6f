"""The compiled code that evaluates flat arrays of trees, on any number of threads at once.

Rows become ranks: the position of a value among the thresholds that the ensemble tests for its feature. From then on only small
integers are compared, sixty-four rows at a time. Nothing here knows estimators. All compiled functions that a kernel calls are in
this one file, and each has one signature: numba finds compiled code by the file it came from, and processes that compile at the same
time must not give two things one name.
"""

# pyright: basic, reportMissingImports=none
# numba publishes no types, and what it compiles is typed by the signature.

import math
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import register_model
from numpy.typing import NDArray

LANES = 64  # rows that leaf masks process together
BLOCK = 2048  # rows that descend a tree before the next tree; a multiple of eight
FAN = 16  # children per node in the search for a rank
NAN_REFUSED, INFINITY_REFUSED, CATEGORIES, UNKNOWN_REFUSED = 1, 2, 4, 8  # flags of a feature
LEFT_BITS, COLUMN_BITS = 22, 13  # a packed node holds: left child, column, whether it tests a set, threshold
SET_SHIFT = LEFT_BITS + COLUMN_BITS
CUT_SHIFT = SET_SHIFT + 1
LEFT_MASK, COLUMN_MASK = (1 << LEFT_BITS) - 1, (1 << COLUMN_BITS) - 1
TWO, THREE, FOUR, FIVE, SIX, SEVEN = (np.uint64(n) for n in range(2, 8))
MATRIX = types.Array(types.float64, 2, "A", readonly=True)  # any memory layout
OUT = types.Array(types.float64, 2, "A")
OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_COMPILING = Lock()
intrinsic: Any = numba_intrinsic  # called without its first argument, which a checker cannot know


class Encoding(NamedTuple):
    """Arrays that turn rows into ranks; the first four are by feature."""

    kind: NDArray[np.uint8]
    levels: NDArray[np.int64]  # depth of the search for a rank; 0 if no tree tests the feature
    level_start: NDArray[np.int64]  # [features, most levels], into `cuts`
    columns: NDArray[np.int64]  # [features, 2]: of ranks; where missing ranks lowest, where it ranks `missing`; or -1
    cuts: NDArray[np.float64]
    missing: NDArray[np.int64]
    single: bool  # whether values are rounded to 32 bits first
    width: int  # number of columns of ranks


class Masks(NamedTuple):
    """Trees of few leaves; a row that goes right clears the leaves to the left."""

    first_node: NDArray[np.int64]  # [trees + 1]
    cut: NDArray[np.uint16]
    column: NDArray[np.int64]
    keep: NDArray[Any]
    first_test: NDArray[np.int64]  # [trees + 1]; tests for sets of categories, 64 to a word
    test_column: NDArray[np.int64]
    test_word: NDArray[np.uint16]
    test_set: NDArray[np.uint64]
    test_keep: NDArray[Any]
    first_value: NDArray[np.int64]  # [trees + 1]; the leaves of a tree for one output, then for the next
    output: NDArray[np.int64]  # [trees]: the first that a tree adds to
    value: NDArray[np.float64]
    width: int  # outputs of a tree
    single: bool  # whether the sum is rounded to 32 bits after each tree


class Descent(NamedTuple):
    """Trees of any size; children are adjacent, leaves point at themselves."""

    node: NDArray[np.uint64]
    root: NDArray[np.int64]  # [trees]
    depth: NDArray[np.int64]  # [trees]
    sets: NDArray[np.uint64]  # four words for each: the categories that go right
    output: NDArray[np.int64]  # [trees]: the first that a tree adds to
    value: NDArray[np.float64]  # [nodes * width]
    width: int  # outputs of a tree
    single: bool  # whether the sum is rounded to 32 bits after each tree


Kernel = Callable[[NDArray[np.float64], Encoding, Any, NDArray[np.float64]], bool]


def make_ready(function: Any, *signature: Any) -> None:
    """Compile a function for its one signature, or load what another process compiled.

    Without a writable folder, the compiled code lives as long as the process.
    """
    with _COMPILING:
        if not function.signatures:
            with suppress(RuntimeError):
                function.enable_caching()
            function.compile(signature)
            function.disable_compile()


class _Alive(types.Type):
    """The leaves that are still possible, one bit each, for every lane: a vector that stays in registers."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        super().__init__(name=f"Alive({bits})")


@register_model(_Alive)
class _AliveModel(models.PrimitiveModel):
    def __init__(self, manager: Any, described: _Alive) -> None:
        super().__init__(manager, described, _vector(described.bits))


def _vector(bits: int, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), lanes)


def everywhere(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_vector(32, lanes), [0] * lanes))


def pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, to: Any) -> Any:
    """The address of an array's element, as the address of a vector."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), to.as_pointer())


@intrinsic
def _all_alive(_, keep):
    alive = _Alive(keep.dtype.bitwidth)

    def generate(context, builder, signature, arguments):
        return ir.Constant(_vector(alive.bits), [(1 << alive.bits) - 1] * LANES)

    return alive(keep), generate


@intrinsic
def _clear_above(_, alive, ranks, at, cut, keep):
    """In lanes whose rank is above a cut, clear all but the leaves to keep."""

    def generate(context, builder, signature, arguments):
        before, array, start, threshold, mask = arguments
        rank = builder.load(pointer(context, builder, ranks, array, start, _vector(16)), align=2)
        right = builder.icmp_unsigned(">", rank, everywhere(builder, threshold))
        return builder.select(right, builder.and_(before, everywhere(builder, mask)), before)

    return alive(alive, ranks, types.intp, types.uint16, types.Integer(f"uint{alive.bits}")), generate


@intrinsic
def _clear_members(_, alive, ranks, at, word, members, keep):
    """In lanes whose code is in a word of a set, clear all but the leaves to keep."""

    def generate(context, builder, signature, arguments):
        before, array, start, number, bits, mask = arguments
        code = builder.load(pointer(context, builder, ranks, array, start, _vector(16)), align=2)
        place = builder.sub(code, everywhere(builder, builder.shl(number, ir.IntType(16)(6))))
        inside = builder.icmp_unsigned("<", place, ir.Constant(_vector(16), [64] * LANES))
        shift = builder.zext(builder.and_(place, ir.Constant(_vector(16), [63] * LANES)), _vector(64))
        member = builder.trunc(builder.lshr(everywhere(builder, bits), shift), _vector(1))
        right = builder.and_(inside, member)
        return builder.select(right, builder.and_(before, everywhere(builder, mask)), before)

    kept = types.Integer(f"uint{alive.bits}")
    return alive(alive, ranks, types.intp, types.uint16, types.uint64, kept), generate


@intrinsic
def _store_exits(_, alive, exits):
    """Store the first leaf still possible in each lane."""

    def generate(context, builder, signature, arguments):
        before, array = arguments
        name, kind = f"llvm.cttz.v{LANES}i{alive.bits}", ir.FunctionType(before.type, [before.type, ir.IntType(1)])
        count = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        first = builder.call(count, [before, ir.IntType(1)(1)])
        if alive.bits > exits.dtype.bitwidth:
            first = builder.trunc(first, _vector(32))
        builder.store(first, pointer(context, builder, exits, array, ir.IntType(64)(0), _vector(32)), align=4)
        return context.get_dummy_value()

    return types.void(alive, exits), generate


@intrinsic
def _count_below(_, cuts, at, value):
    """Count the cuts of a search node, starting at a position, that are below a value."""

    def generate(context, builder, signature, arguments):
        array, start, scalar = arguments
        vector = ir.VectorType(ir.DoubleType(), FAN)
        loaded = builder.load(pointer(context, builder, cuts, array, start, vector), align=8)
        below = builder.fcmp_ordered("<", loaded, everywhere(builder, scalar, FAN))
        return builder.zext(builder.ctpop(builder.bitcast(below, ir.IntType(FAN))), ir.IntType(64))

    return types.int64(cuts, types.intp, types.float64), generate


@numba.njit(**OPTIONS)
def _load(matrix, start, rows, column, single, values):
    nan, infinite = False, False
    for r in range(rows):
        x = matrix[np.uintp(start + r), np.uintp(column)]
        if single:
            x = np.float64(np.float32(x))
        values[np.uintp(r)] = x
        nan |= np.isnan(x)
        infinite |= abs(x) == np.inf
    return nan, infinite


@numba.njit(**OPTIONS)
def _has_unknown(rows, cuts, last, values, rank_of):
    unknown = False
    for r in range(rows):
        x = values[np.uintp(r)]
        unknown |= cuts[np.uintp(last + rank_of[np.uintp(r)])] != x and not np.isnan(x)
    return unknown


@numba.njit(**OPTIONS)
def _round_to_single(total, first, rows):
    for r in range(first, first + rows):
        total[r] = np.float64(np.float32(total[r]))


@numba.njit(**OPTIONS)
def _encode(matrix, start, rows, encoding, values, rank_of, ranks, row_step, column_step):
    """Write the ranks of some rows; False if a row has a value that the estimator refuses.

    `values` and `rank_of` hold one number per row; unsigned indices avoid a test for negative ones.
    """
    for f in range(encoding.kind.shape[0]):
        kind, levels = encoding.kind[f], encoding.levels[f]
        if levels == 0 and not kind & (NAN_REFUSED | INFINITY_REFUSED):
            continue
        nan, infinite = _load(matrix, start, rows, f, encoding.single, values)
        if (nan and kind & NAN_REFUSED) or (infinite and kind & INFINITY_REFUSED):
            return False
        if levels == 0:
            continue
        first = encoding.level_start[f, 0]
        last = encoding.level_start[f, levels - 1]
        for r in range(rows):
            x = values[np.uintp(r)]
            rank = _count_below(encoding.cuts, first, x)
            for level in range(1, levels):
                rank = rank * FAN + _count_below(encoding.cuts, encoding.level_start[f, level] + rank * FAN, x)
            rank_of[np.uintp(r)] = rank
        if kind & UNKNOWN_REFUSED and _has_unknown(rows, encoding.cuts, last, values, rank_of):
            return False
        low, high, missing = encoding.columns[f, 0], encoding.columns[f, 1], encoding.missing[f]
        if low >= 0:
            for r in range(rows):
                ranks[np.uintp(low * column_step + r * row_step)] = rank_of[np.uintp(r)]
        if high >= 0:
            for r in range(rows):
                rank, x = rank_of[np.uintp(r)], values[np.uintp(r)]
                absent = encoding.cuts[np.uintp(last + rank)] != x if kind & CATEGORIES else np.isnan(x)
                ranks[np.uintp(high * column_step + r * row_step)] = missing if absent else rank
    return True


@numba.njit(**OPTIONS)
def _leaf_masks(matrix, encoding, trees, out):
    rows, outputs = out.shape
    ranks = np.zeros(encoding.width * LANES, np.uint16)
    values, rank_of = np.empty(LANES), np.empty(LANES, np.int64)
    exits = np.empty(LANES, np.uint32)
    total = np.zeros(outputs * LANES)
    for start in range(0, rows, LANES):
        count = min(LANES, rows - start)
        if not _encode(matrix, start, count, encoding, values, rank_of, ranks, 1, LANES):
            return False
        for o in range(outputs):
            for r in range(count):
                total[o * LANES + r] = out[start + r, o]
        for t in range(trees.output.shape[0]):
            alive = _all_alive(trees.keep)
            for k in range(trees.first_node[t], trees.first_node[t + 1]):
                alive = _clear_above(alive, ranks, trees.column[k] * LANES, trees.cut[k], trees.keep[k])
            for k in range(trees.first_test[t], trees.first_test[t + 1]):
                at, word = trees.test_column[k] * LANES, trees.test_word[k]
                alive = _clear_members(alive, ranks, at, word, trees.test_set[k], trees.test_keep[k])
            _store_exits(alive, exits)
            leaves = (trees.first_value[t + 1] - trees.first_value[t]) // trees.width
            for w in range(trees.width):
                first, lane = trees.first_value[t] + w * leaves, (trees.output[t] + w) * LANES
                for r in range(LANES):
                    total[lane + r] += trees.value[first + np.int64(exits[r])]
                if trees.single:
                    _round_to_single(total, lane, LANES)
        for o in range(outputs):
            for r in range(count):
                out[start + r, o] = total[o * LANES + r]
    return True


@numba.njit(**OPTIONS)
def _goes_right(node, rank, sets):
    if sets is not None and node >> np.uint64(SET_SHIFT) & np.uint64(1):
        word = sets[(node >> np.uint64(CUT_SHIFT)) * np.uint64(4) + (rank >> np.uint64(6))]
        return (word >> (rank & np.uint64(63)) & np.uint64(1)) != 0
    return rank > (node >> np.uint64(CUT_SHIFT))


@numba.njit(**OPTIONS)
def _child(at, nodes, ranks, row, sets):
    node = nodes[at]
    rank = np.uint64(ranks[row + (node >> np.uint64(LEFT_BITS) & np.uint64(COLUMN_MASK))])
    return (node & np.uint64(LEFT_MASK)) + np.uint64(_goes_right(node, rank, sets))


@numba.njit(**OPTIONS)
def _leaves(nodes, depth, ranks, width, rows, sets, at):
    """Write the leaf of each row; eight rows descend together, so that none waits for another's memory."""
    w = np.uint64(width)
    for r in range(0, rows, 8):
        a = b = c = d = e = f = g = h = np.uint64(0)
        row = np.uint64(r) * w
        for _ in range(depth):
            a1, b1 = _child(a, nodes, ranks, row, sets), _child(b, nodes, ranks, row + w, sets)
            c1, d1 = _child(c, nodes, ranks, row + TWO * w, sets), _child(d, nodes, ranks, row + THREE * w, sets)
            e1, f1 = _child(e, nodes, ranks, row + FOUR * w, sets), _child(f, nodes, ranks, row + FIVE * w, sets)
            g1, h1 = _child(g, nodes, ranks, row + SIX * w, sets), _child(h, nodes, ranks, row + SEVEN * w, sets)
            if (a ^ a1) | (b ^ b1) | (c ^ c1) | (d ^ d1) | (e ^ e1) | (f ^ f1) | (g ^ g1) | (h ^ h1) == 0:
                break
            a, b, c, d, e, f, g, h = a1, b1, c1, d1, e1, f1, g1, h1
        at[r], at[r + 1], at[r + 2], at[r + 3] = a, b, c, d
        at[r + 4], at[r + 5], at[r + 6], at[r + 7] = e, f, g, h


@numba.njit(**OPTIONS)
def _descend(matrix, encoding, trees, out, sets):
    rows, outputs = out.shape
    ranks = np.zeros(BLOCK * encoding.width, np.uint32)
    values, rank_of = np.empty(BLOCK), np.empty(BLOCK, np.int64)
    at = np.zeros(BLOCK, np.uint64)
    total = np.zeros(outputs * BLOCK)
    step = np.uint64(trees.width)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        if not _encode(matrix, start, count, encoding, values, rank_of, ranks, encoding.width, 1):
            return False
        for o in range(outputs):
            for r in range(count):
                total[o * BLOCK + r] = out[start + r, o]
        for t in range(trees.root.shape[0]):
            root = trees.root[t]
            _leaves(trees.node[root:], trees.depth[t], ranks, encoding.width, count, sets, at)
            for w in range(trees.width):
                first, lane = np.uint64(root * trees.width + w), (trees.output[t] + w) * BLOCK
                for r in range(count):
                    total[lane + r] += trees.value[first + at[r] * step]
                if trees.single:
                    _round_to_single(total, lane, count)
        for o in range(outputs):
            for r in range(count):
                out[start + r, o] = total[o * BLOCK + r]
    return True


@numba.njit(**OPTIONS)
def leaf_masks_32(matrix, encoding, trees, out):
    """Add trees of at most 32 leaves to `out` [rows, outputs]; False if a row is refused, and `out` is then unusable."""
    return _leaf_masks(matrix, encoding, trees, out)


@numba.njit(**OPTIONS)
def leaf_masks_64(matrix, encoding, trees, out):
    """The same for at most 64 leaves."""
    return _leaf_masks(matrix, encoding, trees, out)


@numba.njit(**OPTIONS)
def descent(matrix, encoding, trees, out):
    """The same for any number of leaves."""
    return _descend(matrix, encoding, trees, out, None)


@numba.njit(**OPTIONS)
def descent_with_sets(matrix, encoding, trees, out):
    """The same for trees that test sets of categories."""
    return _descend(matrix, encoding, trees, out, trees.sets)


def exponentials(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponentials of [rows, outputs] as the C library rounds them; NumPy has its own."""
    make_ready(_write_exponentials, MATRIX, OUT)
    out = np.empty_like(values)
    _write_exponentials(values, out)
    return out


@numba.njit(**OPTIONS)
def _write_exponentials(values, out):
    for r in range(values.shape[0]):
        for o in range(values.shape[1]):
            out[r, o] = math.exp(values[r, o])
