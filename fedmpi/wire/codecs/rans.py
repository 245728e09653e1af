"""Range asymmetric numeral systems (rANS; Duda, arXiv:1311.2540) with four interleaved lanes.

A payload is the four lane states that the encoder ended with (uint32), then the words (uint16) in the order in which
the decoder reads them, all little-endian; no symbols make an empty payload. Lane i % 4 codes symbol i. States stay in
[2^15, 2^31), and every lane starts (for the decoder: ends) at 2^15. Tables are integers, so the same symbols give the
same bytes everywhere.

A step writes its word always and moves the position by the outcome of a comparison: whether the word counts is as
good as random, so a branch costs twenty times as much. Positions and states are unsigned throughout: numba turns a sum
of an unsigned and a signed integer into a float, and a signed index into a test for the end of the array.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError

MAX_SCALE_BITS = 15
"""The frequencies of a table add up to at most 2^15, the lowest state."""

BIT_SCALE_BITS = 12
"""A bit's probability comes in units of 2^-12."""

STATES_NBYTES = 16
"""Four lane states of 4 bytes."""

_ALPHABET = 256
_LANES = np.uint64(4)
_LOW = np.uint64(1 << 15)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)
_WORD_NBITS = np.uint64(16)
_WORD_MASK = np.uint64(0xFFFF)
_STATE_NBITS = np.uint64(31)
_BIT_SCALE = np.uint64(BIT_SCALE_BITS)
_BIT_TOTAL = np.uint64(1 << BIT_SCALE_BITS)
_BIT_MASK = np.uint64((1 << BIT_SCALE_BITS) - 1)
_SHIFT_AT = np.uint64(48)
_RECIPROCAL_MASK = np.uint64((1 << 48) - 1)

_STATE_WORDS = STATES_NBYTES // 2
_HEADROOM = _STATE_WORDS + 1
"""Words below the lowest that an encoder may keep: its states, and the one that a step writes in vain."""


@njit(cache=True)
def _divider(freq):  # type: ignore[no-untyped-def]
    """Return (reciprocal, shift) with x // freq == x * reciprocal >> shift for every x < 2^31.

    With 2^(s-1) < freq <= 2^s and reciprocal = ceil(2^(31+s) / freq) the product is less than 2^63, and its excess
    over x * 2^(31+s) / freq is less than x * 2^-31 * 2^(31+s) / freq (Granlund and Montgomery 1994, theorem 4.2).
    """
    shift = _STATE_NBITS
    while _ONE << (shift - _STATE_NBITS) < freq:
        shift += _ONE
    return ((_ONE << shift) + freq - _ONE) // freq, shift


@njit(cache=True)
def _push(x, start, limit, reciprocal, shift, rest, words, w):  # type: ignore[no-untyped-def]
    """Put a symbol on state `x`; return the new state and the position of the lowest word.

    `limit` is freq * 2^(31 - scale_bits), where the state would leave its range, and `rest` is 2^scale_bits - freq.
    """
    words[w - _ONE] = x & _WORD_MASK
    full = np.uint64(x >= limit)
    x >>= full << _FOUR
    quotient = (x * reciprocal) >> shift
    return x + start + quotient * rest, w - full


@njit(cache=True)
def _refill(x, words, w):  # type: ignore[no-untyped-def]
    """Bring a state that fell below 2^15 back with the next word; return it and the position after."""
    low = np.uint64(x < _LOW)
    return (x << (low << _FOUR)) | (np.uint64(words[w]) * low), w + low


@njit(cache=True)
def _put_state(x, words, at):  # type: ignore[no-untyped-def]
    words[at] = x & _WORD_MASK
    words[at + _ONE] = x >> _WORD_NBITS


@njit(cache=True)
def _put_states(x0, x1, x2, x3, words, w):  # type: ignore[no-untyped-def]
    """Write the states below the words; return the position of the first."""
    w -= np.uint64(_STATE_WORDS)
    _put_state(x0, words, w)
    _put_state(x1, words, w + _TWO)
    _put_state(x2, words, w + _FOUR)
    _put_state(x3, words, w + _FOUR + _TWO)
    return np.int64(w)


