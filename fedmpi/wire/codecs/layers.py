"""Each tensor's positions as a set of its own, so that each has its own density and its own coder.

For every tensor that has positions, in their order: a byte, a length where one is needed, the payload. The byte's low
half says how: 0 none is kept, 1 all are, else the coder's number less 14. Its high half is the payload's length below
15, or 15 if a varint with the length less 15 follows; bits have no length, since the receiver knows it, and then, as
for none and all, the high half is 0.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BITS, GAPS
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.positions import decode_set, encode_set
from fedmpi.wire.codecs.sets.base import Positions, check_count

_NONE, _ALL = 0, 1
_NIBBLE = BITS - 2
"""A coder in half a byte is its number less this."""
_LONG = 15


def counts_kept(positions: Positions, segments: np.ndarray) -> np.ndarray:
    """Return how many positions of each tensor are in a set, (tensors,) int64."""
    return np.diff(_counts_below(positions, segments))


def least_nbytes(positions: Positions, segments: np.ndarray) -> int:
    """Return a lower bound of the payload's length: a byte a tensor, and another if only some of it is in the set."""
    kept, numels = counts_kept(positions, segments), np.diff(segments)
    return int(np.count_nonzero(numels) + np.count_nonzero((kept > 0) & (kept < numels)))


def _counts_below(positions: Positions, segments: np.ndarray) -> np.ndarray:
    """Return how many positions of a set are below each of these, int64."""
    if positions.is_listed:
        return np.searchsorted(positions.indices, segments)
    # A mask's positions are not listed for this.
    packed = np.append(positions.packed, np.uint8(0))
    before = np.cumsum(np.bitwise_count(packed), dtype=np.int64)
    bytes_of, places = segments >> 3, (segments & 7).astype(np.uint8)
    at_and_above = np.bitwise_count(packed[bytes_of] >> places)
    below: np.ndarray = before[bytes_of] - at_and_above
    return below


def encode_layers(positions: Positions, segments: np.ndarray) -> np.ndarray:
    """Return the payload, uint8.

    Parameters
    ----------
    positions : Positions
    segments : numpy.ndarray, shape (tensors + 1,), int64
        Where the tensors begin, ascending from 0, and where the last one ends.
    """
    ends = zip(segments.tolist(), _counts_below(positions, segments).tolist(), strict=True)
    out = bytearray()
    for (start, first), (end, last) in pairwise(ends):
        numel, count = end - start, last - first
        if numel == 0:
            continue
        if count in (0, numel):
            out.append(_ALL if count else _NONE)
            continue
        if positions.is_listed:
            coded = encode_set(Positions(numel, indices=positions.indices[first:last] - start))
        else:
            coded = encode_set(Positions(numel, bits=positions.bits[start:end]))
        nbytes = coded.payload.size
        how = coded.codec_id - _NIBBLE
        if coded.codec_id == BITS:
            out.append(how)
        else:
            out.append(how | min(nbytes, _LONG) << 4)
            if nbytes >= _LONG:
                put_varint(nbytes - _LONG, out)
        out += coded.payload.data
    return np.frombuffer(bytes(out), np.uint8)


def decode_layers(payload: np.ndarray, segments: np.ndarray, where: str, offset: int, max_count: int) -> Positions:
    """Return the set that `encode_layers` coded with the same segments.

    Raises
    ------
    WireError
        If the payload is not exactly one set for each tensor, or these are more than `max_count` positions.
    """
    position, rest = 0, max_count
    found: list[tuple[int, Positions]] = []
    for number, (start, end) in enumerate(pairwise(segments.tolist())):
        what = f"{where} tensor {number}"
        numel = end - start
        if numel == 0:
            continue
        if position == payload.size:
            raise WireError(what, offset=offset + position, expected="a byte that says how", got="the end")
        how, length = int(payload[position]) & 15, int(payload[position]) >> 4
        coder = how + _NIBBLE
        at = position
        position += 1
        if (how > _ALL and not BITS <= coder <= GAPS) or (length and coder <= BITS):
            expected = "none, all or a set's coder, with a length if it needs one"
            raise WireError(what, offset=offset + at, expected=expected, got=f"{how}, {length}")
        if how <= _ALL:
            if how == _ALL:
                check_count(numel, what, offset + at, rest)
                rest -= numel
                found.append((start, Positions(numel, bits=np.ones(numel, np.uint8))))
            continue
        if coder == BITS:
            length = (numel + 7) // 8
        elif length == _LONG:
            more, end_of = take_varint(payload[position : position + MAX_VARINT_NBYTES].tobytes(), 0, offset + position)
            position += end_of
            length += more
        if length > payload.size - position:
            expected = f"at most {payload.size - position} bytes"
            raise WireError(what, offset=offset + at, expected=expected, got=length)
        section = payload[position : position + length]
        part = decode_set(coder, section, numel, what, offset + position, min(numel, rest))
        found.append((start, part))
        rest -= part.count
        position += length
    if position != payload.size:
        got = f"{payload.size - position} bytes more"
        raise WireError(f"{where} tensors", offset=offset + position, expected="the end", got=got)
    return _joined(found, int(segments[-1]))


def _joined(found: list[tuple[int, Positions]], numel: int) -> Positions:
    if sum(positions.count for _, positions in found) < numel // 16:
        parts = [positions.indices + start for start, positions in found]
        return Positions(numel, indices=np.concatenate([np.empty(0, np.int64), *parts]))
    bits = np.zeros(numel, np.uint8)
    for start, positions in found:
        bits[start : start + positions.numel] = positions.bits
    return Positions(numel, bits=bits)
