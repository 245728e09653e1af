"""Counts of a set's bytes and gaps, by which a coder bounds its size without coding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import njit

from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.codecs.tables import GAP_SYMBOLS

_MORE = GAP_SYMBOLS - 1


def _byte_gaps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each byte its zeros below the lowest and above the highest 1, and its gaps by length between."""
    below, above = np.zeros(256, np.int64), np.zeros(256, np.int64)
    between = np.zeros((256, 8), np.int64)
    for byte in range(1, 256):
        places = [place for place in range(8) if byte >> place & 1]
        below[byte], above[byte] = places[0], 7 - places[-1]
        for low, high in pairwise(places):
            between[byte, high - low - 1] += 1
    return below, above, between


_BELOW, _ABOVE, _BETWEEN = _byte_gaps()


@njit(cache=True)
def _count_bytes(packed):  # type: ignore[no-untyped-def]
    # Four counters in turn: a run of one byte would otherwise wait for its own last sum each time.
    counts = np.zeros((4, 256), np.int64)
    for i in range(packed.size):
        counts[i & 3, packed[i]] += 1
    return counts.sum(axis=0)


@njit(cache=True)
def _count_gaps(indices, shift):  # type: ignore[no-untyped-def]
    counts = np.zeros(GAP_SYMBOLS, np.int64)
    expected = 0
    for index in indices:
        high = (index - expected) >> shift
        expected = index + 1
        while high >= _MORE:
            counts[_MORE] += 1
            high -= _MORE
        counts[high] += 1
    return counts


@njit(cache=True)
def _count_gaps_of_bytes(packed, byte_counts):  # type: ignore[no-untyped-def]
    counts = np.zeros(GAP_SYMBOLS, np.int64)
    for byte in range(256):
        for length in range(8):
            counts[length] += byte_counts[byte] * _BETWEEN[byte, length]
    zeros = 0
    for byte in packed:
        if byte == 0:
            zeros += 8
            continue
        gap = zeros + _BELOW[byte]
        zeros = _ABOVE[byte]
        while gap >= _MORE:
            counts[_MORE] += 1
            gap -= _MORE
        counts[gap] += 1
    return counts


def count_bytes(positions: Positions) -> np.ndarray:
    """Return how often each byte occurs in the packed bits, int64 of shape (256,)."""
    counts: np.ndarray = _count_bytes(np.require(positions.packed, requirements=["W"]))
    return counts


def is_dense(positions: Positions) -> bool:
    """Return whether gaps are counted a byte at a time, which is faster for a quarter and more of the positions."""
    return 4 * positions.count >= positions.numel


def count_gaps(positions: Positions, shift: int) -> np.ndarray:
    """Return how often each symbol of `gap_table` occurs, int64 of shape (GAP_SYMBOLS,).

    A dense set's positions are not listed for this: most gaps lie within a byte, and follow from how often it occurs.
    """
    if shift == 0 and is_dense(positions):
        packed = np.require(positions.packed, requirements=["W"])
        counts: np.ndarray = _count_gaps_of_bytes(packed, _count_bytes(packed))
    else:
        counts = _count_gaps(positions.indices, shift)
    return counts
