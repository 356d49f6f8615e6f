"""The compiled code that counts the values of a profile and of its segments and hashes rows."""

# pyright: basic, reportMissingImports=none
# numba publishes no types, and what it compiles is typed by the signature.

from collections.abc import Sequence

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from batch_platform.kernels.forest.kernels import OPTIONS, make_ready

_BLOCK = 2048  # values that stay in the cache from edge to edge
_SLOTS_SHIFT = 52  # leaves 12 bits of a hash to find a slot
_VALUES = types.Array(types.float64, 1, "C", readonly=True)
_HASHES = types.Array(types.uint64, 1, "C", readonly=True)
_TOTALS = types.Array(types.uint64, 1, "C")
_COUNTS = types.Array(types.int64, 1, "C")
_TABLE = types.Array(types.int64, 2, "C")
_CELLS = types.Array(types.uint8, 1, "C")
_MIXED = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio: the upper bits of a product with it depend on all bits


@numba.njit(**OPTIONS)
def _count(values, edges, reached):  # noqa: ANN001, ANN202 - typed by the signature
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        for at in range(len(edges)):
            edge, count = edges[at], np.int64(0)
            for row in range(len(block)):
                count += block[row] >= edge
            reached[at] += count


@numba.njit(**OPTIONS)
def _place(values, edges, cells):  # noqa: ANN001, ANN202 - typed by the signature
    for start in range(0, len(values), _BLOCK):
        block, own = values[start : start + _BLOCK], cells[start : start + _BLOCK]
        for at in range(len(edges)):
            edge = edges[at]
            for row in range(len(block)):
                own[row] += np.uint8(block[row] >= edge)


@numba.njit(**OPTIONS)
def _cross(codes, cells, counts):  # noqa: ANN001, ANN202 - typed by the signature
    for row in range(len(codes)):
        counts[codes[row], np.int64(cells[row])] += 1


@numba.njit(**OPTIONS)
def _number(hashes, slots, codes, firsts):  # noqa: ANN001, ANN202 - typed by the signature
    numbers, last = 0, len(slots) - 1
    for row in range(len(hashes)):
        value = hashes[row]
        slot = np.int64((value * _MIXED) >> np.uint64(_SLOTS_SHIFT))
        while slots[slot] >= 0 and hashes[firsts[slots[slot]]] != value:
            slot = (slot + 1) & last
        if slots[slot] < 0:
            if numbers == len(firsts):
                return -1
            slots[slot], firsts[numbers] = numbers, row
            numbers += 1
        codes[row] = slots[slot]
    return numbers


@numba.njit(**OPTIONS)
def _add_mixed(numbers, factor, totals):  # noqa: ANN001, ANN202 - typed by the signature
    for row in range(len(numbers)):
        bits = np.float64(numbers[row] + 0.0).view(np.uint64)
        totals[row] += (bits ^ (bits >> np.uint64(32))) * factor


def add_mixed(numbers: NDArray[np.float64], factor: int, totals: NDArray[np.uint64]) -> None:
    """Add the mixed bits of each number [n], times a factor, to a total for each; as `monitoring.profiles.add_mixed` does."""
    make_ready(_add_mixed, _VALUES, types.uint64, _TOTALS)
    _add_mixed(np.ascontiguousarray(numbers), np.uint64(factor), totals)


def at_least(values: NDArray[np.float64], edges: Sequence[float]) -> list[int]:
    """Count the values [n], none of them NaN, that reach each edge."""
    make_ready(_count, _VALUES, _VALUES, _COUNTS)
    reached = np.zeros(len(edges), dtype=np.int64)
    _count(np.ascontiguousarray(values), np.array(edges, dtype=np.float64), reached)
    return reached.tolist()


def cells_of(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.uint8]:
    """Count the edges, at most 254, that each value [n] reaches."""
    make_ready(_place, _VALUES, _VALUES, _CELLS)
    cells = np.zeros(len(values), dtype=np.uint8)
    _place(np.ascontiguousarray(values), np.array(edges, dtype=np.float64), cells)
    return cells


def numbered(hashes: NDArray[np.uint64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Number equal hashes [n] in the order in which they come: the number of each row, and the first row of each number.

    None if there are more than `most` of them, which is at most 2,048.
    """
    make_ready(_number, _HASHES, _COUNTS, _COUNTS, _COUNTS)
    slots = np.full(1 << (64 - _SLOTS_SHIFT), -1, dtype=np.int64)
    codes, firsts = np.empty(len(hashes), dtype=np.int64), np.empty(most, dtype=np.int64)
    numbers = _number(np.ascontiguousarray(hashes), slots, codes, firsts)
    return None if numbers < 0 else (codes, firsts[:numbers])


def crossed(codes: NDArray[np.int64], values: int, cells: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """The number of rows [values, width] with each code below `values` and each cell below `width`, given those of each row [n]."""
    make_ready(_cross, _COUNTS, _CELLS, _TABLE)
    counts = np.zeros((values, width), dtype=np.int64)
    _cross(codes, cells, counts)
    return counts
