"""Exact selection of the largest magnitudes on the CPU: radix histograms behind a sampled first threshold.

The magnitudes of float32 numbers are ordered as their bits without the sign are, read as integers. Those integers, the
keys, are compared throughout: -0.0 equals 0.0, subnormal numbers keep their order whatever the processor's mode, and
NaN is above infinity. A sample gives a threshold that is very likely passed by somewhat more than k numbers; these few
are collected in one pass over the vector and the selection goes on among them. Where too few or far too many pass it,
the same is done among all numbers: the sample decides the time, never the result.
"""

from __future__ import annotations

import numpy as np
from numba import njit

MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits of a float32 but the sign."""

INFINITY = np.int32(0x7F800000)
"""The key of infinity; every NaN has a larger one."""

_KEY_NBITS = 31
_BLOCK = 16
_NUM_SAMPLES = 1 << 14
MIN_SAMPLED = 1 << 15


@njit(cache=True)
def _threshold_of(words: np.ndarray, k: int) -> tuple[int, int]:
    """Return the k-th largest key of `words`, and how many words of just this key are among the k largest."""
    # Digits of 11 bits make three passes; their histograms would cost more than the passes over few numbers.
    width = 11 if words.size >= 4096 else 8
    counts = np.zeros(1 << width, np.int64)
    rest = _KEY_NBITS
    prefix = np.int64(0)
    while rest > 0:
        above = rest
        rest = max(0, above - width)
        mask = (1 << (above - rest)) - 1
        counts[:] = 0
        for word in words:
            key = np.int64(word & MAGNITUDE)
            if key >> above == prefix:
                counts[(key >> rest) & mask] += 1
        digit = mask
        while counts[digit] < k:
            k -= counts[digit]
            digit -= 1
        prefix = prefix << (above - rest) | digit
    return int(prefix), k


@njit(cache=True)
def _collect(words: np.ndarray, threshold: int, num_ties: int, out: np.ndarray) -> bool:
    """Write the positions of all keys above the threshold and of the first `num_ties` equal to it, ascending.

    Every position is written and the place advanced only for those that stay, hence the room for one more in `out`:
    a branch would be mispredicted for every tenth number. Returns whether a NaN is among them.
    """
    place = 0
    largest = np.int64(0)
    for position in range(words.size):
        key = np.int64(words[position] & MAGNITUDE)
        largest = max(largest, key)
        out[place] = position
        if key == threshold:
            if num_ties > 0:
                num_ties -= 1
                place += 1
        else:
            place += int(key > threshold)
    return bool(largest > INFINITY)


@njit(cache=True)
def _candidates(words: np.ndarray, floor: np.int32, positions: np.ndarray, keys: np.ndarray) -> int:
    """Collect positions and keys of all keys from `floor` on; return their number, or -1 if there is no room for them.

    Most blocks hold none where few are wanted, and the compiler makes one vector comparison of a block's question.
    """
    place = 0
    size = words.size
    last = positions.size - _BLOCK
    for start in range(0, size - size % _BLOCK, _BLOCK):
        found = False
        for position in range(start, start + _BLOCK):
            found |= (words[position] & MAGNITUDE) >= floor
        if found:
            if place > last:
                return -1
            for position in range(start, start + _BLOCK):
                key = words[position] & MAGNITUDE
                positions[place] = position
                keys[place] = key
                place += int(key >= floor)
    if place > last:
        return -1
    for position in range(size - size % _BLOCK, size):
        key = words[position] & MAGNITUDE
        positions[place] = position
        keys[place] = key
        place += int(key >= floor)
    return place


@njit(cache=True)
def _largest_of_few(words: np.ndarray, k: int, out: np.ndarray) -> int:
    """Do as `_largest` does by way of a sample; return -1 if the sample misled, else whether there is a NaN."""
    stride = words.size // _NUM_SAMPLES
    sample = np.empty(words.size // stride, np.int32)
    for i in range(sample.size):
        sample[i] = words[i * stride]
    expected = k / stride
    rank = min(sample.size, int(1.1 * expected + 4.0 * np.sqrt(expected) + 8.0))
    floor, _ = _threshold_of(sample, rank)
    room = min(words.size, 2 * rank * stride) + _BLOCK
    positions = np.empty(room, np.int64)
    keys = np.empty(room, np.int32)
    count = _candidates(words, np.int32(floor), positions, keys)
    if count < k:
        return -1
    threshold, num_ties = _threshold_of(keys[:count], k)
    has_nan = _collect(keys[:count], threshold, num_ties, out)
    for i in range(k):
        out[i] = positions[out[i]]
    return int(has_nan)


@njit(cache=True)
def _largest(words: np.ndarray, k: int, out: np.ndarray) -> bool:
    """Write the positions of the k largest magnitudes, ascending, into `out` of k + 1; return whether there is a NaN.

    The largest key is always among those looked at last, so a NaN shows there.
    """
    if words.size >= MIN_SAMPLED and k <= words.size // 4:
        answer = _largest_of_few(words, k, out)
        if answer >= 0:
            return answer > 0
    threshold, num_ties = _threshold_of(words, k)
    return _collect(words, threshold, num_ties, out)


@njit(cache=True)
def largest_by_segment(words: np.ndarray, offsets: np.ndarray, counts: np.ndarray, out: np.ndarray) -> bool:
    """Write the positions of the largest magnitudes of each segment, ascending; ties go to the lowest position.

    Parameters
    ----------
    words : numpy.ndarray, shape (P,), int32
        The bits of float32 numbers.
    offsets : numpy.ndarray, shape (L + 1,), int64
        Segment l is ``words[offsets[l] : offsets[l + 1]]``.
    counts : numpy.ndarray, shape (L,), int64
        How many of each, from 1 to its length; 0 only of an empty segment.
    out : numpy.ndarray, shape (sum of counts + 1,), int64
        The last place is scratch.

    Returns
    -------
    bool
        Whether there is a NaN; `out` means nothing then.
    """
    place = 0
    for segment in range(counts.size):
        start = offsets[segment]
        k = counts[segment]
        if k > 0:
            here = out[place : place + k + 1]
            if _largest(words[start : offsets[segment + 1]], k, here):
                return True
            here[:k] += start
            place += k
    return False


@njit(cache=True)
def kth_largest_of_rows(words: np.ndarray, k: int) -> np.ndarray:
    """Return the k-th largest magnitude of each row, as the bits of float32.

    Parameters
    ----------
    words : numpy.ndarray, shape (R, N), int32, C-contiguous
        The bits of float32 numbers without a NaN.
    k : int
        From 1 to N.

    Returns
    -------
    numpy.ndarray, shape (R,), int32
    """
    found = np.empty(words.shape[0], np.int32)
    for row in range(words.shape[0]):
        found[row], _ = _threshold_of(words[row], k)
    return found
