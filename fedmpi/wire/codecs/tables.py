"""Frequency tables of rANS that are sent with the symbols, from integers alone.

A table of counts is sent, so its frequencies are first rounded to a grid of 1 to 16 steps an octave, few steps for few
symbols. Only one frequency, usually the largest, is not on the grid: it is what the others leave of 2^scale_bits, and
is not sent.

The bytes of `put_tables` are a bit stream (see `bitpack`). For each table: a bit that is 0 if all of it is 0, else
runs of absent and present symbols in turn, the first of absent symbols and its length plus 1, as Elias gamma codes,
until they add up to the alphabet; then, for two or more present symbols, log2 of the grid's steps (3 bits), the Rice
parameter (3 bits), the rank of the symbol not sent among the present ones (as many bits as the greatest rank has), and
for each other present symbol the difference of its grid index to that before it (the first: to 0), zigzag, Rice coded.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.bitpack import new_stream, put_bits, stream_bytes, stream_of, take_bits
from fedmpi.wire.codecs.rans import MAX_SCALE_BITS

_MAX_GRID_BITS = 4
_MAX_RICE = 7
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_THREE = np.uint64(3)


@njit(cache=True)
def _index_of(freq, bits):  # type: ignore[no-untyped-def]
    """Return the index of the highest grid value up to `freq`: 2^(bits+1) whole numbers, then 2^bits an octave."""
    exponent = 0
    while freq >> exponent >= np.int64(2) << bits:
        exponent += 1
    return (exponent << bits) + (freq >> exponent)


@njit(cache=True)
def _value_of(index, bits):  # type: ignore[no-untyped-def]
    if index >> bits < 2:
        return index
    exponent = (index >> bits) - 1
    return (index - (exponent << bits)) << exponent


@njit(cache=True)
def _quantize(counts, scale_bits, freqs):  # type: ignore[no-untyped-def]
    """Fill `freqs` (int64); return False if the counts are too large."""
    total = 0
    present = 0
    first = 0
    for symbol in range(counts.size):
        total += counts[symbol]
        present += counts[symbol] > 0
        if counts[symbol] > counts[first]:
            first = symbol
    if total == 0:
        return
    # Twice the steps save about total * 0.0217 / steps^2 bits of symbols and cost a bit for each frequency sent.
    bits = 0
    while bits < _MAX_GRID_BITS and total > (np.int64(46) << (2 * bits)) * present:
        bits += 1
    rest = np.int64(1) << scale_bits
    for symbol in range(counts.size):
        if counts[symbol] > 0 and symbol != first:
            # A float only chooses: the decoder reads the outcome.
            wanted = np.float64(counts[symbol]) / np.float64(total) * np.float64(np.int64(1) << scale_bits)
            index = max(_index_of(np.int64(wanted), bits), np.int64(1))
            if _value_of(index + 1, bits) - wanted < wanted - _value_of(index, bits):
                index += 1
            freqs[symbol] = _value_of(index, bits)
            rest -= freqs[symbol]
    # Rounded up, or up to 1, the others can leave too little.
    wanted = np.float64(counts[first]) / np.float64(total) * np.float64(np.int64(1) << scale_bits)
    while np.float64(rest) < 0.75 * wanted:
        largest = -1
        for symbol in range(counts.size):
            if symbol != first and freqs[symbol] > 1 and (largest < 0 or freqs[symbol] > freqs[largest]):
                largest = symbol
        if largest < 0:
            break
        lower = _value_of(_index_of(freqs[largest], bits) - 1, bits)
        rest += freqs[largest] - lower
        freqs[largest] = lower
    freqs[first] = rest


@njit(cache=True)
def _put_gamma(stream, position, number):  # type: ignore[no-untyped-def]
    nbits = _ONE
    while number >> nbits:
        nbits += _ONE
    position = put_bits(stream, position + nbits - _ONE, _ONE, _ONE)
    return put_bits(stream, position, number & ((_ONE << (nbits - _ONE)) - _ONE), nbits - _ONE)


@njit(cache=True)
def _rank_nbits(present):  # type: ignore[no-untyped-def]
    nbits = _ZERO
    while (present - _ONE) >> nbits:
        nbits += _ONE
    return nbits


@njit(cache=True)
def _zigzags(freqs, implied, bits, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the zigzag differences of the grid indices; return their number, or -1 if one is off the grid."""
    before = 0
    count = 0
    for symbol in range(freqs.size):
        if freqs[symbol] > 0 and symbol != implied:
            index = _index_of(freqs[symbol], bits)
            if _value_of(index, bits) != freqs[symbol]:
                return -1
            step = index - before
            out[count] = 2 * step if step >= 0 else -2 * step - 1
            before = index
            count += 1
    return count


