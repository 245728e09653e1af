"""Codec 19: Golomb code of the gaps between positions (Golomb 1966; Gallager and van Voorhis 1975)."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import GOLOMB, NAMES
from fedmpi.wire.codecs.bitpack import new_stream, put_bits, stream_bytes, stream_of, take_bits
from fedmpi.wire.codecs.set_tables import GAP_SYMBOLS
from fedmpi.wire.codecs.sets.base import Positions, count_nbytes, from_minority, lowest_bit, put_count, take_count
from fedmpi.wire.codecs.sets.histograms import count_gaps, is_dense

_ONE = np.uint64(1)
_SIX = np.uint64(6)
_LAST = np.uint64(63)


def _modulus(fewer: int, numel: int) -> int:
    """Return the modulus M: ln 2 times the mean gap and a half, rounded up, in integers (ln 2 is 45426 * 2^-16)."""
    return max(1, (45426 * (2 * numel - fewer) + 65536 * fewer) // (131072 * fewer))


@njit(cache=True)
def _count_nbits(indices, modulus, width):  # type: ignore[no-untyped-def]
    short = (np.int64(1) << width) - modulus
    inverse = 1.0 / modulus
    nbits = np.int64(0)
    expected = 0
    for index in indices:
        gap = index - expected
        expected = index + 1
        quotient = np.int64(gap * inverse)  # a division takes five times as long
        rest = gap - quotient * modulus
        if rest < 0:
            quotient -= 1
            rest += modulus
        elif rest >= modulus:
            quotient += 1
            rest -= modulus
        nbits += quotient + 1 + width - (rest < short)
    return nbits


def _least_nbits(counts: np.ndarray, modulus: int, width: int) -> int:
    """Return the bits of gaps from their counts; less than exact if gaps of 47 and more were counted in parts."""
    lengths = np.arange(GAP_SYMBOLS - 1)
    short = lengths % modulus < (1 << width) - modulus
    nbits = int(counts[:-1] @ (lengths // modulus + 1 + width - short))
    # A part of 47 positions adds at least its own quotient, and may make the last remainder a short one.
    return nbits + int(counts[-1]) * ((GAP_SYMBOLS - 1) // modulus - 1)


@njit(cache=True)
def _put_gaps(indices, modulus, width, stream):  # type: ignore[no-untyped-def]
    short = (np.int64(1) << width) - modulus
    position = np.uint64(0)
    expected = 0
    for index in indices:
        quotient, rest = divmod(index - expected, modulus)
        expected = index + 1
        position = put_bits(stream, position + np.uint64(quotient), _ONE, _ONE)
        if width == 0:
            continue
        if rest < short:
            position = put_bits(stream, position, np.uint64(rest), np.uint64(width - 1))
        else:
            long = np.uint64(rest + short)
            position = put_bits(stream, position, long >> _ONE, np.uint64(width - 1))
            position = put_bits(stream, position, long & _ONE, _ONE)
    return position


@njit(cache=True)
def _take_gaps(stream, end, modulus, width, numel, indices):  # type: ignore[no-untyped-def]
    """Fill `indices`; return the position after the last gap, or one beyond `end` if the bits are not such gaps."""
    bad = end + _ONE
    short = (np.int64(1) << width) - modulus
    position = np.uint64(0)
    expected = np.int64(0)
    for i in range(indices.size):
        start = position
        while True:
            if position >= end:
                return bad
            word = stream[position >> _SIX] >> (position & _LAST)
            if word:
                position += np.uint64(lowest_bit(word))
                break
            position = (position | _LAST) + _ONE
        quotient = np.int64(position - start)
        position += _ONE
        rest = np.int64(0)
        if position > end or quotient > numel // modulus:
            return bad
        if width > 0:
            rest = np.int64(take_bits(stream, position, np.uint64(width - 1)))
            position += np.uint64(width - 1)
            if rest >= short:
                if position >= end:
                    return bad
                rest = (rest << 1 | np.int64(take_bits(stream, position, _ONE))) - short
                position += _ONE
        index = expected + quotient * modulus + rest
        if index >= numel or position > end:
            return bad
        indices[i] = index
        expected = index + 1
    return position


class Golomb:
    """Gaps between positions in a Golomb code whose modulus follows from k and n; best for few positions."""

    codec_id = GOLOMB
    name = NAMES[GOLOMB]

    def least_nbytes(self, positions: Positions) -> int:
        few = positions.minority
        header = count_nbytes(positions)
        if few.count == 0:
            return header
        modulus = _modulus(few.count, few.numel)
        width = (modulus - 1).bit_length()
        if is_dense(few):
            nbits = _least_nbits(count_gaps(few, 0), modulus, width)
        else:
            nbits = int(_count_nbits(few.indices, modulus, width))
        return header + (nbits + 7) // 8

    def encode(self, positions: Positions) -> np.ndarray:
        few = positions.minority
        header = np.frombuffer(put_count(positions), np.uint8)
        if few.count == 0:
            return header
        modulus = _modulus(few.count, few.numel)
        width = (modulus - 1).bit_length()
        # The quotients add up to at most n / M.
        stream = new_stream(few.count * (width + 1) + few.numel // modulus)
        nbits = int(_put_gaps(few.indices, modulus, width, stream))
        return np.concatenate([header, stream_bytes(stream, nbits)])

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        fewer, flipped, body, offset = take_count(payload, numel, where, offset, max_count)
        indices = np.empty(fewer, np.int64)
        if fewer == 0:
            return from_minority(numel, indices, flipped)
        modulus = _modulus(fewer, numel)
        width = (modulus - 1).bit_length()
        most = (fewer * (width + 1) + numel // modulus + 7) // 8
        end = 8 * min(body.size, most)
        stream = stream_of(body[:most])
        nbits = int(_take_gaps(stream, np.uint64(end), modulus, width, numel, indices))
        rest = nbits % 8
        if nbits > end or (nbits + 7) // 8 != body.size or (rest and body[-1] >> rest):
            expected = f"{fewer} gaps within {numel} positions and zeros to the end"
            raise WireError(f"{where} gaps", offset=offset, expected=expected, got=f"{body.size} other bytes")
        return from_minority(numel, indices, flipped)
