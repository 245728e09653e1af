"""The Shannon bound: worked by hand for each kind of value, then against counting and against plain loops."""

from __future__ import annotations

import ast
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.wire import bound
from fedmpi.wire.bound import (
    bound_nbits,
    cross_entropy_nbits,
    entropy_nbits,
    log2_choose,
    number_bound_nbits,
    value_bound_nbits,
)
from fedmpi.wire.known import KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.message import Message, Schema, mask, message, single, sparse
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse, Value, storage

SCHEMA = Schema({"params": 8, "state": 7, "int_buffers": 2}, 0, {"params": np.array([0, 4, 8])})
NEAR = 1e-9
"""What logarithms of the gamma function lose, in bits, for sets as small as these."""


def bits(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text if letter != " "], np.bool_)


def known(text: str) -> KnownMask:
    return KnownMask(bits(text), 0)


def probabilities(*p12: int) -> KnownProbabilities:
    return KnownProbabilities(np.array(p12, np.uint16), 0)


# Plain numbers and vectors


def test_seed_down() -> None:
    # 5 is 10 as zigzag, 0b1010: 4 bits. 255 is 510, 0b111111110: 9 bits.
    assert bound_nbits(SeedDown(init_seed=5, state_hash=255), SCHEMA) == 4 + 9


def test_model_down() -> None:
    state, ints = Dense(np.zeros(3, np.float32)), Dense(np.zeros(2, np.int64))
    assert bound_nbits(ModelDown(state=state, int_buffers=None), SCHEMA) == 3 * 32
    assert bound_nbits(ModelDown(state=state, int_buffers=ints), SCHEMA) == 3 * 32 + 2 * 64


def test_model_up() -> None:
    # 600 is 1200 as zigzag, between 2^10 and 2^11: 11 bits.
    up = ModelUp(num_samples=600, int_buffers=None, state=Dense(np.zeros(7, np.float32)))
    assert bound_nbits(up, SCHEMA) == 11 + 7 * 32


@pytest.mark.parametrize(
    ("dtype", "nbits"),
    [("float32", 32), ("float64", 64), ("float16", 16), ("bfloat16", 16), ("int64", 64), ("int32", 32), ("uint8", 8)],
)
def test_a_dense_vector_costs_its_width(dtype: str, nbits: int) -> None:
    ones = np.ones(5, storage(dtype))
    assert value_bound_nbits(Dense(ones, dtype=dtype)) == 5 * nbits
    assert value_bound_nbits(Dense(ones, dtype=dtype, base=KnownVector(ones, 0))) == 5 * nbits
    assert value_bound_nbits(Dense(ones[:0], dtype=dtype)) == 0


@pytest.mark.parametrize(
    ("number", "nbits"),
    [(0, 1), (-1, 1), (1, 2), (-2, 2), (2, 3), (3, 3), (-4, 3), (4, 4), (2**31 - 1, 32), (2**63 - 1, 64),
     (-(2**63), 64)],
)  # fmt: skip
def test_whole_numbers(number: int, nbits: int) -> None:
    assert number_bound_nbits(number, "int") == nbits


def test_floats_cost_what_they_travel_in() -> None:
    assert [number_bound_nbits(number, "float64") for number in (0.0, 1.5, -math.pi)] == [64, 64, 64]
    assert [number_bound_nbits(number, "float32") for number in (0.0, 1.5)] == [32, 32]


def test_integers_on_both_sides_of_every_power_of_two() -> None:
    """With the zigzag forms 2^e - 2, 2^e - 1, 2^e, 2^e + 1."""
    wrong = []
    for exponent in range(2, 63):
        half = 2 ** (exponent - 1)
        got = [number_bound_nbits(number, "int") for number in (half - 1, -half, half, -half - 1)]
        if got != [exponent, exponent, exponent + 1, exponent + 1]:
            wrong.append((exponent, got))
    assert wrong == []


# Sets of positions


def test_which_k_of_n() -> None:
    # 3 of 10: 10 * 9 * 8 / 6 = 120 sets, 6.9069 bits.
    assert log2_choose(10, 3) == pytest.approx(6.90689, abs=1e-5)
    assert value_bound_nbits(Mask(bits("0100100001"))) == pytest.approx(math.log2(120), abs=NEAR)


