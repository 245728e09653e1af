"""Quantized numbers: every choice comes back, sizes against entropies on a trained net's outputs, no bad bytes in."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import encodes_alike_or_refuses, round_trip
from torch import nn
from torch.nn import functional as F

import fedmpi.data
from fedmpi.config import WireConfig
from fedmpi.data.idx import idx_files, read_idx
from fedmpi.errors import WireError
from fedmpi.wire.codecs import context, neighbours
from fedmpi.wire.codecs.base import CONTEXT, NAMES, ORDER0, PACKED, RAW, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.neighbours import classify
from fedmpi.wire.codecs.quantized import FORMAT
from fedmpi.wire.known import Known
from fedmpi.wire.message import Message, Schema, message, quantized
from fedmpi.wire.values import Quantized

CODECS = ("auto", "packed", "order0", "context")


def spec_of(shape: tuple[int, ...], *, at_most: bool = False) -> FieldSpec:
    return FieldSpec("Up.outputs", "", shape, at_most)


def encode(value: Quantized, spec: FieldSpec | None = None, codec: Any = "auto") -> Encoded:
    section = FORMAT.encode(value, spec or spec_of(value.symbols.shape), WireConfig(quantized=codec))
    assert section.codec == NAMES[section.codec_id] and 0 <= section.param < 128
    assert (section.index_nbytes, section.value_nbytes) == (0, section.payload.size)
    return section


def decode(section: Encoded, spec: FieldSpec, payload: np.ndarray | None = None, offset: int = 0) -> Decoded:
    payload = section.payload if payload is None else payload
    return FORMAT.decode(section.codec_id, section.param, payload, spec, Known(), offset)


def assert_same(sent: Quantized, received: Any) -> None:
    assert isinstance(received, Quantized)
    assert (received.bits, received.axis, received.signed) == (sent.bits, sent.axis, sent.signed)
    for name in ("symbols", "scales", "zero_points"):
        want, got = getattr(sent, name), getattr(received, name)
        if want is None:
            assert got is None
            continue
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
        assert got.flags.writeable and got.flags.c_contiguous


def of_one_scale(symbols: np.ndarray, bits: int) -> Quantized:
    return Quantized(symbols, bits, np.array([0.5], np.float32))


def signs(symbols: np.ndarray) -> np.ndarray:
    """Return -1 for what is below 0 and 1 for all else: signed symbols of 1 bit have no 0."""
    return np.where(symbols < 0, -1, 1).astype(np.int8)


@st.composite
def values(draw: st.DrawFn) -> Quantized:
    bits = draw(st.integers(1, 8))
    signed = draw(st.booleans())
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    axis = draw(st.sampled_from([None, 0, 1][: len(shape) + 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lowest = -(1 << (bits - 1)) if signed else 0
    top = draw(st.integers(lowest + 1, lowest + (1 << bits)))
    num_scales = 1 if axis is None else shape[axis]
    symbols = rng.integers(lowest, top, shape).astype(np.int8 if signed else np.uint8)
    return Quantized(
        signs(symbols) if signed and bits == 1 else symbols,
        bits,
        rng.standard_normal(num_scales).astype(np.float32),
        rng.integers(lowest, top, num_scales).astype(np.int32)
        if draw(st.booleans()) and (bits > 1 or not signed)
        else None,
        axis,
    )


@settings(max_examples=150)
@given(value=values(), codec=st.sampled_from(CODECS), more=st.none() | st.integers(0, 300))
def test_values_come_back(value: Quantized, codec: str, more: int | None) -> None:
    shape = value.symbols.shape
    spec = spec_of(shape) if more is None else spec_of((shape[0] + more, *shape[1:]), at_most=True)
    section = encode(value, spec, codec)
    found = decode(section, spec)
    assert_same(value, found.value)
    assert (found.codec, found.index_nbytes, found.value_nbytes) == (section.codec, 0, section.payload.size)
    if codec != "auto" and value.symbols.size:
        assert section.codec == codec


@message("test-outputs", "up")
class Outputs(Message):
    outputs: Quantized = quantized(("batch", 3, 4, 4), at_most=True)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("axis", "num_scales"), [(None, 1), (0, 5), (1, 3)])
def test_frames_come_back(codec: Any, axis: int | None, num_scales: int) -> None:
    symbols = np.arange(5 * 3 * 16, dtype=np.uint8).reshape(5, 3, 4, 4) // 16
    value = Quantized(symbols, 4, np.linspace(1, 2, num_scales, dtype=np.float32), axis=axis)
    schema = Schema({"batch": 8}, 1, wire=WireConfig(quantized=codec))
    round_trip(Outputs(outputs=value), schema)
    encodes_alike_or_refuses(Outputs(outputs=value), schema)


def test_a_payload_by_hand() -> None:
    symbols = np.array([[-2, 1, 0], [-1, -2, -2]], np.int8)
    value = Quantized(symbols, 2, np.array([1, -2], np.float32), np.array([-2, 1], np.int32), 0)
    section = encode(value, spec_of((300, 3), at_most=True))
    # 2 samples, the scales, the zero points + 2, then symbols + 2 in pairs of bits: 0 3 2 1, 0 0.
    assert section.payload.tobytes().hex() == "02" + "0000803f000000c0" + "0003" + "6c00"
    assert (section.codec_id, section.param) == (PACKED, 0b0111001)


def trained_outputs() -> np.ndarray:
    """Return what a small net that has seen a few batches computes for 64 images, (64, 128, 8, 8) float32."""
    torch.manual_seed(0)
    folder = Path(fedmpi.data.__file__).parent / "fashion_mnist_mini"
    images, labels = (read_idx(path, ndim) for path, ndim in zip(idx_files(folder)[:2], (3, 1), strict=True))
    x = F.pad(torch.from_numpy(images[:1024].copy()).float().div(255).unsqueeze(1), (2, 2, 2, 2))
    y = torch.from_numpy(labels[:1024].copy()).long()
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((1, 16), (16, 32), (32, 128)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    front = nn.Sequential(*layers[:-1])  # what is pooled is smaller: the cut is before
    head = nn.Linear(128, 10)
    optimizer = torch.optim.Adam([*front.parameters(), *head.parameters()], 2e-3)
    for batch in range(24):
        at = slice(32 * batch, 32 * batch + 32)
        optimizer.zero_grad()
        F.cross_entropy(head(front(x[at]).mean((2, 3))), y[at]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        outputs: np.ndarray = front(x[-64:]).numpy()
    return outputs


@functools.cache
def outputs_of(source: str) -> np.ndarray:
    if source == "trained":
        return trained_outputs()
    noise = np.random.default_rng(0).standard_normal((64, 128, 8, 8), np.float32)
    return noise if source == "normal" else np.maximum(noise, 0)


def quantize(outputs: np.ndarray, bits: int) -> Quantized:
    """Round to symbols, clipped at the 99.9 % quantile; signed where there are negative numbers."""
    signed = bool(outputs.min() < 0)
    lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    scale = np.quantile(np.abs(outputs), 0.999) / highest
    symbols = np.clip(np.rint(outputs / scale), lowest, highest)
    return Quantized(symbols.astype(np.int8 if signed else np.uint8), bits, np.array([scale], np.float32))


def entropies(value: Quantized) -> tuple[float, float]:
    """Return the entropy of the symbols, and that given their neighbours' classes, in bytes."""
    level = 1 << (value.bits - 1) if value.signed else 0
    stored = (value.symbols.astype(np.int64) + level).astype(np.uint8).reshape(-1)
    counts = classify(stored, value.symbols.shape, value.bits, level).counts
    some = [row[row > 0] for row in (counts.sum(axis=0), *counts)]
    nbytes = [float(-(row * np.log2(row / row.sum())).sum()) / 8 for row in some]
    return nbytes[0], sum(nbytes[1:])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_trained_nets_outputs_take_little_more_than_their_conditional_entropy(bits: int) -> None:
    value = quantize(outputs_of("trained"), bits)
    alone, given_neighbours = entropies(value)
    section = encode(value)
    assert section.codec == "context"
    assert given_neighbours < section.payload.size <= 1.02 * given_neighbours
    assert section.payload.size < 0.9 * alone


