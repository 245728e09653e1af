"""Labels as digits: sizes close to log2(classes) a label, every count, every wrong payload refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roundtrip import encodes_alike_or_refuses, round_trip

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import RADIX, FieldSpec
from fedmpi.wire.codecs.labels import FORMAT
from fedmpi.wire.known import Known
from fedmpi.wire.message import Message, Schema, message
from fedmpi.wire.message import labels as labels_field
from fedmpi.wire.values import Labels


def encode(labels: list[int] | np.ndarray, spec: FieldSpec) -> np.ndarray:
    section = FORMAT.encode(Labels(np.asarray(labels, np.int64), spec.num_classes), spec, WireConfig())
    assert (section.codec_id, section.codec, section.param) == (RADIX, "radix", 0)
    assert (section.index_nbytes, section.value_nbytes) == (0, section.payload.size)
    return section.payload


def decode(payload: np.ndarray, spec: FieldSpec, offset: int = 0) -> np.ndarray:
    section = FORMAT.decode(RADIX, 0, payload, spec, Known(), offset)
    assert isinstance(section.value, Labels) and section.value.num_classes == spec.num_classes
    assert section.value_nbytes == payload.size
    return section.value.array


def spec_of(numel: int, num_classes: int, *, at_most: bool = False) -> FieldSpec:
    return FieldSpec("Up.labels", shape=(numel,), at_most=at_most, num_classes=num_classes)


class_counts = st.one_of(st.integers(1, 300), st.sampled_from([1000, 2**16, 2**16 + 1, 2**31 - 1, 2**31]))


@given(num_classes=class_counts, count=st.integers(0, 70), at_most=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_labels_come_back(num_classes: int, count: int, at_most: bool, seed: int) -> None:
    spec = spec_of(70 if at_most else count, num_classes, at_most=at_most)
    labels = np.random.default_rng(seed).integers(0, num_classes, count)
    for sent in (labels, np.full(count, num_classes - 1), np.zeros(count, np.int64)):
        payload = encode(sent, spec)
        back = decode(payload, spec)
        assert back.dtype == np.int64 and back.tolist() == sent.tolist() and back.flags.writeable


@message("test-labels", "up")
class LabelsUp(Message):
    labels: Labels = labels_field("batch", num_classes="classes", at_most=True)


def test_frames_come_back() -> None:
    schema = Schema({"batch": 64, "classes": 10}, 1)
    sent = LabelsUp(labels=Labels(np.arange(50) % 10, 10))
    round_trip(sent, schema)
    encodes_alike_or_refuses(sent, schema)


@pytest.mark.parametrize(
    ("num_classes", "labels", "payload"),
    [
        (2, [1, 0, 0, 0, 0, 0, 0, 1, 1], "8101"),
        (10, [3], "03"),
        (10, [3, 2, 1], "7b00"),  # 123; three digits need two bytes
        (256, [7, 255], "07ff"),
        (1, [0, 0, 0], ""),
        (10, [], ""),
    ],
)
def test_labels_by_hand(num_classes: int, labels: list[int], payload: str) -> None:
    assert encode(labels, spec_of(len(labels), num_classes)).tobytes().hex() == payload


def test_fewer_labels_say_how_many() -> None:
    assert encode([3, 2, 1], spec_of(200, 10, at_most=True)).tobytes().hex() == "037b00"
    assert encode([0, 0, 0], spec_of(200, 1, at_most=True)).tobytes().hex() == "03"


@pytest.mark.parametrize(
    ("num_classes", "loss"),
    [
        (2, 1e-3),
        (3, 0.01),
        (10, 0.004),
        (26, 0.022),
        (62, 0.008),
        (100, 0.004),
        (257, 0.143),
        (1000, 0.004),
        (2**31, 0.04),
    ],
)
def test_the_size_is_close_to_the_bound(num_classes: int, loss: float) -> None:
    """257 is the worst number of classes up to 1000: seven digits, 56 bits and a little, take 64."""
    count = 6000
    labels = np.random.default_rng(0).integers(0, num_classes, count)
    nbits = 8 * encode(labels, spec_of(count, num_classes)).size
    bound = count * np.log2(num_classes)
    assert bound <= nbits <= (1 + loss) * bound + 64


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 10]), "labels are 0 to 9, got 10"),
        (np.array([-1, 0]), "labels are 0 to 9, got -1"),
        (np.array([1]), "expected 2 labels as an int64 vector, got int64 \\(1,\\)"),
        (np.array([1, 2], np.int32), "got int32"),
        (np.array([[1, 2]]), "got int64 \\(1, 2\\)"),
    ],
)
def test_labels_that_are_not_as_declared(labels: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=f"Up.labels: .*{words}"):
        FORMAT.encode(Labels(labels, 10), spec_of(2, 10), WireConfig())


def test_labels_of_other_classes() -> None:
    with pytest.raises(ValueError, match=r"Up.labels: expected labels of 10 classes, got 7"):
        FORMAT.encode(Labels(np.zeros(2, np.int64), 7), spec_of(2, 10), WireConfig())


@pytest.mark.parametrize("num_classes", [0, -1, 2**31 + 1])
def test_how_many_classes_there_may_be(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"labels are of 1 to 2147483648 classes, got {num_classes}"):
        FORMAT.encode(Labels(np.zeros(2, np.int64), num_classes), spec_of(2, num_classes), WireConfig())


@pytest.mark.parametrize(
    ("spec", "payload", "words"),
    [
        (spec_of(2, 10), "", "at byte 50 expected 1 bytes of 2 labels, got 0"),
        (spec_of(2, 10), "0000", "at byte 50 expected 1 bytes of 2 labels, got 2"),
        (spec_of(2, 10), "64", "at byte 50 expected 2 labels below 10, got the number 100"),
        (spec_of(16, 10), "0010a5d4e80000", "at byte 50 expected 12 labels below 10, got the number 1000000000000"),
        (spec_of(2, 10, at_most=True), "0300", "at byte 50 expected at most 2, got 3"),
        (spec_of(2, 10, at_most=True), "02", "at byte 51 expected 1 bytes"),
        (spec_of(2, 10, at_most=True), "ffffffffffffffffff01", "expected at most 2"),
        (spec_of(2, 10, at_most=True), "", "varint"),
        (spec_of(2, 1), "00", "expected 0 bytes of 2 labels"),
    ],
)
def test_payloads_that_are_refused(spec: FieldSpec, payload: str, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode(np.frombuffer(bytes.fromhex(payload), np.uint8), spec, 50)


@pytest.mark.parametrize(("codec_id", "param"), [(RADIX + 1, 0), (RADIX, 1)])
def test_another_codec_is_refused(codec_id: int, param: int) -> None:
    with pytest.raises(WireError, match=r"Up\.labels codec"):
        FORMAT.decode(codec_id, param, np.zeros(1, np.uint8), spec_of(2, 10), Known(), 0)


@given(payload=st.binary(max_size=40), num_classes=class_counts, numel=st.integers(0, 40), at_most=st.booleans())
def test_any_bytes_are_labels_or_refused(payload: bytes, num_classes: int, numel: int, at_most: bool) -> None:
    spec = spec_of(numel, num_classes, at_most=at_most)
    try:
        labels = decode(np.frombuffer(payload, np.uint8), spec)
    except WireError:
        return
    assert spec.accepts(labels.size) and ((labels >= 0) & (labels < num_classes)).all()
    assert encode(labels, spec).tobytes() == payload
