"""Counts of bytes and gaps are those of the set, by either way of counting."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.codecs.sets.golomb import Golomb
from fedmpi.wire.codecs.sets.histograms import count_gaps, is_dense


def masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    random = [generator.random(numel) < density for numel in (1, 9, 1001, 30_000) for density in (1, 0.5, 0.3, 0.03)]
    runs = np.repeat(generator.random(500) < 0.5, generator.integers(1, 200, 500))
    return [*random, runs, np.arange(1000) >= 500, np.arange(1003) < 400]


@pytest.mark.parametrize("shift", [0, 1, 5])
@pytest.mark.parametrize("number", range(19))
def test_gaps_are_counted_in_parts_of_47_units(number: int, shift: int) -> None:
    mask = masks()[number]
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1 >> shift
    wanted = np.bincount(gaps % 47, minlength=48)
    wanted[47] = (gaps // 47).sum()
    assert np.array_equal(count_gaps(Positions.from_mask(mask), shift), wanted)


@pytest.mark.parametrize("number", range(19))
def test_bytes_are_counted(number: int) -> None:
    mask = masks()[number]
    wanted = np.bincount(np.packbits(mask, bitorder="little"), minlength=256)
    assert np.array_equal(Positions.from_mask(mask).byte_counts, wanted)


def test_a_golomb_length_from_counts_is_a_lower_bound() -> None:
    dense = [Positions.from_mask(mask) for mask in masks()]
    dense = [positions for positions in dense if is_dense(positions.minority)]
    assert len(dense) > 5
    for positions in dense:
        size = Golomb().encode(positions).size
        assert 0.95 * size - 2 < Golomb().least_nbytes(positions) <= size
