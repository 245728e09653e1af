"""Codec 23: the gaps between positions as varints."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import GAPS, NAMES
from fedmpi.wire.codecs.sets.base import Positions, check_count

_MAX_NBYTES = 9


@njit(cache=True)
def _put_gaps(indices, payload):  # type: ignore[no-untyped-def]
    count = 0
    expected = 0
    for index in indices:
        gap = index - expected
        expected = index + 1
        while gap > 0x7F:
            payload[count] = gap & 0x7F | 0x80
            count += 1
            gap >>= 7
        payload[count] = gap
        count += 1
    return count


@njit(cache=True)
def _take_gaps(payload, numel, indices):  # type: ignore[no-untyped-def]
    """Fill `indices`, one for each byte below 128; return how many bytes are good, all or up to the first bad one."""
    count = 0
    expected = np.int64(0)
    gap = np.int64(0)
    length = 0
    for i in range(payload.size):
        byte = np.int64(payload[i])
        if length == _MAX_NBYTES:
            return i
        gap |= (byte & 0x7F) << (7 * length)
        length += 1
        if byte > 0x7F:
            continue
        if (byte == 0 and length > 1) or gap >= numel - expected:
            return i
        indices[count] = expected + gap
        expected += gap + 1
        count += 1
        gap = np.int64(0)
        length = 0
    return payload.size - (length > 0)


class Gaps:
    """Gaps between positions as varints of seven bits a byte; smallest for a handful of positions."""

    codec_id = GAPS
    name = NAMES[GAPS]

    def least_nbytes(self, positions: Positions) -> int:
        return positions.count

    def encode(self, positions: Positions) -> np.ndarray:
        widest = max(1, (positions.numel.bit_length() + 6) // 7)
        payload = np.empty(positions.count * widest, np.uint8)
        return payload[: _put_gaps(positions.indices, payload)].copy()

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        if payload.size > numel:
            # A gap's varint has at most one byte more than the gap has positions.
            raise WireError(f"{where} gaps", offset=offset, expected=f"at most {numel} bytes", got=payload.size)
        count = int(np.count_nonzero(payload < 0x80))
        check_count(count, where, offset, max_count)
        indices = np.empty(count, np.int64)
        good = int(_take_gaps(np.require(payload, requirements=["C", "W"]), numel, indices))
        if good < payload.size:
            expected = f"shortest varints of gaps within {numel} positions"
            raise WireError(f"{where} gaps", offset=offset + good, expected=expected, got=f"byte {int(payload[good])}")
        return Positions(numel, indices=indices)
