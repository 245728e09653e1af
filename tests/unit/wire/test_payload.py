"""Numbers at chosen positions: every dtype and quantized symbols come back, as they are or coded."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import CONTEXT, NAMES, ORDER0, PACKED, PLANES, RAW
from fedmpi.wire.codecs.payload import decode_numbers_at, encode_numbers_at
from fedmpi.wire.values import DENSE_DTYPES, Numbers, Quantized, storage

SIZES = (0, 1, 7, 8, 9, 3001)
CHOICES = [WireConfig(values=choice) for choice in ("auto", "raw", "planes")]


def values_of(dtype: str, numel: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, numel * storage(dtype).itemsize, np.uint8).view(storage(dtype))


def quantized(numel: int, bits: int = 4, *, axis: int | None = None) -> Quantized:
    rng = np.random.default_rng(0)
    symbols = rng.binomial((1 << bits) - 1, 0.1, numel).astype(np.uint8)
    num_scales = 1 if axis is None else numel
    return Quantized(symbols, bits, rng.random(num_scales).astype(np.float32), None, axis)


def same(one: Numbers, other: Numbers) -> bool:
    if isinstance(one, Quantized) or isinstance(other, Quantized):
        assert isinstance(one, Quantized) and isinstance(other, Quantized)
        facts = [(v.bits, v.axis, v.signed, v.symbols.tobytes(), v.scales.tobytes()) for v in (one, other)]
        return facts[0] == facts[1] and one.symbols.shape == other.symbols.shape
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("wire", CHOICES, ids=lambda wire: wire.values)
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_vectors_come_back(dtype: str, wire: WireConfig) -> None:
    for numel in SIZES:
        for numbers in (values_of(dtype, numel), np.arange(numel).astype(storage(dtype))):
            codec_id, codec, payload = encode_numbers_at(numbers, dtype, wire)
            assert payload.dtype == np.uint8
            assert payload.size <= numbers.nbytes + (2 if wire.values == "planes" else 0)
            assert codec_id in {"auto": (RAW, PLANES), "raw": (RAW,), "planes": (PLANES,)}[wire.values]
            # It may come at any byte of a frame, and read-only.
            came = np.concatenate([np.zeros(1, np.uint8), payload])[1:]
            came.flags.writeable = False
            back, name = decode_numbers_at(codec_id, came, dtype, numel, "field", 0)
            assert name == codec == NAMES[codec_id]
            assert same(back, numbers)
            assert isinstance(back, np.ndarray) and back.flags.writeable and back.flags.aligned


def test_auto_is_the_smaller() -> None:
    weights = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    assert encode_numbers_at(weights, "float32", WireConfig())[1] == "planes"
    assert encode_numbers_at(weights, "float32", WireConfig())[2].size < 0.85 * weights.nbytes
    codec_id, codec, payload = encode_numbers_at(values_of("float32", 3000), "float32", WireConfig())
    assert (codec_id, codec, payload.size) == (RAW, "raw", 12_000)
    assert encode_numbers_at(weights[:3], "float32", WireConfig())[1] == "raw"


def test_raw_is_the_numbers_own_memory() -> None:
    numbers = values_of("float32", 100)
    payload = encode_numbers_at(numbers, "float32", WireConfig(values="raw"))[2]
    assert np.shares_memory(payload, numbers)
    back, _ = decode_numbers_at(RAW, payload, "float32", 100, "field", 0)
    assert not np.shares_memory(payload, back)


def test_strided_numbers() -> None:
    numbers = values_of("float64", 50)[::2]
    for wire in CHOICES:
        codec_id, _, payload = encode_numbers_at(numbers, "float64", wire)
        assert same(decode_numbers_at(codec_id, payload, "float64", 25, "field", 0)[0], numbers)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("choice", ["auto", "packed", "order0", "context"])
def test_quantized_numbers_come_back(choice: str, bits: int, axis: int | None) -> None:
    for numel in SIZES:
        numbers = quantized(numel, bits, axis=axis)
        codec_id, codec, payload = encode_numbers_at(numbers, "", WireConfig(quantized=choice))
        assert codec_id in (PACKED, ORDER0, CONTEXT) and codec == NAMES[codec_id]
        back, name = decode_numbers_at(codec_id, payload, "", numel, "field", 0)
        assert name == codec
        assert same(back, numbers)
        assert isinstance(back, Quantized) and not np.shares_memory(back.symbols, payload)


@pytest.mark.parametrize(
    ("numbers", "dtype", "words"),
    [
        (np.zeros(3, np.float64), "float32", "a vector of float32, got float64"),
        (np.zeros((3, 1), np.float32), "float32", r"a vector of float32, got float32 \(3, 1\)"),
        (np.zeros(3, np.float32), "bfloat16", "a vector of bfloat16, got float32"),
        (np.zeros(3, np.float32), "", "a vector of quantized numbers, got float32"),
        (quantized(3), "float32", "values of float32, got quantized ones"),
    ],
)
def test_numbers_of_another_kind_are_refused(numbers: Numbers, dtype: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"field: expected {words}"):
        encode_numbers_at(numbers, dtype, WireConfig(), "field")


@pytest.mark.parametrize(
    ("codec_id", "payload", "dtype", "words"),
    [
        (RAW, bytes(11), "float32", "at byte 9 expected 3 numbers of float32, got 11 bytes"),
        (RAW, bytes(16), "float32", "at byte 9 expected 3 numbers of float32, got 16 bytes"),
        (PLANES, b"", "float32", "at byte 9 expected 1 bytes, got 0"),
        (PACKED, bytes(12), "float32", "at byte 9 expected 2 or 3, got 8"),
        (PACKED, b"", "", "at byte 9 expected a param byte, got the end"),
        (RAW, bytes(12), "", "a codec of quantized numbers, got 2"),
        (PACKED, b"\xff" * 12, "", "param byte: at byte 10"),
        (PACKED, bytes(9), "", "packed symbols: at byte 14"),
    ],
)
def test_payloads_that_are_refused(codec_id: int, payload: bytes, dtype: str, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_numbers_at(codec_id, np.frombuffer(payload, np.uint8), dtype, 3, "field", 9)


@pytest.mark.parametrize("dtype", ["float32", "uint8", ""])
def test_broken_payloads_do_no_harm(dtype: str) -> None:
    rng = np.random.default_rng(0)
    numbers = np.arange(500).astype(storage(dtype)) if dtype else quantized(500)
    for trial in range(150):
        codec_id, _, payload = encode_numbers_at(numbers, dtype, CHOICES[trial % 3])
        payload = payload[: rng.integers(0, payload.size + 1)].copy() if trial % 2 else payload.copy()
        if payload.size:
            payload[rng.integers(0, payload.size, 2) // rng.choice([1, 20])] = rng.integers(0, 256, 2)
        try:
            back, _ = decode_numbers_at(int(rng.choice([codec_id, trial % 30])), payload, dtype, 500, "field", 0)
        except WireError:
            continue
        assert (back.numel if isinstance(back, Quantized) else back.size) == 500
