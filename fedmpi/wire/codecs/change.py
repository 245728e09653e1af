"""Sets of positions told by how they differ from a mask that both ends hold.

Both forms begin with the reference (see `fedmpi.wire.codecs.reference`). Of k kept and n - k other positions of the
base, d are dropped and g are grown.

* ``ranks``: a byte with the coder of the dropped ones in its low and of the grown ones in its high half (0 for none,
  else the codec's number less 15), the dropped ones' length as a varint if there are any, then both payloads. The
  dropped positions are a set of d of k ranks among the kept ones, the grown a set of g of n - k among the others.
* ``change``: d and g as varints, then every bit by rANS with one of two probabilities, chosen by the base's bit. They
  follow from d, g and k.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs import rans
from fedmpi.wire.codecs.base import BITS, GAPS
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.positions import decode_set, encode_set
from fedmpi.wire.codecs.reference import put_reference
from fedmpi.wire.codecs.sets.base import Positions, check_count, count_bits
from fedmpi.wire.known import P12_ONE, KnownMask

_NIBBLE = BITS - 1
"""A set's coder in half a byte is its number less this; 0 is no position."""

_HELD_NBYTES = 5
"""Of the cross entropy in the lanes' last states: seldom more, so that a size is not taken for too small."""

_POPCOUNTS = np.array([byte.bit_count() for byte in range(256)], np.int64)
_NEVER = np.iinfo(np.int64).max


@njit(cache=True)
def _ranks(base, changed, dropped, grown):  # type: ignore[no-untyped-def]
    """Fill the ranks of what changed; `base` and `changed` are packed, each output has one place to spare."""
    kept = np.int64(0)
    d = np.int64(0)
    g = np.int64(0)
    for j in range(base.size):
        byte = np.int64(base[j])
        flips = np.int64(changed[j])
        if flips == 0:
            kept += _POPCOUNTS[byte]
            continue
        for bit in range(8):
            one = (byte >> bit) & 1
            flip = (flips >> bit) & 1
            # Written always, and kept only where it counts: what changed is as good as random.
            dropped[d] = kept
            grown[g] = 8 * j + bit - kept
            d += flip & one
            g += flip & (1 - one)
            kept += one


@njit(cache=True)
def _flip(base, dropped, grown, out):  # type: ignore[no-untyped-def]
    """Flip the bits of these ranks in `out`, a copy of the packed `base`; return how many of each were met.

    Ranks ascend strictly, and each array ends with a number that is none.
    """
    kept = np.int64(0)
    d = np.int64(0)
    g = np.int64(0)
    for j in range(base.size):
        byte = np.int64(base[j])
        after = kept + _POPCOUNTS[byte]
        if dropped[d] >= after and grown[g] >= 8 * (j + 1) - after:
            kept = after
            continue
        flips = np.int64(0)
        for bit in range(8):
            one = (byte >> bit) & 1
            drop = one & (dropped[d] == kept)
            grow = (1 - one) & (grown[g] == 8 * j + bit - kept)
            flips |= (drop | grow) << bit
            d += drop
            g += grow
            kept += one
        out[j] = byte ^ flips
    return d, g


class Moves(NamedTuple):
    """How a set differs from a base.

    Attributes
    ----------
    positions : Positions
    base : KnownMask
    changed : numpy.ndarray, shape (ceil(n / 8),), uint8
        The bits in which they differ, packed.
    num_dropped, num_grown : int
        How many of the base's positions are not in the set, and how many of the set's are not in the base.
    """

    positions: Positions
    base: KnownMask
    changed: np.ndarray
    num_dropped: int
    num_grown: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """How many are dropped and grown, and how many the base keeps and does not keep."""
        return self.num_dropped, self.num_grown, self.base.count, self.base.array.size - self.base.count


def moves_of(positions: Positions, base: KnownMask) -> Moves:
    """Compare a set with a base of the same length."""
    changed = positions.packed ^ base.packed
    num_dropped = count_bits(changed & base.packed)
    # What is kept now was kept before and not dropped, or has grown.
    return Moves(positions, base, changed, num_dropped, positions.count - base.count + num_dropped)


def encode_ranks(moves: Moves) -> np.ndarray:
    """Return the payload of ``ranks``: the reference and the two sets, uint8."""
    base = moves.base
    dropped = np.empty(moves.num_dropped + 1, np.int64)
    grown = np.empty(moves.num_grown + 1, np.int64)
    _ranks(base.packed, moves.changed, dropped, grown)
    coders, head, parts = 0, bytearray(), []
    for half, (ranks, count) in enumerate(((dropped[:-1], base.count), (grown[:-1], base.array.size - base.count))):
        if ranks.size:
            coded = encode_set(Positions(count, indices=ranks))
            coders |= (coded.codec_id - _NIBBLE) << (4 * half)
            if half == 0:
                put_varint(coded.payload.size, head)
            parts.append(coded.payload)
    header = np.frombuffer(bytes((coders,)) + bytes(head), np.uint8)
    return np.concatenate([put_reference(base), header, *parts])


