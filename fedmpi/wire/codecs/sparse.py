"""Numbers at chosen positions: where they are, as masks say it, and then what they are.

The payload: n as a varint where the field allows fewer positions, the length of the positions' bytes as a varint, these
bytes, the numbers' bytes. The section's codec byte is that of the positions and its param byte that of the numbers.
"""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs import choose, planes
from fedmpi.wire.codecs.base import LAYERS, NAMES, RANKS, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.payload import decode_numbers_at, encode_numbers_at
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import Known
from fedmpi.wire.values import Quantized, Sparse, Value

_ALLOWED = frozenset({LAYERS, RANKS})


class SparseFormat:
    """Positions and their numbers; `index_nbytes` and `value_nbytes` add up to the payload.

    The varints before the positions count as bytes that say where, as does the reference to a base.
    """

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Sparse)
        indices, numel = value.indices, value.size
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise ValueError(f"{spec.where}: expected a vector of int64 indices, got {indices.dtype} {indices.shape}")
        if not spec.accepts(numel):
            raise ValueError(f"{spec.where}: expected {spec.length_words} positions, got {numel}")
        try:
            positions = Positions.from_indices(indices, numel)
        except ValueError as error:
            raise ValueError(f"{spec.where}: {error}") from None
        choose.check_references(spec, numel, value.base)
        choice = choose.Choice(positions, choose.segments_of(spec, numel), value.base)
        num_values = value.values.numel if isinstance(value.values, Quantized) else value.values.size
        if spec.max_kept and indices.size > spec.max_kept:
            raise ValueError(f"{spec.where}: expected at most {spec.max_kept} positions kept, got {indices.size}")
        if num_values != indices.size:
            raise ValueError(f"{spec.where}: expected a value for each of {indices.size} indices, got {num_values}")
        if value.dtype != spec.dtype:
            expected, got = spec.dtype or "quantized", value.dtype or "quantized"
            raise ValueError(f"{spec.where}: expected values of {expected}, got {got}")
        numbers_id, numbers_codec, numbers = encode_numbers_at(value.values, spec.dtype, wire, spec.where)
        codec_id, where = choose.encode_positions(choice, wire.sparse, _ALLOWED)
        header = bytearray()
        if spec.at_most:
            put_varint(numel, header)
        put_varint(where.size, header)
        names = f"{NAMES[codec_id]}+{numbers_codec}"
        index_nbytes = len(header) + where.size
        payload = np.concatenate([np.frombuffer(header, np.uint8), where, numbers])
        return Encoded(codec_id, names, numbers_id, payload, index_nbytes, numbers.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        head = payload[: 2 * MAX_VARINT_NBYTES].tobytes()
        numel, position = take_varint(head, 0, offset) if spec.at_most else (spec.numel, 0)
        if not spec.accepts(numel):
            raise WireError(f"{spec.where} size", offset=offset, expected=f"{spec.length_words} positions", got=numel)
        nbytes, start = take_varint(head, position, offset)
        if nbytes > payload.size - start:
            expected = f"at most {payload.size - start} bytes"
            raise WireError(f"{spec.where} positions", offset=offset + position, expected=expected, got=nbytes)
        end = start + nbytes
        found = choose.decode_positions(codec_id, payload[start:end], numel, spec, known, offset + start, _ALLOWED)
        indices = found.positions.indices
        numbers, codec = decode_numbers_at(param, payload[end:], spec.dtype, indices.size, spec.where, offset + end)
        value = Sparse(numel, indices, numbers, spec.dtype, found.base)
        return Decoded(value, f"{NAMES[codec_id]}+{codec}", end, payload.size - end)

    def warm_up(self) -> None:
        choose.warm_up(_ALLOWED)
        planes.warm_up()


FORMAT = SparseFormat()
