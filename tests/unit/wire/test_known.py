"""What both ends hold: versions and checksums, and probabilities that come out alike on every machine."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.known import (
    MAX_VERSION,
    P12_ONE,
    Known,
    KnownMask,
    KnownProbabilities,
    KnownVector,
    Reference,
    checksum,
)

BITS = np.arange(20) % 3 == 0


def low_32_bits(raw: bytes) -> int:
    return xxhash.xxh3_64_intdigest(raw) & 0xFFFFFFFF


def found(known: Known, wanted: type[Reference], name: str, version: int, stated: int, numel: int = 20) -> Reference:
    return known.find(wanted, name, version, stated, numel=numel, where="Up.kept", offset=30)


# ---------------------------------------------------------------------------------------------------------------------
# Checksums


def test_a_checksum_is_over_the_bytes() -> None:
    array = np.array([1.5, -0.0, np.nan], np.float32)
    assert checksum(array) == low_32_bits(array.tobytes())
    assert checksum(np.empty(0, np.int64)) == low_32_bits(b"")
    assert checksum(np.arange(10)[::2]) == checksum(np.array([0, 2, 4, 6, 8]))
    assert checksum(np.array([0.0])) != checksum(np.array([-0.0]))


def test_a_vector_has_the_checksum_of_its_bytes() -> None:
    assert KnownVector(np.arange(5), 0).checksum == checksum(np.arange(5))
    halves = np.arange(5, dtype=np.uint16)  # bfloat16 is held so
    assert KnownVector(halves, 0).checksum == low_32_bits(halves.tobytes())


def test_a_mask_has_the_checksum_of_its_packed_bits() -> None:
    packed = bytes((0b01001001, 0b10010010, 0b00000100))
    assert KnownMask(BITS, 0).checksum == low_32_bits(packed)
    assert KnownMask(np.repeat(BITS, 2)[::2], 0).checksum == low_32_bits(packed)


def test_a_checksum_is_taken_once() -> None:
    array = np.zeros(4, np.float32)
    vector = KnownVector(array, 1)
    before = vector.checksum
    array[0] = 1
    assert vector.checksum == before
    assert KnownVector(array, 1).checksum != before


# ---------------------------------------------------------------------------------------------------------------------
# References


@pytest.mark.parametrize("version", [-1, MAX_VERSION + 1])
def test_versions_have_32_bits(version: int) -> None:
    with pytest.raises(ValueError, match=f"a version must be 0 to {MAX_VERSION}, got {version}"):
        KnownVector(np.zeros(1), version)
    assert KnownVector(np.zeros(1), MAX_VERSION).version == MAX_VERSION


@pytest.mark.parametrize("make", [KnownVector, KnownMask, KnownProbabilities])
def test_references_are_vectors(make: type[Reference]) -> None:
    with pytest.raises(ValueError, match=r"must be a vector, got shape \(2, 2\)"):
        make(np.ones((2, 2), np.bool_), 0)


def test_a_mask_is_bool() -> None:
    with pytest.raises(ValueError, match="a mask must be bool, got uint8"):
        KnownMask(np.ones(3, np.uint8), 0)


def test_a_mask_knows_its_positions() -> None:
    assert KnownMask(BITS, 0).indices.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert KnownMask(np.zeros(4, np.bool_), 0).indices.dtype == np.int64


def test_what_is_held_does_not_change_with_what_it_was_made_from() -> None:
    tensor = torch.tensor([True, False, True])
    mask = KnownMask.of(tensor, 3)
    weights = np.arange(3, dtype=np.float32)
    vector = KnownVector(weights, 3)
    tensor[1] = True
    weights[:] = 7
    assert mask.array.tolist() == [True, False, True]
    assert vector.array.tolist() == [0, 1, 2]
    assert (mask.version, mask.count, mask.packed.tolist()) == (3, 2, [0b101])


def test_bytes_that_are_no_bools_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 or 1"):
        KnownMask(np.array([0, 2, 1], np.uint8).view(np.bool_), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities


@given(st.lists(st.floats(0, 1, width=32), max_size=20))
def test_probabilities_are_rounded_to_the_nearest_of_4096_halves_up(thetas: list[float]) -> None:
    made = KnownProbabilities.of(np.array(thetas, np.float32), 0).array
    exact = [(Fraction(theta) * P12_ONE + Fraction(1, 2)).__floor__() for theta in thetas]
    assert made.tolist() == [min(max(number, 1), P12_ONE - 1) for number in exact]
    assert made.dtype == np.uint16


def test_every_multiple_of_1_of_4096_and_every_half_between_two() -> None:
    multiples = np.arange(P12_ONE + 1)
    wanted = multiples.clip(1, P12_ONE - 1)
    assert KnownProbabilities.of((multiples / P12_ONE).astype(np.float32), 0).array.tolist() == wanted.tolist()
    halves = ((multiples[:-1] + 0.5) / P12_ONE).astype(np.float32)
    assert KnownProbabilities.of(halves, 0).array.tolist() == wanted[1:].tolist()
    below = np.nextafter(halves, np.float32(0))
    assert KnownProbabilities.of(below, 0).array.tolist() == wanted[:-1].tolist()


def test_certainty_is_no_probability_that_a_coder_can_use() -> None:
    assert KnownProbabilities.of(np.array([0.0, -0.0, 1e-45, 1.0], np.float32), 0).array.tolist() == [1, 1, 1, 4095]


def test_tensors_of_every_float_and_shape() -> None:
    theta = torch.tensor([[0.25, 0.5], [0.75, 1.0]], requires_grad=True)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        made = KnownProbabilities.of(theta.to(dtype), 9)
        assert made.array.tolist() == [1024, 2048, 3072, 4095]
        assert made.version == 9
    assert KnownProbabilities.of(torch.empty(0), 0).array.size == 0
    # Both ends see float32: what is finer is rounded to it before anything else.
    assert KnownProbabilities.of(np.array([0.5 / P12_ONE * 3 - 1e-12]), 0).array.tolist() == [2]


@pytest.mark.parametrize("theta", [np.nan, -1e-7, np.nextafter(np.float32(1), np.float32(2)), np.inf, -np.inf])
def test_what_is_no_probability_is_refused(theta: float) -> None:
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]"):
        KnownProbabilities.of(np.array([0.5, theta], np.float32), 0)


@pytest.mark.parametrize("number", [0, P12_ONE, 65535])
def test_multiples_outside_1_to_4095_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="probabilities must be 1 to 4095 of 4096"):
        KnownProbabilities(np.array([7, number], np.uint16), 0)
    with pytest.raises(ValueError, match="must be uint16 multiples of 1/4096, got int64"):
        KnownProbabilities(np.array([7]), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Known


def test_versions_are_held_side_by_side_by_name() -> None:
    known = Known()
    assert known.get("mask", 3) is None
    assert known.versions("mask") == []
    masks = {version: KnownMask(BITS, version) for version in (7, 3, 5)}
    for mask in masks.values():
        known.hold("mask", mask)
    known.hold("theta", KnownProbabilities.of(np.zeros(20), 4))
    assert known.versions("mask") == [3, 5, 7]
    assert known.versions("theta") == [4]
    assert known.get("mask", 5) is masks[5]
    assert known.get("mask", 4) is None


def test_a_version_is_replaced() -> None:
    known = Known()
    known.hold("mask", KnownMask(BITS, 3))
    other = KnownMask(~BITS, 3)
    known.hold("mask", other)
    assert known.get("mask", 3) is other
    assert known.versions("mask") == [3]


def test_old_versions_of_one_name_are_forgotten() -> None:
    known = Known()
    for version in (1, 2, 3):
        known.hold("mask", KnownMask(BITS, version))
        known.hold("other", KnownMask(BITS, version))
    known.forget("mask", before=3)
    assert known.versions("mask") == [3]
    assert known.versions("other") == [1, 2, 3]
    known.forget("nothing", before=99)
    known.forget("mask", before=3)
    assert known.versions("mask") == [3]


def test_only_the_versions_that_are_wanted_are_retained() -> None:
    known = Known()
    for version in (1, 2, 5, 9):
        known.hold("mask", KnownMask(BITS, version))
        known.hold("theta", KnownProbabilities.of(np.full(20, 0.3), version))
    known.retain("mask", {2, 9, 30})
    assert known.versions("mask") == [2, 9]
    known.retain("nothing", {1})
    known.retain("mask", [9, 9])
    assert known.versions("mask") == [9]
    known.retain("mask", ())
    assert known.versions("mask") == []
    assert known.versions("theta") == [1, 2, 5, 9]


def test_what_a_message_names_is_found() -> None:
    known = Known()
    mask, vector = KnownMask(BITS, 3), KnownVector(np.zeros(20), 3)
    theta = KnownProbabilities.of(np.full(20, 0.3), 3)
    for name, reference in (("mask", mask), ("weights", vector), ("theta", theta)):
        known.hold(name, reference)
        assert found(known, type(reference), name, 3, reference.checksum) is reference


def test_a_version_that_is_not_held_is_refused_and_those_that_are_held_are_named() -> None:
    known = Known()
    known.hold("mask", KnownMask(BITS, 5))
    known.hold("mask", KnownMask(BITS, 3))
    stated = KnownMask(BITS, 0).checksum
    with pytest.raises(WireError, match=r"Up.kept: mask version: at byte 30 expected one of those held: 3, 5, got 4"):
        found(known, KnownMask, "mask", 4, stated)
    with pytest.raises(WireError, match=r"held: none, got 4: what the two .* different") as caught:
        found(known, KnownMask, "other", 4, stated)
    assert (caught.value.offset, caught.value.got) == (30, 4)


def test_another_content_of_the_same_version_is_refused_and_both_checksums_are_named() -> None:
    known = Known()
    known.hold("mask", KnownMask(BITS, 5))
    ours, theirs = KnownMask(BITS, 5).checksum, KnownMask(~BITS, 5).checksum
    with pytest.raises(WireError, match=rf"mask version 5: at byte 30 expected checksum {ours:08x}, got {theirs:08x}"):
        found(known, KnownMask, "mask", 5, theirs)


def test_a_thing_of_another_class_is_not_what_is_wanted() -> None:
    known = Known()
    vector = KnownVector(np.zeros(20), 5)
    known.hold("mask", vector)
    with pytest.raises(WireError, match="mask version"):
        found(known, KnownMask, "mask", 5, vector.checksum)


def test_a_thing_of_another_length_is_refused() -> None:
    known = Known()
    mask = KnownMask(BITS, 5)
    known.hold("mask", mask)
    with pytest.raises(WireError, match="mask version 5: at byte 30 expected 21 numbers, got 20"):
        found(known, KnownMask, "mask", 5, mask.checksum, numel=21)


def test_a_mask_that_came_in_the_same_message_is_meant_where_none_of_that_checksum_is_held() -> None:
    known = Known()
    held = KnownMask(BITS, 5)
    known.hold("mask", held)
    more = known.with_mask("mask", ~BITS)
    inside = KnownMask(~BITS, 5)
    for version in (5, 6, 0):  # it is named by its sender, and has no version here
        mask = found(more, KnownMask, "mask", version, inside.checksum)
        assert mask.array.tolist() == (~BITS).tolist()
        assert mask.version == version
    other = KnownMask(np.zeros_like(BITS), 5)
    with pytest.raises(WireError, match=f"expected checksum {inside.checksum:08x}, got {other.checksum:08x}"):
        found(more, KnownMask, "mask", 5, other.checksum)
    # Values of the mask that is held may stand behind a new one.
    assert found(more, KnownMask, "mask", 5, held.checksum) is held
    assert found(known, KnownMask, "mask", 5, held.checksum) is held


def test_a_mask_that_came_in_the_same_message_hides_nothing_else() -> None:
    known = Known()
    vector = KnownVector(np.zeros(20), 5)
    known.hold("mask", vector)
    more = known.with_mask("mask", BITS).with_mask("second", ~BITS)
    assert found(more, KnownVector, "mask", 5, vector.checksum) is vector
    assert found(more, KnownMask, "mask", 1, KnownMask(BITS, 1).checksum).array.tolist() == BITS.tolist()
    assert found(more, KnownMask, "second", 1, KnownMask(~BITS, 1).checksum).array.tolist() == (~BITS).tolist()
    assert more.get("second", 1) is None
    known.hold("later", vector)
    assert more.get("later", 5) is vector
