"""Codec 20: Zstandard of the packed bits."""

from __future__ import annotations

import numpy as np

from fedmpi.wire.codecs import zstd
from fedmpi.wire.codecs.base import NAMES, ZSTD
from fedmpi.wire.codecs.sets.base import Positions, from_packed

_LEVEL = 3

_LEAST_NBYTES = 6
"""A frame's header of 2 bytes, a block's of 3, and one byte that all of the block equals."""


class Zstd:
    """Zstandard, level 3, of the packed bits; best where positions cluster, as top-k of rows and columns does."""

    codec_id = ZSTD
    name = NAMES[ZSTD]

    def least_nbytes(self, positions: Positions) -> int:
        # Its size cannot be told without running it, which is fast.
        return _LEAST_NBYTES if positions.minority.count else 1

    def encode(self, positions: Positions) -> np.ndarray:
        if positions.minority.count == 0:
            return np.array([positions.count > 0], np.uint8)
        return zstd.compress(np.ascontiguousarray(positions.packed), _LEVEL, sized=True)

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        if payload.size == 1 and payload[0] <= 1:
            empty = Positions(numel, indices=np.empty(0, np.int64))
            packed = (empty.complement if payload[0] else empty).packed
        else:
            packed = zstd.decompress(payload, (numel + 7) // 8, where, offset)
        return from_packed(packed, numel, where, offset, max_count)
