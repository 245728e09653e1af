"""Kernels that take numbers apart into byte planes and put them together, a cache-sized block at a time.

Plane p holds byte p of every number, the least significant first, of a number that was first folded: its sign bit
stands at the bottom, so that bytes of one plane are alike. Everything is done in unsigned integers of the number's
own width; `constants` holds those that depend on it, in its dtype (see `constants_of`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 4096
_ONE, _TOP, _EIGHT, _FOLD, _UNFOLD, _FLIP = range(6)


def constants_of(width: int, *, is_float: bool, is_step: bool) -> np.ndarray:
    """Return the constants of numbers of `width` bytes, or of the steps between them, unsigned of that width.

    With x >> top the sign bit, ``(x << 1) ^ (x >> top) * fold`` rotates a float's sign to the bottom for fold 1, and
    is the zigzag of a two's complement integer for fold 2^bits - 1; `unfold` takes it back in the same way. With flip
    2^(bits - 1) - 1, ``x ^ (x >> top) * flip`` makes of a float's sign and magnitude an integer in the floats' order,
    and takes it back; two's complement is in order with flip 0.
    """
    bits = 8 * width
    every, top = (1 << bits) - 1, 1 << (bits - 1)
    rotates = is_float and not is_step
    fold, unfold = (1, top) if rotates else (every, every)
    return np.array([1, bits - 1, 8, fold, unfold, top - 1 if is_float else 0], f"u{width}")


@njit(cache=True)
def split(words, base, constants, planes):  # type: ignore[no-untyped-def]
    """Fill `planes` (uint8, width * n) with the bytes of the folded words, or of their steps from `base` if it has any.

    Steps are taken modulo 2^bits, so every bit pattern comes back. Words and base are n of one unsigned dtype; an
    empty base is none.
    """
    one, top, eight, fold, flip = (
        constants[_ONE],
        constants[_TOP],
        constants[_EIGHT],
        constants[_FOLD],
        constants[_FLIP],
    )
    n = words.size
    folded = np.empty(_BLOCK, words.dtype)
    for start in range(0, n, _BLOCK):
        m = min(_BLOCK, n - start)
        x = words[start : start + m]
        if base.size:
            b = base[start : start + m]
            for i in range(m):
                folded[i] = (x[i] ^ (x[i] >> top) * flip) - (b[i] ^ (b[i] >> top) * flip)
        else:
            folded[:m] = x
        for i in range(m):
            folded[i] = (folded[i] << one) ^ (folded[i] >> top) * fold
        # One plane at a time: the compiler makes vector instructions of a loop with one stream in and one out.
        shift = one - one
        for p in range(words.itemsize):
            plane = planes[p * n + start : p * n + start + m]
            for i in range(m):
                plane[i] = folded[i] >> shift
            shift += eight


@njit(cache=True)
def join(planes, base, constants, words):  # type: ignore[no-untyped-def]
    """Fill `words` from a tuple of as many planes as a word has bytes, each of n bytes; `base` as for `split`."""
    one, top, eight, flip = constants[_ONE], constants[_TOP], constants[_EIGHT], constants[_FLIP]
    unfold = constants[_UNFOLD]
    widened = words.dtype.type
    n = words.size
    for start in range(0, n, _BLOCK):
        m = min(_BLOCK, n - start)
        x = words[start : start + m]
        lowest = planes[0][start : start + m]
        for i in range(m):
            x[i] = lowest[i]
        shift = one - one
        for p in range(1, words.itemsize):
            shift += eight
            plane = planes[p][start : start + m]
            for i in range(m):
                x[i] |= widened(plane[i]) << shift
        for i in range(m):
            x[i] = (x[i] >> one) ^ (x[i] & one) * unfold
        if base.size:
            b = base[start : start + m]
            for i in range(m):
                x[i] += b[i] ^ (b[i] >> top) * flip
            for i in range(m):
                x[i] ^= (x[i] >> top) * flip


@njit(cache=True)
def histogram(symbols):  # type: ignore[no-untyped-def]
    """Return how often each byte occurs, (256,) int64."""
    # Four tables: equal bytes in a row would each wait for the count before them.
    counts = np.zeros((4, 256), np.int64)
    whole = symbols.size - symbols.size % 4
    for i in range(0, whole, 4):
        counts[0, symbols[i]] += 1
        counts[1, symbols[i + 1]] += 1
        counts[2, symbols[i + 2]] += 1
        counts[3, symbols[i + 3]] += 1
    for i in range(whole, symbols.size):
        counts[0, symbols[i]] += 1
    return counts.sum(axis=0)