@pytest.mark.parametrize("source", ["trained", "relu", "normal"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_nothing_takes_more_than_its_entropy(source: str, bits: int) -> None:
    value = quantize(outputs_of(source), bits)
    alone, _ = entropies(value)
    assert encode(value).payload.size <= 1.005 * alone + 4
    assert encode(value, codec="order0").payload.size <= 1.005 * alone + 4
    # Where neighbours say nothing they cost nothing.
    assert encode(value, codec="context").payload.size <= 1.005 * alone + 8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symbols_alone_take_what_another_coder_takes(bits: int) -> None:
    value = quantize(outputs_of("relu"), bits)
    counts = np.bincount(value.symbols.reshape(-1), minlength=1 << bits)
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(value.symbols.reshape(-1).astype(np.int32), model)
    nbytes = 4 * len(coder.get_compressed())
    assert abs(encode(value, codec="order0").payload.size - nbytes) <= 0.01 * nbytes


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 8),
    st.floats(0.1, 1.5),
    st.integers(0, 2**32 - 1),
)
def test_auto_is_the_smallest_of_few_symbols(shape: list[int], bits: int, spread: float, seed: int) -> None:
    while math.prod(shape) * bits >= 8 * 512:
        shape = shape[1:]
    numbers = np.abs(np.random.default_rng(seed).standard_normal(shape)) * spread * (1 << bits) / 2
    value = of_one_scale(np.minimum(numbers, (1 << bits) - 1).astype(np.uint8), bits)
    sizes = [encode(value, codec=codec).payload.size for codec in ("packed", "order0", "context")]
    assert encode(value).payload.size == min(sizes)