@njit(cache=True)
def _put_table(freqs, stream, position, zigzags):  # type: ignore[no-untyped-def]
    """Write a table; return the position after it, or 0 if more than one frequency is off every grid."""
    present = _ZERO
    largest = 0
    odd = -1
    for symbol in range(freqs.size):
        if freqs[symbol] > 0:
            present += _ONE
            if freqs[symbol] > freqs[largest]:
                largest = symbol
            if _value_of(_index_of(freqs[symbol], _MAX_GRID_BITS), _MAX_GRID_BITS) != freqs[symbol]:
                odd = symbol
    if present == _ZERO:
        return position + _ONE
    position = put_bits(stream, position, _ONE, _ONE)
    start = 0
    absent = True
    while start < freqs.size:
        end = start
        while end < freqs.size and (freqs[end] == 0) == absent:
            end += 1
        position = _put_gamma(stream, position, np.uint64(end - start + (absent and start == 0)))
        start = end
        absent = not absent
    if present == _ONE:
        return position
    # The frequency that is not sent: the odd one if there is one, else the largest, unless a coarser grid has another.
    bits = 0
    implied = largest
    count = _zigzags(freqs, implied, bits, zigzags)
    while count < 0:
        bits += 1
        if bits > _MAX_GRID_BITS:
            if implied == odd or odd < 0:
                return _ZERO
            bits = 0
            implied = odd
        count = _zigzags(freqs, implied, bits, zigzags)
    rice, fewest = 0, 1 << 62
    for candidate in range(_MAX_RICE + 1):
        nbits = 0
        for i in range(count):
            nbits += (zigzags[i] >> candidate) + 1 + candidate
        if nbits < fewest:
            rice, fewest = candidate, nbits
    rank = _ZERO
    for symbol in range(implied):
        rank += np.uint64(freqs[symbol] > 0)
    position = put_bits(stream, position, np.uint64(bits), _THREE)
    position = put_bits(stream, position, np.uint64(rice), _THREE)
    position = put_bits(stream, position, rank, _rank_nbits(present))
    for i in range(count):
        position += np.uint64(zigzags[i] >> rice)  # zeros
        position = put_bits(stream, position, _ONE, _ONE)
        low = np.uint64(zigzags[i] & ((np.int64(1) << rice) - 1))
        position = put_bits(stream, position, low, np.uint64(rice))
    return position


@njit(cache=True)
def _take_unary(stream, position, end):  # type: ignore[no-untyped-def]
    """Return the number of zeros before the next one, and the position after it, beyond `end` if there is none."""
    zeros = _ZERO
    while position < end and take_bits(stream, position, _ONE) == _ZERO:
        zeros += _ONE
        position += _ONE
    return zeros, position + _ONE


@njit(cache=True)
def _take_table(stream, position, end, scale_bits, freqs):  # type: ignore[no-untyped-def]
    """Fill `freqs`, zeros (int64); return the position after the table, or one beyond `end` if it is not one.

    Every field is at most 8 bits, so that a field after the last bit still lies in the padding of `stream`.
    """
    bad = end + _ONE
    if position >= end:
        return bad
    if take_bits(stream, position, _ONE) == _ZERO:
        return position + _ONE
    position += _ONE
    start = np.int64(0)
    present = _ZERO
    absent = True
    while start < freqs.size:
        nbits, position = _take_unary(stream, position, end)
        if position > end or nbits > np.uint64(9):
            return bad
        run = np.int64((_ONE << nbits) | take_bits(stream, position, nbits)) - (absent and start == 0)
        position += nbits
        if run > freqs.size - start:
            return bad
        if not absent:
            freqs[start : start + run] = 1
            present += np.uint64(run)
        start += run
        absent = not absent
    if present == _ZERO or position > end:
        return bad
    rest = np.int64(1) << scale_bits
    rank = _ZERO
    if present > _ONE:
        bits = np.int64(take_bits(stream, position, _THREE))
        rice = take_bits(stream, position + _THREE, _THREE)
        rank = take_bits(stream, position + np.uint64(6), _rank_nbits(present))
        position += np.uint64(6) + _rank_nbits(present)
        if position > end or bits > _MAX_GRID_BITS or rank >= present:
            return bad
        highest = _index_of(rest, bits)
        index = np.int64(0)
        seen = _ZERO
        for symbol in range(freqs.size):
            if freqs[symbol] == 0:
                continue
            if seen != rank:
                zeros, position = _take_unary(stream, position, end)
                if position > end:
                    return bad
                zigzag = np.int64((zeros << rice) | take_bits(stream, position, rice))
                position += rice
                index += zigzag >> 1 if zigzag & 1 == 0 else -(zigzag >> 1) - 1
                if index < 1 or index > highest:
                    return bad
                freqs[symbol] = _value_of(index, bits)
                rest -= freqs[symbol]
            seen += _ONE
    if rest < 1 or position > end:
        return bad
    seen = _ZERO
    for symbol in range(freqs.size):
        if freqs[symbol] > 0:
            if seen == rank:
                freqs[symbol] = rest
            seen += _ONE
    return position


