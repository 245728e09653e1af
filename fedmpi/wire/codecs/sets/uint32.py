"""Codec 21: four bytes an index."""

from __future__ import annotations

import sys

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import NAMES, UINT32
from fedmpi.wire.codecs.sets.base import Positions, check_count, from_listed


class Uint32:
    """Four bytes an index, as papers count a sparse update of 32-bit indices."""

    codec_id = UINT32
    name = NAMES[UINT32]

    def least_nbytes(self, positions: Positions) -> int:
        return 4 * positions.count if positions.numel <= 1 << 32 else sys.maxsize

    def encode(self, positions: Positions) -> np.ndarray:
        if positions.numel > 1 << 32:
            raise ValueError(f"uint32 indices reach to 2^32, the set is of {positions.numel} positions")
        return positions.indices.astype("<u4").view(np.uint8)

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        if payload.size % 4:
            raise WireError(f"{where} indices", offset=offset, expected="4 bytes an index", got=payload.size)
        check_count(payload.size // 4, where, offset, max_count)
        return from_listed(np.ascontiguousarray(payload).view("<u4").astype(np.int64), numel, where, offset)
