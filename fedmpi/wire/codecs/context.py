"""Symbols coded by rANS in the context of their neighbours: a frequency table for each class of these, or for a few.

A payload is which classes begin a table of their own (bit i - 1 of a uint16 for class i; class 0 does), the tables
(see `tables`), and the rANS payload (see `rans`), whose order is: while four maps are left, the first symbol of each
by lanes 0 to 3, then the second of each, so that no lane waits for what another decodes; the last maps, fewer than
four, one after the other by lane 0. `neighbours` defines maps and classes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.neighbours import NUM_CLASSES, STARTS_NBYTES, Classified, class_table, map_shape
from fedmpi.wire.codecs.rans_kernels import (
    LOW,
    RECIPROCAL_MASK,
    SHIFT_AT,
    STATE_NBITS,
    STATE_WORDS,
    broken,
    divider,
    new_words,
    payload_of,
    push,
    put_states,
    refill,
    state,
    words_of,
)
from fedmpi.wire.codecs.tables import put_tables, quantize_counts, take_tables

SCALE_BITS = 13
"""The frequencies of a table add up to 2^13: 2^12 takes 0.1 % more for 8 bits, 2^14 more time for the same bytes."""

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)
_EIGHT = np.uint64(8)
_SIXTEEN = np.uint64(16)
_WORD_MASK = np.uint64(0xFFFF)
_SCALE = np.uint64(SCALE_BITS)
_TOTAL = np.uint64(1 << SCALE_BITS)
_SLOT_MASK = np.uint64((1 << SCALE_BITS) - 1)


@njit(cache=True)
def _push_in_context(x, i, symbols, classes, table_of, table, words, w):  # type: ignore[no-untyped-def]
    entry = table_of[classes[i]] | np.uint64(symbols[i])
    bounds, packed = table[entry, 0], table[entry, 1]
    freq = bounds >> _SIXTEEN
    limit = freq << (STATE_NBITS - _SCALE)
    start = bounds & _WORD_MASK
    return push(x, start, limit, packed & RECIPROCAL_MASK, packed >> SHIFT_AT, _TOTAL - freq, words, w)


@njit(cache=True)
def _encode(symbols, classes, maps, map_size, table_of, freqs, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end; return the position of the first."""
    table = np.zeros((freqs.shape[0] << 8, 2), np.uint64)  # freq << 16 | start, shift << 48 | reciprocal
    for number in range(freqs.shape[0]):
        start = _ZERO
        for symbol in range(freqs.shape[1]):
            freq = np.uint64(freqs[number, symbol])
            if freq:
                reciprocal, shift = divider(freq)
                table[number << 8 | symbol, 0] = freq << _SIXTEEN | start
                table[number << 8 | symbol, 1] = shift << SHIFT_AT | reciprocal
                start += freq
    x0 = x1 = x2 = x3 = LOW
    w = np.uint64(words.size)
    i = np.uint64(symbols.size)
    while i > (maps - maps % _FOUR) * map_size:
        i -= _ONE
        x0, w = _push_in_context(x0, i, symbols, classes, table_of, table, words, w)
    while i > _ZERO:
        i -= _FOUR * map_size
        for at in range(map_size):
            j = i + map_size - _ONE - at
            x3, w = _push_in_context(x3, j + map_size * _THREE, symbols, classes, table_of, table, words, w)
            x2, w = _push_in_context(x2, j + map_size * _TWO, symbols, classes, table_of, table, words, w)
            x1, w = _push_in_context(x1, j + map_size, symbols, classes, table_of, table, words, w)
            x0, w = _push_in_context(x0, j, symbols, classes, table_of, table, words, w)
    return put_states(x0, x1, x2, x3, words, w)


def encode_in_context(
    symbols: np.ndarray, shape: tuple[int, ...], classified: Classified, starts: np.ndarray
) -> np.ndarray:
    """Code symbols; return the payload, uint8, empty for no symbols.

    Parameters
    ----------
    symbols, shape
        As `classify` had them, which made `classified`.
    starts : numpy.ndarray, shape (NUM_CLASSES,), uint8
        See `Grouped`.
    """
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    firsts = np.flatnonzero(starts)
    counts = np.add.reduceat(classified.counts, firsts, axis=0)
    freqs = np.stack([quantize_counts(row, SCALE_BITS) for row in counts])
    mask = np.packbits(starts[1:], bitorder="little")
    maps, rows, columns = map_shape(shape)
    words = new_words(symbols.size)
    first = _encode(
        np.require(symbols, np.uint8, ["C", "W"]),
        classified.classes,
        np.uint64(maps),
        np.uint64(rows * columns),
        (np.cumsum(starts, dtype=np.uint64) - 1) << 8,
        freqs,
        words,
    )
    return np.concatenate([mask, put_tables(freqs), payload_of(words, first)])


@njit(cache=True)
def _pull_in_context(x, table, symbol_of, bounds, words, w):  # type: ignore[no-untyped-def]
    slot = x & _SLOT_MASK
    symbol = np.uint64(symbol_of[table << _SCALE | slot])
    bound = np.uint64(bounds[table << _EIGHT | symbol])
    x, w = refill((bound >> _SIXTEEN) * (x >> _SCALE) + slot - (bound & _WORD_MASK), words, w)
    return symbol, x, w


