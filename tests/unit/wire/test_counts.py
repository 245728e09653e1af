"""Counts as varints: the same bytes as one at a time, one form only, every wrong payload refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roundtrip import encodes_alike_or_refuses, round_trip

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import VARINTS, FieldSpec
from fedmpi.wire.codecs.counts import FORMAT
from fedmpi.wire.codecs.numbers import put_varint
from fedmpi.wire.known import Known
from fedmpi.wire.message import Message, Schema, message
from fedmpi.wire.message import counts as counts_field
from fedmpi.wire.values import Counts


def spec_of(numel: int, *, at_most: bool = False) -> FieldSpec:
    return FieldSpec("Up.counts", shape=(numel,), at_most=at_most)


def encode(counts: np.ndarray, spec: FieldSpec) -> np.ndarray:
    section = FORMAT.encode(Counts(counts), spec, WireConfig())
    assert (section.codec_id, section.codec, section.param) == (VARINTS, "varints", 0)
    assert (section.index_nbytes, section.value_nbytes) == (0, section.payload.size)
    return section.payload


def decode(payload: np.ndarray, spec: FieldSpec, offset: int = 0) -> np.ndarray:
    section = FORMAT.decode(VARINTS, 0, payload, spec, Known(), offset)
    assert isinstance(section.value, Counts) and section.value_nbytes == payload.size
    return section.value.array


any_count = st.integers(0, 62).flatmap(lambda digits: st.integers(0, 2 ** (digits + 1) - 1))


@given(numbers=st.lists(any_count, max_size=30), at_most=st.booleans())
def test_counts_come_back(numbers: list[int], at_most: bool) -> None:
    spec = spec_of(len(numbers) + 3 * at_most, at_most=at_most)
    payload = encode(np.array(numbers, np.int64), spec)
    one_at_a_time = bytearray()
    for number in numbers:
        put_varint(number, one_at_a_time)
    assert payload.tobytes() == bytes(one_at_a_time)
    back = decode(payload, spec)
    assert back.dtype == np.int64 and back.tolist() == numbers and back.flags.writeable


@message("test-counts", "up")
class CountsUp(Message):
    samples: Counts = counts_field("classes", at_most=True)


def test_frames_come_back() -> None:
    schema = Schema({"classes": 10}, 1)
    sent = CountsUp(samples=Counts(np.array([0, 127, 128, 2**63 - 1])))
    round_trip(sent, schema)
    encodes_alike_or_refuses(sent, schema)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (np.array([3, -1]), "counts are from 0, got -1"),
        (np.array([3]), "expected 2 counts as an int64 vector, got int64 \\(1,\\)"),
        (np.array([3, 4], np.int32), "got int32 \\(2,\\)"),
        (np.array([[3, 4]]), "got int64 \\(1, 2\\)"),
    ],
)
def test_counts_that_are_not_as_declared(counts: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=f"Up.counts: .*{words}"):
        FORMAT.encode(Counts(counts), spec_of(2), WireConfig())


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("", "at byte 50 expected 2, got 0"),
        ("01", "expected 2, got 1"),
        ("010203", "expected 2, got 3"),
        ("010280", "at byte 52 expected another byte, got the end"),
        ("018000", "at byte 51 expected the shortest form"),
        ("0180808080808080808000", "at byte 51 expected the shortest form"),
        ("01ffffffffffffffffff01", "at byte 51 expected the shortest form of a count, at most 9 bytes, got 10 bytes"),
    ],
)
def test_payloads_that_are_refused(payload: str, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(np.frombuffer(bytes.fromhex(payload), np.uint8), spec_of(2), 50)


@pytest.mark.parametrize(("codec_id", "param"), [(VARINTS + 1, 0), (VARINTS, 1)])
def test_another_codec_is_refused(codec_id: int, param: int) -> None:
    with pytest.raises(WireError, match=r"Up\.counts codec"):
        FORMAT.decode(codec_id, param, np.zeros(2, np.uint8), spec_of(2), Known(), 0)


@given(payload=st.binary(max_size=40), numel=st.integers(0, 40))
def test_any_bytes_are_counts_or_refused(payload: bytes, numel: int) -> None:
    spec = spec_of(numel, at_most=True)
    try:
        counts = decode(np.frombuffer(payload, np.uint8), spec)
    except WireError:
        return
    assert spec.accepts(counts.size) and (counts >= 0).all()
    assert encode(counts, spec).tobytes() == payload
