"""Counts of a set's gaps, by which a coder bounds its size without coding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import njit

from fedmpi.wire.codecs.set_tables import GAP_SYMBOLS
from fedmpi.wire.codecs.sets.base import Positions

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


def is_dense(positions: Positions) -> bool:
    """Return whether gaps are counted a byte at a time, which is faster for a quarter and more of the positions."""
    return 4 * positions.count >= positions.numel


def count_gaps(positions: Positions, shift: int) -> np.ndarray:
    """Return how often each symbol of `gap_table` occurs, int64 of shape (GAP_SYMBOLS,).

    A dense set's positions are not listed for this: most gaps lie within a byte, and follow from how often it occurs.
    """
    counts = positions.gap_counts.get(shift)
    if counts is None:
        if shift == 0 and is_dense(positions):
            counts = _count_gaps_of_bytes(positions.writable_packed, positions.byte_counts)
        else:
            counts = _count_gaps(positions.indices, shift)
        positions.gap_counts[shift] = counts
    return counts
