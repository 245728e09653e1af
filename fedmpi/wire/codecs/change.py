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

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs import rans
from fedmpi.wire.codecs.base import BITS, GAPS
from fedmpi.wire.codecs.numbers import put_varint, take_varint
from fedmpi.wire.codecs.positions import decode_set, encode_set
from fedmpi.wire.codecs.reference import put_reference
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import P12_ONE, KnownMask

_NIBBLE = BITS - 1
"""A set's coder in half a byte is its number less this; 0 is no position."""

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


def _packed(base: KnownMask) -> np.ndarray:
    return np.packbits(base.array, bitorder="little")


def _count(packed: np.ndarray) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def count_moves(positions: Positions, base: KnownMask) -> tuple[int, int]:
    """Return how many of the base's positions are not in a set, and how many of the set's are not in the base."""
    changed = positions.packed ^ _packed(base)
    dropped = _count(changed & _packed(base))
    return dropped, _count(changed) - dropped


def encode_ranks(positions: Positions, base: KnownMask) -> np.ndarray:
    """Return the payload of ``ranks``: the reference and the two sets, uint8."""
    packed_base = _packed(base)
    changed = positions.packed ^ packed_base
    num_dropped = _count(changed & packed_base)
    dropped = np.empty(num_dropped + 1, np.int64)
    grown = np.empty(_count(changed) - num_dropped + 1, np.int64)
    _ranks(packed_base, changed, dropped, grown)
    num_kept = int(base.indices.size)
    coders, head, parts = 0, bytearray(), []
    for half, (ranks, count) in enumerate(((dropped[:-1], num_kept), (grown[:-1], base.array.size - num_kept))):
        if ranks.size:
            coded = encode_set(Positions(count, indices=ranks))
            coders |= (coded.codec_id - _NIBBLE) << (4 * half)
            if half == 0:
                put_varint(coded.payload.size, head)
            parts.append(coded.payload)
    header = np.frombuffer(bytes((coders,)) + bytes(head), np.uint8)
    return np.concatenate([put_reference(base), header, *parts])


def decode_ranks(payload: np.ndarray, base: KnownMask, where: str, offset: int) -> Positions:
    """Return the set that a payload says, less its reference.

    Raises
    ------
    WireError
        If it is not two sets of the base's ranks.
    """
    if payload.size == 0:
        raise WireError(f"{where} ranks", offset=offset, expected="a byte of coders", got="the end")
    coders = int(payload[0])
    position, nbytes = 1, 0
    if coders & 15:
        nbytes, position = take_varint(payload[:12].tobytes(), 1, offset)
        if nbytes > payload.size - position:
            expected = f"at most {payload.size - position} bytes"
            raise WireError(f"{where} dropped positions", offset=offset + 1, expected=expected, got=nbytes)
    num_kept = int(base.indices.size)
    middle = position + nbytes
    dropped = _take_ranks(coders & 15, payload[position:middle], num_kept, f"{where} dropped", offset + position)
    num_others = base.array.size - num_kept
    grown = _take_ranks(coders >> 4, payload[middle:], num_others, f"{where} grown", offset + middle)
    packed_base = _packed(base)
    packed = packed_base.copy()
    met = _flip(packed_base, dropped, grown, packed)
    if met != (dropped.size - 1, grown.size - 1):
        expected = f"{dropped.size - 1} dropped and {grown.size - 1} grown positions"
        raise WireError(f"{where} ranks", offset=offset, expected=expected, got=f"{met[0]} and {met[1]}")
    return Positions(base.array.size, packed=packed)


def _take_ranks(nibble: int, payload: np.ndarray, count: int, where: str, offset: int) -> np.ndarray:
    """Return a set's ranks and one that never comes."""
    if nibble == 0:
        if payload.size:
            raise WireError(where, offset=offset, expected="no bytes", got=payload.size)
        return np.array([_NEVER])
    if not BITS <= nibble + _NIBBLE <= GAPS:
        raise WireError(f"{where} coder", offset=offset, expected="a set's coder", got=nibble)
    ranks = decode_set(nibble + _NIBBLE, payload, count, where, offset).indices
    return np.append(ranks, _NEVER)


