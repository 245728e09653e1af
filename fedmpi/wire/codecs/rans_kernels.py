"""Kernels of rANS: a step of a lane and its way back, and the loops over symbols of one table and over bits.

States stay in [2^15, 2^31), and every lane starts (for the decoder: ends) at 2^15. A step writes its word always and
moves the position by the outcome of a comparison: whether the word counts is as good as random, so a branch costs
twenty times as much. Positions and states are unsigned throughout: numba turns a sum of an unsigned and a signed
integer into a float, and a signed index into a test for the end of the array.

numba does not notice that a kernel cached elsewhere is older than one of this file that it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError

BIT_SCALE_BITS = 12
"""A bit's probability comes in units of 2^-12."""

STATES_NBYTES = 16
"""Four lane states of 4 bytes."""

ALPHABET = 256
"""Symbols are bytes."""

LOW = np.uint64(1 << 15)
"""The lowest state, with which a lane starts."""

STATE_NBITS = np.uint64(31)

STATE_WORDS = STATES_NBYTES // 2

SHIFT_AT = np.uint64(48)
RECIPROCAL_MASK = np.uint64((1 << 48) - 1)
"""Where the two numbers of `divider` are in one: shift << 48 | reciprocal."""

_LANES = np.uint64(4)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)
_WORD_NBITS = np.uint64(16)
_WORD_MASK = np.uint64(0xFFFF)
_BIT_SCALE = np.uint64(BIT_SCALE_BITS)
_BIT_TOTAL = np.uint64(1 << BIT_SCALE_BITS)
_BIT_MASK = np.uint64((1 << BIT_SCALE_BITS) - 1)
_PADDING = 4
"""Words after the last that a decoder may read before it checks."""


@njit(cache=True)
def divider(freq):  # type: ignore[no-untyped-def]
    """Return (reciprocal, shift) with x // freq == x * reciprocal >> shift for every x < 2^31.

    With 2^(s-1) < freq <= 2^s and reciprocal = ceil(2^(31+s) / freq) the product is less than 2^63, and its excess
    over x * 2^(31+s) / freq is less than x * 2^-31 * 2^(31+s) / freq (Granlund and Montgomery 1994, theorem 4.2).
    """
    shift = STATE_NBITS
    while _ONE << (shift - STATE_NBITS) < freq:
        shift += _ONE
    return ((_ONE << shift) + freq - _ONE) // freq, shift


@njit(cache=True)
def push(x, start, limit, reciprocal, shift, rest, words, w):  # type: ignore[no-untyped-def]
    """Put a symbol on state `x`; return the new state and the position of the lowest word.

    `limit` is freq * 2^(31 - scale_bits), where the state would leave its range, and `rest` is 2^scale_bits - freq.
    """
    words[w - _ONE] = x & _WORD_MASK
    full = np.uint64(x >= limit)
    x >>= full << _FOUR
    quotient = (x * reciprocal) >> shift
    return x + start + quotient * rest, w - full


@njit(cache=True)
def refill(x, words, w):  # type: ignore[no-untyped-def]
    """Bring a state that fell below 2^15 back with the next word; return it and the position after."""
    low = np.uint64(x < LOW)
    return (x << (low << _FOUR)) | (np.uint64(words[w]) * low), w + low


@njit(cache=True)
def _put_state(x, words, at):  # type: ignore[no-untyped-def]
    words[at] = x & _WORD_MASK
    words[at + _ONE] = x >> _WORD_NBITS


@njit(cache=True)
def put_states(x0, x1, x2, x3, words, w):  # type: ignore[no-untyped-def]
    """Write the states below the words; return the position of the first."""
    w -= np.uint64(STATE_WORDS)
    _put_state(x0, words, w)
    _put_state(x1, words, w + _TWO)
    _put_state(x2, words, w + _FOUR)
    _put_state(x3, words, w + _FOUR + _TWO)
    return np.int64(w)


@njit(cache=True)
def state(words, at):  # type: ignore[no-untyped-def]
    return np.uint64(words[at]) | (np.uint64(words[at + _ONE]) << _WORD_NBITS)


