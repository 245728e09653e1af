"""Top-k: exact counts, ties by the lowest index, the same by both implementations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.compress.topk import _topk_on_device, counts_by_segment, num_kept, topk_indices
from fedmpi.errors import NonFiniteError

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 3e-45, 1e-38, -1e-38, 1.0, -1.0, 2.0, 3.4e38, -3.4e38, float("inf"), -float("inf")]


def expected(vector: np.ndarray, k: int) -> list[int]:
    """Return the indices by a stable full sort of the magnitudes."""
    return sorted(np.argsort(-np.abs(vector.astype(np.float64)), kind="stable")[:k].tolist())


def on_device(vector: torch.Tensor, k: int) -> list[int]:
    words = vector.view(torch.int32)
    result = _topk_on_device(words, np.array([0, vector.numel()]), np.array([k]))
    assert result.dtype == torch.int64
    return result.tolist()


def check(vector: np.ndarray, k: int) -> None:
    tensor = torch.from_numpy(vector)
    wanted = expected(vector, k)
    result = topk_indices(tensor, k)
    assert result.dtype == torch.int64
    assert result.tolist() == wanted
    assert on_device(tensor, k) == wanted


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_indices_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    numbers = data.draw(
        st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False)), min_size=1, max_size=60)
    )
    vector = np.array(numbers, np.float32)
    check(vector, data.draw(st.integers(1, vector.size)))


def heavy_tailed(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_t(2, n)


def mostly_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n) * (rng.random(n) < 0.02) * rng.choice([1, -1], n)


def few_levels(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(-3, 4, n)


def all_equal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.choice([0.25, -0.25], n)


def subnormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(-9, 10, n) * 2.0**-149


def periodic(rng: np.random.Generator, n: int) -> np.ndarray:
    """Large numbers at just those places that a sample of every m-th number does not see, small ones elsewhere."""
    return np.where(np.arange(n) % (n // (1 << 14) or 1) == 0, 0.001, 1.0) * rng.random(n)


def seen_by_the_sample_alone(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(np.arange(n) % (n // (1 << 14) or 1) == 0, 1.0, 0.001) * rng.random(n)


def some_infinite(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.001, np.inf, rng.standard_normal(n)) * rng.choice([1, -1], n)


@pytest.mark.parametrize(
    "kind",
    [heavy_tailed, mostly_zero, few_levels, all_equal, subnormal, periodic, seen_by_the_sample_alone, some_infinite],
)
@pytest.mark.parametrize("n", [1, 17, 4095, 4096, 32767, 32768, 131_075])
def test_both_implementations_agree_with_the_sort_at_every_size(
    kind: Callable[[np.random.Generator, int], np.ndarray], n: int
) -> None:
    vector = kind(np.random.default_rng(n), n).astype(np.float32)
    for k in sorted({1, min(n, 2), num_kept(n, 0.001), num_kept(n, 0.1), num_kept(n, 0.6), n}):
        check(vector, k)


def test_of_equal_magnitudes_the_lowest_indices_are_taken() -> None:
    assert topk_indices(torch.tensor([1.0, -2.0, 2.0, -2.0, 3.0]), 3).tolist() == [1, 2, 4]
    assert topk_indices(torch.tensor([-0.0, 0.0, -0.0]), 2).tolist() == [0, 1]
    assert topk_indices(torch.full((100_000,), -7.0), 1000).tolist() == list(range(1000))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_each_segment_has_its_own_largest(lengths: list[int], seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vector = torch.from_numpy(few_levels(rng, int(offsets[-1])).astype(np.float32))
    counts = counts_by_segment(offsets, density)
    wanted: list[int] = []
    for start, stop, k in zip(offsets[:-1], offsets[1:], counts, strict=True):
        wanted += [int(start) + i for i in expected(vector[start:stop].numpy(), int(k))]
    assert topk_indices(vector, counts, offsets).tolist() == wanted
    assert _topk_on_device(vector.view(torch.int32), offsets, counts).tolist() == wanted


def test_long_and_short_segments_go_together() -> None:
    rng = np.random.default_rng(3)
    offsets = [0, 40_000, 40_010, 40_010, 90_000]
    vector = rng.standard_normal(offsets[-1]).astype(np.float32)
    counts = counts_by_segment(offsets, 0.01)
    assert counts.tolist() == [400, 1, 0, 500]
    wanted = [a + i for a, b, k in zip(offsets, offsets[1:], counts, strict=False) for i in expected(vector[a:b], k)]
    assert topk_indices(torch.from_numpy(vector), counts, offsets).tolist() == wanted


def test_the_count_is_the_density_rounded_half_to_even_and_at_least_one() -> None:
    assert [num_kept(n, 0.5) for n in (0, 1, 2, 3, 5, 7)] == [0, 1, 1, 2, 2, 4]
    assert (num_kept(1000, 1e-5), num_kept(7, 1.0), num_kept(0, 1.0)) == (1, 7, 0)
    for density in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
            num_kept(10, density)


@pytest.mark.parametrize("n", [3, 50_000])
@pytest.mark.parametrize("nan_bits", [0x7F800001, 0x7FC00000, -1])
def test_nan_is_refused_whatever_its_bits(n: int, nan_bits: int) -> None:
    vector = torch.randn(n)
    for k in (1, n):
        for place in (0, n // 2, n - 1):
            broken = vector.clone()
            broken.view(torch.int32)[place] = nan_bits
            with pytest.raises(NonFiniteError, match="NaN"):
                topk_indices(broken, k)
            with pytest.raises(NonFiniteError, match="NaN"):
                on_device(broken, k)


def test_a_nan_in_any_segment_is_refused() -> None:
    vector = torch.ones(10)
    vector[7] = float("nan")
    with pytest.raises(NonFiniteError):
        topk_indices(vector, [1, 1, 1], [0, 3, 6, 10])


def test_what_does_not_fit_the_vector_is_refused() -> None:
    vector = torch.ones(6)
    for k in (0, 7, -1):
        with pytest.raises(ValueError, match="from 1 to 6"):
            topk_indices(vector, k)
    for offsets in ([0, 3, 5], [1, 3, 6], [0, 7, 6], [0, 6]):
        with pytest.raises(ValueError, match="offsets"):
            topk_indices(vector, [1, 1], offsets)
    with pytest.raises(ValueError, match="from 1 to 3, the length of segment 1, got 4"):
        topk_indices(vector, [1, 4], [0, 3, 6])
    with pytest.raises(ValueError, match="vector of float32"):
        topk_indices(vector.double(), 1)
    with pytest.raises(ValueError, match="vector of float32"):
        topk_indices(vector.view(2, 3), 1)


def test_an_empty_vector_has_no_largest() -> None:
    assert topk_indices(torch.empty(0), 0).shape == (0,)
    assert topk_indices(torch.empty(0), [0, 0], [0, 0, 0]).dtype == torch.int64


def test_the_vector_stays_as_it_is_and_may_be_strided_or_tracked() -> None:
    matrix = torch.randn(500, 2)
    column = matrix[:, 1].clone()
    assert topk_indices(matrix[:, 1], 50).tolist() == expected(column.numpy(), 50)
    assert torch.equal(matrix[:, 1], column)
    assert topk_indices(column.requires_grad_(), 3).requires_grad is False


def test_flushing_subnormal_numbers_changes_nothing() -> None:
    vector = torch.from_numpy(subnormal(np.random.default_rng(0), 40_000).astype(np.float32))
    wanted = topk_indices(vector, 20_000).tolist()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        assert topk_indices(vector, 20_000).tolist() == wanted
        assert on_device(vector, 20_000) == wanted
    finally:
        torch.set_flush_denormal(False)


def test_numba_is_loaded_by_the_first_selection_alone() -> None:
    code = "import sys, fedmpi.compress.sparsify, fedmpi.compress.quantize; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
