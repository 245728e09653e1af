"""Positions on the wire: a set of k out of n by the coder that is asked for, or by the smallest.

Codec ids 16 to 23 are the coders of a set on its own; see `fedmpi.wire.codecs.sets`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs import bitpack, rans, tables
from fedmpi.wire.codecs.sets.base import Positions, SetCoder
from fedmpi.wire.codecs.sets.bits import Bits
from fedmpi.wire.codecs.sets.byte_rans import ByteRans
from fedmpi.wire.codecs.sets.gap_rans import GapRans
from fedmpi.wire.codecs.sets.gaps import Gaps
from fedmpi.wire.codecs.sets.golomb import Golomb
from fedmpi.wire.codecs.sets.int64 import Int64
from fedmpi.wire.codecs.sets.uint32 import Uint32
from fedmpi.wire.codecs.sets.zstd import Zstd

__all__ = ["EncodedSet", "Positions", "decode_set", "encode_set", "set_codec_names", "warm_up"]

AUTO = "auto"
"""Name that stands for the smallest."""

_CODERS: tuple[SetCoder, ...] = (Bits(), ByteRans(), GapRans(), Golomb(), Zstd(), Uint32(), Int64(), Gaps())
_BY_ID = {coder.codec_id: coder for coder in _CODERS}
_BY_NAME = {coder.name: coder for coder in _CODERS}


@dataclass(frozen=True)
class EncodedSet:
    """A set as a coder made it: the coder's number and name, and the payload, uint8."""

    codec_id: int
    name: str
    payload: np.ndarray


def set_codec_names() -> tuple[str, ...]:
    """Return the coders' names in the order of their numbers."""
    return tuple(_BY_NAME)


def encode_set(positions: Positions, codec: str = AUTO) -> EncodedSet:
    """Return the bytes of a set.

    Parameters
    ----------
    positions : Positions
    codec : str
        One of `set_codec_names`, or "auto" for the one that gives the fewest bytes. Sizes do not follow from k and n,
        since real sets cluster: each coder bounds its size from below, and those whose bound is less than the best
        size so far are run.

    Raises
    ------
    ValueError
        For an unknown name, or a set that the coder asked for cannot express.
    """
    if codec == AUTO:
        return _smallest(positions)
    if codec not in _BY_NAME:
        raise ValueError(f"a set's codec is {AUTO} or one of {', '.join(_BY_NAME)}, got {codec!r}")
    return _encode(_BY_NAME[codec], positions)


def _encode(coder: SetCoder, positions: Positions) -> EncodedSet:
    return EncodedSet(coder.codec_id, coder.name, coder.encode(positions))


def _smallest(positions: Positions) -> EncodedSet:
    bounds = sorted((coder.least_nbytes(positions), coder.codec_id) for coder in _CODERS)
    best = _encode(_BY_ID[bounds[0][1]], positions)
    for least, codec_id in bounds[1:]:
        if least >= best.payload.size:
            break
        candidate = _encode(_BY_ID[codec_id], positions)
        if candidate.payload.size < best.payload.size:
            best = candidate
    return best


def decode_set(
    codec_id: int, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int | None = None
) -> Positions:
    """Return the set of a payload, uint8, that starts at `offset` of its frame.

    Takes time and memory in proportion to n at most, whatever the payload.

    Parameters
    ----------
    numel : int
        n, as the receiver knows it.
    where : str
        ``Message.field``, for error messages.
    max_count : int, optional
        The most positions that the receiver allows; n if not given.

    Raises
    ------
    WireError
        If the codec is not one of a set, or the payload not one of its payloads.
    """
    coder = _BY_ID.get(codec_id)
    if coder is None:
        raise WireError(f"{where} codec", offset=offset, expected=f"one of {sorted(_BY_ID)}", got=codec_id)
    return coder.decode(payload, numel, where, offset, numel if max_count is None else max_count)


def warm_up() -> None:
    """Compile every kernel of rANS, tables, bit packing and sets, or load it from numba's cache: code tiny data."""
    few = np.zeros(100, np.bool_)
    few[[3, 10, 11, 60]] = True
    for mask in (few, np.arange(100) % 3 == 0):
        for positions in (Positions.from_mask(mask), Positions.from_indices(np.flatnonzero(mask), mask.size)):
            for coder in _CODERS:
                coder.least_nbytes(positions)
                payload = coder.encode(positions)
                coder.decode(payload, mask.size, "warm-up", 0, mask.size).packed  # noqa: B018, makes it
                coder.decode(payload, mask.size, "warm-up", 0, mask.size).indices  # noqa: B018
    p12 = np.full(few.size, 100, np.uint16)
    rans.decode_bits(rans.encode_bits(few.view(np.uint8), p12), p12, "warm-up", 0)
    freqs = tables.quantize_counts(np.arange(8), 13)
    tables.take_table(tables.put_table(freqs), freqs.size, 13, "warm-up", 0)
    bitpack.unpack(bitpack.pack(few.view(np.uint8), 3), few.size, 3, "warm-up", 0)
