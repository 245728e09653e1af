"""The ints and floats of a message in one section: zigzag varints and float64."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence

from fedmpi.errors import WireError

MAX_VARINT_NBYTES = 10
"""Enough for 64 bits, seven a byte."""


def put_varint(number: int, out: bytearray) -> None:
    """Append an unsigned integer below 2^64, seven bits a byte, least significant first."""
    if not 0 <= number < 1 << 64:
        raise ValueError(f"a varint holds 0 to 2^64 - 1, got {number}")
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def take_varint(data: bytes | memoryview, position: int, offset: int) -> tuple[int, int]:
    """Read a varint at `position`; return it and the position after it.

    Raises
    ------
    WireError
        At `offset` + position, for a varint that is cut off, over-long or above 2^64 - 1.
    """
    number = 0
    for length in range(MAX_VARINT_NBYTES):
        if position + length >= len(data):
            raise WireError("varint", offset=offset + position, expected="another byte", got="the end")
        byte = data[position + length]
        number |= (byte & 0x7F) << (7 * length)
        if byte < 0x80:
            if (byte == 0 and length > 0) or number >= 1 << 64:
                raise WireError("varint", offset=offset + position, expected="the shortest form", got=f"byte {byte}")
            return number, position + length + 1
    raise WireError("varint", offset=offset + position, expected=f"at most {MAX_VARINT_NBYTES} bytes", got="more")


_FLOATS = {"float64": struct.Struct("<d"), "float32": struct.Struct("<f")}


def encode_numbers(numbers: Sequence[int | float], dtypes: Sequence[str]) -> bytes:
    """Return the section's payload; `dtypes` are "int", "float64" or "float32".

    Raises
    ------
    ValueError
        For an int outside 64 bits, or a number that float32 does not have where that is its dtype.
    """
    out = bytearray()
    for number, dtype in zip(numbers, dtypes, strict=True):
        if dtype in _FLOATS:
            out += _encode_float(number, dtype)
        else:
            try:
                integer = operator.index(number)  # type: ignore[arg-type]
            except TypeError:
                raise ValueError(f"a field of ints got {number!r}") from None
            put_varint(2 * integer if integer >= 0 else -2 * integer - 1, out)
    return bytes(out)


def _encode_float(number: float, dtype: str) -> bytes:
    form = _FLOATS[dtype]
    try:
        raw = form.pack(number)
        (back,) = form.unpack(raw)
    except struct.error:
        raise ValueError(f"a field of floats got {number!r}") from None
    except OverflowError:
        back = None
    if back != number and number == number:  # noqa: PLR0124 - a NaN is sent as it is
        raise ValueError(f"a field of {dtype} got {number!r}, which {dtype} does not have: round it first")
    return raw


def decode_numbers(data: memoryview, dtypes: Sequence[str], offset: int) -> list[int | float]:
    """Return the numbers of a payload that starts at `offset` of its frame.

    Raises
    ------
    WireError
        If the payload is shorter or longer than its numbers.
    """
    numbers: list[int | float] = []
    position = 0
    for dtype in dtypes:
        if dtype in _FLOATS:
            form = _FLOATS[dtype]
            if position + form.size > len(data):
                got = len(data) - position
                raise WireError(dtype, offset=offset + position, expected=f"{form.size} bytes", got=got)
            numbers.append(form.unpack_from(data, position)[0])
            position += form.size
        else:
            zigzag, position = take_varint(data, position, offset)
            numbers.append(zigzag >> 1 if zigzag & 1 == 0 else -(zigzag >> 1) - 1)
    if position != len(data):
        rest = len(data) - position
        raise WireError("numbers", offset=offset + position, expected="the end", got=f"{rest} bytes more")
    return numbers
