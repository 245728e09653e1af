"""Masks: by themselves, tensor by tensor, or against probabilities or an earlier mask that both ends hold."""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs import choose
from fedmpi.wire.codecs.base import CHANGE, LAYERS, NAMES, PRIOR, RANKS, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import Known
from fedmpi.wire.values import Mask, Value

_ALLOWED = frozenset({LAYERS, PRIOR, CHANGE, RANKS})


class MaskFormat:
    """Which positions are kept. The section's param byte is 0.

    All of the payload says where, the reference to a base or a prior included: 5 to 9 bytes at its start.
    """

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Mask)
        bits = value.bits
        if bits.dtype != np.bool_ or bits.ndim != 1:
            raise ValueError(f"{spec.where}: expected a vector of bool, got {bits.dtype} {bits.shape}")
        if not spec.accepts(bits.size):
            raise ValueError(f"{spec.where}: expected {spec.length_words} positions, got {bits.size}")
        # A read-only array is another type to numba, which would compile every kernel again.
        raw = np.require(bits, np.bool_, ["C", "W"]).view(np.uint8)
        if raw.size and raw.max() > 1:
            raise ValueError(f"{spec.where}: a bool's byte is 0 or 1, got {raw.max()}")
        choose.check_references(spec, bits.size, value.base, value.prior)
        segments = choose.segments_of(spec, bits.size)
        choice = choose.Choice(Positions(raw.size, bits=raw), segments, value.base, value.prior)
        codec_id, payload = choose.encode_positions(choice, wire.mask, _ALLOWED)
        return Encoded(codec_id, NAMES[codec_id], 0, payload, payload.size, 0)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        if param:
            raise WireError(f"{spec.where} parameter", offset=offset, expected=0, got=param)
        found = choose.decode_positions(codec_id, payload, spec.numel, spec, known, offset, _ALLOWED)
        mask = Mask(found.positions.bits.view(np.bool_), found.prior, found.base)
        return Decoded(mask, NAMES[codec_id], payload.size, 0)

    def warm_up(self) -> None:
        choose.warm_up(_ALLOWED)


FORMAT = MaskFormat()
