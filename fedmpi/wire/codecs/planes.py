"""Byte planes: the bytes of one significance of all numbers of a vector together, each plane coded as suits it.

A payload is the number of numbers as a varint, where the receiver does not know it; then, unless that is 0, two bits a
plane that say how it is coded, the least significant plane first, in 1 byte (2 for numbers of 8 bytes); then the planes
in this order: as it is, one byte that all of it equals, or a varint with the length of what follows, which is an rANS
frequency table and payload, or a zstd frame. The signs and exponents of floats are worth coding (sign rotated to the
bottom, exponents in the top plane); their low mantissa bits are random and stay as they are.
"""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.codecs import zstd
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.plane_kernels import constants_of, histogram, join, split
from fedmpi.wire.codecs.rans import STATES_NBYTES, decode_symbols, encode_symbols
from fedmpi.wire.codecs.tables import put_table, quantize_counts, take_table
from fedmpi.wire.values import DENSE_DTYPES, storage

_RAW, _CONSTANT, _RANS, _ZSTD = range(4)
_SCALE_BITS = 13
_ZSTD_LEVEL = 1
_SAMPLE_NBYTES, _SAMPLE_PIECES = 1 << 16, 4
_WORTH = 1 / 64
"""A plane stays as it is if coding saves a smaller part: a mantissa plane saves 1 % and takes half of the time."""

_POOL = BufferPool()
"""Planes on their way out, and vectors that were decoded."""


def encode_planes(array: np.ndarray, dtype: str, *, at_most: bool = False) -> np.ndarray:
    """Code a vector without loss.

    Parameters
    ----------
    array : numpy.ndarray, shape (n,)
        Any bit patterns, held as `storage` of the dtype.
    dtype : str
        One of `DENSE_DTYPES`.
    at_most : bool
        Whether the receiver does not know n.

    Returns
    -------
    numpy.ndarray, uint8
        At most 2 bytes more than the vector's own, and with `at_most` the varint.
    """
    return _encode(array, array[:0], dtype, False, at_most)


def encode_delta(array: np.ndarray, base_array: np.ndarray, dtype: str) -> np.ndarray:
    """Code a vector's steps from another of the same shape and dtype that the receiver holds.

    A step counts the representable numbers between the two, in the order of the floats, so that it is small where the
    numbers are close, and exact for every bit pattern.
    """
    return _encode(array, base_array, dtype, True, False)