@njit(cache=True)
def _decode(words, num_words, maps, rows, columns, level, table_of, freqs, symbols):  # type: ignore[no-untyped-def]
    """Fill `symbols`; return whether every state and word came out as an encoder starts with them.

    `table_of` has the table for each left + up. `words` has four words of padding, as many as a step may read after
    the check.
    """
    symbol_of = np.empty(freqs.shape[0] << SCALE_BITS, np.uint8)
    bounds = np.zeros(freqs.shape[0] << 8, np.uint32)  # freq << 16 | start
    at = np.int64(0)
    for number in range(freqs.shape[0]):
        start = np.int64(0)
        for symbol in range(freqs.shape[1]):
            freq = np.int64(freqs[number, symbol])
            symbol_of[at : at + freq] = symbol
            bounds[number << 8 | symbol] = freq << 16 | start
            start += freq
            at += freq
    x0, x1 = state(words, _ZERO), state(words, _TWO)
    x2, x3 = state(words, _FOUR), state(words, _FOUR + _TWO)
    if min(x0, x1, x2, x3) < LOW or max(x0, x1, x2, x3) >> STATE_NBITS:
        return False
    w = np.uint64(STATE_WORDS)
    end = np.uint64(num_words)
    map_size = rows * columns
    i0 = _ZERO
    for _ in range(maps >> _TWO):
        i1, i2, i3 = i0 + map_size, i0 + map_size * _TWO, i0 + map_size * _THREE
        for row in range(rows):
            step = columns if row else _ONE  # as in _classify
            left0 = left1 = left2 = left3 = level
            if row:
                left0, left1 = np.uint64(symbols[i0 - step]), np.uint64(symbols[i1 - step])
                left2, left3 = np.uint64(symbols[i2 - step]), np.uint64(symbols[i3 - step])
            for column in range(columns):
                up0, up1, up2, up3 = left0, left1, left2, left3
                if column:
                    up0, up1 = np.uint64(symbols[i0 - step]), np.uint64(symbols[i1 - step])
                    up2, up3 = np.uint64(symbols[i2 - step]), np.uint64(symbols[i3 - step])
                left0, x0, w = _pull_in_context(x0, table_of[left0 + up0], symbol_of, bounds, words, w)
                left1, x1, w = _pull_in_context(x1, table_of[left1 + up1], symbol_of, bounds, words, w)
                left2, x2, w = _pull_in_context(x2, table_of[left2 + up2], symbol_of, bounds, words, w)
                left3, x3, w = _pull_in_context(x3, table_of[left3 + up3], symbol_of, bounds, words, w)
                symbols[i0], symbols[i1], symbols[i2], symbols[i3] = left0, left1, left2, left3
                i0, i1, i2, i3 = i0 + _ONE, i1 + _ONE, i2 + _ONE, i3 + _ONE
                if w > end:
                    return False
        i0 += map_size * _THREE
    for _ in range(maps & _THREE):
        for row in range(rows):
            step = columns if row else _ONE
            left0 = np.uint64(symbols[i0 - step]) if row else level
            for column in range(columns):
                up0 = np.uint64(symbols[i0 - step]) if column else left0
                left0, x0, w = _pull_in_context(x0, table_of[left0 + up0], symbol_of, bounds, words, w)
                symbols[i0] = left0
                i0 += _ONE
                if w > end:
                    return False
    return w == end and x0 == LOW and x1 == LOW and x2 == LOW and x3 == LOW


def decode_in_context(
    payload: np.ndarray, shape: tuple[int, ...], bits: int, level: int, where: str, offset: int
) -> np.ndarray:
    """Return the symbols that `encode_in_context` coded, uint8 of shape (n,), each below 2^bits.

    Takes time and memory in proportion to n, whatever the payload.

    Raises
    ------
    WireError
        If the payload is not one of symbols of this shape.
    """
    maps, rows, columns = map_shape(shape)
    count = maps * rows * columns
    if count == 0 and payload.size == 0:
        return np.empty(0, np.uint8)
    what = f"{where} classes"
    if payload.size < STARTS_NBYTES or count == 0:
        expected = f"{STARTS_NBYTES} bytes" if count else "no bytes"
        raise WireError(what, offset=offset, expected=expected, got=payload.size)
    mask = int(payload[0]) | int(payload[1]) << 8
    if mask >> (NUM_CLASSES - 1):
        raise WireError(what, offset=offset, expected=f"{NUM_CLASSES - 1} bits", got=f"{mask:#x}")
    table_of_class = np.array([(mask & ((1 << i) - 1)).bit_count() for i in range(NUM_CLASSES)], np.uint64)
    num_tables = int(table_of_class[-1]) + 1
    at = offset + STARTS_NBYTES
    freqs, nbytes = take_tables(payload[STARTS_NBYTES:], num_tables, 1 << bits, SCALE_BITS, where, at)
    if not freqs.any(axis=1).all():
        raise WireError(f"{where} tables", offset=at, expected="symbols in every table", got="a table without")
    at += nbytes
    coded = payload[STARTS_NBYTES + nbytes :]
    words, num_words = words_of(coded, count, where, at)
    symbols = np.empty(count, np.uint8)
    sizes = (np.uint64(maps), np.uint64(rows), np.uint64(columns))
    if not _decode(
        words, num_words, *sizes, np.uint64(level), table_of_class[class_table(bits, level)], freqs, symbols
    ):
        raise broken(coded, where, at)
    return symbols