@pytest.mark.parametrize("source", ["trained", "relu", "normal"])
@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_auto_is_the_smallest(source: str, samples: int, bits: int) -> None:
    value = (
        quantize(outputs_of(source), bits) if bits > 1 else of_one_scale((outputs_of(source) > 0.5).view(np.uint8), 1)
    )
    some = dataclasses.replace(value, symbols=value.symbols[:samples])
    sizes = {codec: encode(some, codec=codec).payload.size for codec in CODECS}
    assert sizes["auto"] == min(sizes.values())


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("symbol", [0, 1, "top"])
def test_a_constant_takes_a_few_bytes(bits: int, symbol: int | str) -> None:
    value = of_one_scale(np.full((64, 16, 8, 8), (1 << bits) - 1 if symbol == "top" else symbol, np.uint8), bits)
    for codec in ("auto", "order0", "context"):
        section = encode(value, codec=codec)
        assert section.payload.size <= 32
        assert_same(value, decode(section, spec_of(value.symbols.shape)).value)


def test_a_few_symbols_are_packed() -> None:
    assert encode(of_one_scale(np.zeros(32, np.uint8), 4)).codec == "packed"


def test_zero_points_tell_where_the_classes_are() -> None:
    """Coding finds the neighbours' classes around the symbol that stands for 0, wherever the zero point puts it."""
    value = quantize(outputs_of("trained") - 0.2, 8)
    moved = dataclasses.replace(
        value, symbols=(value.symbols.astype(np.int64) + 128).astype(np.uint8), zero_points=np.array([128], np.int32)
    )
    assert encode(moved).codec == "context"
    assert encode(moved).payload.size == encode(value).payload.size + 1


