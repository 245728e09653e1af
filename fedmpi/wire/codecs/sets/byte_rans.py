"""Codec 17: rANS of the packed bits' bytes."""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BYTE_RANS, NAMES
from fedmpi.wire.codecs.rans import decode_symbols, encode_symbols, least_nbytes
from fedmpi.wire.codecs.set_tables import SET_SCALE_BITS, byte_table
from fedmpi.wire.codecs.sets.base import Positions, count_nbytes, from_minority, from_packed, put_count, take_count


class ByteRans:
    """Eight positions a symbol, coded with the odds that k of n give a byte; fastest, best from 6 % to 94 %."""

    codec_id = BYTE_RANS
    name = NAMES[BYTE_RANS]

    def least_nbytes(self, positions: Positions) -> int:
        header = count_nbytes(positions)
        if positions.minority.count == 0:
            return header
        freqs = byte_table(positions.count, positions.numel)
        return header + least_nbytes(positions.byte_counts, freqs, SET_SCALE_BITS)

    def encode(self, positions: Positions) -> np.ndarray:
        header = np.frombuffer(put_count(positions), np.uint8)
        if positions.minority.count == 0:
            return header
        freqs = byte_table(positions.count, positions.numel)
        return np.concatenate([header, encode_symbols(positions.packed, freqs, SET_SCALE_BITS)])

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        fewer, flipped, body, offset = take_count(payload, numel, where, offset, max_count)
        if fewer == 0:
            return from_minority(numel, np.empty(0, np.int64), flipped)
        count = numel - fewer if flipped else fewer
        packed = decode_symbols(body, (numel + 7) // 8, byte_table(count, numel), SET_SCALE_BITS, where, offset)
        positions = from_packed(packed, numel, where, offset, max_count)
        if positions.count != count:
            raise WireError(f"{where} set", offset=offset, expected=f"{count} positions", got=positions.count)
        return positions