def test_which_k_of_n_by_exact_binomials() -> None:
    for n in (0, 1, 2, 3, 10, 100, 1000):
        for k in {0, 1, 2, n // 3, n // 2, n - 1, n} & set(range(n + 1)):
            assert log2_choose(n, k) == pytest.approx(math.log2(math.comb(n, k)), rel=1e-9, abs=NEAR), (n, k)
        assert log2_choose(n, 0) == log2_choose(n, n) == 0
    for n, k in ((10**6, 1), (10**6, 1000), (10**9, 1), (10**9, 3), (10**9, 200), (10**9, 10**9 - 5)):
        assert log2_choose(n, k) == pytest.approx(math.log2(math.comb(n, min(k, n - k))), rel=1e-6), (n, k)


def test_a_mask_with_a_density_a_tensor() -> None:
    value = Mask(bits("0100 1111"))
    # 1 of 4, then all of 4: 4 sets. Without tensors 5 of 8: 8 * 7 * 6 / 6 = 56.
    assert value_bound_nbits(value, np.array([0, 4, 8])) == pytest.approx(2, abs=NEAR)
    assert value_bound_nbits(value, np.array([0, 4, 4, 8])) == pytest.approx(2, abs=NEAR)
    assert value_bound_nbits(value) == pytest.approx(math.log2(56), abs=NEAR)


def test_a_mask_near_an_earlier_one() -> None:
    # Of 4 kept 1 is dropped, 4 ways; of the other 4 there are 2 added, 4 * 3 / 2 = 6 ways: 24, of 56 without the base.
    value = Mask(bits("0111 1100"), base=known("1111 0000"))
    assert value_bound_nbits(value) == pytest.approx(math.log2(24), abs=NEAR)


def test_a_mask_far_from_an_earlier_one_costs_what_it_costs_without() -> None:
    # 1 of 2 is dropped and 1 of 6 added: 12 ways. By tensors, 2 of 4 and none of 4: 6.
    value = Mask(bits("1100 0000"), base=known("1000 1000"))
    assert value_bound_nbits(value) == pytest.approx(math.log2(12), abs=NEAR)
    assert value_bound_nbits(value, np.array([0, 4, 8])) == pytest.approx(math.log2(6), abs=NEAR)


def test_a_mask_whose_probabilities_both_ends_hold() -> None:
    # Each bit had probability 3/4: 0.415 bits, 4 of them 1.660; 2 of 4 without: 6 ways, 2.585 bits.
    value = Mask(bits("1100"), probabilities(3072, 3072, 1024, 1024))
    assert value_bound_nbits(value) == pytest.approx(4 * math.log2(4 / 3), abs=NEAR)
    # Where each was held for unlikely the prior says 8 bits, and the mask is better sent without it.
    surprise = Mask(bits("1100"), probabilities(1024, 1024, 3072, 3072))
    assert value_bound_nbits(surprise) == pytest.approx(math.log2(6), abs=NEAR)
    both = Mask(bits("1100"), probabilities(3072, 3072, 1024, 1024), known("1000"))
    # From the base: none dropped, 1 of 3 added, 1.585 bits.
    assert value_bound_nbits(both) == pytest.approx(math.log2(3), abs=NEAR)


masks = st.lists(st.booleans(), max_size=200).map(lambda kept: np.array(kept, np.bool_))


@st.composite
def masks_and_edges(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    kept = draw(masks)
    inner = draw(st.lists(st.integers(0, kept.size), max_size=5))
    return kept, np.array([0, *sorted(inner), kept.size])


@given(masks_and_edges(), st.randoms(use_true_random=False), st.data())
@settings(max_examples=60)
def test_a_mask_is_at_most_a_bit_a_position_and_knowledge_never_costs(
    drawn: tuple[np.ndarray, np.ndarray], shuffler: Any, data: st.DataObject
) -> None:
    kept, edges = drawn
    plain = value_bound_nbits(Mask(kept))
    assert 0 <= plain <= kept.size + NEAR
    order = list(range(kept.size))
    shuffler.shuffle(order)
    assert value_bound_nbits(Mask(kept[order])) == plain
    split = value_bound_nbits(Mask(kept), edges)
    assert 0 <= split <= plain + NEAR
    p12 = data.draw(st.lists(st.integers(1, 4095), min_size=kept.size, max_size=kept.size))
    prior = probabilities(*p12)
    base = KnownMask(np.array(data.draw(st.permutations(kept.tolist())), np.bool_), 0)
    alone = {
        "prior": value_bound_nbits(Mask(kept, prior), edges),
        "base": value_bound_nbits(Mask(kept, None, base), edges),
    }
    assert min(alone.values()) >= 0
    assert max(alone.values()) <= split + NEAR
    assert value_bound_nbits(Mask(kept, prior, base), edges) == min(alone.values())
    by_loop = [-math.log2(p / 4096 if bit else 1 - p / 4096) for p, bit in zip(p12, kept.tolist(), strict=True)]
    assert cross_entropy_nbits(kept, prior) == pytest.approx(math.fsum(by_loop), abs=NEAR)
    # Permuted together, mask and prior say the same.
    assert cross_entropy_nbits(kept[order], probabilities(*np.array(p12)[order])) == cross_entropy_nbits(kept, prior)


@given(st.integers(1, 63))
def test_a_prior_that_is_the_density_says_the_entropy(num_kept: int) -> None:
    kept = np.arange(64) < num_kept
    density = probabilities(*[64 * num_kept] * 64)
    share = num_kept / 64
    entropy = -64 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert cross_entropy_nbits(kept, density) == pytest.approx(entropy, abs=NEAR)
    assert entropy_nbits(np.array([num_kept, 64 - num_kept])) == pytest.approx(entropy, abs=NEAR)
    # log2 C(n, k) is below n H(k / n), by at most log2(n + 1).
    assert entropy - math.log2(65) <= value_bound_nbits(Mask(kept, density)) <= entropy


def test_the_bound_counts_the_masks_that_the_model_cannot_tell_apart() -> None:
    """Of all masks of 7 positions: with as many a tensor, or as many dropped from and added to the base."""
    edges, base = np.array([0, 3, 7]), bits("1101000")
    every = [np.array(kept, np.bool_) for kept in itertools.product((False, True), repeat=7)]

    def tensors(kept: np.ndarray) -> tuple[int, int]:
        return int(kept[:3].sum()), int(kept[3:].sum())

    def change(kept: np.ndarray) -> tuple[int, int]:
        return int((base & ~kept).sum()), int((kept & ~base).sum())

    alike = Counter(map(tensors, every)), Counter(map(change, every))
    for kept in every:
        fewest = min(alike[0][tensors(kept)], alike[1][change(kept)])
        assert value_bound_nbits(Mask(kept, None, KnownMask(base, 0)), edges) == pytest.approx(math.log2(fewest))


# Numbers at positions


def test_numbers_at_positions() -> None:
    # 1 is 3f800000 and -2 is c0000000; with the sign at the bottom 7f000000 and 80000001. Of the four bytes of the
    # numbers 1, 1, 1, -2 the outer ones are three of a kind and one other: 3 log2(4/3) + log2(4) = 3.2451 bits each.
    values = np.array([1, 1, 1, -2], np.float32)
    three_and_one = 3 * math.log2(4 / 3) + 2
    assert three_and_one == pytest.approx(3.2451, abs=1e-4)
    assert value_bound_nbits(MaskedValues(values, known("11110"))) == pytest.approx(2 * three_and_one, abs=NEAR)
    # As whole numbers, in zigzag form 2, 2, 2, 3, they differ in one byte.
    whole = MaskedValues(values.astype(np.int32), known("11110"))
    assert value_bound_nbits(whole) == pytest.approx(three_and_one, abs=NEAR)
    # bfloat16 has the upper half of float32: 3f80 and c000, so 7f00 and 8001.
    halves = MaskedValues((values.view(np.uint32) >> 16).astype(np.uint16), known("11110"), "bfloat16")
    assert value_bound_nbits(halves) == pytest.approx(2 * three_and_one, abs=NEAR)


def test_a_sparse_value_is_its_positions_and_its_numbers() -> None:
    # 2 of 16 positions: 16 * 15 / 2 = 120 sets. 1 and -1 differ in the sign alone: 2 bits.
    value = Sparse(16, np.array([3, 12]), np.array([1, -1], np.float32))
    assert value_bound_nbits(value) == pytest.approx(math.log2(120) + 2, abs=NEAR)
    # By tensors of 4 and 12 positions, 1 in each: 48 sets. Near a mask of 3 and 4: 2 dropped ways, 14 added ones.
    assert value_bound_nbits(value, np.array([0, 4, 16])) == pytest.approx(math.log2(48) + 2, abs=NEAR)
    base = KnownMask(np.isin(np.arange(16), (3, 4)), 0)
    near = Sparse(16, value.indices, value.values, base=base)
    assert value_bound_nbits(near) == pytest.approx(math.log2(28) + 2, abs=NEAR)


def test_a_shorter_vector_has_no_tensors() -> None:
    value = Sparse(10, np.array([3, 9]), np.array([1, -1], np.float32))
    assert value_bound_nbits(value, np.array([0, 4, 16])) == pytest.approx(math.log2(45) + 2, abs=NEAR)


@given(masks_and_edges(), st.data())
@settings(max_examples=40)
def test_positions_cost_what_their_mask_costs(drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    kept, edges = drawn
    base = KnownMask(np.array(data.draw(st.permutations(kept.tolist())), np.bool_), 0)
    indices = np.flatnonzero(kept)
    values = np.zeros(indices.size, np.float32)
    for held in (None, base):
        of_mask = value_bound_nbits(Mask(kept, None, held), edges)
        assert value_bound_nbits(Sparse(kept.size, indices, values, base=held), edges) == of_mask


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8"])
@given(data=st.data())
@settings(max_examples=15)
def test_numbers_cost_the_entropy_of_each_byte_plane(dtype: str, data: st.DataObject) -> None:
    kind = storage(dtype)
    words = data.draw(st.lists(st.integers(0, 2 ** (8 * kind.itemsize) - 1) | st.integers(0, 3), max_size=40))
    width = 8 * kind.itemsize
    numbers = np.array(words, f"u{kind.itemsize}").view(kind)
    turned = words
    if "float" in dtype:
        turned = [(w << 1 | w >> (width - 1)) % 2**width for w in words]
    elif dtype.startswith("int"):
        turned = [2 * w if w < 2 ** (width - 1) else 2 * (2**width - w) - 1 for w in words]
    want = 0.0
    for plane in range(kind.itemsize):
        seen = Counter(word >> (8 * plane) & 0xFF for word in turned)
        want += sum(count * math.log2(len(words) / count) for count in seen.values())
    held = KnownMask(np.ones(len(words), np.bool_), 0)
    got = value_bound_nbits(MaskedValues(numbers, held, dtype))
    assert got == pytest.approx(want, abs=NEAR)
    assert 0 <= got <= width * len(words) + NEAR
    assert value_bound_nbits(MaskedValues(numbers[::-1], held, dtype)) == got


def test_full_bytes_cost_eight_bits() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert value_bound_nbits(MaskedValues(every, KnownMask(np.ones(65536, np.bool_), 0), "bfloat16")) == 16 * 65536


# Quantized numbers


ONE_SCALE = np.ones(1, np.float32)


def test_quantized_numbers_that_follow_from_their_neighbours() -> None:
    # One bit a symbol. The first symbol of a map has two neighbours of 0, in the first row up is left, in the first
    # column left is up. By the sum of the neighbours, 0, 1 or 2, which are the classes 0, 1 and 2:
    #     1 1 1     after 0: 1              after 2: 1 1
    #     0 0 0     after 2: 0, 1: 0 0
    #     1 0 0     after 0: 1, 1: 0, 0: 0
    # So after 0 there are 1 1 0, 2.7549 bits; after 1 0 0 0, none; after 2 1 1 0, 2.7549 bits. And 32 for the scale.
    symbols = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8)
    two_and_one = 2 * math.log2(3 / 2) + math.log2(3)
    assert two_and_one == pytest.approx(2.7549, abs=1e-4)
    assert value_bound_nbits(Quantized(symbols, 1, ONE_SCALE)) == pytest.approx(2 * two_and_one + 32, abs=NEAR)
    # Alone, 4 ones of 9 symbols cost 8.92 bits.
    assert entropy_nbits(np.array([4, 5])) == pytest.approx(8.9197, abs=1e-4)


def test_a_vector_of_quantized_numbers_is_one_row() -> None:
    # The neighbours are both the symbol before. After 0: 3 3 3, after 3: 0 0, without a bit.
    alternating = np.array([3, 0, 3, 0, 3], np.uint8)
    assert value_bound_nbits(Quantized(alternating, 2, ONE_SCALE)) == 32
    # After 0: 3, 0, after 3: 3, 0; two bits each.
    pairs = Quantized(np.array([3, 3, 0, 0], np.uint8), 2, ONE_SCALE)
    assert value_bound_nbits(pairs) == pytest.approx(32 + 4, abs=NEAR)
    assert value_bound_nbits(MaskedValues(pairs, known("1111"))) == pytest.approx(32 + 4, abs=NEAR)
    update = Sparse(16, np.array([0, 1, 2, 3]), pairs)
    # 4 of 16 positions: 1820 sets.
    assert value_bound_nbits(update) == pytest.approx(32 + 4 + math.log2(1820), abs=NEAR)


def test_scales_and_zero_points_of_quantized_numbers() -> None:
    same = np.full((2, 3), 5, np.uint8)
    scales, points = np.ones(3, np.float32), np.full(3, 5, np.int32)
    assert value_bound_nbits(Quantized(same, 4, scales, axis=1)) == 3 * 32
    assert value_bound_nbits(Quantized(same, 4, scales, points, axis=1)) == 3 * 32 + 3 * 4
    assert value_bound_nbits(Quantized(same[:0], 4, ONE_SCALE)) == 32


def class_of(left: int, up: int, bits: int, zero: int) -> int:
    """Return the class by where the sum of the neighbours lies in a list of limits."""
    total = left + up - 2 * zero
    skipped = max(bits - 5, 0)
    if zero == 0:
        half_octaves = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
        rank = sum(total >= limit for limit in half_octaves)
        return max(1, rank - 2 * skipped) if rank else 0
    octaves = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    rank = sum(abs(total) >= limit for limit in octaves)
    step = min(5, max(1, rank - skipped)) if rank else 0
    return 5 + step if total > 0 else 5 - step


def nbits_by_loop(maps: np.ndarray, bits: int, zero: int) -> float:
    """Return the bits of symbols from 0, shape (maps, rows, columns), given their neighbours' classes."""
    seen: dict[int, Counter[int]] = {}
    for one in maps.tolist():
        for i, row in enumerate(one):
            for j, symbol in enumerate(row):
                left = row[j - 1] if j else None
                up = one[i - 1][j] if i else None
                left, up = (up if left is None else left), (left if up is None else up)
                around = class_of(zero if left is None else left, zero if up is None else up, bits, zero)
                assert 0 <= around <= 11
                seen.setdefault(around, Counter())[symbol] += 1
    return sum(n * math.log2(counted.total() / n) for counted in seen.values() for n in counted.values())


@given(
    st.data(), st.integers(1, 8), st.booleans(), st.booleans(), st.sampled_from([(4, 5), (3, 2, 4), (2, 2, 3, 3), (9,)])
)
@settings(max_examples=80)
def test_quantized_numbers_by_a_plain_loop(
    data: st.DataObject, bits: int, signed: bool, shifted: bool, shape: tuple[int, ...]
) -> None:
    lowest = -(2 ** (bits - 1)) if signed else 0
    numbers = st.integers(0, 2**bits - 1) | st.integers(0, min(3, 2**bits - 1))
    count = math.prod(shape)
    symbols = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count))).reshape(shape)
    zero = data.draw(numbers) if shifted else -lowest
    points = np.array([zero + lowest], np.int32) if shifted else None
    sent = 2 * symbols - 1 if signed and bits == 1 else symbols + lowest
    value = Quantized(sent.astype(np.int8 if signed else np.uint8), bits, ONE_SCALE, points)
    got = value_bound_nbits(value) - 32 - bits * shifted
    assert got == pytest.approx(nbits_by_loop(symbols.reshape(-1, *(1, *shape)[-2:]), bits, zero), abs=NEAR)
    alone = entropy_nbits(np.bincount(symbols.reshape(-1), minlength=2**bits))
    assert 0 <= got <= alone + NEAR
    assert alone <= bits * count + NEAR
    # Maps may come in any order.
    if len(shape) == 3:
        turned = Quantized(value.symbols[::-1], bits, ONE_SCALE, points)
        assert value_bound_nbits(turned) == value_bound_nbits(value)


