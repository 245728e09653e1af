"""Values at the positions of a known mask: only the mask's version and checksum say where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from roundtrip import encodes_alike_or_refuses, round_trip

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import PLANES, RAW, FieldSpec
from fedmpi.wire.codecs.masked_values import FORMAT
from fedmpi.wire.known import Known, KnownMask
from fedmpi.wire.message import Message, Schema, mask, masked_values, message
from fedmpi.wire.values import DENSE_DTYPES, Mask, MaskedValues, Quantized, storage

NUMEL = 1000


def vector_class(of_dtype: str) -> type[Message]:
    class Values(Message):
        at_mask: MaskedValues = masked_values("params", mask="kept", dtype=of_dtype)

    return message(f"test-masked-{of_dtype or 'quantized'}", "up")(Values)


CLASSES: dict[str, Any] = {dtype: vector_class(dtype) for dtype in (*DENSE_DTYPES, "")}


@message("test-mask-and-values", "down")
class Both(Message):
    kept: Mask = mask("params")
    at_mask: MaskedValues = masked_values("params", mask="kept")


def known_mask(density: float, version: int = 3, numel: int = NUMEL) -> KnownMask:
    return KnownMask(np.random.default_rng(version).random(numel) < density, version)


def schema(*masks: KnownMask, wire: WireConfig | None = None) -> Schema:
    known = Known()
    for held in masks:
        known.hold("kept", held)
    return Schema({"params": NUMEL}, 1, wire=wire or WireConfig(), known=known)


def values_at(held: KnownMask, dtype: str) -> MaskedValues:
    count = held.indices.size
    if not dtype:
        symbols = np.random.default_rng(0).integers(-2, 2, count, np.int8)
        return MaskedValues(Quantized(symbols, 2, np.array([0.5], np.float32)), held)
    raw = np.random.default_rng(0).integers(0, 256, count * storage(dtype).itemsize, np.uint8)
    return MaskedValues(raw.view(storage(dtype)), held, dtype)


@pytest.mark.parametrize("choice", ["auto", "raw", "planes"])
@pytest.mark.parametrize("dtype", [*DENSE_DTYPES, ""])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.3, 1.0])
def test_values_come_back(density: float, dtype: str, choice: str) -> None:
    held = known_mask(density)
    made = CLASSES[dtype](at_mask=values_at(held, dtype))
    back, frame = round_trip(made, schema(held, known_mask(0.5, 4), wire=WireConfig(values=choice)))
    assert back.at_mask.mask is held
    assert back.at_mask.numel == NUMEL
    assert back.at_mask.num_kept == held.indices.size
    # A version below 128 takes a byte, its checksum four.
    assert frame.index_nbytes == 5
    assert frame.value_nbytes == frame.payload_nbytes - 5
    if dtype and choice == "raw":
        assert (frame.codec, frame.value_nbytes) == ("raw", back.at_mask.values.nbytes)
    elif dtype:
        assert frame.value_nbytes <= back.at_mask.values.nbytes + 2
        assert choice == "auto" or frame.codec == "planes"
    else:
        assert frame.codec in ("packed", "order0", "context")
    encodes_alike_or_refuses(made, schema(held, wire=WireConfig(values=choice)))


def test_a_tensor_of_weights_takes_fewer_bytes_than_its_numbers() -> None:
    held = known_mask(0.9)
    weights_K = torch.randn(held.indices.size, generator=torch.Generator().manual_seed(0))
    back, frame = round_trip(CLASSES["float32"](at_mask=MaskedValues.of(weights_K, held)), schema(held))
    assert torch.equal(back.at_mask.tensor_values(), weights_K)
    assert frame.codec == "planes"
    assert frame.payload_nbytes < 0.88 * 4 * weights_K.numel()


def test_the_mask_may_come_in_the_same_message() -> None:
    held = known_mask(0.3)
    made = Both(kept=Mask(held.array), at_mask=values_at(held, "float32"))
    back, frame = round_trip(made, schema())
    assert back.at_mask.mask.checksum == held.checksum
    assert np.array_equal(back.at_mask.mask.array, held.array)
    assert frame.codec == "raw"


def test_another_mask_is_refused_by_version_and_checksum() -> None:
    held = known_mask(0.3)
    spec = FieldSpec("Up.values", "float32", (NUMEL,), base="kept")
    section = FORMAT.encode(values_at(held, "float32"), spec, WireConfig())

    def decoded_by(*masks: KnownMask) -> None:
        FORMAT.decode(section.codec_id, section.param, section.payload, spec, schema(*masks).known, 40)

    decoded_by(held)
    with pytest.raises(WireError, match=r"Up\.values: kept version: at byte 40 expected one of those held: 4, got 3"):
        decoded_by(known_mask(0.3, 4))
    other = KnownMask(~held.array, 3)
    with pytest.raises(WireError, match=f"version 3: .*checksum {other.checksum:08x}, got {held.checksum:08x}"):
        decoded_by(other)
    with pytest.raises(WireError, match="held: none, got 3"):
        decoded_by()
    spec = FieldSpec("Up.values", "float32", (NUMEL + 1,), base="kept")
    with pytest.raises(WireError, match="expected 1001 numbers, got 1000"):
        decoded_by(held)


def test_values_that_do_not_fit_are_refused() -> None:
    held = known_mask(0.3)
    count = held.indices.size
    spec = FieldSpec("Up.values", "float32", (NUMEL,), base="kept")
    ones = np.ones(count, np.float32)
    for value, words in (
        (MaskedValues(ones[1:], held), f"the mask keeps {count} positions, got {count - 1} values"),
        (values_at(known_mask(0.3, 3, 999), "float32"), "expected a mask of 1000 positions, got 999"),
        (MaskedValues(ones.astype(np.float64), held), "expected float32 values, got float64 ones"),
        (values_at(held, ""), "expected float32 values, got quantized ones"),
        (MaskedValues(ones.reshape(1, -1), held), "expected a vector of float32, got float32"),
    ):
        with pytest.raises(ValueError, match=f"Up.values: {words}"):
            FORMAT.encode(value, spec, WireConfig())


@pytest.mark.parametrize("dtype", ["float32", ""])
def test_broken_payloads_do_no_harm(dtype: str) -> None:
    rng = np.random.default_rng(0)
    held = known_mask(0.3)
    spec = FieldSpec("Up.values", dtype, (NUMEL,), base="kept")
    known = schema(held).known
    section = FORMAT.encode(values_at(held, dtype), spec, WireConfig(values="planes"))
    with pytest.raises(WireError, match="param: at byte 7 expected 0, got 1"):
        FORMAT.decode(section.codec_id, 1, section.payload, spec, known, 7)
    for trial in range(200):
        codec_id = int(rng.choice([section.codec_id, RAW, PLANES, trial % 30]))
        payload = (
            section.payload[: rng.integers(0, section.payload.size + 1)].copy()
            if trial % 3 == 0
            else (section.payload.copy())
        )
        if payload.size:
            payload[rng.integers(0, payload.size) // rng.choice([1, 30])] = rng.integers(0, 256)
        try:
            value = FORMAT.decode(codec_id, 0, payload, spec, known, 0).value
        except WireError:
            continue
        assert isinstance(value, MaskedValues)
        assert value.num_kept == held.indices.size
