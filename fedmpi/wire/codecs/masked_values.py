"""Numbers at the positions of a mask that both ends hold: the mask's version and checksum, then the numbers."""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.payload import decode_numbers_at, encode_numbers_at
from fedmpi.wire.codecs.reference import put_reference, take_reference
from fedmpi.wire.known import Known, KnownMask
from fedmpi.wire.values import MaskedValues, Value


class MaskedValuesFormat:
    """The section's codec is that of the numbers, its param byte 0.

    What names the mask counts as index bytes, the numbers as value bytes.
    """

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, MaskedValues)
        if value.numel != spec.numel:
            raise ValueError(f"{spec.where}: expected a mask of {spec.numel} positions, got {value.numel}")
        if value.num_kept != value.mask.indices.size:
            raise ValueError(
                f"{spec.where}: the mask keeps {value.mask.indices.size} positions, got {value.num_kept} values"
            )
        if value.dtype != spec.dtype:
            raise ValueError(f"{spec.where}: expected {_named(spec.dtype)} values, got {_named(value.dtype)} ones")
        codec_id, codec, numbers = encode_numbers_at(value.values, spec.dtype, wire, spec.where)
        reference = put_reference(value.mask)
        payload = np.concatenate([reference, numbers])
        return Encoded(codec_id, codec, 0, payload, reference.size, numbers.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        if param:
            raise WireError(f"{spec.where} param", offset=offset, expected=0, got=param)
        mask, start = take_reference(KnownMask, spec.base, payload, known, spec.numel, spec.where, offset)
        inside = known.inside(spec.base)
        if inside is not None and not np.array_equal(mask.array, inside):
            got = f"version {mask.version}, which is another"
            raise WireError(f"{spec.where}: {spec.base}", offset=offset, expected="the mask that came with it", got=got)
        numbers, codec = decode_numbers_at(
            codec_id, payload[start:], spec.dtype, mask.indices.size, spec.where, offset + start
        )
        return Decoded(MaskedValues(numbers, mask, spec.dtype), codec, start, payload.size - start)

    def warm_up(self) -> None:
        from fedmpi.wire.codecs import planes

        planes.warm_up()


FORMAT = MaskedValuesFormat()


def _named(dtype: str) -> str:
    return dtype or "quantized"
