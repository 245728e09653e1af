"""Classes of neighbours: the rule of the module's text, written a second time, and which classes share a table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.wire.codecs.neighbours import NUM_CLASSES, classify, group, map_shape


def class_of(s: int, bits: int, level: int) -> int:
    """Return the class for s = left + up - 2 level, with logarithms instead of bits; numbers this small are exact."""
    coarser = max(bits - 5, 0)
    if s == 0:
        return 5 if level else 0
    octave = math.floor(math.log2(abs(s)))
    if level:
        return 5 + int(math.copysign(min(5, max(1, octave + 1 - coarser)), s))
    upper_half = abs(s) >= 1.5 * 2**octave
    return max(1, (1 if s == 1 else 2 * octave + upper_half) - 2 * coarser)


def classes_of(symbols: np.ndarray, bits: int, level: int) -> np.ndarray:
    """Return classes, symbol by symbol."""
    maps, rows, columns = map_shape(symbols.shape)
    found = np.zeros((maps, rows, columns), np.uint8)
    for m, plane in enumerate(symbols.reshape(maps, rows, columns).astype(int)):
        for r in range(rows):
            for c in range(columns):
                left = plane[r, c - 1] if c else plane[r - 1, c] if r else level
                up = plane[r - 1, c] if r else left
                found[m, r, c] = class_of(left + up - 2 * level, bits, level)
    return found.reshape(-1)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60)
@given(shape=shapes, bits=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_classes_and_counts_follow_the_rule(shape: tuple[int, ...], bits: int, seed: int, data: st.DataObject) -> None:
    level = data.draw(st.sampled_from([0, 1 << (bits - 1), (1 << bits) - 1]))
    symbols = np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint8)
    classified = classify(symbols.reshape(-1), shape, bits, level)
    wanted = classes_of(symbols, bits, level)
    assert classified.classes.tolist() == wanted.tolist()
    counts = np.zeros((NUM_CLASSES, 1 << bits), int)
    np.add.at(counts, (wanted, symbols.reshape(-1)), 1)
    assert (classified.counts == counts).all()


@pytest.mark.parametrize(
    ("bits", "level", "first_of_class"),
    [
        (1, 0, [0, 1, 2]),
        (2, 0, [0, 1, 2, 3, 4, 6]),
        (5, 0, [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]),
        (8, 0, [0, 1, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]),
        (4, 8, [-16, -15, -7, -3, -1, 0, 1, 2, 4, 8]),
        (8, 128, [-256, -127, -63, -31, -15, 0, 1, 16, 32, 64, 128]),
        (8, 1, [-2, 0, 1, 16, 32, 64, 128]),
    ],
)  # fmt: skip
def test_where_classes_begin(bits: int, level: int, first_of_class: list[int]) -> None:
    top = 2 * ((1 << bits) - 1)
    sums = range(-2 * level, top - 2 * level + 1)
    classes = [class_of(s, bits, level) for s in sums]
    assert classes == sorted(classes) and classes[0] >= 0 and classes[-1] < NUM_CLASSES
    assert [s for i, s in enumerate(sums) if i == 0 or classes[i] != classes[i - 1]] == first_of_class
    # A pair of rows whose second symbol of the second row has any sum before it.
    for total, wanted in zip(range(top + 1), classes, strict=True):
        left, up = total // 2, total - total // 2
        symbols = np.array([0, up, left, 0], np.uint8)
        assert classify(symbols, (2, 2), bits, level).classes[3] == wanted


@pytest.mark.parametrize(
    ("shape", "maps"), [((7,), (1, 1, 7)), ((3, 7), (1, 3, 7)), ((2, 3, 7), (2, 3, 7)), ((4, 2, 3, 7), (8, 3, 7))]
)
def test_maps_are_the_last_two_dimensions(shape: tuple[int, ...], maps: tuple[int, int, int]) -> None:
    assert map_shape(shape) == maps


def entropy(counts: np.ndarray) -> float:
    """Return the entropy of counts in bits, summed over their symbols."""
    some = counts[counts > 0]
    return float(-(some * np.log2(some / some.sum())).sum())


def test_classes_with_the_same_symbols_share_a_table() -> None:
    counts = np.zeros((NUM_CLASSES, 4), np.int64)
    counts[0], counts[1], counts[2:5], counts[7] = [900, 50, 40, 10], [880, 60, 45, 15], [100, 200, 300, 400], 1
    grouped = group(counts)
    assert grouped.starts.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    symbols = entropy(counts[:2].sum(axis=0)) + entropy(counts[2:].sum(axis=0))
    assert symbols < grouped.nbits < symbols + 130
    assert entropy(counts.sum(axis=0)) < grouped.single_nbits < entropy(counts.sum(axis=0)) + 60


@pytest.mark.parametrize("counts", [[0, 0], [5, 0], [5, 5]])
def test_one_class_has_one_table(counts: list[int]) -> None:
    table = np.zeros((NUM_CLASSES, 2), np.int64)
    table[11] = counts
    assert group(table).starts.tolist() == [1] + 11 * [0]


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1, 10, 1000, 10**6]))
def test_no_table_is_for_classes_that_do_not_occur(seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, scale, (NUM_CLASSES, 16)) * rng.integers(0, 2, (NUM_CLASSES, 1))
    grouped = group(counts)
    assert grouped.starts[0] == 1
    if counts.any():
        assert (np.add.reduceat(counts.sum(axis=1), np.flatnonzero(grouped.starts)) > 0).all()
    assert grouped.nbits <= grouped.single_nbits + 16
