"""Raw little-endian numbers, framed in place and decoded as a view."""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import Decoded, Encoded, FieldSpec, register
from fedmpi.wire.values import DENSE_DTYPES, Dense, Value

_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DENSE_DTYPES)}


class RawDense:
    """Every number in its own dtype, one after the other. The section's param byte is the dtype's code."""

    codec_id = 2
    name = "raw"
    exact_size = True

    def encode(self, value: Value, spec: FieldSpec) -> Encoded:
        assert isinstance(value, Dense)
        array = value.array
        if array.dtype != spec.dtype or array.ndim != 1 or not array.flags.c_contiguous:
            got = f"{array.dtype} {array.shape}"
            raise ValueError(f"{spec.where}: expected a contiguous vector of {spec.dtype}, got {got}")
        if array.size > spec.numel or (array.size < spec.numel and not spec.at_most):
            raise ValueError(f"{spec.where}: expected {_length(spec)} numbers, got {array.size}")
        payload = array.view(np.uint8)
        return Encoded(_DTYPE_CODES[str(spec.dtype)], payload, self.alignment(spec), 0, payload.size)

    def alignment(self, spec: FieldSpec) -> int:
        return spec.dtype.itemsize

    def decode(self, payload: np.ndarray, param: int, spec: FieldSpec, offset: int) -> Decoded:
        code = _DTYPE_CODES[str(spec.dtype)]
        if param != code:
            raise WireError(f"{spec.where} dtype code", offset=offset, expected=code, got=param)
        count, rest = divmod(payload.size, spec.dtype.itemsize)
        if rest or count > spec.numel or (count < spec.numel and not spec.at_most):
            expected = f"{_length(spec)} numbers of {spec.dtype}"
            raise WireError(spec.where, offset=offset, expected=expected, got=f"{payload.size} bytes")
        return Decoded(Dense(payload.view(spec.dtype)), 0, payload.size)


def _length(spec: FieldSpec) -> str:
    return f"at most {spec.numel}" if spec.at_most else str(spec.numel)


register(RawDense(), default_for=Dense)
