"""Masks against an earlier one: close to the bound of what moved, exact, and safe against any bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BITS, UINT32, FieldSpec, format_of
from fedmpi.wire.codecs.change import (
    Moves,
    change_nbytes,
    decode_change,
    decode_ranks,
    encode_change,
    encode_ranks,
    moves_of,
)
from fedmpi.wire.codecs.positions import Positions
from fedmpi.wire.codecs.reference import put_reference
from fedmpi.wire.known import KnownMask
from fedmpi.wire.values import Mask


def decode_any_ranks(payload: np.ndarray, base: KnownMask, where: str, offset: int) -> Positions:
    return decode_ranks(payload, base, where, offset, base.array.size)


CODERS = {"ranks": (encode_ranks, decode_any_ranks), "change": (encode_change, decode_change)}


def log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def base_of(density: float, numel: int) -> KnownMask:
    return KnownMask(np.random.default_rng(0).random(numel) < density, 3)


def moved(bits: np.ndarray, num_dropped: int, num_grown: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    after = bits.copy()
    after[rng.choice(np.flatnonzero(bits), num_dropped, replace=False)] = False
    after[rng.choice(np.flatnonzero(~bits), num_grown, replace=False)] = True
    return after


def body(codec: str, bits: np.ndarray, base: KnownMask) -> np.ndarray:
    """Return a payload without its reference."""
    payload = CODERS[codec][0](moves_of(Positions.from_mask(bits), base))
    reference = put_reference(base)
    assert np.array_equal(payload[: reference.size], reference)
    return payload[reference.size :]


@pytest.mark.parametrize(("share", "most"), [(0.01, 1.03), (0.05, 1.01)])
def test_auto_is_close_to_the_bound_of_what_moved(share: float, most: float) -> None:
    numel = 1_000_000
    base = base_of(0.1, numel)
    kept = base.indices.size
    count = int(kept * share)
    bits = moved(base.array, count, count)
    section = format_of(Mask).encode(Mask(bits, base=base), FieldSpec("Test", "", (numel,), base="b"), WireConfig())
    assert section.codec in CODERS
    assert section.payload.size <= most * (log2_choose(kept, count) + log2_choose(numel - kept, count)) / 8


@pytest.mark.parametrize("codec", CODERS)
@pytest.mark.parametrize(
    ("density", "flips"), [(0.5, 0.5), (0.5, 0.01), (0.1, 0.2), (0.001, 0.0), (0.0, 0.1), (1.0, 0.1)]
)
def test_both_come_back_at_every_density(density: float, flips: float, codec: str) -> None:
    for numel in (0, 1, 7, 8, 9, 64, 4001):
        base = base_of(density, numel)
        for bits in (base.array ^ (np.random.default_rng(1).random(numel) < flips), ~base.array):
            found = CODERS[codec][1](body(codec, bits, base), base, "Test", 0)
            assert np.array_equal(found.bits, bits)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300), st.sampled_from(list(CODERS)))
def test_any_change_comes_back(pairs: list[tuple[bool, bool]], codec: str) -> None:
    before, after = (np.array(column, np.bool_) for column in ([p[0] for p in pairs], [p[1] for p in pairs]))
    base = KnownMask(before, 1)
    found = CODERS[codec][1](body(codec, after, base), base, "Test", 0)
    assert np.array_equal(found.bits, after)
    assert np.array_equal(base.array, before)


def test_an_unchanged_mask_costs_a_byte_beside_its_reference() -> None:
    base = base_of(0.1, 1000)
    assert body("ranks", base.array, base).size == 1


def test_moves_are_counted() -> None:
    base = base_of(0.2, 999)
    moves = moves_of(Positions.from_mask(moved(base.array, 12, 30)), base)
    assert isinstance(moves, Moves)
    assert (moves.num_dropped, moves.num_grown) == (12, 30)
    assert int(np.bitwise_count(moves.changed).sum()) == 42


@pytest.mark.parametrize(("num_dropped", "num_grown"), [(0, 0), (5, 5), (300, 40), (4000, 9000)])
def test_the_estimate_of_change_is_near(num_dropped: int, num_grown: int) -> None:
    base = base_of(0.1, 100_000)
    kept = base.indices.size
    estimate = change_nbytes(num_dropped, num_grown, kept, 100_000 - kept)
    exact = body("change", moved(base.array, num_dropped, num_grown), base).size
    assert abs(exact - estimate) <= 6 + 0.003 * exact


BASE = base_of(0.3, 203)
AFTER = moved(BASE.array, 9, 14)


@pytest.mark.parametrize("codec", CODERS)
def test_damaged_payloads_are_refused_or_are_masks(codec: str) -> None:
    rng = np.random.default_rng(1)
    payload = body(codec, AFTER, BASE)
    for cut in range(payload.size):
        assert_safe(codec, payload[:cut].copy())
    for _ in range(300):
        damaged = payload.copy()
        damaged[rng.integers(0, rng.choice([4, damaged.size]))] ^= rng.integers(1, 256)
        assert_safe(codec, damaged)
    with pytest.raises(WireError):
        CODERS[codec][1](np.append(payload, np.uint8(0)), BASE, "Test", 0)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.sampled_from(list(CODERS)))
def test_random_payloads_are_refused_or_are_masks(payload: bytes, codec: str) -> None:
    assert_safe(codec, np.frombuffer(bytearray(payload), np.uint8))


def assert_safe(codec: str, payload: np.ndarray) -> None:
    try:
        found = CODERS[codec][1](payload, BASE, "Test", 0)
    except WireError:
        return
    assert found.bits.shape == (203,)
    assert found.bits.max() <= 1


@pytest.mark.parametrize(("num_dropped", "num_grown"), [(0, 0), (40, 0), (0, 25), (40, 25), (61, 1)])
def test_ranks_of_more_positions_than_allowed_are_refused(num_dropped: int, num_grown: int) -> None:
    bits = moved(BASE.array, min(num_dropped, BASE.count), num_grown)
    payload, count = body("ranks", bits, BASE), int(bits.sum())
    assert decode_ranks(payload, BASE, "Test", 0, count).count == count
    with pytest.raises(WireError, match=r"count: .*expected at most"):
        decode_ranks(payload, BASE, "Test", 0, count - 1)


def header(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint8)


@pytest.mark.parametrize(
    ("codec", "payload", "words"),
    [
        ("ranks", header(), "expected a byte of coders, got the end"),
        ("ranks", header(0, 1), "grown: at byte 11 expected no bytes, got 1"),
        ("ranks", header(9, 0), "dropped coder: at byte 12 expected a set's coder, got 9"),
        ("ranks", header(0xF0), "grown coder: at byte 11 expected a set's coder, got 15"),
        ("ranks", header(1, 9, 0), "dropped positions: at byte 11 expected at most 1 bytes, got 9"),
        ("ranks", header((UINT32 - BITS + 1) << 4, 4, 0, 0, 0, 3, 0, 0, 0), "increas"),
        ("change", header(), "varint: at byte 10"),
        ("change", header(0x7F, 0), "got 127 and 0"),
        ("change", header(0, 0xFF, 0x7F), "got 0 and 16383"),
        ("change", header(1, 1), "rANS payload"),
    ],
)
def test_bad_bytes_are_refused_in_words(codec: str, payload: np.ndarray, words: str) -> None:
    with pytest.raises(WireError) as error:
        CODERS[codec][1](payload, BASE, "Test", 10)
    assert words in str(error.value)


def test_bits_that_are_not_the_header_s_moves_are_refused() -> None:
    payload = body("change", AFTER, BASE)
    assert payload[0] == 9
    # One dropped position more or less gives the same probability in 12 bits where the base is large.
    numel = 100_000
    base = base_of(0.3, numel)
    payload = body("change", moved(base.array, 100, 100), base)
    payload[0] += 1
    with pytest.raises(WireError, match="expected 101 dropped and 100 grown positions, got 100 and 100"):
        decode_change(payload, base, "Test", 0)
