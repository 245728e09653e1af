"""A density a tensor: close to the bound of the tensors, cheap for small ones, and safe against any bytes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BITS, GOLOMB
from fedmpi.wire.codecs.layers import counts_kept, decode_layers, encode_layers, least_nbytes
from fedmpi.wire.codecs.positions import Positions, encode_set


def log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def tensors(sizes: list[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])


# A CNN of 19 tensors and 1.39 million parameters; weights and biases in turn.
SIZES = [432, 16, 4608, 32, 9216, 32, 18432, 64, 36864, 64, 73728, 128, 147456, 128, 294912, 128, 802816, 256, 2560]
DENSITIES = [1, 1, 0.8, 1, 0.5, 0.5, 0.4, 1, 0.25, 0.3, 0.2, 0.5, 0.12, 0.6, 0.08, 0.5, 0.05, 0.4, 0.7]


@pytest.mark.parametrize(("scale", "most"), [(1, 1.005), (0.1, 1.015), (0.01, 1.045)])
def test_a_density_a_tensor_costs_little_more_than_the_bound(scale: float, most: float) -> None:
    rng = np.random.default_rng(0)
    segments = tensors(SIZES)
    bits = np.zeros(segments[-1], np.bool_)
    bound = 0.0
    for start, numel, density in zip(segments, SIZES, DENSITIES, strict=False):
        count = int(numel * density * scale)
        bits[start + rng.choice(numel, count, replace=False)] = True
        bound += log2_choose(numel, count) / 8
    positions = Positions.from_mask(bits)
    payload = encode_layers(positions, segments)
    assert payload.size <= most * bound
    assert payload.size < encode_set(positions).payload.size
    assert np.array_equal(decode_layers(payload, segments, "Test", 0, int(segments[-1])).bits, bits)


@pytest.mark.parametrize(("kept", "nbytes"), [([], 1), (range(32), 1), ([3], 3), (range(0, 32, 2), 5)])
def test_a_bias_of_32_costs_no_lane_states(kept: list[int], nbytes: int) -> None:
    positions = Positions.from_indices(np.array(kept, np.int64), 32)
    assert encode_layers(positions, tensors([32])).size <= nbytes


def test_a_tensor_without_positions_costs_nothing() -> None:
    positions = Positions.from_indices(np.array([1, 4]), 9)
    assert np.array_equal(encode_layers(positions, tensors([5, 4])), encode_layers(positions, tensors([0, 5, 0, 4, 0])))
    assert encode_layers(Positions(0, bits=np.empty(0, np.uint8)), tensors([0])).size == 0


def test_kept_positions_are_counted_tensor_by_tensor() -> None:
    positions = Positions.from_indices(np.array([0, 1, 4, 8]), 9)
    assert counts_kept(positions, tensors([1, 0, 4, 3, 1])).tolist() == [1, 0, 2, 0, 1]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), max_size=12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_mask_s_positions_are_counted_without_being_listed(sizes: list[int], density: float, seed: int) -> None:
    segments = tensors(sizes)
    bits = np.random.default_rng(seed).random(segments[-1]) < density
    positions = Positions.from_mask(bits)
    wanted = [int(bits[start:end].sum()) for start, end in pairwise(segments)]
    assert counts_kept(positions, segments).tolist() == wanted
    assert not positions.is_listed
    assert least_nbytes(positions, segments) <= encode_layers(Positions.from_mask(bits), segments).size
    listed = Positions.from_indices(np.flatnonzero(bits), bits.size)
    assert counts_kept(listed, segments).tolist() == wanted
    assert np.array_equal(encode_layers(positions, segments), encode_layers(listed, segments))


@pytest.mark.parametrize("density", [0.02, 0.4, 0.95, 1])
def test_more_positions_than_allowed_are_refused(density: float) -> None:
    bits = np.random.default_rng(0).random(543) < density
    payload, count = encode_layers(Positions.from_mask(bits), SEGMENTS), int(bits.sum())
    assert decode_layers(payload, SEGMENTS, "Test", 0, count).count == count
    for most in (count - 1, count // 2, 0):
        with pytest.raises(WireError, match=r"tensor \d count: .*expected at most \d+ positions"):
            decode_layers(payload, SEGMENTS, "Test", 0, most)


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0, 1)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_any_set_comes_back(parts: list[tuple[int, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = tensors([numel for numel, _ in parts])
    bits = np.concatenate([rng.random(numel) < density for numel, density in parts])
    payload = encode_layers(Positions.from_mask(bits), segments)
    found = decode_layers(payload, segments, "Test", 0, int(segments[-1]))
    assert found.numel == bits.size
    assert np.array_equal(found.bits, bits)
    assert np.array_equal(found.indices, np.flatnonzero(bits))


SEGMENTS = tensors([40, 500, 3])


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_random_payloads_are_refused_or_are_sets(payload: bytes) -> None:
    try:
        found = decode_layers(np.frombuffer(bytearray(payload), np.uint8), SEGMENTS, "Test", 0, 543)
    except WireError:
        return
    assert found.bits.size == 543
    assert found.count == int(found.bits.sum())


@pytest.mark.parametrize(
    ("payload", "offset", "words"),
    [
        ([], 10, "tensor 0: at byte 10 expected a byte that says how"),
        ([0, 0], 12, "tensor 2: at byte 12 expected a byte that says how"),
        ([0, 0, 0, 0], 13, "expected the end, got 1 bytes more"),
        ([0x10], 10, "expected none, all or a set's coder"),
        ([0x11], 10, "got 1, 1"),
        ([BITS - 14 | 0x10], 10, "got 2, 1"),
        ([10], 10, "got 10, 0"),
        ([15], 10, "got 15, 0"),
        ([GOLOMB - 14 | 0x50, 1], 10, "expected at most 1 bytes, got 5"),
        ([GOLOMB - 14 | 0xF0, 0xFF, 0xFF, 0x03], 10, "expected at most 0 bytes, got 65550"),
        ([GOLOMB - 14 | 0xF0, 0x80], 11, "varint: at byte 11"),
        ([BITS - 14, 0, 0, 0, 0], 10, "expected at most 4 bytes, got 5"),
    ],
)
def test_bad_bytes_are_refused_in_words(payload: list[int], offset: int, words: str) -> None:
    with pytest.raises(WireError) as error:
        decode_layers(np.array(payload, np.uint8), SEGMENTS, "Test", 10, 543)
    assert words in str(error.value)
    assert error.value.offset == offset