@njit(cache=True)
def _state(words, at):  # type: ignore[no-untyped-def]
    return np.uint64(words[at]) | (np.uint64(words[at + _ONE]) << _WORD_NBITS)


@njit(cache=True)
def _push_symbol(x, symbol, table, words, w):  # type: ignore[no-untyped-def]
    t = table[symbol]
    return _push(x, t[0], t[1], t[2], t[3], t[4], words, w)


@njit(cache=True)
def _encode_symbols(symbols, freqs, scale, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end; return the position of the first, or -1 if a symbol has frequency 0."""
    table = np.zeros((_ALPHABET, 8), np.uint64)  # the arguments of _push; a row fills a cache line
    start = _ZERO
    for symbol in range(freqs.size):
        freq = np.uint64(freqs[symbol])
        if freq:
            table[symbol, 0] = start
            table[symbol, 1] = freq << (_STATE_NBITS - scale)
            table[symbol, 2], table[symbol, 3] = _divider(freq)
            table[symbol, 4] = (_ONE << scale) - freq
            start += freq
    x0 = x1 = x2 = x3 = _LOW
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
    return _put_states(x0, x1, x2, x3, words, w)


@njit(cache=True)
def _pull_symbol(x, symbol_of, bounds, scale, words, w):  # type: ignore[no-untyped-def]
    slot = x & ((_ONE << scale) - _ONE)
    symbol = symbol_of[slot]
    bound = np.uint64(bounds[symbol])
    x = (bound >> _WORD_NBITS) * (x >> scale) + slot - (bound & _WORD_MASK)
    x, w = _refill(x, words, w)
    return symbol, x, w


@njit(cache=True)
def _decode_symbols(words, num_words, freqs, scale, symbols):  # type: ignore[no-untyped-def]
    """Fill `symbols`; return whether every state and word came out as an encoder starts with them.

    `words` has four words of padding, as many as a round of the loop may read after the check.
    """
    symbol_of = np.empty(np.int64(1) << np.int64(scale), np.uint8)
    bounds = np.zeros(_ALPHABET, np.uint32)  # freq << 16 | start: at most 2^15 and below 2^15
    start = np.int64(0)
    for symbol in range(freqs.size):
        freq = np.int64(freqs[symbol])
        if freq:
            symbol_of[start : start + freq] = symbol
            bounds[symbol] = freq << 16 | start
            start += freq
    x0, x1 = _state(words, _ZERO), _state(words, _TWO)
    x2, x3 = _state(words, _FOUR), _state(words, _FOUR + _TWO)
    if min(x0, x1, x2, x3) < _LOW or max(x0, x1, x2, x3) >> _STATE_NBITS:
        return False
    w = np.uint64(_STATE_WORDS)
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
    return w == end and x0 == _LOW and x1 == _LOW and x2 == _LOW and x3 == _LOW


@njit(cache=True)
def _push_bit(x, bit, p12, dividers, words, w):  # type: ignore[no-untyped-def]
    p = np.uint64(p12)
    one = np.uint64(bit)
    freq = one * p + (_ONE - one) * (_BIT_TOTAL - p)
    start = (_ONE - one) * p
    divider = dividers[freq]
    limit = freq << (_STATE_NBITS - _BIT_SCALE)
    return _push(x, start, limit, divider & _RECIPROCAL_MASK, divider >> _SHIFT_AT, _BIT_TOTAL - freq, words, w)


@njit(cache=True)
def _bit_dividers():  # type: ignore[no-untyped-def]
    """Return what `_divider` gives for every frequency of a bit, packed in one number: shift << 48 | reciprocal."""
    dividers = np.zeros(1 << BIT_SCALE_BITS, np.uint64)
    for freq in range(1, dividers.size):
        reciprocal, shift = _divider(np.uint64(freq))
        dividers[freq] = shift << _SHIFT_AT | reciprocal
    return dividers


_BIT_DIVIDERS: list[np.ndarray] = []
"""The table of `_bit_dividers`, made on first use."""


@njit(cache=True)
def _encode_bits(bits, p12, dividers, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end; return the position of the first, or -1 for a bit or probability out of range."""
    x0 = x1 = x2 = x3 = _LOW
    w = np.uint64(words.size)
    count = np.uint64(bits.size)
    for j in range(count):
        if bits[j] > 1 or p12[j] < 1 or p12[j] > _BIT_MASK:
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
    return _put_states(x0, x1, x2, x3, words, w)


@njit(cache=True)
def _pull_bit(x, p12, words, w):  # type: ignore[no-untyped-def]
    p = np.uint64(p12)
    slot = x & _BIT_MASK
    one = np.uint64(slot < p)
    freq = one * p + (_ONE - one) * (_BIT_TOTAL - p)
    x, w = _refill(freq * (x >> _BIT_SCALE) + slot - (_ONE - one) * p, words, w)
    return np.uint8(one), x, w


@njit(cache=True)
def _decode_bits(words, num_words, p12, bits):  # type: ignore[no-untyped-def]
    """Fill `bits`; return as `_decode_symbols` does."""
    x0, x1 = _state(words, _ZERO), _state(words, _TWO)
    x2, x3 = _state(words, _FOUR), _state(words, _FOUR + _TWO)
    if min(x0, x1, x2, x3) < _LOW or max(x0, x1, x2, x3) >> _STATE_NBITS:
        return False
    w = np.uint64(_STATE_WORDS)
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
    return w == end and x0 == _LOW and x1 == _LOW and x2 == _LOW and x3 == _LOW


def _fresh(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the array itself if a kernel takes it as it is: contiguous and writable, else a copy.

    A read-only array is another type to numba: every kernel would be compiled a second time.
    """
    return np.require(array, dtype, ["C_CONTIGUOUS", "WRITEABLE"])


def _checked_freqs(freqs: np.ndarray, scale_bits: int) -> np.ndarray:
    if not 1 <= scale_bits <= MAX_SCALE_BITS:
        raise ValueError(f"scale_bits must be 1 to {MAX_SCALE_BITS}, got {scale_bits}")
    total = int(freqs.sum(dtype=np.int64))
    if freqs.ndim != 1 or freqs.size > _ALPHABET or total != 1 << scale_bits:
        raise ValueError(
            f"expected at most {_ALPHABET} frequencies that add up to {1 << scale_bits}, "
            f"got {freqs.size} that add up to {total}"
        )
    return _fresh(freqs, "uint32")


def _payload(words: np.ndarray, first: int) -> np.ndarray:
    """Return a copy of the words from `first` on, so that the encoder's larger buffer is not kept."""
    return words[first:].astype("<u2").view(np.uint8)


def _words(payload: np.ndarray, count: int, where: str, offset: int) -> tuple[np.ndarray, int]:
    """Return the payload's words, with padding for the kernels to read, and their number."""
    if payload.size < STATES_NBYTES or payload.size % 2 or payload.size > STATES_NBYTES + 2 * count:
        # No encoder writes more than a word a symbol.
        expected = f"an even number of bytes, {STATES_NBYTES} to {STATES_NBYTES + 2 * count}"
        raise WireError(f"{where} rANS payload", offset=offset, expected=expected, got=payload.size)
    num_words = payload.size // 2
    words = np.zeros(num_words + 4, np.uint16)
    words[:num_words] = np.ascontiguousarray(payload).view("<u2")
    return words, num_words


def _broken(payload: np.ndarray, where: str, offset: int) -> WireError:
    expected = "lane states that end at 2^15 with the last word"
    return WireError(f"{where} rANS payload", offset=offset, expected=expected, got=f"{payload.size} other bytes")


def encode_symbols(symbols: np.ndarray, freqs: np.ndarray, scale_bits: int) -> np.ndarray:
    """Code symbols with one table.

    Parameters
    ----------
    symbols : numpy.ndarray, shape (n,), uint8
    freqs : numpy.ndarray, shape (S,), uint32
        Frequency of each of at most 256 symbols; they add up to 2^scale_bits.
    scale_bits : int
        1 to 15. Above 14 the rounding of the 31-bit states costs more than a finer table gains.

    Returns
    -------
    numpy.ndarray, uint8
        At most 16 + 2 n bytes; none for no symbols.

    Raises
    ------
    ValueError
        If a symbol has frequency 0 or the frequencies do not add up.
    """
    freqs = _checked_freqs(freqs, scale_bits)
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    words = np.empty(symbols.size + _HEADROOM, np.uint16)
    first = _encode_symbols(_fresh(symbols, "uint8"), freqs, np.uint64(scale_bits), words)
    if first < 0:
        raise ValueError("a symbol to encode has frequency 0")
    return _payload(words, first)


def least_nbytes(counts: np.ndarray, freqs: np.ndarray, scale_bits: int) -> int:
    """Return a lower bound of the bytes of symbols that occur so often, without coding them.

    The final states hold up to 64 bits of what they code. A step rounds its state, by up to half a table of a state
    that is twice that or more: over log-uniform states a mean of 0 if symbols occur as often as their frequencies say,
    else at most 0.04 bit for each that does not.
    """
    total = int(counts.sum())
    if total == 0:
        return 0
    coded = counts > 0
    nbits = float(counts[coded] @ (scale_bits - np.log2(freqs[coded])))
    unexpected = float(np.abs(counts - total * (freqs / (1 << scale_bits))).sum())
    return STATES_NBYTES + max(0, int((0.999 * nbits - 0.04 * unexpected - 64) / 8))


def decode_symbols(
    payload: np.ndarray, count: int, freqs: np.ndarray, scale_bits: int, where: str, offset: int
) -> np.ndarray:
    """Return the symbols that `encode_symbols` coded with the same table, uint8 of shape (count,).

    Takes time and memory in proportion to `count`, whatever the payload.

    Raises
    ------
    WireError
        If the payload is not one of `count` symbols.
    """
    freqs = _checked_freqs(freqs, scale_bits)
    if count == 0:
        _refuse_rest(payload, where, offset)
        return np.empty(0, np.uint8)
    words, num_words = _words(payload, count, where, offset)
    symbols = np.empty(count, np.uint8)
    if not _decode_symbols(words, num_words, freqs, np.uint64(scale_bits), symbols):
        raise _broken(payload, where, offset)
    return symbols


def encode_bits(bits: np.ndarray, p12: np.ndarray) -> np.ndarray:
    """Code bits, each with a probability of its own that the decoder knows as well.

    Parameters
    ----------
    bits : numpy.ndarray, shape (n,), uint8
        0 or 1.
    p12 : numpy.ndarray, shape (n,), uint16
        P(bit = 1) in units of 2^-12, 1 to 4095.

    Returns
    -------
    numpy.ndarray, uint8
        At most 16 + 2 n bytes; none for no bits.

    Raises
    ------
    ValueError
        If the lengths differ, or a bit or probability is out of range.
    """
    if bits.size != p12.size:
        raise ValueError(f"expected one probability for each of {bits.size} bits, got {p12.size}")
    if bits.size == 0:
        return np.empty(0, np.uint8)
    if not _BIT_DIVIDERS:
        _BIT_DIVIDERS.append(_bit_dividers())
    words = np.empty(bits.size + _HEADROOM, np.uint16)
    first = _encode_bits(_fresh(bits, "uint8"), _fresh(p12, "uint16"), _BIT_DIVIDERS[0], words)
    if first < 0:
        raise ValueError("a bit is not 0 or 1, or its probability is not 1 to 4095")
    return _payload(words, first)


def decode_bits(payload: np.ndarray, p12: np.ndarray, where: str, offset: int) -> np.ndarray:
    """Return the bits that `encode_bits` coded with the same probabilities, uint8 of shape (n,).

    Raises
    ------
    WireError
        If the payload is not one of n bits with these probabilities.
    ValueError
        If a probability is out of range: the receiver's own mistake.
    """
    if p12.size == 0:
        _refuse_rest(payload, where, offset)
        return np.empty(0, np.uint8)
    if p12.min() < 1 or p12.max() >= 1 << BIT_SCALE_BITS:
        raise ValueError("a bit's probability is not 1 to 4095")
    words, num_words = _words(payload, p12.size, where, offset)
    bits = np.empty(p12.size, np.uint8)
    if not _decode_bits(words, num_words, _fresh(p12, "uint16"), bits):
        raise _broken(payload, where, offset)
    return bits


def _refuse_rest(payload: np.ndarray, where: str, offset: int) -> None:
    if payload.size:
        raise WireError(f"{where} rANS payload", offset=offset, expected="no bytes", got=payload.size)