@njit(cache=True)
def _push_symbol(x, symbol, table, words, w):  # type: ignore[no-untyped-def]
    t = table[symbol]
    return push(x, t[0], t[1], t[2], t[3], t[4], words, w)


@njit(cache=True)
def encode_symbols_into(symbols, freqs, scale, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end; return the position of the first, or -1 if a symbol has frequency 0."""
    table = np.zeros((ALPHABET, 8), np.uint64)  # the arguments of push; a row fills a cache line
    start = _ZERO
    for symbol in range(freqs.size):
        freq = np.uint64(freqs[symbol])
        if freq:
            table[symbol, 0] = start
            table[symbol, 1] = freq << (STATE_NBITS - scale)
            table[symbol, 2], table[symbol, 3] = divider(freq)
            table[symbol, 4] = (_ONE << scale) - freq
            start += freq
    x0 = x1 = x2 = x3 = LOW
    w = np.uint64(words.size)
    count = np.uint64(symbols.size)
    i = count - count % _LANES
    least = _ONE
    for j in range(i, count):
        least = min(least, table[symbols[j], 1])
    if count - i > _TWO:
        x2, w = _push_symbol(x2, symbols[i + _TWO], table, words, w)
    if count - i > _ONE:
        x1, w = _push_symbol(x1, symbols[i + _ONE], table, words, w)
    if count - i > _ZERO:
        x0, w = _push_symbol(x0, symbols[i], table, words, w)
    while i > _ZERO:
        i -= _LANES
        s0, s1, s2, s3 = symbols[i], symbols[i + _ONE], symbols[i + _TWO], symbols[i + _THREE]
        x3, w = _push_symbol(x3, s3, table, words, w)
        x2, w = _push_symbol(x2, s2, table, words, w)
        x1, w = _push_symbol(x1, s1, table, words, w)
        x0, w = _push_symbol(x0, s0, table, words, w)
        least = min(least, table[s0, 1], table[s1, 1], table[s2, 1], table[s3, 1])
    if least == _ZERO:
        return np.int64(-1)
    return put_states(x0, x1, x2, x3, words, w)


@njit(cache=True)
def _pull_symbol(x, symbol_of, bounds, scale, words, w):  # type: ignore[no-untyped-def]
    slot = x & ((_ONE << scale) - _ONE)
    symbol = symbol_of[slot]
    bound = np.uint64(bounds[symbol])
    x = (bound >> _WORD_NBITS) * (x >> scale) + slot - (bound & _WORD_MASK)
    x, w = refill(x, words, w)
    return symbol, x, w


@njit(cache=True)
def decode_symbols_into(words, num_words, freqs, scale, symbols):  # type: ignore[no-untyped-def]
    """Fill `symbols`; return whether every state and word came out as an encoder starts with them.

    `words` has four words of padding, as many as a round of the loop may read after the check.
    """
    symbol_of = np.empty(np.int64(1) << np.int64(scale), np.uint8)
    bounds = np.zeros(ALPHABET, np.uint32)  # freq << 16 | start: at most 2^15 and below 2^15
    start = np.int64(0)
    for symbol in range(freqs.size):
        freq = np.int64(freqs[symbol])
        if freq:
            symbol_of[start : start + freq] = symbol
            bounds[symbol] = freq << 16 | start
            start += freq
    x0, x1 = state(words, _ZERO), state(words, _TWO)
    x2, x3 = state(words, _FOUR), state(words, _FOUR + _TWO)
    if min(x0, x1, x2, x3) < LOW or max(x0, x1, x2, x3) >> STATE_NBITS:
        return False
    w = np.uint64(STATE_WORDS)
    end = np.uint64(num_words)
    count = np.uint64(symbols.size)
    whole = count - count % _LANES
    i = _ZERO
    while i < whole and w <= end:
        symbols[i], x0, w = _pull_symbol(x0, symbol_of, bounds, scale, words, w)
        symbols[i + _ONE], x1, w = _pull_symbol(x1, symbol_of, bounds, scale, words, w)
        symbols[i + _TWO], x2, w = _pull_symbol(x2, symbol_of, bounds, scale, words, w)
        symbols[i + _THREE], x3, w = _pull_symbol(x3, symbol_of, bounds, scale, words, w)
        i += _LANES
    if w > end:
        return False
    if count - whole > _ZERO:
        symbols[whole], x0, w = _pull_symbol(x0, symbol_of, bounds, scale, words, w)
    if count - whole > _ONE:
        symbols[whole + _ONE], x1, w = _pull_symbol(x1, symbol_of, bounds, scale, words, w)
    if count - whole > _TWO:
        symbols[whole + _TWO], x2, w = _pull_symbol(x2, symbol_of, bounds, scale, words, w)
    return w == end and x0 == LOW and x1 == LOW and x2 == LOW and x3 == LOW


@njit(cache=True)
def _push_bit(x, bit, p12, dividers, words, w):  # type: ignore[no-untyped-def]
    p = np.uint64(p12)
    one = np.uint64(bit)
    freq = one * p + (_ONE - one) * (_BIT_TOTAL - p)
    start = (_ONE - one) * p
    divider = dividers[freq]
    limit = freq << (STATE_NBITS - _BIT_SCALE)
    return push(x, start, limit, divider & RECIPROCAL_MASK, divider >> SHIFT_AT, _BIT_TOTAL - freq, words, w)


@njit(cache=True)
def bit_dividers():  # type: ignore[no-untyped-def]
    """Return what `divider` gives for every frequency of a bit, packed in one number: shift << 48 | reciprocal."""
    dividers = np.zeros(1 << BIT_SCALE_BITS, np.uint64)
    for freq in range(1, dividers.size):
        reciprocal, shift = divider(np.uint64(freq))
        dividers[freq] = shift << SHIFT_AT | reciprocal
    return dividers


@njit(cache=True)
def encode_bits_into(bits, p12, dividers, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end; return the position of the first, or -1 for a bit or probability out of range."""
    x0 = x1 = x2 = x3 = LOW
    w = np.uint64(words.size)
    count = np.uint64(bits.size)
    wrong = np.uint16(0)
    for j in range(count):  # without a way out in the middle, many at a time are looked at
        wrong |= np.uint16(bits[j] > 1) | np.uint16(p12[j] < 1) | np.uint16(p12[j] > _BIT_MASK)
    if wrong:
        return np.int64(-1)
    i = count - count % _LANES
    if count - i > _TWO:
        x2, w = _push_bit(x2, bits[i + _TWO], p12[i + _TWO], dividers, words, w)
    if count - i > _ONE:
        x1, w = _push_bit(x1, bits[i + _ONE], p12[i + _ONE], dividers, words, w)
    if count - i > _ZERO:
        x0, w = _push_bit(x0, bits[i], p12[i], dividers, words, w)
    while i > _ZERO:
        i -= _LANES
        x3, w = _push_bit(x3, bits[i + _THREE], p12[i + _THREE], dividers, words, w)
        x2, w = _push_bit(x2, bits[i + _TWO], p12[i + _TWO], dividers, words, w)
        x1, w = _push_bit(x1, bits[i + _ONE], p12[i + _ONE], dividers, words, w)
        x0, w = _push_bit(x0, bits[i], p12[i], dividers, words, w)
    return put_states(x0, x1, x2, x3, words, w)


@njit(cache=True)
def _pull_bit(x, p12, words, w):  # type: ignore[no-untyped-def]
    p = np.uint64(p12)
    slot = x & _BIT_MASK
    one = np.uint64(slot < p)
    freq = one * p + (_ONE - one) * (_BIT_TOTAL - p)
    x, w = refill(freq * (x >> _BIT_SCALE) + slot - (_ONE - one) * p, words, w)
    return np.uint8(one), x, w


@njit(cache=True)
def decode_bits_into(words, num_words, p12, bits):  # type: ignore[no-untyped-def]
    """Fill `bits`; return as `decode_symbols_into` does."""
    x0, x1 = state(words, _ZERO), state(words, _TWO)
    x2, x3 = state(words, _FOUR), state(words, _FOUR + _TWO)
    if min(x0, x1, x2, x3) < LOW or max(x0, x1, x2, x3) >> STATE_NBITS:
        return False
    w = np.uint64(STATE_WORDS)
    end = np.uint64(num_words)
    count = np.uint64(bits.size)
    whole = count - count % _LANES
    i = _ZERO
    while i < whole and w <= end:
        bits[i], x0, w = _pull_bit(x0, p12[i], words, w)
        bits[i + _ONE], x1, w = _pull_bit(x1, p12[i + _ONE], words, w)
        bits[i + _TWO], x2, w = _pull_bit(x2, p12[i + _TWO], words, w)
        bits[i + _THREE], x3, w = _pull_bit(x3, p12[i + _THREE], words, w)
        i += _LANES
    if w > end:
        return False
    if count - whole > _ZERO:
        bits[whole], x0, w = _pull_bit(x0, p12[whole], words, w)
    if count - whole > _ONE:
        bits[whole + _ONE], x1, w = _pull_bit(x1, p12[whole + _ONE], words, w)
    if count - whole > _TWO:
        bits[whole + _TWO], x2, w = _pull_bit(x2, p12[whole + _TWO], words, w)
    return w == end and x0 == LOW and x1 == LOW and x2 == LOW and x3 == LOW


@njit(cache=True)
def least_nbits(counts, freqs, scale_bits):  # type: ignore[no-untyped-def]
    """Return about the least bits, besides four fresh states, that symbols of these counts take; 0 for no symbols.

    The final states hold up to 64 bits of what they code. A step rounds its state, by up to half a table of a state
    that is twice that or more. Over log-uniform states and symbols that occur as often as their frequencies say, this
    is 0 bit in the mean, with a deviation of less than 0.05 bit a step; each symbol that occurs more often or less than
    chance explains may shift the mean by 0.04 bit.
    """
    total = 0.0
    for count in counts:
        total += count
    nbits = total * scale_bits
    unexpected = 0.0
    for symbol in range(freqs.size):
        count = np.float64(counts[symbol])
        wanted = total * freqs[symbol] / (1 << scale_bits)
        unexpected += abs(count - wanted) - np.sqrt(wanted)
        if count > 0:
            nbits -= count * np.log2(np.float64(freqs[symbol]))
    if total == 0:
        return 0.0
    return max(nbits - 0.04 * max(unexpected, 0.0) - 0.15 * np.sqrt(total) - 64, 1.0)


def new_words(count: int) -> np.ndarray:
    """Return room for an encoder: a word a symbol, its states, and the word that a step writes in vain."""
    return np.empty(count + STATE_WORDS + 1, np.uint16)


def payload_of(words: np.ndarray, first: int) -> np.ndarray:
    """Return a copy of the words from `first` on, so that the encoder's larger buffer is not kept."""
    return words[first:].astype("<u2").view(np.uint8)


def words_of(payload: np.ndarray, count: int, where: str, offset: int) -> tuple[np.ndarray, int]:
    """Return the payload's words, with padding for the kernels to read, and their number."""
    if payload.size < STATES_NBYTES or payload.size % 2 or payload.size > STATES_NBYTES + 2 * count:
        # No encoder writes more than a word a symbol.
        expected = f"an even number of bytes, {STATES_NBYTES} to {STATES_NBYTES + 2 * count}"
        raise WireError(f"{where} rANS payload", offset=offset, expected=expected, got=payload.size)
    num_words = payload.size // 2
    words = np.zeros(num_words + _PADDING, np.uint16)
    words[:num_words] = np.ascontiguousarray(payload).view("<u2")
    return words, num_words


def broken(payload: np.ndarray, where: str, offset: int) -> WireError:
    expected = "lane states that end at 2^15 with the last word"
    return WireError(f"{where} rANS payload", offset=offset, expected=expected, got=f"{payload.size} other bytes")
