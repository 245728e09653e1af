"""What a GPU chooses and rounds is what the CPU does, bit for bit."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from fedmpi.compress.cast import cast
from fedmpi.compress.feedback import ErrorMemory
from fedmpi.compress.quantize import Levels, quantize
from fedmpi.compress.sparsify import sparsify
from fedmpi.compress.topk import counts_by_segment, topk_indices
from fedmpi.rng import stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OFFSETS = [0, 50_000, 50_007, 50_007, 200_000]


def vectors() -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    n = OFFSETS[-1]
    subnormal = rng.integers(-9, 10, n) * 2.0**-149
    kinds = (rng.standard_t(2, n), rng.integers(-3, 4, n), subnormal, np.full(n, -1.0))
    return [torch.from_numpy(kind.astype(np.float32)) for kind in kinds]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.6, 1.0])
def test_the_same_numbers_are_chosen(density: float) -> None:
    counts = counts_by_segment(OFFSETS, density)
    for vector in vectors():
        assert torch.equal(topk_indices(vector.cuda(), counts, OFFSETS).cpu(), topk_indices(vector, counts, OFFSETS))
        k = int(density * vector.numel())
        assert torch.equal(topk_indices(vector.cuda(), k).cpu(), topk_indices(vector, k))


@pytest.mark.parametrize("levels", get_args(Levels))
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_same_symbols_come_out(levels: Levels, bits: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(4, 8, 32, 32)
    if levels == "unsigned":
        tensor = tensor.relu()
    for axis, clip, stochastic in itertools.product((None, 0, 1), (None, 99.9), (False, True)):
        here, there = (
            quantize(t, bits, levels, axis=axis, clip_percentile=clip, rng=stream(1, 2, 3, "x") if stochastic else None)
            for t in (tensor, tensor.cuda())
        )
        assert torch.equal(there.symbols.cpu(), here.symbols)
        if levels == "symmetric" and bits == 1 and not stochastic:
            # A mean is summed in another order there: in float64, which seldom shows in float32.
            assert torch.allclose(there.scales.cpu(), here.scales, rtol=2.0**-22, atol=0)
        else:
            assert torch.equal(there.scales.cpu(), here.scales)
            assert torch.equal(there.dequantize().cpu(), here.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_memory_is_kept(dtype: torch.dtype) -> None:
    for vector in vectors()[1:]:
        memories = [ErrorMemory(torch.full_like(v, 0.3)) for v in (vector, vector.cuda())]
        parts = []
        for memory, update in zip(memories, (vector, vector.cuda()), strict=True):
            wanted = memory.add(update)
            parts.append(sparsify(wanted, 1000, dtype=dtype))
            memory.keep(wanted, parts[-1].indices_K, parts[-1].sent_K)
        assert torch.equal(memories[1].memory_P.cpu(), memories[0].memory_P)
        here_value, there_value = (part.value(part.indices_K.numel()) for part in parts)
        for here, there in zip(
            (here_value.indices, here_value.values), (there_value.indices, there_value.values), strict=True
        ):
            assert np.array_equal(here, there)
        back = here_value.tensor_values().to("cuda")
        assert torch.equal(back, parts[1].sent_K)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_round_alike(dtype: torch.dtype) -> None:
    words = np.random.default_rng(0).integers(0, 0x7F7FFFFF, 1 << 20).astype(np.int32)
    numbers = torch.from_numpy(words).view(torch.float32)
    numbers = numbers[numbers <= torch.finfo(dtype).max]
    assert torch.equal(cast(numbers.cuda(), dtype).cpu(), cast(numbers, dtype))
