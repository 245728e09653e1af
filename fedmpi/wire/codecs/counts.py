"""Whole numbers from 0 as varints (LEB128): seven bits a byte, the lowest first, the top bit set where more follow."""

from __future__ import annotations

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import NAMES, VARINTS, Decoded, Encoded, FieldSpec
from fedmpi.wire.known import Known
from fedmpi.wire.values import Counts, Value

_MAX_NBYTES = 9
"""Seven bits a byte: 63 bits, as many as int64 has for numbers from 0."""


def _put(array: np.ndarray) -> np.ndarray:
    lengths = np.ones(array.size, np.int64)
    for longer in range(1, _MAX_NBYTES):
        lengths += array >= 1 << (7 * longer)
    starts = np.cumsum(lengths) - lengths
    payload = np.empty(int(lengths.sum()), np.uint8)
    for number in range(int(lengths.max(initial=0))):
        there = lengths > number
        low = (array[there] >> (7 * number)).astype(np.uint8) & np.uint8(0x7F)
        payload[starts[there] + number] = low | (lengths[there] > number + 1).astype(np.uint8) << np.uint8(7)
    return payload


def _take(payload: np.ndarray, ends: np.ndarray, where: str, offset: int) -> np.ndarray:
    """Return the numbers whose last bytes are at `ends`."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    wrong = np.flatnonzero((lengths > _MAX_NBYTES) | ((payload[ends] == 0) & (lengths > 1)))
    if wrong.size:
        at, length = int(starts[wrong[0]]), int(lengths[wrong[0]])
        expected = f"the shortest form of a count, at most {_MAX_NBYTES} bytes"
        raise WireError(f"{where} count", offset=offset + at, expected=expected, got=f"{length} bytes")
    array = np.zeros(ends.size, np.int64)
    for number in range(int(lengths.max(initial=0))):
        there = lengths > number
        array[there] |= (payload[starts[there] + number] & np.uint8(0x7F)).astype(np.int64) << (7 * number)
    return array


class CountsFormat:
    """Counts; their number shows in the payload. The section's param byte is 0."""

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Counts)
        array = value.array
        if array.dtype != np.int64 or array.ndim != 1 or not spec.accepts(array.size):
            expected, got = f"{spec.length_words} counts as an int64 vector", f"{array.dtype} {array.shape}"
            raise ValueError(f"{spec.where}: expected {expected}, got {got}")
        if array.size and array.min() < 0:
            raise ValueError(f"{spec.where}: counts are from 0, got {array.min()}")
        payload = _put(array)
        return Encoded(VARINTS, NAMES[VARINTS], 0, payload, 0, payload.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        where = spec.where
        if codec_id != VARINTS or param:
            expected, got = f"codec {VARINTS}, 0", f"{codec_id}, {param}"
            raise WireError(f"{where} codec", offset=offset, expected=expected, got=got)
        most = _MAX_NBYTES * spec.numel
        if payload.size > most:
            # Their ends alone would take eight times the bytes.
            raise WireError(f"{where} counts", offset=offset, expected=f"at most {most} bytes", got=payload.size)
        ends = np.flatnonzero(payload < 0x80)
        if not spec.accepts(ends.size):
            raise WireError(f"{where} counts", offset=offset, expected=spec.length_words, got=ends.size)
        if payload.size and payload[-1] >= 0x80:
            at = offset + payload.size - 1
            raise WireError(f"{where} count", offset=at, expected="another byte", got="the end")
        return Decoded(Counts(_take(payload, ends, where, offset)), NAMES[VARINTS], 0, payload.size)

    def warm_up(self) -> None:
        pass


FORMAT = CountsFormat()
