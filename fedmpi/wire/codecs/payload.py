"""The numbers that stand at chosen positions: as they are, as byte planes, or as quantized symbols.

Both ends know how many there are, so that the count does not travel.
"""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import NAMES, PLANES, RAW, FieldSpec, format_of
from fedmpi.wire.known import Known
from fedmpi.wire.values import Numbers, Quantized, storage


def encode_numbers_at(
    numbers: Numbers, dtype: str, wire: WireConfig, where: str = "values"
) -> tuple[int, str, np.ndarray]:
    """Code the numbers at chosen positions, without loss.

    Parameters
    ----------
    numbers : numpy.ndarray or Quantized, shape (k,)
        Held as `storage` of the dtype.
    dtype : str
        One of `DENSE_DTYPES`; "" for `Quantized`.
    wire : WireConfig
        Its `values` and `quantized` choose the codec.
    where : str
        ``Message.field``, for error messages.

    Returns
    -------
    codec_id : int
        Below 16; what `decode_numbers_at` needs besides the payload.
    codec : str
        Its name.
    payload : numpy.ndarray, uint8
        May be a view of `numbers`. Quantized numbers begin with their format's own param byte.

    Raises
    ------
    ValueError
        If the numbers are not a vector of that dtype.
    """
    if isinstance(numbers, Quantized):
        if dtype:
            raise ValueError(f"{where}: expected values of {dtype}, got quantized ones")
        section = format_of(Quantized).encode(numbers, _quantized_spec(where, numbers.numel), wire)
        payload = np.concatenate([np.array([section.param], np.uint8), section.payload])
        return section.codec_id, section.codec, payload
    if not dtype or numbers.dtype != storage(dtype) or numbers.ndim != 1:
        expected = dtype or "quantized numbers"
        raise ValueError(f"{where}: expected a vector of {expected}, got {numbers.dtype} {numbers.shape}")
    numbers = np.ascontiguousarray(numbers)
    raw = numbers.view(np.uint8)
    if wire.values == "raw":
        return RAW, NAMES[RAW], raw
    from fedmpi.wire.codecs.planes import encode_planes

    coded = encode_planes(numbers, dtype)
    if wire.values == "auto" and coded.size >= raw.size:
        return RAW, NAMES[RAW], raw
    return PLANES, NAMES[PLANES], coded


def decode_numbers_at(
    codec_id: int, payload: np.ndarray, dtype: str, count: int, where: str, offset: int
) -> tuple[Numbers, str]:
    """Return the `count` numbers that `encode_numbers_at` coded, in memory of their own, and the codec's name.

    Raises
    ------
    WireError
        If the payload is not one of so many numbers of that dtype.
    """
    if not dtype:
        if payload.size < 1:
            raise WireError(f"{where} values", offset=offset, expected="a param byte", got="the end")
        spec = _quantized_spec(where, count)
        form = format_of(Quantized)
        section = form.decode(codec_id, int(payload[0]), payload[1:], spec, Known(), offset + 1)
        assert isinstance(section.value, Quantized)
        return section.value, section.codec
    kind = storage(dtype)
    if codec_id == RAW:
        if payload.size != count * kind.itemsize:
            expected = f"{count} numbers of {dtype}"
            raise WireError(f"{where} values", offset=offset, expected=expected, got=f"{payload.size} bytes")
        # A copy, because the payload begins at any byte.
        return payload.copy().view(kind), NAMES[RAW]
    if codec_id == PLANES:
        from fedmpi.wire.codecs.planes import decode_planes

        return decode_planes(payload, dtype, count, where, offset), NAMES[PLANES]
    raise WireError(f"{where} values codec", offset=offset, expected=f"{RAW} or {PLANES}", got=codec_id)


def _quantized_spec(where: str, count: int) -> FieldSpec:
    return FieldSpec(where, dtype="", shape=(count,))