@pytest.mark.parametrize("zero", [0, 1, 16, 31, 255])
@pytest.mark.parametrize("bits", [1, 3, 5, 6, 8])
def test_neighbours_of_every_size_are_in_their_class(bits: int, zero: int) -> None:
    """The lower right symbol of each map is the class of its neighbours: then it costs nothing but in that class."""
    zero = min(zero, 2**bits - 1)
    maps = np.random.default_rng(bits).integers(0, 2**bits, (400, 2, 2))
    for one in maps:
        one[1, 1] = class_of(int(one[1, 0]), int(one[0, 1]), bits, zero) % 2**bits
    value = Quantized(maps.astype(np.uint8), bits, ONE_SCALE, np.array([zero], np.int32))
    assert value_bound_nbits(value) - 32 - bits == pytest.approx(nbits_by_loop(maps, bits, zero))


def test_of_several_zero_points_the_median_says_what_0_is() -> None:
    # Of 0, 3, 3 it is 3, and of 0, 0, 3, 3 too: the upper of the two in the middle.
    for points in ([0, 3, 3], [0, 0, 3, 3]):
        symbols = np.random.default_rng(0).integers(0, 4, (8, len(points), 3, 3)).astype(np.uint8)
        scales = np.ones(len(points), np.float32)
        value = Quantized(symbols, 2, scales, np.array(points, np.int32), axis=1)
        want = nbits_by_loop(symbols.reshape(-1, 3, 3), 2, 3)
        assert value_bound_nbits(value) - (32 + 2) * len(points) == pytest.approx(want, abs=NEAR)
        assert want != pytest.approx(nbits_by_loop(symbols.reshape(-1, 3, 3), 2, 0), abs=1)


