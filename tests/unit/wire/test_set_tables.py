"""Frequency tables that follow from a set's size."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.wire.codecs.set_tables import GAP_SYMBOLS, SET_SCALE_BITS, byte_table, gap_shift, gap_table

TOTAL = 1 << SET_SCALE_BITS


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**9), st.data())
def test_tables_of_a_set_add_up_and_have_no_zeros(numel: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, numel))
    gaps = gap_table(num_kept, numel, gap_shift(num_kept, numel))
    for freqs in (byte_table(num_kept, numel), gaps):
        assert freqs.sum() == TOTAL and freqs.min() >= 1 and freqs.dtype == np.uint32


def test_the_byte_table_is_the_binomial_one() -> None:
    freqs = byte_table(3, 10)
    for byte in (0, 1, 128, 0b101, 0b10110):
        ones = byte.bit_count()
        assert abs(freqs[byte] - TOTAL * 0.3**ones * 0.7 ** (8 - ones)) < (30 if byte == 0 else 1)


def test_the_byte_table_has_the_same_integers_everywhere() -> None:
    assert byte_table(1, 2).tolist() == [64] * 256
    assert byte_table(1, 10)[[0, 1, 3, 7, 15, 255]].tolist() == [6953, 784, 87, 10, 1, 1]


def test_the_gap_table_is_the_geometric_one() -> None:
    shift = gap_shift(1, 1000)
    stay = float(Fraction(999, 1000) ** (1 << shift))
    freqs = gap_table(1, 1000, shift)
    assert shift == 7
    wanted = TOTAL * (1 - stay) * stay ** np.arange(GAP_SYMBOLS - 1)
    assert np.abs(freqs[:-1] - wanted).max() < 10
    assert abs(freqs[-1] - TOTAL * stay ** (GAP_SYMBOLS - 1)) < 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**12), st.data())
def test_the_gap_table_is_what_its_definition_says_in_integers_of_any_size(numel: int, data: st.DataObject) -> None:
    num_kept = max(1, numel // data.draw(st.integers(1, numel)))
    shift = gap_shift(num_kept, numel)
    stay = ((numel - num_kept) << 64) // numel
    for _ in range(shift):
        stay = stay * stay >> 64
    reaches = [1 << 64]
    for _ in range(GAP_SYMBOLS - 1):
        reaches.append(reaches[-1] * stay >> 64)
    weights = [*(reach - further for reach, further in pairwise(reaches)), reaches[-1]]
    wanted = [max(1, (weight * TOTAL + (1 << 63)) >> 64) for weight in weights]
    likeliest = wanted.index(max(wanted))
    wanted[likeliest] += TOTAL - sum(wanted)
    assert gap_table(num_kept, numel, shift).tolist() == wanted


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10**9), st.data())
def test_the_high_part_of_a_gap_is_short(numel: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, (numel + 1) // 2))
    shift = gap_shift(num_kept, numel)
    assert shift == 0 or 4 * num_kept << shift <= numel
    assert 8 * num_kept << shift > numel
