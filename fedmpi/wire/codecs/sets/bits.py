"""Codec 16: one bit a position."""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BITS, NAMES
from fedmpi.wire.codecs.sets.base import Positions, from_packed


class Bits:
    """One bit a position and nothing else, as papers count a mask; the smallest where about half are in the set."""

    codec_id = BITS
    name = NAMES[BITS]

    def least_nbytes(self, positions: Positions) -> int:
        return (positions.numel + 7) // 8

    def encode(self, positions: Positions) -> np.ndarray:
        return positions.packed

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        nbytes = (numel + 7) // 8
        if payload.size != nbytes:
            raise WireError(f"{where} bits", offset=offset, expected=f"{nbytes} bytes", got=payload.size)
        return from_packed(payload, numel, where, offset, max_count)