def decode_ranks(payload: np.ndarray, base: KnownMask, where: str, offset: int, max_count: int) -> Positions:
    """Return the set that a payload says, less its reference.

    Raises
    ------
    WireError
        If it is not two sets of the base's ranks, or they make a set of more than `max_count` positions.
    """
    if payload.size == 0:
        raise WireError(f"{where} ranks", offset=offset, expected="a byte of coders", got="the end")
    coders = int(payload[0])
    position, nbytes = 1, 0
    if coders & 15:
        nbytes, position = take_varint(payload[: 1 + MAX_VARINT_NBYTES].tobytes(), 1, offset)
        if nbytes > payload.size - position:
            expected = f"at most {payload.size - position} bytes"
            raise WireError(f"{where} dropped positions", offset=offset + 1, expected=expected, got=nbytes)
    middle = position + nbytes
    dropped = _take_ranks(
        coders & 15, payload[position:middle], base.count, base.count, f"{where} dropped", offset + position
    )
    stayed = base.count - (dropped.size - 1)
    check_count(stayed, where, offset, max_count)
    num_others = base.array.size - base.count
    most_grown = min(num_others, max_count - stayed)
    grown = _take_ranks(coders >> 4, payload[middle:], num_others, most_grown, f"{where} grown", offset + middle)
    packed = base.packed.copy()
    met = _flip(base.packed, dropped, grown, packed)
    if met != (dropped.size - 1, grown.size - 1):
        expected = f"{dropped.size - 1} dropped and {grown.size - 1} grown positions"
        raise WireError(f"{where} ranks", offset=offset, expected=expected, got=f"{met[0]} and {met[1]}")
    return Positions(base.array.size, packed=packed)


def _take_ranks(nibble: int, payload: np.ndarray, count: int, most: int, where: str, offset: int) -> np.ndarray:
    """Return a set's ranks and one that never comes."""
    if nibble == 0:
        if payload.size:
            raise WireError(where, offset=offset, expected="no bytes", got=payload.size)
        return np.array([_NEVER])
    if not BITS <= nibble + _NIBBLE <= GAPS:
        raise WireError(f"{where} coder", offset=offset, expected="a set's coder", got=nibble)
    ranks = decode_set(nibble + _NIBBLE, payload, count, where, offset, most).indices
    return np.append(ranks, _NEVER)


def _probabilities(num_dropped: int, num_grown: int, num_kept: int, num_others: int) -> tuple[int, int]:
    """Return P(kept) given an unset and given a set bit of the base, in units of 1 / 4096."""
    return _p12(num_grown, num_others), _p12(num_kept - num_dropped, num_kept)


def _p12(part: int, whole: int) -> int:
    return min(max((P12_ONE * part + whole // 2) // whole, 1), P12_ONE - 1) if whole else P12_ONE // 2


def change_nbytes(num_dropped: int, num_grown: int, num_kept: int, num_others: int) -> float:
    """Estimate the size of ``change`` without its reference, at most 2 bytes above it.

    The cross entropy and what is around it: of the 8 bytes that the lanes' last states can hold they hold 5 at most.
    """
    unset, kept = _probabilities(num_dropped, num_grown, num_kept, num_others)
    nbits = _cost(num_grown, num_others, unset) + _cost(num_kept - num_dropped, num_kept, kept)
    return 2 + rans.STATES_NBYTES - _HELD_NBYTES + nbits / 8


def _cost(part: int, whole: int, p12: int) -> float:
    p = p12 / P12_ONE
    return -part * math.log2(p) - (whole - part) * math.log2(1 - p)


def encode_change(moves: Moves) -> np.ndarray:
    """Return the payload of ``change``: the reference, the header and the bits, uint8."""
    header = bytearray()
    put_varint(moves.num_dropped, header)
    put_varint(moves.num_grown, header)
    coded = rans.encode_bits(moves.positions.bits, _p12_of_bits(moves.base, moves.num_dropped, moves.num_grown))
    return np.concatenate([put_reference(moves.base), np.frombuffer(bytes(header), np.uint8), coded])


def decode_change(payload: np.ndarray, base: KnownMask, where: str, offset: int) -> Positions:
    """Return the set that a payload says, less its reference.

    Raises
    ------
    WireError
        If it is not the bits of so many dropped and grown positions.
    """
    head = payload[: 2 * MAX_VARINT_NBYTES].tobytes()
    num_dropped, position = take_varint(head, 0, offset)
    num_grown, position = take_varint(head, position, offset)
    num_kept, num_others = base.count, base.array.size - base.count
    if num_dropped > num_kept or num_grown > num_others:
        expected = f"at most {num_kept} dropped and {num_others} grown positions"
        raise WireError(f"{where} change", offset=offset, expected=expected, got=f"{num_dropped} and {num_grown}")
    p12 = _p12_of_bits(base, num_dropped, num_grown)
    bits = rans.decode_bits(payload[position:], p12, where, offset + position)
    positions = Positions(bits.size, bits=bits)
    found = moves_of(positions, base)
    if (found.num_dropped, found.num_grown) != (num_dropped, num_grown):
        expected, got = f"{num_dropped} dropped and {num_grown} grown", f"{found.num_dropped} and {found.num_grown}"
        raise WireError(f"{where} change", offset=offset, expected=f"{expected} positions", got=got)
    return positions


def _p12_of_bits(base: KnownMask, num_dropped: int, num_grown: int) -> np.ndarray:
    unset, kept = _probabilities(num_dropped, num_grown, base.count, base.array.size - base.count)
    # Arithmetic is several times faster than a table of two; a step down wraps around, and back.
    step = np.uint16((kept - unset) % (1 << 16))
    return np.multiply(base.array.view(np.uint8), step, dtype=np.uint16) + np.uint16(unset)


def warm_up() -> None:
    """Compile, or load from the cache, the kernels of both forms."""
    base = KnownMask(np.arange(64) % 3 == 0, 0)
    moves = moves_of(Positions.from_mask(np.arange(64) % 4 == 0), base)
    reference = put_reference(base).size
    decode_ranks(encode_ranks(moves)[reference:], base, "", 0, 64)
    decode_change(encode_change(moves)[reference:], base, "", 0)
