"""The error memory: what is sent and what is kept are together what was wanted, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.compress.cast import cast
from fedmpi.compress.feedback import ErrorMemory
from fedmpi.compress.quantize import quantize
from fedmpi.compress.sparsify import sparsify
from fedmpi.compress.topk import topk_indices
from fedmpi.errors import NonFiniteError


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.int32).tolist()


def test_five_rounds_by_hand() -> None:
    memory = ErrorMemory(torch.zeros(3))
    update = torch.tensor([4.0, -1.0, 2.0])
    sent = []
    for _ in range(5):
        wanted = memory.add(update)
        part = sparsify(wanted, 1)
        memory.keep(wanted, part.indices_K, part.sent_K)
        sent.append((part.indices_K.item(), part.sent_K.item()))
    assert sent == [(0, 4.0), (0, 4.0), (2, 6.0), (0, 8.0), (1, -5.0)]
    assert memory.memory_P.tolist() == [4.0, 0.0, 4.0]


def test_nothing_is_lost_over_many_rounds() -> None:
    """With numbers of few bits every sum is exact: all updates together are what was sent and what is still owed."""
    rng = np.random.default_rng(0)
    memory = ErrorMemory(torch.zeros(200))
    updates, sent = torch.zeros(200), torch.zeros(200)
    for _ in range(40):
        update = torch.from_numpy(rng.integers(-100, 101, 200).astype(np.float32))
        updates += update
        wanted = memory.add(update)
        part = sparsify(wanted, 20, dtype=torch.bfloat16)
        memory.keep(wanted, part.indices_K, part.sent_K)
        sent[part.indices_K] += part.sent_K.float()
    assert torch.equal(sent + memory.memory_P, updates)
    assert memory.memory_P.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sent_and_kept_are_what_was_wanted(dtype: torch.dtype, data: st.DataObject) -> None:
    limit = float(torch.finfo(dtype).max)
    numbers = st.floats(-limit / 2, limit / 2, width=32) | st.floats(-(2.0**-14), 2.0**-14, width=32)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
    update, owed = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    wanted_before = update + owed
    memory = ErrorMemory(owed.clone())
    wanted = memory.add(update)
    assert bits(wanted) == bits(wanted_before)
    part = sparsify(wanted, data.draw(st.integers(1, len(pairs))), dtype=dtype)
    memory.keep(wanted, part.indices_K, part.sent_K)
    kept = memory.memory_P
    unsent = torch.ones(len(pairs), dtype=torch.bool)
    unsent[part.indices_K] = False
    assert bits(kept[unsent]) == bits(wanted_before[unsent])
    at = part.indices_K
    exact = wanted_before[at].double() - part.sent_K.double()
    assert torch.equal(kept[at].double(), exact)
    assert torch.equal(part.sent_K.float() + kept[at], wanted_before[at])
    if dtype == torch.float32:
        assert not kept[at].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rest_of_a_cast_is_exact_for_every_exponent_and_subnormal_numbers(dtype: torch.dtype) -> None:
    """Every exponent of float32 with 4096 fractions each, and every small subnormal number."""
    rng = np.random.default_rng(1)
    fractions = rng.integers(0, 1 << 23, (255, 4096)) | (np.arange(255) << 23)[:, None]
    words = np.concatenate([fractions.ravel(), np.arange(1 << 16)]).astype(np.int32)
    wanted = torch.from_numpy(words).view(torch.float32)
    wanted = wanted[wanted <= torch.finfo(dtype).max]
    sent = cast(wanted, dtype).float()
    assert torch.equal((wanted - sent).double(), wanted.double() - sent.double())
    assert torch.equal(sent + (wanted - sent), wanted)


def test_clamped_numbers_keep_an_exact_rest_below_two_to_the_29() -> None:
    rng = np.random.default_rng(2)
    wanted = torch.from_numpy(rng.uniform(65504, 2**29, 100_000).astype(np.float32))
    wanted = wanted[wanted < 2**29]
    sent = cast(wanted, torch.float16, on_overflow="clamp").float()
    assert torch.equal((wanted - sent).double(), wanted.double() - sent.double())
    beyond = torch.tensor([2.0**30])
    sent = cast(beyond, torch.float16, on_overflow="clamp").float()
    assert float(beyond - sent) != float(beyond.double() - sent.double())


@pytest.mark.parametrize("levels", ["unsigned", "symmetric"])
@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_the_rest_of_rounding_to_the_nearest_level_is_exact(levels: str, num_bits: int) -> None:
    torch.manual_seed(num_bits)
    wanted = torch.randn(50_000)
    if levels == "unsigned":
        wanted = wanted.relu()
    sent = quantize(wanted, num_bits, levels).dequantize()  # type: ignore[arg-type]
    assert torch.equal((wanted - sent).double(), wanted.double() - sent.double())


@pytest.mark.parametrize("num_bits", [1, 3])
def test_a_stochastic_rest_is_off_by_at_most_one_rounding(num_bits: int) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(50_000)
    sent = quantize(wanted, num_bits, "symmetric", rng=np.random.default_rng(0)).dequantize()
    exact = wanted.double() - sent.double()
    assert ((wanted - sent).double() - exact).abs().le(exact.abs() * 2.0**-24).all()


def test_the_memory_is_changed_in_place_and_another_vector_can_be_kept() -> None:
    owed = torch.tensor([1.0, 2.0, 3.0])
    memory = ErrorMemory(owed)
    wanted = memory.add(torch.ones(3, requires_grad=True))
    assert wanted.data_ptr() == owed.data_ptr()
    assert not wanted.requires_grad
    other = torch.tensor([5.0, 6.0, 7.0])
    memory.keep(other, torch.tensor([1]), torch.tensor([4.0]))
    assert owed.tolist() == [5.0, 2.0, 7.0]
    assert other.tolist() == [5.0, 6.0, 7.0]


def test_what_does_not_fit_is_refused() -> None:
    for wrong in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3), torch.zeros(6)[::2]):
        with pytest.raises(ValueError, match="contiguous vector of float32"):
            ErrorMemory(wrong)
    memory = ErrorMemory(torch.zeros(3))
    for update in (torch.zeros(1), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected an update"):
            memory.add(update)
    with pytest.raises(ValueError, match="as many sent ones as indices"):
        memory.keep(memory.memory_P, torch.tensor([0, 1]), torch.ones(1))
    with pytest.raises(ValueError, match="as many sent ones as indices"):
        memory.keep(torch.zeros(4), torch.tensor([0]), torch.ones(1))


def test_a_part_of_a_vector_goes_to_the_host_as_its_message_needs_it() -> None:
    vector = torch.tensor([0.5, -3.0, 0.0, 2.0, 1.0, -1.0])
    value = sparsify(vector, [1, 2], [0, 2, 6], dtype=torch.bfloat16).value(6)
    assert (value.size, value.dtype) == (6, "bfloat16")
    indices, values = value.indices, value.values
    assert (indices.dtype, indices.tolist()) == (np.int64, [1, 3, 4])
    assert (values.dtype, values.tolist()) == (np.uint16, [0xC040, 0x4000, 0x3F80])
    value = sparsify(vector, 2).value(6)
    indices, values = value.indices, value.values
    assert (values.dtype, values.tolist(), indices.tolist()) == (np.float32, [-3.0, 2.0], [1, 3])
    assert topk_indices(vector, 2).tolist() == indices.tolist()


def test_a_part_is_finite() -> None:
    for bad in (float("inf"), float("nan")):
        with pytest.raises(NonFiniteError):
            sparsify(torch.tensor([1.0, bad, 2.0]), 2)
    with pytest.raises(ValueError, match="too large for float16"):
        sparsify(torch.tensor([1.0, 7e4]), 1, dtype=torch.float16)
    part = sparsify(torch.tensor([1.0, 7e4]), 1, dtype=torch.float16, on_overflow="clamp")
    assert part.sent_K.tolist() == [65504.0]