def decode_planes(
    payload: np.ndarray, dtype: str, numel: int, where: str, offset: int, *, at_most: bool = False
) -> np.ndarray:
    """Return the vector that `encode_planes` coded, writable, shape (numel,), or (at most numel,).

    Raises
    ------
    WireError
        If the payload is not such a vector.
    """
    position = 0
    if at_most:
        count, position = take_varint(payload[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
        if count > numel:
            raise WireError(f"{where} planes", offset=offset, expected=f"at most {numel} numbers", got=count)
        numel = count
    return _decode(payload[position:], None, dtype, numel, where, offset + position)


def decode_delta(payload: np.ndarray, base_array: np.ndarray, dtype: str, where: str, offset: int) -> np.ndarray:
    """Return the vector that `encode_delta` coded against the same base, writable, of the base's shape.

    Raises
    ------
    WireError
        If the payload is not such a vector.
    """
    return _decode(payload, base_array, dtype, base_array.size, where, offset)


def warm_up() -> None:
    """Compile, or load from the cache, what vectors of any dtype need."""
    # Irregular numbers of few bits: planes that are worth coding, and by rANS rather than zstd.
    numbers = np.arange(3000) ** 3 % 2999 % 61 % 7
    for dtype in DENSE_DTYPES:
        array = numbers.astype(storage(dtype))
        decode_planes(encode_planes(array, dtype), dtype, array.size, "warm-up", 0)


def _encode(array: np.ndarray, base: np.ndarray, dtype: str, is_step: bool, at_most: bool) -> np.ndarray:
    width, count = array.itemsize, array.size
    head = bytearray()
    if at_most:
        put_varint(count, head)
    if count == 0:
        return np.frombuffer(bytes(head), np.uint8)
    position = len(head) + _methods_nbytes(width)
    out = _POOL.lease(position + width * count)
    planes = out[position:]
    split(_words(array), _words(base), constants_of(width, is_float=_is_float(dtype), is_step=is_step), planes)
    methods = 0
    for p in range(width):
        method, coded = _code_plane(planes[p * count : (p + 1) * count])
        methods |= method << (2 * p)
        # No plane grows, so that the next one is never written over before its turn; most stay where they are.
        out[position : position + coded.size] = coded
        position += coded.size
    head += methods.to_bytes(_methods_nbytes(width), "little")
    out[: len(head)] = head
    return out[:position]


def _code_plane(plane: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how a plane is coded, and its bytes: no more than the plane's, which may be the plane itself."""
    sample = _sample(plane)
    counts = histogram(sample)
    counts = counts[counts > 0]
    if counts.size == 1 and plane.min() == plane.max():
        return _CONSTANT, plane[:1].copy()
    # Floats only choose here: the decoder reads which it was.
    scale = plane.size / sample.size
    entropy_nbytes = float((counts * np.log2(sample.size / counts)).sum()) / 8
    by_rans = entropy_nbytes * scale + STATES_NBYTES + counts.size / 2
    by_zstd = zstd.compress(sample, _ZSTD_LEVEL).size * scale
    if min(by_rans, by_zstd) > plane.size * (1 - _WORTH):
        return _RAW, plane
    method = _RANS if by_rans <= by_zstd else _ZSTD
    coded = _by_rans(plane) if method == _RANS else zstd.compress(plane, _ZSTD_LEVEL)
    head = bytearray()
    put_varint(coded.size, head)
    if len(head) + coded.size >= plane.size:
        return _RAW, plane
    return method, np.concatenate([np.frombuffer(head, np.uint8), coded])


def _sample(plane: np.ndarray) -> np.ndarray:
    """Return the plane if it is small, else pieces of it from end to end, each long enough to hold repeats."""
    if plane.size <= _SAMPLE_NBYTES:
        return plane
    length = _SAMPLE_NBYTES // _SAMPLE_PIECES
    step = (plane.size - length) // (_SAMPLE_PIECES - 1)
    return np.concatenate([plane[i * step : i * step + length] for i in range(_SAMPLE_PIECES)])


def _by_rans(plane: np.ndarray) -> np.ndarray:
    freqs = quantize_counts(histogram(plane), _SCALE_BITS)
    return np.concatenate([put_table(freqs), encode_symbols(plane, freqs, _SCALE_BITS)])


def _decode(
    payload: np.ndarray, base: np.ndarray | None, dtype: str, count: int, where: str, offset: int
) -> np.ndarray:
    kind = storage(dtype)
    width = kind.itemsize
    out = _POOL.lease(count * width).view(kind)
    position = _methods_nbytes(width) if count else 0
    if payload.size < position:
        raise WireError(f"{where} planes", offset=offset, expected=f"{position} bytes", got=payload.size)
    methods = int.from_bytes(payload[:position].tobytes(), "little")
    if methods >> (2 * width):
        raise WireError(f"{where} planes", offset=offset, expected=f"two bits for {width} planes", got=methods)
    planes = []
    for p in range(width if count else 0):
        plane, used = _decode_plane(methods >> (2 * p) & 3, payload[position:], count, where, offset + position)
        planes.append(plane)
        position += used
    if position != payload.size:
        rest = payload.size - position
        raise WireError(f"{where} planes", offset=offset + position, expected="the end", got=f"{rest} bytes more")
    if count:
        constants = constants_of(width, is_float=_is_float(dtype), is_step=base is not None)
        words = out.view(f"u{width}")
        join(tuple(planes), words[:0] if base is None else _words(base), constants, words)
    return out


def _decode_plane(method: int, payload: np.ndarray, count: int, where: str, offset: int) -> tuple[np.ndarray, int]:
    """Return a plane that the payload begins with, and how many bytes it took."""
    if method in (_RAW, _CONSTANT):
        nbytes = count if method == _RAW else 1
        if payload.size < nbytes:
            raise WireError(f"{where} plane", offset=offset, expected=f"{nbytes} bytes", got=payload.size)
        return (_words(payload[:count]) if method == _RAW else np.full(count, payload[0])), nbytes
    nbytes, start = take_varint(payload[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
    end = start + nbytes
    if end > payload.size:
        rest = payload.size - start
        raise WireError(f"{where} plane", offset=offset, expected=f"at most {rest} bytes", got=nbytes)
    coded, offset = payload[start:end], offset + start
    if method == _ZSTD:
        return zstd.decompress(coded, count, where, offset), end
    freqs, table_nbytes = take_table(coded, 256, _SCALE_BITS, where, offset)
    if not freqs.any():
        raise WireError(f"{where} plane", offset=offset, expected="a frequency table", got="one of zeros")
    return decode_symbols(coded[table_nbytes:], count, freqs, _SCALE_BITS, where, offset + table_nbytes), end


def _words(array: np.ndarray) -> np.ndarray:
    """Return bit patterns as kernels take them; a copy only of what is read-only, which would be another type."""
    return np.require(array, None, ["C", "A", "W"]).view(f"u{array.itemsize}")


def _is_float(dtype: str) -> bool:
    return "float" in dtype


def _methods_nbytes(width: int) -> int:
    return -(-2 * width // 8)
