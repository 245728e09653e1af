"""Codec 22: eight bytes an index."""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import INT64, NAMES
from fedmpi.wire.codecs.sets.base import Positions, check_count, from_listed


class Int64:
    """Eight bytes an index, as an implementation sends that keeps torch's own index dtype."""

    codec_id = INT64
    name = NAMES[INT64]

    def least_nbytes(self, positions: Positions) -> int:
        return 8 * positions.count

    def encode(self, positions: Positions) -> np.ndarray:
        return positions.indices.astype("<i8").view(np.uint8)

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        if payload.size % 8:
            raise WireError(f"{where} indices", offset=offset, expected="8 bytes an index", got=payload.size)
        check_count(payload.size // 8, where, offset, max_count)
        return from_listed(np.ascontiguousarray(payload).view("<i8").astype(np.int64), numel, where, offset)
