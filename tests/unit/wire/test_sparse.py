"""Numbers at chosen positions: both halves are chosen for themselves, bad values are refused, no bytes do harm."""

from __future__ import annotations

import dataclasses
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.config import DataConfig, NamedSection, WireConfig
from fedmpi.data.datasets import load_dataset
from fedmpi.errors import WireError
from fedmpi.flat import layout_of
from fedmpi.models.registry import build_model, resolve
from fedmpi.wire.codecs.base import CHANGE, PRIOR, Decoded, Encoded, FieldSpec, format_of
from fedmpi.wire.known import Known, KnownMask
from fedmpi.wire.values import Quantized, Sparse

FORMAT = format_of(Sparse)
NUMEL = 3001
SPEC = FieldSpec("Test.update", "float32", (NUMEL,), segments=np.array([0, 30, 1000, NUMEL]), base="before")
POSITIONS = ("bits", "byte-rans", "gap-rans", "golomb", "zstd", "uint32", "int64", "gaps", "ranks", "layers")
BASE = KnownMask(np.random.default_rng(0).random(NUMEL) < 0.1, 5)
KNOWN = Known()
KNOWN.hold("before", BASE)


def encode(value: Sparse, spec: FieldSpec = SPEC, **wire: Any) -> Encoded:
    return FORMAT.encode(value, spec, WireConfig(**wire))


def decode(codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec = SPEC, known: Known = KNOWN) -> Decoded:
    return FORMAT.decode(codec_id, param, payload, spec, known, 40)


def value_of(bits: np.ndarray, base: KnownMask | None = None) -> Sparse:
    indices = np.flatnonzero(bits)
    numbers = np.random.default_rng(1).standard_normal(indices.size).astype(np.float32)
    return Sparse(bits.size, indices, numbers, base=base)


def near_base() -> np.ndarray:
    return BASE.array ^ (np.random.default_rng(2).random(NUMEL) < 0.01)


@pytest.mark.parametrize("codec", POSITIONS)
def test_the_ledger_names_both_codecs_and_their_bytes_add_up(codec: str) -> None:
    value = value_of(near_base(), BASE)
    section = encode(value, sparse=codec, values="raw")
    assert section.codec == f"{codec}+raw"
    assert section.index_nbytes + section.value_nbytes == section.payload.size
    assert section.value_nbytes == 4 * value.indices.size
    found = decode(section.codec_id, section.param, section.payload)
    assert (found.codec, found.index_nbytes) == (section.codec, section.index_nbytes)
    assert isinstance(found.value, Sparse)
    assert found.value.indices.dtype == np.int64 and found.value.indices.flags.writeable
    assert found.value.base is (BASE if codec == "ranks" else None)


def test_four_and_eight_bytes_an_index_cost_just_that_and_a_length() -> None:
    value = value_of(near_base())
    assert encode(value, sparse="uint32").index_nbytes == 4 * value.indices.size + 2
    assert encode(value, sparse="int64").index_nbytes == 8 * value.indices.size + 2


def test_nan_payloads_signed_zeros_and_explicit_zeros_survive() -> None:
    raw = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0, 1, 0], np.uint32)
    value = Sparse(NUMEL, np.arange(0, 70, 10), raw.view(np.float32))
    for values in ("auto", "raw", "planes"):
        section = encode(value, values=values)
        found = decode(section.codec_id, section.param, section.payload).value
        assert isinstance(found, Sparse)
        assert isinstance(found.values, np.ndarray)
        assert found.values.view(np.uint32).tolist() == raw.tolist()
        assert found.indices.tolist() == value.indices.tolist()


def test_an_empty_set_costs_a_few_bytes() -> None:
    value = Sparse(NUMEL, np.empty(0, np.int64), np.empty(0, np.float32))
    section = encode(value)
    assert section.payload.size <= 4
    found = decode(section.codec_id, section.param, section.payload).value
    assert isinstance(found, Sparse)
    assert found.num_kept == 0


