"""Frequency tables of rANS that follow from a set's size, from integers alone.

They need no bytes: both ends compute them from k and n.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

SET_SCALE_BITS = 14
"""Scale of these tables."""

GAP_SYMBOLS = 48
"""Gaps of 0 to 46 units, and the symbol that says 47 units and more to come."""

_HALF, _LOW, _ROUNDED = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(64 - SET_SCALE_BITS)

_BITS_OF_BYTE = np.array([byte.bit_count() for byte in range(256)])


def _frequencies(weights: list[int], total: int) -> np.ndarray:
    """Return what weights out of `total` are of 2^SET_SCALE_BITS, rounded, none below 1, int64."""
    scale = 1 << SET_SCALE_BITS
    return np.array([max(1, (weight * scale + total // 2) // total) for weight in weights], np.int64)


def _table(freqs: np.ndarray) -> np.ndarray:
    """Make frequencies add up to 2^SET_SCALE_BITS: the likeliest takes or gives what is left."""
    likeliest = int(freqs.argmax())
    freqs[likeliest] += (1 << SET_SCALE_BITS) - freqs.sum()
    assert freqs[likeliest] > 0
    table = freqs.astype(np.uint32)
    table.flags.writeable = False  # it is kept for the next caller
    return table


@lru_cache(maxsize=1024)
def _byte_table(probability: int) -> np.ndarray:
    rest = 65536 - probability
    by_ones = _frequencies([probability**ones * rest ** (8 - ones) for ones in range(9)], 65536**8)
    return _table(by_ones[_BITS_OF_BYTE])


def byte_table(num_kept: int, numel: int) -> np.ndarray:
    """Return the frequencies of the 256 bytes whose 8 bits are each 1 with probability k / n, uint32, read-only.

    The probability is rounded to 2^-16. No frequency is below 1 of 2^14, which costs 0.3 % at k / n = 0.1 and 3 % at
    0.01, and makes a byte of eight positions 14 bits where the probability asks for up to 53: a clustered set takes
    fewer bytes than log2 C(n, k).
    """
    return _byte_table(min(max((num_kept * 65536 + numel // 2) // numel, 1), 65535))


def gap_shift(num_kept: int, numel: int) -> int:
    """Return how many low bits of a gap are sent as they are: as many as keep k / n * 2^shift below 1/4.

    Within so few positions the geometric distribution is flat, to a loss of less than 0.004 bit a gap.
    """
    return max((numel // (4 * num_kept)).bit_length() - 1, 0)


@njit(cache=True)
def _high_word(a, b):  # type: ignore[no-untyped-def]
    """Return a * b >> 64 of uint64s."""
    a_high, a_low = a >> _HALF, a & _LOW
    b_high, b_low = b >> _HALF, b & _LOW
    middle = a_high * b_low + (a_low * b_low >> _HALF)
    return a_high * b_high + (middle >> _HALF) + (a_low * b_high + (middle & _LOW) >> _HALF)


@njit(cache=True)
def _fill_gap_table(stay, shift, freqs):  # type: ignore[no-untyped-def]
    """Fill `freqs` for gaps that go on with probability stay / 2^64."""
    for _ in range(shift):
        stay = _high_word(stay, stay)
    one = np.uint64(1)
    reach = stay
    weight = np.uint64(0) - stay  # of 2^64: what does not go on
    total = np.int64(0)
    likeliest = 0
    for high in range(freqs.size):
        # Rounded to a multiple of 2^-14, none below 1.
        freqs[high] = np.uint32(max((weight >> _ROUNDED) + (weight >> (_ROUNDED - one) & one), one))
        total += np.int64(freqs[high])
        if freqs[high] > freqs[likeliest]:
            likeliest = high
        further = _high_word(reach, stay)
        weight = reach if high == freqs.size - 2 else reach - further
        reach = further
    freqs[likeliest] += np.uint32((np.int64(1) << SET_SCALE_BITS) - total)


@lru_cache(maxsize=1024)
def gap_table(num_kept: int, numel: int, shift: int) -> np.ndarray:
    """Return the frequencies of a gap's high bits in a random set, uint32 of shape (GAP_SYMBOLS,), read-only.

    A gap counts the positions left out before one of the k of n: P(gap >= g) = (1 - k / n)^g.
    """
    stay = ((numel - num_kept) << 64) // numel
    freqs = np.empty(GAP_SYMBOLS, np.uint32)
    _fill_gap_table(np.uint64(stay), np.int64(shift), freqs)
    freqs.flags.writeable = False  # it is kept for the next caller
    return freqs
