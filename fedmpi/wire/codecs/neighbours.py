"""What the left and upper neighbours of a symbol say about it: their class, of twelve, and each class's counts.

Symbols are uint8 below 2^bits, seen as maps of H rows and W columns: the last two dimensions of their shape;
two dimensions are one map, a vector is one row. `level` is the symbol that stands for 0. In each map

* left is the symbol in the column before and up the symbol in the row before, both of the same map;
* in the first row up is left, in the first column left is up, and for the first symbol both are `level`.

With k = max(bits - 5, 0), the class of a symbol follows from s = left + up - 2 level, in integers:

* level = 0: class 0 for s = 0, else max(1, h - 2 k), where h counts half octaves: h = 1 for s = 1, and for s >= 2, of n
  binary digits, h = 2 n - 2 + (the digit after the leading one). So s = 1, 2, 3, 4-5, 6-7, 8-11, ... up to 5 bits.
  At most 11.
* level > 0: class 5 for s = 0, else 5 + t for s > 0 and 5 - t for s < 0, where t = min(5, max(1, n - k)) and n is the
  number of binary digits of |s|: octaves.

The higher the class, the higher the neighbours. Classes that come after each other share a table where that costs fewer
bits than two tables take.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

NUM_CLASSES = 12
"""Classes of neighbours; not all occur for few bits or a level above 0."""

STARTS_NBYTES = 2
"""What it takes to say which classes begin a table."""

_TABLE_NBITS = 24
_FREQUENCY_NBITS = 4
"""What a table costs, about, and each of its frequencies: these choose, the bytes are counted afterwards."""

_ALPHABET = 256
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_EIGHT = np.uint64(8)


class Classified(NamedTuple):
    """Symbols' classes, and how often each symbol occurs in each class.

    Attributes
    ----------
    classes : numpy.ndarray, shape (n,), uint8
    counts : numpy.ndarray, shape (NUM_CLASSES, 2^bits), int64
    """

    classes: np.ndarray
    counts: np.ndarray


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of maps, of rows and of columns of symbols of a shape."""
    rows = shape[-2] if len(shape) > 1 else 1
    maps = 1
    for length in shape[:-2]:
        maps *= length
    return maps, rows, shape[-1]


@lru_cache(maxsize=64)
def class_table(bits: int, level: int) -> np.ndarray:
    """Return the class for each left + up, 0 to 2 (2^bits - 1), uint8; see the module."""
    coarser = max(bits - 5, 0)
    classes = np.zeros(2 * _ALPHABET - 1, np.uint8)
    for total in range(2 * (1 << bits) - 1):
        s = total - 2 * level
        digits = abs(s).bit_length()
        if level:
            octaves = min(5, max(1, digits - coarser))
            classes[total] = 5 + (octaves if s > 0 else -octaves if s < 0 else 0)
        elif s:
            half_octaves = s if s < 2 else 2 * digits - 2 + (s >> (digits - 2) & 1)
            classes[total] = max(1, half_octaves - 2 * coarser)
    return classes


@njit(cache=True)
def _classify(symbols, maps, rows, columns, level, class_of, classes, counts):  # type: ignore[no-untyped-def]
    """Fill `classes` and `counts`, uint32 of shape (2, NUM_CLASSES * 256): neighbouring symbols count apart."""
    i = _ZERO
    for _ in range(maps):
        for row in range(rows):
            step = columns if row else _ONE  # how far back `up` is; in the first row it is `left`
            left = np.uint64(symbols[i - columns]) if row else level
            for column in range(columns):
                up = np.uint64(symbols[i - step]) if column else left
                symbol = np.uint64(symbols[i])
                found = class_of[left + up]
                classes[i] = found
                counts[i & _ONE, np.uint64(found) << _EIGHT | symbol] += np.uint32(1)
                left = symbol
                i += _ONE


def classify(symbols: np.ndarray, shape: tuple[int, ...], bits: int, level: int) -> Classified:
    """Return the class of each symbol, and the counts of symbols by class.

    Parameters
    ----------
    symbols : numpy.ndarray, shape (n,), uint8
        Below 2^bits: this is not checked.
    shape : tuple of int
        What the symbols are read as; n numbers.
    bits : int
        1 to 8.
    level : int
        The symbol that stands for 0.
    """
    maps, rows, columns = map_shape(shape)
    classes = np.empty(symbols.size, np.uint8)
    counts = np.zeros((2, NUM_CLASSES * _ALPHABET), np.uint32)
    if symbols.size:
        fresh = np.require(symbols, np.uint8, ["C", "W"])
        _classify(fresh, maps, rows, np.uint64(columns), np.uint64(level), class_table(bits, level), classes, counts)
    by_class = counts.sum(axis=0, dtype=np.int64).reshape(NUM_CLASSES, _ALPHABET)
    return Classified(classes, np.ascontiguousarray(by_class[:, : 1 << bits]))


@njit(cache=True)
def _group(counts, starts):  # type: ignore[no-untyped-def]
    """Fill `starts`, whether a class begins a table; return about how many bits that and a single table take.

    Bellman's recursion over where the last table begins, for each number of leading classes.
    """
    num_classes, alphabet = counts.shape
    cost = np.zeros(num_classes + 1)
    begin = np.zeros(num_classes, np.int64)
    single = 0.0
    summed = np.zeros(alphabet, np.int64)
    for last in range(num_classes):
        summed[:] = 0
        for first in range(last, -1, -1):
            total, present, weighted = 0, 0, 0.0
            for symbol in range(alphabet):
                summed[symbol] += counts[first, symbol]
                count = summed[symbol]
                if count:
                    total += count
                    present += 1
                    weighted += count * np.log2(count)
            bits = _TABLE_NBITS + _FREQUENCY_NBITS * present - weighted
            if total:
                bits += total * np.log2(total)
            # Of equal costs the fewest tables: a class that does not occur must not have one.
            if first == last or cost[first] + bits <= cost[last + 1]:
                cost[last + 1] = cost[first] + bits
                begin[last] = first
            single = bits
    last = num_classes - 1
    while last >= 0:
        starts[begin[last]] = 1
        last = begin[last] - 1
    return cost[num_classes], single


class Grouped(NamedTuple):
    """Which classes share a table, and what that takes.

    Attributes
    ----------
    starts : numpy.ndarray, shape (NUM_CLASSES,), uint8
        1 where a class begins a table, as class 0 does.
    nbits, single_nbits : float
        About how many bits the symbols take with these tables, and with one for all; tables counted.
    """

    starts: np.ndarray
    nbits: float
    single_nbits: float


def group(counts: np.ndarray) -> Grouped:
    """Choose which neighbouring classes share a table, so that tables and symbols take the fewest bits."""
    starts = np.zeros(NUM_CLASSES, np.uint8)
    nbits, single_nbits = _group(counts, starts)
    return Grouped(starts, nbits + 8 * STARTS_NBYTES, single_nbits)
