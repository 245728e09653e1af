"""Vectors: raw, as planes or against a base, whichever the configuration asks for or is smallest."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from roundtrip import encodes_alike_or_refuses, round_trip

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.codecs.base import DELTA, PLANES, RAW, FieldSpec
from fedmpi.wire.codecs.dense import FORMAT
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.known import Known, KnownVector
from fedmpi.wire.message import Message, Schema, dense, message
from fedmpi.wire.values import DENSE_DTYPES, Dense, storage

NUMEL = 3000
CHOICES = ("raw", "planes", "delta", "auto")


def vector_class(of_dtype: str) -> type[Message]:
    class Vector(Message):
        vector: Dense = dense("params", dtype=of_dtype, base="weights")

    return message(f"test-based-{of_dtype}", "down")(Vector)


CLASSES: dict[str, Any] = {dtype: vector_class(dtype) for dtype in DENSE_DTYPES}


@message("test-part", "up")
class Part(Message):
    vector: Dense = dense("params", at_most=True, base="weights")


@message("test-plain", "up")
class Plain(Message):
    vector: Dense = dense("params")


def numbers_of(dtype: str, seed: int = 0, numel: int = NUMEL) -> np.ndarray:
    """Return arbitrary bit patterns, NaNs among them."""
    raw = np.random.default_rng(seed).integers(0, 256, numel * storage(dtype).itemsize, np.uint8)
    return raw.view(storage(dtype))


def smooth(seed: int = 0, numel: int = NUMEL) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(numel).astype(np.float32)


def schema(choice: str, *held: KnownVector, numel: int = NUMEL) -> Schema:
    known = Known()
    for vector in held:
        known.hold("weights", vector)
    return Schema({"params": numel}, 1, wire=WireConfig(dense=choice), known=known)


@pytest.mark.parametrize("numel", [0, 1, 9, NUMEL])
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
@pytest.mark.parametrize("choice", CHOICES)
def test_vectors_come_back(choice: str, dtype: str, numel: int) -> None:
    base = KnownVector(numbers_of(dtype, 1, numel), 200)
    near = base.array.copy()
    near.view(np.uint8)[:: 2 * near.itemsize] ^= 1  # half of the numbers, by a step or two
    for array in (numbers_of(dtype, 0, numel), near):
        for against in (None, base):
            made = CLASSES[dtype](vector=Dense(array, None, dtype, against))
            back, frame = round_trip(made, schema(choice, base, numel=numel))
            assert back.vector.dtype == dtype
            assert frame.index_nbytes == 0
            assert frame.value_nbytes == frame.payload_nbytes
            if choice in ("raw", "auto"):
                assert frame.payload_nbytes <= array.nbytes
            wanted = {"raw": "raw", "planes": "planes", "delta": "raw" if against is None else "delta"}.get(choice)
            assert wanted is None or frame.codec == wanted
            encodes_alike_or_refuses(made, schema(choice, base, numel=numel))
    if choice == "auto" and numel == NUMEL:
        assert frame.codec == "delta"
        assert frame.payload_nbytes < 0.3 * array.nbytes


def test_auto_takes_the_smallest() -> None:
    base = KnownVector(smooth(1), 5)
    for array, against, codec in (
        (smooth(), None, "planes"),
        (smooth(), base, "planes"),
        (base.array * np.float32(1.0001), base, "delta"),
        (numbers_of("float32"), base, "raw"),
    ):
        made = CLASSES["float32"](vector=Dense(array, base=against))
        sizes = {choice: round_trip(made, schema(choice, base))[1].payload_nbytes for choice in CHOICES}
        frame = round_trip(made, schema("auto", base))[1]
        assert (frame.codec, frame.payload_nbytes) == (codec, min(sizes.values()))


def test_a_bfloat16_tensor_comes_back() -> None:
    weights_P = torch.randn(NUMEL, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weights_P[:3] = torch.tensor([torch.nan, -torch.inf, -0.0])
    for choice in CHOICES:
        back, _ = round_trip(CLASSES["bfloat16"](vector=Dense.of(weights_P)), schema(choice))
        received_P = back.vector.tensor()
        assert received_P.dtype == torch.bfloat16
        assert torch.equal(received_P.view(torch.int16), weights_P.view(torch.int16))
        assert not back.vector.is_finite()


@pytest.mark.parametrize("numel", [0, 1, 127, 128, NUMEL - 1, NUMEL])
@pytest.mark.parametrize("choice", ["raw", "planes", "auto"])
def test_a_vector_may_be_shorter_where_that_is_declared(choice: str, numel: int) -> None:
    back, _ = round_trip(Part(vector=Dense(smooth(numel=numel))), schema(choice))
    assert back.vector.numel == numel
    if numel < NUMEL:
        with pytest.raises(ValueError, match=f"expected {NUMEL} numbers, got {numel}"):
            encode(Plain(vector=Dense(smooth(numel=numel))), schema(choice), BufferPool())


def test_raw_vectors_are_views_of_the_frame() -> None:
    value = Dense.framed(NUMEL)
    value.array[:] = smooth()
    pool = BufferPool()
    frame = encode(Plain(vector=value), schema("raw"), pool, in_place=True)
    assert np.shares_memory(frame.buffer, value.array)
    received, _ = decode(frame.buffer, (Plain,), schema("raw"))
    assert np.shares_memory(received.vector.array, value.array)
    # Not where another codec is chosen: the frame is smaller than the vector.
    frame = encode(Plain(vector=value), schema("auto"), pool, in_place=True)
    assert frame.codec == "planes"
    assert not np.shares_memory(frame.buffer, value.array)


def test_another_base_is_refused_by_version_and_checksum() -> None:
    base = KnownVector(smooth(1), 5)
    cls = CLASSES["float32"]
    buffer = encode(cls(vector=Dense(base.array.copy(), base=base)), schema("delta", base), BufferPool()).buffer
    for held, words in (
        (KnownVector(base.array, 6), "weights version: at byte .* expected one of those held: 6, got 5"),
        (KnownVector(smooth(2), 5), f"weights version 5: .* got {base.checksum:08x}"),
        (KnownVector(base.array.view(np.int32), 5), "base: at byte .* expected float32, got int32"),
    ):
        with pytest.raises(WireError, match=words):
            decode(buffer, (cls,), schema("raw", held))
    decode(buffer, (cls,), schema("raw", base))


def test_vectors_that_do_not_fit_are_refused() -> None:
    right = smooth()
    spec = FieldSpec("Up.vector", "float32", (NUMEL,), base="weights")
    wire = WireConfig(dense="auto")
    for value, words in (
        (Dense(right.astype(np.float64)), "a contiguous vector of float32, got float64"),
        (Dense(right[::2]), "a contiguous vector of float32"),
        (Dense(right.reshape(1, -1)), r"a contiguous vector of float32, got float32 \(1, 3000\)"),
        (Dense(right[1:]), "3000 numbers, got 2999"),
    ):
        with pytest.raises(ValueError, match=f"Up.vector: expected .*{words}"):
            FORMAT.encode(value, spec, wire)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_base_that_is_not_the_receivers_is_refused_whatever_is_chosen(choice: str) -> None:
    right, wire = smooth(), WireConfig(dense=choice)
    based = FieldSpec("Up.vector", "float32", (NUMEL,), base="weights")
    part = FieldSpec("Up.vector", "float32", (NUMEL,), at_most=True, base="weights")
    for spec in (based, part):
        for base, got in (
            (right[1:], "2999 float32"),
            (right.view(np.int32), "3000 int32"),
            (right[:10], "10 float32"),
        ):
            with pytest.raises(ValueError, match=f"Up.vector: expected a base of 3000 float32, got {got}"):
                FORMAT.encode(Dense(right, base=KnownVector(base, 0)), spec, wire)
    with pytest.raises(ValueError, match=r"Up\.vector declares no base"):
        FORMAT.encode(Dense(right, base=KnownVector(right, 0)), FieldSpec("Up.vector", "float32", (NUMEL,)), wire)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_vector_shorter_than_its_base_is_sent_without_it(choice: str) -> None:
    base = KnownVector(smooth(1), 5)
    for numel in (0, 10, NUMEL - 1):
        array = base.array[:numel].copy()
        back, frame = round_trip(Part(vector=Dense(array, base=base)), schema(choice, base))
        _, plain = round_trip(Part(vector=Dense(array)), schema(choice, base))
        assert np.array_equal(back.vector.array, array)
        assert (frame.codec, frame.payload_nbytes) == (plain.codec, plain.payload_nbytes)
    _, frame = round_trip(Part(vector=Dense(base.array.copy(), base=base)), schema(choice, base))
    assert frame.codec == ("delta" if choice == "auto" else choice)


@pytest.mark.parametrize(
    ("codec_id", "param", "nbytes", "base", "words"),
    [
        (RAW, 1, 12_000, "weights", "dtype code: at byte 8 expected 0, got 1"),
        (RAW, 0, 11_999, "weights", "at byte 8 expected 3000 numbers of float32, got 11999 bytes"),
        (RAW, 0, 11_996, "weights", "at byte 8 expected 3000 numbers of float32, got 11996 bytes"),
        (RAW, 0, 12_004, "weights", "at byte 8 expected 3000 numbers of float32, got 12004 bytes"),
        (PLANES, 0, 0, "weights", "at byte 8 expected 1 bytes, got 0"),
        (DELTA, 0, 0, "weights", "varint: at byte 8"),
        (DELTA, 0, 3, "weights", "checksum: at byte 9 expected 4 bytes, got 2"),
        (DELTA, 0, 100, "", "codec: at byte 8 expected a codec of vectors, got 4"),
        (16, 0, 100, "weights", "codec: at byte 8 expected a codec of vectors, got 16"),
    ],
)
def test_sections_that_are_refused(codec_id: int, param: int, nbytes: int, base: str, words: str) -> None:
    spec = FieldSpec("Up.vector", "float32", (NUMEL,), base=base)
    with pytest.raises(WireError, match=words):
        FORMAT.decode(codec_id, param, np.zeros(nbytes, np.uint8), spec, Known(), 8)


def test_broken_deltas_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    base = KnownVector(smooth(1), 5)
    known = schema("raw", base).known
    spec = FieldSpec("Up.vector", "float32", (NUMEL,), base="weights")
    section = FORMAT.encode(Dense(base.array * np.float32(1.001), base=base), spec, WireConfig(dense="delta"))
    for trial in range(200):
        payload = section.payload[: rng.integers(0, section.payload.size + 1) if trial % 3 == 0 else None].copy()
        if payload.size:
            payload[rng.integers(0, payload.size) // rng.choice([1, 100])] = rng.integers(0, 256)
        try:
            value = FORMAT.decode(DELTA, 0, payload, spec, known, 0).value
        except WireError:
            continue
        assert value.numel == NUMEL


def test_raw_vectors_need_no_compiler() -> None:
    program = """
import sys
import numpy as np
from fedmpi.algorithms.averaging import ModelUp
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.message import Schema
from fedmpi.wire.values import Dense
schema = Schema({"state": 5, "int_buffers": 0, "params": 5}, 1)
sent = ModelUp(num_samples=1, int_buffers=None, state=Dense(np.ones(5, np.float32)))
decode(encode(sent, schema, BufferPool()).buffer, (ModelUp,), schema)
sys.exit("numba" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=100).returncode == 0