# Labels and counts


def test_labels() -> None:
    # log2(10) = 3.3219 bits a label; a single class needs none.
    assert value_bound_nbits(Labels(np.array([0, 9, 9]), 10)) == pytest.approx(9.96578, abs=1e-5)
    assert value_bound_nbits(Labels(np.zeros(3, np.int64), 1)) == 0
    assert value_bound_nbits(Labels(np.zeros(0, np.int64), 10)) == 0


def test_counts() -> None:
    # 0, 1, 10, 11111111 and 100000000 in binary: 1 + 1 + 2 + 8 + 9.
    assert value_bound_nbits(Counts(np.array([0, 1, 2, 255, 256]))) == 21
    assert value_bound_nbits(Counts(np.zeros(0, np.int64))) == 0


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_counts_cost_their_bit_lengths(numbers: list[int]) -> None:
    want = sum(max(1, number.bit_length()) for number in numbers)
    assert value_bound_nbits(Counts(np.array(numbers, np.int64))) == want


# Messages


@message("t-bound-sets", "up")
class Sets(Message):
    num_samples: int
    loss: float
    norm: float = single()
    by_tensor: Mask | None = mask("params")
    whole: Mask | None = mask("params", per_tensor=False)
    update: Sparse | None = sparse("params")


def test_a_message_with_a_density_a_tensor_where_declared() -> None:
    one_then_all = Mask(bits("0100 1111"))
    update = Sparse(8, np.array([1, 4]), np.array([0.5, 0.5], np.float32))
    sent = Sets(num_samples=0, loss=0.0, norm=0.0, by_tensor=one_then_all, whole=one_then_all, update=update)
    # 0 is 1 bit; floats 64 and 32; 4 sets by tensor, 56 without; 1 of 4 twice: 16 sets, and equal numbers.
    want = 1 + 64 + 32 + 2 + math.log2(56) + 4
    assert bound_nbits(sent, SCHEMA) == pytest.approx(want, abs=NEAR)
    nothing = Sets(num_samples=0, loss=0.0, norm=0.0, by_tensor=None, whole=None, update=None)
    assert bound_nbits(nothing, SCHEMA) == 1 + 64 + 32


def test_a_value_without_a_definition_is_refused() -> None:
    class Unknown(Value):
        pass

    with pytest.raises(TypeError, match="no bound is defined for Unknown"):
        value_bound_nbits(Unknown())


def test_the_bound_loads_neither_a_codec_nor_a_compiler() -> None:
    with open(bound.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "fedmpi.wire.values" in names
    assert [name for name in names if name is None or "codecs" in name or "numba" in name] == []