ONES = np.ones(1, np.float32)
SYMBOLS = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Quantized(np.array([[0, 7, 8], [0, 0, 0]], np.uint8), 3, ONES), "symbols of 3 bits are 0 to 7, got 8"),
        (Quantized(np.array([[0, 3, 4], [0, 0, 0]], np.int8), 3, ONES), "symbols of 3 bits are -4 to 3, got 4"),
        (Quantized(np.array([[0, -5, 3], [0, 0, 0]], np.int8), 3, ONES), "symbols of 3 bits are -4 to 3, got -5"),
        (Quantized(np.array([[1, -128, 1], [1, 1, 1]], np.int8), 1, ONES), "symbols of 1 bit are -1 and 1, got -128"),
        (Quantized(np.array([[1, -1, 0], [1, 1, 1]], np.int8), 1, ONES), "symbols of 1 bit are -1 and 1, got 0"),
        (Quantized(SYMBOLS.astype(np.int64), 3, ONES), "symbols must be uint8 or int8, got int64"),
        (Quantized(SYMBOLS.T, 3, ONES), r"expected symbols of shape \(2, 3\), got \(3, 2\)"),
        (Quantized(SYMBOLS[:1], 3, ONES), r"expected symbols of shape \(2, 3\), got \(1, 3\)"),
        (Quantized(SYMBOLS.reshape(-1), 3, ONES), r"got \(6,\)"),
        (Quantized(SYMBOLS, 0, ONES), "symbols have 1 to 8 bits, got 0"),
        (Quantized(SYMBOLS, 9, ONES), "symbols have 1 to 8 bits, got 9"),
        (Quantized(SYMBOLS, 3, ONES, axis=2), "scales are for all, for axis 0 or for axis 1; got axis 2"),
        (Quantized(SYMBOLS, 3, ONES, axis=-1), "got axis -1"),
        (Quantized(SYMBOLS, 3, ONES, axis=0), r"expected scales float32 of shape \(2,\), got float32 \(1,\)"),
        (Quantized(SYMBOLS, 3, np.ones(2, np.float32)), r"of shape \(1,\), got float32 \(2,\)"),
        (Quantized(SYMBOLS, 3, np.ones(1)), "got float64"),
        (Quantized(SYMBOLS, 3, np.array([np.nan], np.float32)), "a scale is NaN"),
        (Quantized(SYMBOLS, 3, np.array([-np.inf], np.float32)), "a scale is infinite"),
        (Quantized(SYMBOLS, 3, ONES, np.array([8], np.int32)), "zero points of 3 bits are 0 to 7, got 8"),
        (Quantized(SYMBOLS, 3, ONES, np.array([-1], np.int32)), "zero points of 3 bits are 0 to 7, got -1"),
        (Quantized(SYMBOLS.view(np.int8), 3, ONES, np.array([4], np.int32)), "are -4 to 3, got 4"),
        (Quantized(SYMBOLS, 3, ONES, np.array([1])), r"expected zero points int32 of shape \(1,\), got int64"),
        (Quantized(SYMBOLS, 3, ONES, np.array([1, 1], np.int32)), r"got int32 \(2,\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("codec", CODECS)
def test_values_that_are_not_as_declared(value: Quantized, words: str, codec: str) -> None:
    with pytest.raises(ValueError, match=f"Up.outputs: .*{words}"):
        encode(value, spec_of((2, 3)), codec)


def test_a_vector_has_no_axis_1() -> None:
    with pytest.raises(ValueError, match="got axis 1 of 1"):
        encode(Quantized(np.zeros(3, np.uint8), 3, np.ones(3, np.float32), axis=1))


def test_more_samples_than_declared() -> None:
    with pytest.raises(ValueError, match=r"expected symbols of shape at most \(1, 3\), got \(2, 3\)"):
        encode(of_one_scale(SYMBOLS, 3), spec_of((1, 3), at_most=True))


SPEC = spec_of((4, 3), at_most=True)
ONE_SCALE = "0000803f"


@pytest.mark.parametrize(
    ("codec_id", "param", "payload", "words"),
    [
        (RAW, 7, "", "Up.outputs codec: at byte 50"),
        (PACKED, 7 | 3 << 5, "", "param byte: at byte 50 expected an axis below 2, or none, got 103"),
        (PACKED, 7 | 4 << 5, "", "param byte"),
        (PACKED, 7, "", "varint"),
        (PACKED, 7, "05" + ONE_SCALE, "length: at byte 50 expected at most 4, got 5"),
        (PACKED, 7, "ffffffffffffffffff01", "length: at byte 50 expected at most 4, got 18446744073709551615"),
        (PACKED, 7, "010000", "scales: at byte 51 expected 1 scales and 0 zero points, got 2 bytes"),
        (PACKED, 7 | 16 | 1 << 5, "02" + 2 * ONE_SCALE + "00", "expected 2 scales and 2 zero points, got 9 bytes"),
        (PACKED, 7, "010000c07f000000", "scales: at byte 51 expected finite ones, got NaN or infinity"),
        (PACKED, 7, "010000807f000000", "scales: at byte 51 expected finite ones, got NaN or infinity"),
        (PACKED, 2 | 16, "01" + ONE_SCALE + "08" + "0000", "zero points: at byte 55 expected 0 to 7, got 8"),
        (PACKED, 7, "01" + ONE_SCALE + "0000", "packed symbols: at byte 55 expected 3 bytes, got 2"),
        (PACKED, 7, "00" + ONE_SCALE + "00", "packed symbols: at byte 55 expected 0 bytes, got 1"),
        (PACKED, 2, "01" + ONE_SCALE + "00ff", "packed symbols: at byte 56 expected zeros at the end, got 255"),
        (ORDER0, 2, "01" + ONE_SCALE + "00", "table: at byte 55 expected 3 symbols, got a table without symbols"),
        (ORDER0, 2, "01" + ONE_SCALE, "table 0: at byte 55"),
        (CONTEXT, 2, "01" + ONE_SCALE + "00", "classes: at byte 55 expected 2 bytes, got 1"),
        (CONTEXT, 2, "00" + ONE_SCALE + "00", "at byte 55 expected 0 bytes, got 1"),
    ],
)
def test_payloads_that_are_refused(codec_id: int, param: int, payload: str, words: str) -> None:
    with pytest.raises(WireError, match=words):
        FORMAT.decode(codec_id, param, np.frombuffer(bytes.fromhex(payload), np.uint8), SPEC, Known(), 50)


def test_a_vector_has_no_channels_to_decode_either() -> None:
    with pytest.raises(WireError, match="expected an axis below 1, or none"):
        FORMAT.decode(PACKED, 2 << 5, np.zeros(9, np.uint8), spec_of((3,)), Known(), 0)


def check_decodes_or_refuses(codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec) -> bool:
    """Fail unless a payload is refused or a value within the receiver's sizes; return whether it was refused."""
    refused, found = None, None
    try:
        found = FORMAT.decode(codec_id, param, payload, spec, Known(), 7)
    except WireError as error:
        refused = error
    if refused is not None:
        assert 7 <= refused.offset <= 7 + payload.size and str(refused).strip()
        return True
    assert found is not None
    value = found.value
    assert isinstance(value, Quantized)
    shape = value.symbols.shape
    assert len(shape) == len(spec.shape) and shape[1:] == spec.shape[1:] and shape[0] <= spec.shape[0]
    assert spec.at_most or shape == spec.shape
    encode(value, spec)  # refuses what is out of range
    return False


@settings(max_examples=200)
@given(value=values(), codec=st.sampled_from(CODECS), seed=st.integers(0, 2**32 - 1), at_most=st.booleans())
def test_a_payload_that_was_changed_is_refused_or_a_value(
    value: Quantized, codec: str, seed: int, at_most: bool
) -> None:
    spec = dataclasses.replace(spec_of(value.symbols.shape), at_most=at_most)
    section = encode(value, spec, codec)
    rng = np.random.default_rng(seed)
    payload = section.payload
    for _ in range(3):
        flipped = payload.copy()
        if flipped.size:
            flipped[rng.integers(flipped.size)] ^= np.uint8(1 << rng.integers(8))
        check_decodes_or_refuses(section.codec_id, section.param, flipped, spec)
        check_decodes_or_refuses(section.codec_id, int(rng.integers(256)), flipped, spec)
    more = np.concatenate([payload, np.zeros(int(rng.integers(1, 4)), np.uint8)])
    assert check_decodes_or_refuses(section.codec_id, section.param, more, spec)
    if payload.size:
        assert check_decodes_or_refuses(section.codec_id, section.param, payload[: rng.integers(payload.size)], spec)


@settings(max_examples=200)
@given(
    payload=st.binary(max_size=80),
    codec_id=st.sampled_from([PACKED, ORDER0, CONTEXT]),
    param=st.integers(0, 255),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    at_most=st.booleans(),
)
def test_any_bytes_are_a_value_or_refused(
    payload: bytes, codec_id: int, param: int, shape: tuple[int, ...], at_most: bool
) -> None:
    check_decodes_or_refuses(codec_id, param, np.frombuffer(payload, np.uint8), spec_of(shape, at_most=at_most))


@pytest.mark.parametrize("codec", ["packed", "order0", "context"])
def test_a_large_promise_allocates_no_more_than_the_receivers_sizes(codec: str) -> None:
    """The count comes from the receiver's shape: a payload of another size is refused for it."""
    small = of_one_scale(np.arange(60, dtype=np.uint8).reshape(5, 3, 4) // 4, 4)
    section = encode(small, codec=codec)
    with pytest.raises(WireError):
        decode(section, spec_of((500, 3, 4)))
    with pytest.raises(WireError):
        decode(section, spec_of((4, 3, 4)))


def test_the_same_bytes_whatever_the_memory_order() -> None:
    value = quantize(outputs_of("trained")[:2], 4)
    fortran = dataclasses.replace(value, symbols=np.asfortranarray(value.symbols))
    assert encode(fortran).payload.tobytes() == encode(value).payload.tobytes()
    assert math.prod(value.symbols.shape) == value.numel


def test_one_compilation_serves_all_memory() -> None:
    """What warming up compiles is all there is: read-only and signed symbols, and bytes as they come, need no more."""
    FORMAT.warm_up()
    for bits in (1, 3, 4, 8):
        symbols = np.random.default_rng(0).integers(0, 1 << bits, (9, 2, 8, 8), np.uint8)
        symbols.flags.writeable = False
        below = (symbols << np.uint8(8 - bits)).view(np.int8) >> np.int8(8 - bits)
        for some in (symbols, signs(below) if bits == 1 else below):
            for codec in CODECS:
                section = encode(of_one_scale(some, bits), codec=codec)
                payload = np.frombuffer(section.payload.tobytes(), np.uint8)
                assert_same(of_one_scale(some, bits), decode(section, spec_of(some.shape), payload).value)
    for kernel in (neighbours._classify, neighbours._group, context._encode, context._decode):
        assert len(kernel.signatures) == 1