def quantize_counts(counts: np.ndarray, scale_bits: int) -> np.ndarray:
    """Return the frequencies that counts are coded with, such as `put_table` can send.

    Parameters
    ----------
    counts : numpy.ndarray, shape (S,), integers from 0, in all below 2^62
        S is at most 256.
    scale_bits : int
        At most 15, and 2^scale_bits at least the number of counts above 0.

    Returns
    -------
    numpy.ndarray, shape (S,), uint32
        They add up to 2^scale_bits, and are 0 just where the count is 0. All are 0 if all counts are.
    """
    freqs = np.zeros(counts.size, np.int64)
    _check_scale(counts.size, scale_bits)
    if np.count_nonzero(counts) > 1 << scale_bits:
        raise ValueError(f"{np.count_nonzero(counts)} symbols do not fit frequencies of 2^{scale_bits}")
    _quantize(counts.astype(np.int64), scale_bits, freqs)
    return freqs.astype(np.uint32)


def put_tables(freqs: np.ndarray) -> np.ndarray:
    """Return the bytes of tables, shape (C, S), each as `quantize_counts` made it; a table of zeros takes one bit.

    Raises
    ------
    ValueError
        If a table has two frequencies that are not on its grid.
    """
    tables = freqs.astype(np.int64)
    num_tables, alphabet = tables.shape
    stream = new_stream(num_tables * _most_nbits(alphabet))
    zigzags = np.zeros(alphabet, np.int64)
    position = _ZERO
    for table in tables:
        position = np.uint64(_put_table(table, stream, position, zigzags))
        if position == _ZERO:
            raise ValueError("a table to send is not from quantize_counts")
    return stream_bytes(stream, int(position))


def take_tables(
    payload: np.ndarray, num_tables: int, alphabet: int, scale_bits: int, where: str, offset: int
) -> tuple[np.ndarray, int]:
    """Read tables from the start of a payload.

    Returns
    -------
    freqs : numpy.ndarray, shape (num_tables, alphabet), uint32
        Each row adds up to 2^scale_bits or is all 0.
    nbytes : int
        How much of the payload they took.

    Raises
    ------
    WireError
        If the bytes are not such tables.
    """
    _check_scale(alphabet, scale_bits)
    # What comes behind the longest tables is not copied.
    head = payload[: num_tables * _most_nbits(alphabet) // 8 + 1]
    stream = stream_of(head)
    end = np.uint64(8 * head.size)
    freqs = np.zeros((num_tables, alphabet), np.int64)
    position = _ZERO
    for number, table in enumerate(freqs):
        start = int(position) // 8
        position = np.uint64(_take_table(stream, position, end, scale_bits, table))
        if position > end:
            expected = f"frequencies of {alphabet} symbols that add up to {1 << scale_bits}"
            raise WireError(f"{where} table {number}", offset=offset + start, expected=expected, got="other bits")
    nbytes = (int(position) + 7) // 8
    if position % 8 and head[nbytes - 1] >> (int(position) % 8):
        last = int(head[nbytes - 1])
        raise WireError(f"{where} tables", offset=offset + nbytes - 1, expected="zeros at the end", got=last)
    return freqs.astype(np.uint32), nbytes


def put_table(freqs: np.ndarray) -> np.ndarray:
    """Return the bytes of one table, shape (S,); see `put_tables`."""
    return put_tables(freqs[None, :])


def take_table(payload: np.ndarray, alphabet: int, scale_bits: int, where: str, offset: int) -> tuple[np.ndarray, int]:
    """Read one table, shape (alphabet,), and the number of its bytes; see `take_tables`."""
    freqs, nbytes = take_tables(payload, 1, alphabet, scale_bits, where, offset)
    return freqs[0], nbytes


def _most_nbits(alphabet: int) -> int:
    """Return a bound of a table's bits: 2 a symbol for the runs, 11 for a difference with Rice parameter 7."""
    return 32 + 16 * alphabet


def _check_scale(alphabet: int, scale_bits: int) -> None:
    if not 1 <= scale_bits <= MAX_SCALE_BITS or not 1 <= alphabet <= 256:
        raise ValueError(f"no table of {alphabet} symbols and 2^{scale_bits}: at most 256 and 2^{MAX_SCALE_BITS}")