def _probabilities(num_dropped: int, num_grown: int, num_kept: int, num_others: int) -> tuple[int, int]:
    """Return P(kept) given an unset and given a set bit of the base, in units of 1 / 4096."""
    return _p12(num_grown, num_others), _p12(num_kept - num_dropped, num_kept)


def _p12(part: int, whole: int) -> int:
    return min(max((P12_ONE * part + whole // 2) // whole, 1), P12_ONE - 1) if whole else P12_ONE // 2


def change_nbytes(num_dropped: int, num_grown: int, num_kept: int, num_others: int) -> float:
    """Estimate from below the size of ``change`` without its reference: the cross entropy and what is around it."""
    unset, kept = _probabilities(num_dropped, num_grown, num_kept, num_others)
    nbits = _cost(num_grown, num_others, unset) + _cost(num_kept - num_dropped, num_kept, kept)
    return 2 + rans.STATES_NBYTES / 2 + nbits / 8  # the states that lanes end with hold up to 16 bits of 32


def _cost(part: int, whole: int, p12: int) -> float:
    p = p12 / P12_ONE
    return -part * math.log2(p) - (whole - part) * math.log2(1 - p)


def encode_change(positions: Positions, base: KnownMask) -> np.ndarray:
    """Return the payload of ``change``: the reference, the header and the bits, uint8."""
    num_dropped, num_grown = count_moves(positions, base)
    header = bytearray()
    put_varint(num_dropped, header)
    put_varint(num_grown, header)
    coded = rans.encode_bits(positions.bits, _p12_of_bits(base, num_dropped, num_grown))
    return np.concatenate([put_reference(base), np.frombuffer(bytes(header), np.uint8), coded])


def decode_change(payload: np.ndarray, base: KnownMask, where: str, offset: int) -> Positions:
    """Return the set that a payload says, less its reference.

    Raises
    ------
    WireError
        If it is not the bits of so many dropped and grown positions.
    """
    head = payload[:20].tobytes()
    num_dropped, position = take_varint(head, 0, offset)
    num_grown, position = take_varint(head, position, offset)
    num_kept = int(base.indices.size)
    num_others = base.array.size - num_kept
    if num_dropped > num_kept or num_grown > num_others:
        expected = f"at most {num_kept} dropped and {num_others} grown positions"
        raise WireError(f"{where} change", offset=offset, expected=expected, got=f"{num_dropped} and {num_grown}")
    p12 = _p12_of_bits(base, num_dropped, num_grown)
    bits = rans.decode_bits(payload[position:], p12, where, offset + position)
    positions = Positions(bits.size, bits=bits)
    found = count_moves(positions, base)
    if found != (num_dropped, num_grown):
        expected = f"{num_dropped} dropped and {num_grown} grown positions"
        raise WireError(f"{where} change", offset=offset, expected=expected, got=f"{found[0]} and {found[1]}")
    return positions


def _p12_of_bits(base: KnownMask, num_dropped: int, num_grown: int) -> np.ndarray:
    num_kept = int(base.indices.size)
    unset, kept = _probabilities(num_dropped, num_grown, num_kept, base.array.size - num_kept)
    # Arithmetic is several times faster than a table of two; a step down wraps around, and back.
    step = np.uint16((kept - unset) % (1 << 16))
    return np.multiply(base.array.view(np.uint8), step, dtype=np.uint16) + np.uint16(unset)


def warm_up() -> None:
    """Compile, or load from the cache, the kernels of both forms."""
    base = KnownMask(np.arange(64) % 3 == 0, 0)
    positions = Positions.from_mask(np.arange(64) % 4 == 0)
    reference = put_reference(base).size
    decode_ranks(encode_ranks(positions, base)[reference:], base, "", 0)
    decode_change(encode_change(positions, base)[reference:], base, "", 0)