@pytest.fixture(scope="module")
def update() -> tuple[np.ndarray, np.ndarray]:
    """Return a really trained update of an MLP of 0.67 million parameters, float32, and its segments."""
    dataset = load_dataset(DataConfig(), 0)
    model = build_model(resolve(NamedSection(name="mlp", hidden=(600, 300))), dataset.shape, 10, 1)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    inputs = torch.from_numpy(dataset.train_inputs[:320].astype(np.float32)).permute(0, 3, 1, 2) / 255
    targets = torch.from_numpy(dataset.train_labels[:320])
    parameters = [*model.parameters()]
    for step in range(10):
        batch = slice(32 * step, 32 * step + 32)
        gradients = torch.autograd.grad(
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]), parameters
        )
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-0.1)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (after - before).numpy(), layout_of(model).schema().segments["params"]


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_auto_is_the_smallest_for_the_top_of_a_trained_update(
    update: tuple[np.ndarray, np.ndarray], density: float
) -> None:
    numbers, segments = update
    count = int(numbers.size * density)
    indices = np.sort(np.argpartition(np.abs(numbers), -count)[-count:])
    spec = FieldSpec("Test.update", "float32", (numbers.size,), segments=segments)
    value = Sparse(numbers.size, indices, numbers[indices])
    sizes = {codec: encode(value, spec, sparse=codec).index_nbytes for codec in POSITIONS}
    assert encode(value, spec).index_nbytes <= min(sizes.values()) + 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Sparse(NUMEL, np.array([1, 2], np.int32), np.zeros(2, np.float32)), "vector of int64 indices, got int32"),
        (Sparse(NUMEL, np.array([[1, 2]]), np.zeros(2, np.float32)), "vector of int64 indices, got int64 (1, 2)"),
        (Sparse(NUMEL - 1, np.array([1]), np.zeros(1, np.float32)), "expected 3001 positions, got 3000"),
        (Sparse(NUMEL, np.array([2, 1]), np.zeros(2, np.float32)), "must increase from 0"),
        (Sparse(NUMEL, np.array([1, 1]), np.zeros(2, np.float32)), "must increase from 0"),
        (Sparse(NUMEL, np.array([-1, 1]), np.zeros(2, np.float32)), "must increase from 0"),
        (Sparse(NUMEL, np.array([NUMEL]), np.zeros(1, np.float32)), "at most 3000"),
        (Sparse(NUMEL, np.array([1]), np.zeros(2, np.float32)), "a value for each of 1 indices, got 2"),
        (Sparse(NUMEL, np.array([1]), np.zeros(1)), "expected values of float32, got float64"),
        (Sparse(NUMEL, np.array([1, 2]), np.zeros((1, 2), np.float32)), "expected a vector of float32"),
        (
            Sparse(NUMEL, np.array([1]), Quantized(np.zeros(1, np.uint8), 1, np.ones(1, np.float32))),
            "expected values of float32, got quantized",
        ),
        (
            Sparse(NUMEL, np.array([1]), np.zeros(1, np.float32), base=KnownMask(BASE.array[1:], 1)),
            "expected a base of 3001 positions, got 3000",
        ),
    ],
)
def test_a_value_that_is_not_what_the_field_declares_is_refused_in_words(value: Sparse, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        encode(value)
    assert "Test.update" in str(error.value)


@pytest.mark.parametrize("codec", [*POSITIONS, "auto"])
def test_more_positions_than_a_field_allows_are_refused_at_both_ends(codec: str) -> None:
    value = value_of(near_base(), BASE)
    count = value.indices.size
    section = encode(value, dataclasses.replace(SPEC, max_kept=count), sparse=codec)
    assert section.payload.tobytes() == encode(value, sparse=codec).payload.tobytes()
    found = decode(section.codec_id, section.param, section.payload, dataclasses.replace(SPEC, max_kept=count)).value
    assert found.num_kept == count
    fewer = dataclasses.replace(SPEC, max_kept=count - 1)
    with pytest.raises(ValueError, match=rf"Test\.update: expected at most {count - 1} positions kept, got {count}"):
        encode(value, fewer, sparse=codec)
    with pytest.raises(WireError, match=r"Test\.update.* count: .*expected at most \d+ positions"):
        decode(section.codec_id, section.param, section.payload, fewer)


@pytest.mark.parametrize("codec", ["byte-rans", "zstd", "layers", "ranks"])
def test_too_many_positions_are_refused_before_there_is_room_for_them(codec: str) -> None:
    numel = 4_000_000
    base = KnownMask(np.zeros(numel, np.bool_), 5)
    known = Known()
    known.hold("before", base)
    spec = FieldSpec("Test.update", "float32", (numel,), segments=np.array([0, numel]), base="before")
    value = Sparse(numel, np.arange(numel), np.zeros(numel, np.float32), base=base)
    section = encode(value, spec, sparse=codec)
    assert base.packed.size == numel // 8  # made, and not to be counted below
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="count: "):
            decode(section.codec_id, section.param, section.payload, dataclasses.replace(spec, max_kept=1000), known)
        assert tracemalloc.get_traced_memory()[1] < numel // 2
    finally:
        tracemalloc.stop()


