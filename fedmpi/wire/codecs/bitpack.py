"""Symbols of 1 to 8 bits without gaps, and the bit stream that the coders of whole numbers share.

Bit order everywhere: least significant first. Bit i of a stream is bit i % 8 of byte i // 8, and a number's lowest bit
comes first, so that a stream read as little-endian uint64 keeps the order. The bits after the last are 0.
"""

from __future__ import annotations

import sys

import numpy as np
from numba import njit

from fedmpi.errors import WireError

_ONE = np.uint64(1)
_SIX = np.uint64(6)
_LAST = np.uint64(63)


@njit(cache=True)
def put_bits(stream, position, number, nbits):  # type: ignore[no-untyped-def]
    """Write the `nbits` low bits of `number`, of which none above is set; return the position after them.

    Everything is uint64. `stream` holds zeros from `position` on and one word more than its bits need. For kernels;
    numba does not notice that a kernel cached elsewhere is older than this one.
    """
    word = position >> _SIX
    bit = position & _LAST
    stream[word] |= number << bit
    stream[word + _ONE] |= (number >> _ONE) >> (_LAST - bit)
    return position + nbits


@njit(cache=True)
def take_bits(stream, position, nbits):  # type: ignore[no-untyped-def]
    """Read `nbits` < 64 bits; the caller has checked that `stream` goes on for a word after `position`'s."""
    word = position >> _SIX
    bit = position & _LAST
    number = (stream[word] >> bit) | ((stream[word + _ONE] << _ONE) << (_LAST - bit))
    return number & ((_ONE << nbits) - _ONE)


def new_stream(nbits: int) -> np.ndarray:
    """Return zeros for a stream of `nbits` bits and the word that `put_bits` touches after them, uint64."""
    return np.zeros(nbits // 64 + 2, np.uint64)


def stream_bytes(stream: np.ndarray, nbits: int) -> np.ndarray:
    """Return the first `nbits` bits as bytes, uint8, a copy."""
    return stream.astype("<u8").view(np.uint8)[: (nbits + 7) // 8].copy()


def stream_of(payload: np.ndarray) -> np.ndarray:
    """Return bytes as a stream for `take_bits`, uint64, with two words of zeros after them."""
    words = np.zeros(payload.size // 8 + 3, "<u8")
    words.view(np.uint8)[: payload.size] = payload
    return words if sys.byteorder == "little" else words.astype(np.uint64)


@njit(cache=True)
def _pack(symbols, bits, stream):  # type: ignore[no-untyped-def]
    position = np.uint64(0)
    top = np.uint8(0)
    for i in range(symbols.size):
        top = max(top, symbols[i])
        position = put_bits(stream, position, np.uint64(symbols[i]), bits)
    return top


@njit(cache=True)
def _unpack(stream, bits, symbols):  # type: ignore[no-untyped-def]
    position = np.uint64(0)
    for i in range(symbols.size):
        symbols[i] = take_bits(stream, position, bits)
        position += bits


def packed_nbytes(count: int, bits: int) -> int:
    """Return how many bytes `count` symbols of `bits` bits pack into."""
    return (count * bits + 7) // 8


def pack(symbols: np.ndarray, bits: int) -> np.ndarray:
    """Pack symbols below 2^bits.

    Parameters
    ----------
    symbols : numpy.ndarray, shape (n,), uint8
    bits : int
        1 to 8.

    Returns
    -------
    numpy.ndarray, shape (ceil(n * bits / 8),), uint8
        May be `symbols` itself for 8 bits.

    Raises
    ------
    ValueError
        If a symbol is 2^bits or more.
    """
    _check_bits(bits)
    if bits in (3, 5, 6, 7):
        stream = new_stream(symbols.size * bits)
        top = _pack(np.require(symbols, np.uint8, ["C", "W"]), np.uint64(bits), stream)
        _check_top(int(top), bits)
        return stream_bytes(stream, symbols.size * bits)
    if symbols.size:
        _check_top(int(symbols.max()), bits)
    if bits == 8:
        return np.ascontiguousarray(symbols)
    if bits == 1:
        return np.packbits(symbols, bitorder="little")
    per_byte = 8 // bits
    whole = symbols.size - symbols.size % per_byte
    packed = np.zeros(packed_nbytes(symbols.size, bits), np.uint8)
    for lane in range(per_byte):
        column = symbols[lane:whole:per_byte]
        packed[: column.size] |= column << np.uint8(lane * bits)
    for lane, symbol in enumerate(symbols[whole:]):
        packed[-1] |= symbol << np.uint8(lane * bits)
    return packed


def unpack(payload: np.ndarray, count: int, bits: int, where: str, offset: int) -> np.ndarray:
    """Return the `count` symbols that `pack` packed, uint8 of shape (count,); a view of `payload` for 8 bits.

    Raises
    ------
    WireError
        If the length is not that of `count` symbols, or a bit after the last symbol is set.
    """
    _check_bits(bits)
    nbytes = packed_nbytes(count, bits)
    if payload.size != nbytes:
        raise WireError(f"{where} packed symbols", offset=offset, expected=f"{nbytes} bytes", got=payload.size)
    rest = count * bits % 8
    if rest and payload[-1] >> rest:
        last = offset + nbytes - 1
        raise WireError(f"{where} packed symbols", offset=last, expected="zeros at the end", got=int(payload[-1]))
    if bits == 8:
        return payload
    if bits == 1:
        return np.unpackbits(payload, count=count, bitorder="little")
    if bits in (3, 5, 6, 7):
        symbols = np.empty(count, np.uint8)
        _unpack(stream_of(payload), np.uint64(bits), symbols)
        return symbols
    per_byte = 8 // bits
    lanes = np.empty((nbytes, per_byte), np.uint8)
    for lane in range(per_byte):
        np.bitwise_and(payload >> np.uint8(lane * bits), np.uint8((1 << bits) - 1), out=lanes[:, lane])
    return lanes.reshape(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"a packed symbol has 1 to 8 bits, got {bits}")


def _check_top(top: int, bits: int) -> None:
    if top >> bits:
        raise ValueError(f"a symbol to pack in {bits} bits is {top}")
