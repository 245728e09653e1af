"""Vectors: raw little-endian numbers, framed in place and decoded as a view, or coded without loss."""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import DELTA, NAMES, PLANES, RAW, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.reference import put_reference, take_reference
from fedmpi.wire.known import Known, KnownVector
from fedmpi.wire.values import DENSE_DTYPES, Dense, Value, storage

_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DENSE_DTYPES)}


class DenseFormat:
    """Every number of a vector. The section's param byte is the dtype's code."""

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Dense)
        array = value.array
        kind = storage(spec.dtype)
        if value.dtype != spec.dtype or array.dtype != kind or array.ndim != 1 or not array.flags.c_contiguous:
            got = f"{value.dtype} {array.shape}"
            raise ValueError(f"{spec.where}: expected a contiguous vector of {spec.dtype}, got {got}")
        if not spec.accepts(array.size):
            raise ValueError(f"{spec.where}: expected {spec.length_words} numbers, got {array.size}")
        if value.base is not None:
            _check_base(value.base.array, spec)
        raw = array.view(np.uint8)
        best, payload = RAW, raw
        if wire.dense in ("auto", "planes"):
            from fedmpi.wire.codecs.planes import encode_planes

            coded = encode_planes(array, spec.dtype, at_most=spec.at_most)
            if wire.dense == "planes" or coded.size < payload.size:
                best, payload = PLANES, coded
        # A receiver's base is as long as the field allows: a shorter vector has none to step from.
        if value.base is not None and array.size == spec.numel and wire.dense in ("auto", "delta"):
            from fedmpi.wire.codecs.planes import encode_delta

            coded = np.concatenate([put_reference(value.base), encode_delta(array, value.base.array, spec.dtype)])
            if wire.dense == "delta" or coded.size < payload.size:
                best, payload = DELTA, coded
        return Encoded(best, NAMES[best], _DTYPE_CODES[spec.dtype], payload, 0, payload.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return storage(spec.dtype).itemsize if codec_id == RAW else 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        code = _DTYPE_CODES[spec.dtype]
        if param != code:
            raise WireError(f"{spec.where} dtype code", offset=offset, expected=code, got=param)
        kind = storage(spec.dtype)
        if codec_id == RAW:
            count, rest = divmod(payload.size, kind.itemsize)
            if rest or not spec.accepts(count):
                expected = f"{spec.length_words} numbers of {spec.dtype}"
                raise WireError(spec.where, offset=offset, expected=expected, got=f"{payload.size} bytes")
            array = payload.view(kind)
        elif codec_id == PLANES:
            from fedmpi.wire.codecs.planes import decode_planes

            array = decode_planes(payload, spec.dtype, spec.numel, spec.where, offset, at_most=spec.at_most)
        elif codec_id == DELTA and spec.base:
            from fedmpi.wire.codecs.planes import decode_delta

            base, start = take_reference(KnownVector, spec.base, payload, known, spec.numel, spec.where, offset)
            if base.array.dtype != kind:
                raise WireError(f"{spec.where} base", offset=offset, expected=kind, got=base.array.dtype)
            array = decode_delta(payload[start:], base.array, spec.dtype, spec.where, offset + start)
        else:
            raise WireError(f"{spec.where} codec", offset=offset, expected="a codec of vectors", got=codec_id)
        return Decoded(Dense(array, dtype=spec.dtype), NAMES[codec_id], 0, payload.size)

    def warm_up(self) -> None:
        from fedmpi.wire.codecs import planes

        planes.warm_up()


def _check_base(base: np.ndarray, spec: FieldSpec) -> None:
    if not spec.base:
        raise ValueError(f"{spec.where} declares no base, got one")
    kind = storage(spec.dtype)
    if base.size != spec.numel or base.dtype != kind:
        expected, got = f"{spec.numel} {kind}", f"{base.size} {base.dtype}"
        raise ValueError(f"{spec.where}: expected a base of {expected}, got {got}")


FORMAT = DenseFormat()