def test_a_base_that_the_field_does_not_declare_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"Test\.update declares no base, got one"):
        encode(value_of(BASE.array, BASE), FieldSpec("Test.update", "float32", (NUMEL,)))


def test_plain_values_are_refused_where_quantized_ones_are_declared() -> None:
    with pytest.raises(ValueError, match="expected values of quantized, got float32"):
        encode(value_of(BASE.array), FieldSpec("Test.update", "", (NUMEL,)))


@pytest.mark.parametrize("codec_id", [0, 2, 3, 15, PRIOR, CHANGE, 28, 255])
def test_a_codec_of_another_class_is_refused(codec_id: int) -> None:
    with pytest.raises(WireError, match=r"Test\.update codec"):
        decode(codec_id, 2, np.ones(10, np.uint8))


def test_the_size_travels_only_where_it_may_be_smaller() -> None:
    shorter = FieldSpec("Test.update", "float32", (NUMEL,), at_most=True)
    value = value_of(BASE.array[:1000])
    section = encode(value, shorter)
    assert section.payload[:2].tolist() == [0xE8, 0x07]
    found = decode(section.codec_id, section.param, section.payload, shorter).value
    assert found.numel == 1000
    with pytest.raises(ValueError, match="expected at most 3001 positions, got 3002"):
        encode(Sparse(NUMEL + 1, value.indices, value.values), shorter)
    with pytest.raises(WireError, match="expected at most 3001 positions, got 3002"):
        decode(section.codec_id, section.param, np.append(np.uint8([0xBA, 0x17]), section.payload[2:]), shorter)


def test_a_length_beyond_the_payload_is_refused() -> None:
    with pytest.raises(WireError, match="expected at most 2 bytes, got 3"):
        decode(18, 2, np.array([3, 0, 0], np.uint8))


SPECS = (
    SPEC,
    FieldSpec("Test.update", "float32", (NUMEL,), base="before", at_most=True),
    FieldSpec("Test.update", "", (NUMEL,), base="before"),
)


def assert_safe(codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec) -> None:
    """Fail unless the payload is a value within the receiver's sizes or a `WireError`."""
    try:
        found = decode(codec_id, param, payload, spec).value
    except WireError:
        return
    assert isinstance(found, Sparse)
    assert found.size <= NUMEL
    assert np.all(np.diff(found.indices, prepend=-1) > 0)
    assert found.indices.size == 0 or found.indices[-1] < found.size
    assert (found.values.numel if isinstance(found.values, Quantized) else found.values.size) == found.indices.size


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("codec", [*POSITIONS, "auto"])
def test_damaged_payloads_are_refused_or_are_values(codec: str, spec: FieldSpec) -> None:
    rng = np.random.default_rng(6)
    value = value_of(near_base(), BASE)
    if not spec.dtype:
        symbols = rng.integers(0, 4, value.indices.size).astype(np.uint8)
        value = Sparse(NUMEL, value.indices, Quantized(symbols, 2, np.ones(1, np.float32)), base=BASE)
    section = encode(value, spec, sparse=codec)
    size = section.payload.size
    for cut in {0, 1, 2, 3, 7, 8, 20, section.index_nbytes - 1, section.index_nbytes, size // 2, size - 1}:
        with pytest.raises(WireError):
            decode(section.codec_id, section.param, section.payload[:cut].copy(), spec)
    for _ in range(40):
        damaged = section.payload.copy()
        damaged[rng.integers(0, rng.choice([10, section.index_nbytes, size]))] ^= rng.integers(1, 256)
        assert_safe(section.codec_id, section.param, damaged, spec)
        assert_safe(section.codec_id, int(rng.integers(0, 256)), damaged, spec)


@settings(max_examples=150)
@given(
    codec_id=st.sampled_from([*range(16, 28)]),
    param=st.sampled_from([*range(14), 255]),
    payload=st.binary(max_size=80),
    spec=st.sampled_from(SPECS),
)
def test_random_payloads_are_refused_or_are_values(codec_id: int, param: int, payload: bytes, spec: FieldSpec) -> None:
    assert_safe(codec_id, param, np.frombuffer(bytearray(payload), np.uint8), spec)
