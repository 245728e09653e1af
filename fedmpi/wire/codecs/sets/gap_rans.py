"""Codec 18: rANS of the gaps between positions."""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import GAP_RANS, NAMES
from fedmpi.wire.codecs.bitpack import new_stream, packed_nbytes, put_bits, stream_bytes, stream_of, take_bits
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.rans import decode_symbols, encode_symbols, least_nbytes
from fedmpi.wire.codecs.set_tables import GAP_SYMBOLS, SET_SCALE_BITS, gap_shift, gap_table
from fedmpi.wire.codecs.sets.base import Positions, count_nbytes, from_minority, put_count, take_count
from fedmpi.wire.codecs.sets.histograms import count_gaps

_MORE = GAP_SYMBOLS - 1


@njit(cache=True)
def _put_gaps(indices, shift, symbols, stream):  # type: ignore[no-untyped-def]
    position = np.uint64(0)
    mask = (np.int64(1) << shift) - 1
    count = 0
    expected = 0
    for index in indices:
        gap = index - expected
        expected = index + 1
        position = put_bits(stream, position, np.uint64(gap & mask), np.uint64(shift))
        high = gap >> shift
        while high >= _MORE:
            symbols[count] = _MORE
            count += 1
            high -= _MORE
        symbols[count] = high
        count += 1
    return count


@njit(cache=True)
def _take_gaps(symbols, stream, shift, numel, indices):  # type: ignore[no-untyped-def]
    """Fill `indices`; return whether the symbols are just as many gaps, all below `numel`."""
    position = np.uint64(0)
    count = 0
    high = np.int64(0)
    expected = np.int64(0)
    for symbol in symbols:
        high += np.int64(symbol)
        if symbol == _MORE:
            continue
        if count == indices.size or high > numel >> shift:
            return False
        gap = (high << shift) | np.int64(take_bits(stream, position, np.uint64(shift)))
        position += np.uint64(shift)
        index = expected + gap
        if index >= numel:
            return False
        indices[count] = index
        expected = index + 1
        count += 1
        high = np.int64(0)
    return count == indices.size and high == 0


class GapRans:
    """Gaps between positions, coded with the odds of a random set; best below 10 % from some thousand positions on."""

    codec_id = GAP_RANS
    name = NAMES[GAP_RANS]

    def least_nbytes(self, positions: Positions) -> int:
        few = positions.minority
        nbytes = count_nbytes(positions)
        if few.count == 0:
            return nbytes
        shift = gap_shift(few.count, few.numel)
        counts = count_gaps(few, shift)
        freqs = gap_table(few.count, few.numel, shift)
        return nbytes + 1 + packed_nbytes(few.count, shift) + least_nbytes(counts, freqs, SET_SCALE_BITS)

    def encode(self, positions: Positions) -> np.ndarray:
        few = positions.minority
        header = bytearray(put_count(positions))
        if few.count == 0:
            return np.frombuffer(header, np.uint8)
        shift = gap_shift(few.count, few.numel)
        stream = new_stream(few.count * shift)
        symbols = np.empty(few.count + _most_extra(few.numel, shift), np.uint8)
        num_symbols = _put_gaps(few.indices, shift, symbols, stream)
        put_varint(num_symbols - few.count, header)
        freqs = gap_table(few.count, few.numel, shift)
        return np.concatenate(
            [
                np.frombuffer(header, np.uint8),
                stream_bytes(stream, few.count * shift),
                encode_symbols(symbols[:num_symbols], freqs, SET_SCALE_BITS),
            ]
        )

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        fewer, flipped, body, offset = take_count(payload, numel, where, offset, max_count)
        indices = np.empty(fewer, np.int64)
        if fewer == 0:
            return from_minority(numel, indices, flipped)
        shift = gap_shift(fewer, numel)
        extra, position = take_varint(body[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
        if extra > _most_extra(numel, shift):
            expected = f"at most {_most_extra(numel, shift)} continued gaps"
            raise WireError(f"{where} gaps", offset=offset, expected=expected, got=extra)
        low_nbytes = packed_nbytes(fewer, shift)
        if low_nbytes > body.size - position:
            rest = body.size - position
            raise WireError(f"{where} gaps", offset=offset + position, expected=f"{low_nbytes} bytes", got=rest)
        low = body[position : position + low_nbytes]
        if fewer * shift % 8 and low[-1] >> fewer * shift % 8:
            last = offset + position + low_nbytes - 1
            raise WireError(f"{where} gaps", offset=last, expected="zeros at the end", got=int(low[-1]))
        position += low_nbytes
        freqs = gap_table(fewer, numel, shift)
        symbols = decode_symbols(body[position:], fewer + extra, freqs, SET_SCALE_BITS, where, offset + position)
        if not _take_gaps(symbols, stream_of(low), shift, numel, indices):
            expected = f"{fewer} gaps within {numel} positions"
            raise WireError(f"{where} gaps", offset=offset + position, expected=expected, got="others")
        return from_minority(numel, indices, flipped)


def _most_extra(numel: int, shift: int) -> int:
    return numel // (_MORE << shift)
