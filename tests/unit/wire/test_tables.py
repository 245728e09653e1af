"""Frequency tables: those of counts that are sent, and broken bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.rans import encode_symbols
from fedmpi.wire.codecs.tables import (
    put_table,
    put_tables,
    quantize_counts,
    take_table,
    take_tables,
)

GOLDEN_TABLE = "ed3110b7"


counts_of_symbols = st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 10**9)), min_size=1, max_size=256)


@settings(max_examples=150, deadline=None)
@given(counts_of_symbols, st.integers(8, 15))
def test_a_table_of_counts_comes_back(numbers: list[int], scale_bits: int) -> None:
    counts = np.array(numbers, np.uint64)
    freqs = quantize_counts(counts, scale_bits)
    assert freqs.sum() == (1 << scale_bits if counts.any() else 0)
    assert np.array_equal(freqs > 0, counts > 0)
    payload = put_table(freqs)
    taken, nbytes = take_table(np.append(payload, payload), freqs.size, scale_bits, "x", 0)
    assert np.array_equal(taken, freqs) and nbytes == payload.size


def test_several_tables_share_their_bytes() -> None:
    generator = np.random.default_rng(0)
    counts = np.floor(generator.exponential(size=(12, 64)) ** 4).astype(np.uint64)
    counts[[2, 5]] = 0
    freqs = np.stack([quantize_counts(row, 13) for row in counts])
    payload = put_tables(freqs)
    taken, nbytes = take_tables(payload, 12, 64, 13, "x", 0)
    assert np.array_equal(taken, freqs) and nbytes == payload.size
    assert put_tables(np.zeros((12, 256), np.uint32)).size == 2


def _cost_nbytes(counts: np.ndarray, freqs: np.ndarray) -> float:
    seen = counts > 0
    return (counts[seen] * -np.log2(freqs[seen] / freqs.sum())).sum() / 8


def _exponents() -> np.ndarray:
    weights = (0.05 * np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    return (weights.view(np.uint32) >> 23 & 255).astype(np.uint8)


@pytest.mark.parametrize("count", [100, 1000, 100_000])
def test_an_exponent_plane_and_its_table_are_near_the_entropy(count: int) -> None:
    symbols = _exponents()[:count]
    counts = np.bincount(symbols, minlength=256)
    freqs = quantize_counts(counts, 13)
    table = put_table(freqs)
    entropy = _cost_nbytes(counts, counts)
    assert table.size <= 30
    assert _cost_nbytes(counts, freqs) <= 1.001 * entropy + 4
    assert encode_symbols(symbols, freqs, 13).size <= 1.002 * entropy + 20


def test_sparse_tables_are_small() -> None:
    for present, most in ((1, 3), (2, 5), (3, 8)):
        counts = np.zeros(256, np.uint64)
        counts[100 : 100 + present] = [5, 2, 9][:present]
        assert put_table(quantize_counts(counts, 13)).size <= most + 1


def test_a_noisy_table_of_256_symbols_is_at_most_a_byte_a_symbol() -> None:
    counts = np.floor(np.random.default_rng(0).exponential(size=256) ** 8 * 100).astype(np.uint64)
    assert put_table(quantize_counts(counts, 13)).size <= 256


def test_the_bytes_of_a_small_table_never_change() -> None:
    freqs = quantize_counts(np.array([0, 0, 90, 30, 10, 0, 1], np.uint64), 13)
    assert freqs.tolist() == [0, 0, 5568, 2048, 512, 0, 64]
    assert put_table(freqs).tobytes().hex() == GOLDEN_TABLE


def test_broken_tables_raise_or_add_up() -> None:
    generator = np.random.default_rng(1)
    payload = put_table(quantize_counts(np.bincount(_exponents(), minlength=256), 13))
    for turn in range(3000):
        bad = payload.copy()
        if turn % 3 == 0:
            bad[generator.integers(bad.size)] ^= 1 << generator.integers(8)
        elif turn % 3 == 1:
            bad = bad[: generator.integers(bad.size)]
        else:
            bad = generator.integers(0, 256, generator.integers(0, 60)).astype(np.uint8)
        alphabet = int(generator.integers(1, 257)) if turn % 2 else 256
        try:
            freqs, nbytes = take_table(bad, alphabet, 13, "x", 0)
        except WireError:
            continue
        assert freqs.sum() in (0, 1 << 13) and freqs.size == alphabet and nbytes <= bad.size


def test_a_long_payload_of_zeros_is_refused() -> None:
    with pytest.raises(WireError, match="x table 0: at byte 9"):
        take_table(np.append(np.uint8(1), np.zeros(1 << 20, np.uint8)), 256, 13, "x", 9)


def test_a_bit_after_the_tables_is_refused() -> None:
    payload = put_tables(np.zeros((3, 16), np.uint32))
    payload[0] |= 8
    with pytest.raises(WireError, match="zeros at the end"):
        take_tables(payload, 3, 16, 13, "x", 0)


def test_a_table_that_is_not_on_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize_counts"):
        put_table(np.array([8192 - 1001 - 2003, 1001, 2003], np.uint32))


def test_more_symbols_than_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        quantize_counts(np.ones(256, np.uint64), 7)
    with pytest.raises(ValueError, match="at most 256"):
        quantize_counts(np.ones(257, np.uint64), 13)
