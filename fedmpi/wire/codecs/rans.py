"""Range asymmetric numeral systems (rANS; Duda, arXiv:1311.2540) with four interleaved lanes.

A payload is the four lane states that the encoder ended with (uint32), then the words (uint16) in the order in which
the decoder reads them, all little-endian; no symbols make an empty payload. Lane i % 4 codes symbol i. Tables are
integers, so the same symbols give the same bytes everywhere.
"""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.rans_kernels import (
    ALPHABET,
    BIT_SCALE_BITS,
    STATES_NBYTES,
    bit_dividers,
    broken,
    decode_bits_into,
    decode_symbols_into,
    encode_bits_into,
    encode_symbols_into,
    least_nbits,
    new_words,
    payload_of,
    words_of,
)

__all__ = [
    "BIT_SCALE_BITS",
    "MAX_SCALE_BITS",
    "STATES_NBYTES",
    "decode_bits",
    "decode_symbols",
    "encode_bits",
    "encode_symbols",
    "least_nbytes",
]

MAX_SCALE_BITS = 15
"""The frequencies of a table add up to at most 2^15, the lowest state."""

_BIT_DIVIDERS: list[np.ndarray] = []
"""The table of `bit_dividers`, made on first use."""


def _fresh(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the array itself if a kernel takes it as it is: contiguous and writable, else a copy.

    A read-only array is another type to numba: every kernel would be compiled a second time.
    """
    if array.dtype == dtype and array.flags.carray:
        return array
    return np.require(array, dtype, ["C_CONTIGUOUS", "WRITEABLE"])


def _checked_freqs(freqs: np.ndarray, scale_bits: int) -> np.ndarray:
    if not 1 <= scale_bits <= MAX_SCALE_BITS:
        raise ValueError(f"scale_bits must be 1 to {MAX_SCALE_BITS}, got {scale_bits}")
    total = int(freqs.sum(dtype=np.int64))
    if freqs.ndim != 1 or freqs.size > ALPHABET or total != 1 << scale_bits:
        raise ValueError(
            f"expected at most {ALPHABET} frequencies that add up to {1 << scale_bits}, "
            f"got {freqs.size} that add up to {total}"
        )
    return _fresh(freqs, "uint32")


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
    words = new_words(symbols.size)
    first = encode_symbols_into(_fresh(symbols, "uint8"), freqs, np.uint64(scale_bits), words)
    if first < 0:
        raise ValueError("a symbol to encode has frequency 0")
    return payload_of(words, first)


def least_nbytes(counts: np.ndarray, freqs: np.ndarray, scale_bits: int) -> int:
    """Return a lower bound of the bytes of symbols that occur so often, without coding them.

    Only symbols in an order that repeats itself exactly may take less; see `least_nbits`.

    Parameters
    ----------
    counts : numpy.ndarray, shape (S,), int64
    freqs : numpy.ndarray, shape (S,), uint32
        None 0 where the count is not.
    scale_bits : int
    """
    nbits = float(least_nbits(counts, freqs.copy(), scale_bits))  # a copy, since tables that are kept are read-only
    return STATES_NBYTES + max(0, int(nbits / 8)) if nbits else 0


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
    words, num_words = words_of(payload, count, where, offset)
    symbols = np.empty(count, np.uint8)
    if not decode_symbols_into(words, num_words, freqs, np.uint64(scale_bits), symbols):
        raise broken(payload, where, offset)
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
        _BIT_DIVIDERS.append(bit_dividers())
    words = new_words(bits.size)
    first = encode_bits_into(_fresh(bits, "uint8"), _fresh(p12, "uint16"), _BIT_DIVIDERS[0], words)
    if first < 0:
        raise ValueError("a bit is not 0 or 1, or its probability is not 1 to 4095")
    return payload_of(words, first)


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
    words, num_words = words_of(payload, p12.size, where, offset)
    bits = np.empty(p12.size, np.uint8)
    if not decode_bits_into(words, num_words, _fresh(p12, "uint16"), bits):
        raise broken(payload, where, offset)
    return bits


def _refuse_rest(payload: np.ndarray, where: str, offset: int) -> None:
    if payload.size:
        raise WireError(f"{where} rANS payload", offset=offset, expected="no bytes", got=payload.size)
