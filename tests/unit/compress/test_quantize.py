"""Rounding to few bits: bounds on the error, exact zeros, unbiased stochastic rounding, bad input."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedmpi.compress.quantize import Levels, levels_for, quantize, quantize_by_largest
from fedmpi.compress.quantized import QuantizedTensor
from fedmpi.errors import NonFiniteError
from fedmpi.rng import stream
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.message import Message, Schema, message, quantized
from fedmpi.wire.values import Quantized as QuantizedValue

LEVELS: tuple[Levels, ...] = get_args(Levels)
LARGEST = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149


def scale_of_each(q: QuantizedTensor) -> torch.Tensor:
    shape = [1] * q.symbols.ndim
    if q.axis is not None:
        shape[q.axis] = -1
    return q.scales.view(shape).expand(q.symbols.shape).double()


def assert_within(tensor: torch.Tensor, q: QuantizedTensor, steps: float) -> None:
    """The error is at most `steps` scales, and what two roundings in float32 add."""
    error = (tensor.double() - q.dequantize().double()).abs()
    limit = steps * scale_of_each(q) + tensor.double().abs() * 2.0**-23 + SMALLEST
    assert (error <= limit).all(), (error - limit).max()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_number_is_off_by_more_than_half_a_step(data: st.DataObject) -> None:
    levels = data.draw(st.sampled_from(LEVELS))
    num_bits = data.draw(st.integers(2 if levels == "symmetric" else 1, 8))
    size = data.draw(st.sampled_from([1.0, 1e-44, 1e-39, 1e-30, 1e30, LARGEST]))
    number = st.floats(-size, size) if levels != "unsigned" else st.floats(0, size)
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    numbers = data.draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
    tensor = torch.tensor(numbers, dtype=torch.float64).float().view(rows, columns)
    axis = data.draw(st.sampled_from([None, 0, 1]))
    if levels == "affine" and num_bits == 1:
        assume(float(tensor.max().double() - tensor.min().double()) <= LARGEST)
    q = quantize(tensor, num_bits, levels, axis=axis)
    assert_within(tensor, q, 0.5)
    assert torch.isfinite(q.dequantize()).all()
    assert not q.dequantize()[tensor == 0].any()
    stochastic = quantize(tensor, num_bits, levels, axis=axis, rng=np.random.default_rng(0))
    assert_within(tensor, stochastic, 1.0)
    assert not stochastic.dequantize()[tensor == 0].any()


@pytest.mark.parametrize("num_bits", range(1, 9))
@pytest.mark.parametrize("levels", LEVELS)
def test_the_symbols_have_their_type_and_use_their_range(levels: Levels, num_bits: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(2000)
    if levels == "unsigned":
        tensor = tensor.relu()
    q = quantize(tensor, num_bits, levels)
    assert (q.bits, q.axis, q.scales.dtype, q.scales.shape) == (num_bits, None, torch.float32, (1,))
    assert q.symbols.shape == tensor.shape
    if levels == "symmetric":
        last = max(1, 2 ** (num_bits - 1) - 1)
        assert (q.signed, q.symbols.dtype, q.zero_points) == (True, torch.int8, None)
        assert q.symbols.abs().max() == last
        assert num_bits > 1 or set(q.symbols.tolist()) == {-1, 1}
    else:
        assert (q.signed, q.symbols.dtype) == (False, torch.uint8)
        assert int(q.symbols.max()) == 2**num_bits - 1
        assert int(q.symbols.min()) == 0
        assert (q.zero_points is not None) == (levels == "affine")


def test_levels_by_hand() -> None:
    q = quantize(torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5, 1.5, 2.5]), 2, "unsigned")
    assert (q.symbols.tolist(), q.scales.tolist()) == ([0, 1, 2, 3, 0, 2, 2], [1.0])  # halves go to the even level
    q = quantize(torch.tensor([-3.0, 0.0, 1.4, 3.0]), 3, "symmetric")
    assert (q.symbols.tolist(), q.scales.tolist()) == ([-3, 0, 1, 3], [1.0])
    q = quantize(torch.tensor([-1.0, 0.0, 2.0]), 2, "affine")
    assert (q.symbols.tolist(), q.scales.tolist()) == ([0, 1, 3], [1.0])
    assert q.zero_points is not None
    assert (q.zero_points.tolist(), q.dequantize().tolist()) == ([1], [-1.0, 0.0, 2.0])
    q = quantize(torch.tensor([-3.0, 0.0, 1.0, 4.0]), 1, "symmetric")
    assert (q.symbols.tolist(), q.scales.tolist()) == ([-1, 1, 1, 1], [2.0])  # the mean magnitude
    q = quantize(torch.tensor([0.0, 1.4, 1.6, 3.0]), 1, "unsigned")
    assert (q.symbols.tolist(), q.scales.tolist()) == ([0, 0, 1, 1], [3.0])


def test_unsigned_levels_halve_the_step_of_symmetric_ones() -> None:
    tensor = torch.rand(1000)
    assert levels_for(tensor) == "unsigned"
    assert levels_for(tensor - 0.5) == "symmetric"
    assert levels_for(torch.tensor([-0.0, 1.0])) == "unsigned"
    ratio = quantize(tensor, 8, "symmetric").scales / quantize(tensor, 8, "unsigned").scales
    assert float(ratio) == pytest.approx(255 / 127, rel=1e-6)


@pytest.mark.parametrize("num_bits", [1, 2, 8])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_zeros_and_constants_come_back(levels: Levels, num_bits: int, rng: np.random.Generator | None) -> None:
    for shape in ((), (1,), (3, 4)):
        zeros = quantize(torch.zeros(shape), num_bits, levels, rng=rng)
        assert zeros.scales.tolist() == [0.0]
        assert torch.equal(zeros.dequantize(), torch.zeros(shape))
        for constant in (1.0, 0.3, 7.25, SMALLEST, LARGEST, *((-0.3, -LARGEST) if levels != "unsigned" else ())):
            tensor = torch.full(shape, constant)
            back = quantize(tensor, num_bits, levels, rng=rng).dequantize()
            assert torch.allclose(back, tensor, rtol=1e-6, atol=0), (levels, num_bits, constant, back)


def test_a_scale_for_each_index_of_an_axis() -> None:
    torch.manual_seed(1)
    tensor = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 10.0, 100.0, 0.0]).view(1, 4, 1, 1)
    q = quantize(tensor, 8, "symmetric", axis=1)
    wanted = tensor.abs().amax((0, 2, 3)) / 127
    assert torch.allclose(q.scales, wanted, rtol=1e-6)
    assert_within(tensor, q, 0.5)
    for index in range(4):  # each channel is what it would be alone
        alone = quantize(tensor[:, index], 8, "symmetric")
        assert torch.equal(alone.symbols, q.symbols[:, index])
        assert torch.equal(alone.scales, q.scales[index : index + 1])
    per_sample = quantize(tensor, 4, "affine", axis=0)
    assert per_sample.scales.shape == (3,)
    assert per_sample.zero_points is not None
    assert per_sample.zero_points.shape == (3,)
    assert torch.equal(per_sample.dequantize()[1], quantize(tensor[1], 4, "affine").dequantize())
    signs = quantize(tensor, 1, "symmetric", axis=0)
    assert torch.allclose(signs.scales, tensor.abs().mean((1, 2, 3)), rtol=1e-6)
    each = quantize(torch.tensor([1.0, 2.0]), 8, "unsigned", axis=0)
    assert each.dequantize().tolist() == pytest.approx([1.0, 2.0], rel=1e-6)


def test_the_memory_format_changes_nothing() -> None:
    torch.manual_seed(2)
    tensor = torch.randn(2, 3, 8, 8)
    last = tensor.to(memory_format=torch.channels_last)
    for seed in (None, 5):
        results = [
            quantize(t, 4, "symmetric", axis=1, rng=None if seed is None else np.random.default_rng(seed))
            for t in (tensor, last)
        ]
        assert torch.equal(results[0].symbols, results[1].symbols)
        assert results[1].symbols.is_contiguous()


def test_quantizing_again_gives_the_same_symbols() -> None:
    torch.manual_seed(3)
    for levels in ("unsigned", "symmetric"):
        tensor = torch.randn(1000).abs() if levels == "unsigned" else torch.randn(1000)
        q = quantize(tensor, 8, levels)  # type: ignore[arg-type]
        assert torch.equal(quantize(q.dequantize(), 8, levels).symbols, q.symbols)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_the_mean_of_stochastic_rounding_is_the_number(levels: Levels, num_bits: int) -> None:
    if levels == "affine" and num_bits == 1:
        values = [0.0, 0.4, 1.0]
    else:
        values = [0.0, 0.11, 0.5, 0.9, 1.0] if levels == "unsigned" else [-1.0, -0.3, 0.0, 0.26, 1.0]
    if levels == "affine" and num_bits > 1:
        values[0] = -0.5  # the zero point is a whole one: no end is clipped
    tensor = torch.tensor(values).repeat(20_000, 1)
    q = quantize(tensor, num_bits, levels, rng=stream(1, 2, 3, "rounding"))
    scale = float(q.scales)
    mean = q.dequantize().double().mean(0)
    # Five standard deviations of a mean of two-point variables, which lie one step (signs: two) apart.
    assert (mean - tensor[0].double()).abs().max() < 5 * scale / math.sqrt(20_000)


def test_stochastic_rounding_is_a_function_of_its_stream() -> None:
    tensor = torch.randn(500)
    first, again, other = (
        quantize(tensor, 2, "symmetric", rng=stream(0, 1, client, "rounding")).symbols for client in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_lies_on_a_level_never_moves() -> None:
    """A sum of a level and a uniform number just below 1 can round up to the next; the levels must not."""

    class AlmostOne(np.random.Generator):
        def random(self, size, dtype):  # type: ignore[no-untyped-def, override]
            return np.full(size, 1 - 2.0**-24, dtype)

    tensor = torch.arange(-127.0, 128.0)
    q = quantize(tensor, 8, "symmetric", rng=AlmostOne(np.random.PCG64()))
    assert torch.equal(q.dequantize(), tensor)


def test_division_is_the_correctly_rounded_one() -> None:
    torch.manual_seed(4)
    tensor = torch.randn(20_000)
    q = quantize(tensor, 8, "symmetric")
    wanted = np.rint(tensor.numpy() / q.scales.numpy()).clip(-127, 127)
    assert np.array_equal(q.symbols.numpy(), wanted.astype(np.int8))


def test_the_range_may_end_at_a_percentile() -> None:
    tensor = torch.cat([torch.linspace(0, 1, 999), torch.tensor([100.0])])
    q = quantize(tensor, 8, "unsigned", clip_percentile=99.9)
    assert float(q.scales) == pytest.approx(1 / 255, rel=1e-6)
    assert int(q.symbols[-1]) == 255
    assert_within(tensor[:-1], QuantizedTensor(q.symbols[:-1], 8, False, None, q.scales), 0.5)
    for levels in ("symmetric", "affine"):
        signed = torch.cat([tensor, -tensor])
        back = quantize(signed, 8, levels, clip_percentile=99.9).dequantize()  # type: ignore[arg-type]
        assert float(back.abs().max()) == pytest.approx(1.0, rel=0.01)
    by_axis = quantize(torch.stack([tensor, 2 * tensor], 1), 8, "unsigned", axis=1, clip_percentile=99.9)
    assert by_axis.scales.tolist() == pytest.approx([1 / 255, 2 / 255], rel=1e-6)
    signs = quantize(tensor - 0.5, 1, "symmetric", clip_percentile=99.9, rng=np.random.default_rng(0))
    assert float(signs.scales) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("percentile", [0.01, 50, 99.9, 99.9999])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_the_percentile_is_that_of_nearest_rank(percentile: float, axis: int | None) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(3, 40, 50)
    rows = (tensor if axis is None else tensor.movedim(axis, 0)).reshape(1 if axis is None else tensor.shape[axis], -1)
    rank = math.ceil(Decimal(str(percentile)) * rows.shape[1] / 100)
    wanted = np.sort(rows.abs().numpy(), axis=1)[:, rank - 1]
    scales = quantize(tensor, 8, "symmetric", axis=axis, clip_percentile=percentile).scales
    assert np.allclose(scales.numpy() * 127, wanted, rtol=1e-6, atol=0)


def test_a_percentile_of_zero_clips_nothing() -> None:
    tensor = torch.zeros(1000)
    tensor[3] = 5.0
    assert float(quantize(tensor, 8, "unsigned", clip_percentile=99).dequantize()[3]) == pytest.approx(5.0)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_nan_and_infinity_are_refused(levels: Levels, bad: float, axis: int | None) -> None:
    tensor = torch.ones(3, 4)
    tensor[1, 2] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        quantize(tensor, 4, levels, axis=axis)


def test_bad_arguments_are_refused_in_words() -> None:
    tensor = torch.randn(2, 3)
    for num_bits in (0, 9):
        with pytest.raises(ValueError, match=f"from 1 to 8, got {num_bits}"):
            quantize(tensor, num_bits, "symmetric")
    for axis in (-1, 2):
        with pytest.raises(ValueError, match=f"from 0 to 1, got {axis}"):
            quantize(tensor, 4, "symmetric", axis=axis)
    for percentile in (0.0, 100.0, 101.0):
        with pytest.raises(ValueError, match="clip_percentile"):
            quantize(tensor, 4, "symmetric", clip_percentile=percentile)
    with pytest.raises(ValueError, match="one of unsigned, symmetric, affine, got 'ternary'"):
        quantize(tensor, 4, "ternary")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"numbers >= 0, got -0\.5"):
        quantize(torch.tensor([1.0, -0.5]), 4, "unsigned")
    with pytest.raises(ValueError, match="float64"):
        quantize(tensor.double(), 4, "symmetric")
    with pytest.raises(ValueError, match="shape"):
        quantize(torch.empty(0, 3), 4, "symmetric")
    with pytest.raises(ValueError, match="wider than float32"):
        quantize(torch.tensor([-LARGEST, LARGEST]), 1, "affine")


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    symbols, scales = torch.zeros(2, 3, dtype=torch.uint8), torch.ones(1)
    QuantizedTensor(symbols, 8, False, None, scales)
    points = torch.zeros(1, dtype=torch.uint8)
    for wrong in (
        lambda: QuantizedTensor(symbols, 9, False, None, scales),
        lambda: QuantizedTensor(symbols, 8, True, None, scales),
        lambda: QuantizedTensor(symbols, 8, False, 0, scales),
        lambda: QuantizedTensor(symbols, 8, False, 2, scales),
        lambda: QuantizedTensor(symbols, 8, False, None, scales.double()),
        lambda: QuantizedTensor(symbols, 8, False, None, scales, points.int()),
        lambda: QuantizedTensor(symbols, 8, False, 1, torch.ones(3), points),
        lambda: QuantizedTensor(symbols.to(torch.int8), 8, True, None, scales, points),
    ):
        with pytest.raises(ValueError, match=r"expected|zero points|axis"):
            wrong()


def test_it_moves_to_a_device_whole() -> None:
    q = quantize(torch.randn(4, 4).requires_grad_(), 4, "affine", axis=0)
    moved = q.to("cpu")
    assert torch.equal(moved.dequantize(), q.dequantize())
    assert not q.dequantize().requires_grad


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_what_a_message_carries_stands_for_the_same_numbers(levels: Levels, axis: int | None) -> None:
    @message("quantize-test", "up")
    class Up(Message):
        outputs: QuantizedValue = quantized((5, 3, 4))

    schema = Schema({}, 0)
    outputs = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for bits in range(1, 9):
        q = quantize(outputs.abs() if levels == "unsigned" else outputs, bits, levels, axis=axis)
        back, _ = decode(encode(Up(outputs=q.value()), schema, BufferPool()).buffer, (Up,), schema)
        assert isinstance(back, Up)
        assert torch.equal(back.outputs.dequantize(), q.dequantize())
        assert (back.outputs.bits, back.outputs.signed) == (bits, q.signed)


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_by_the_largest_number_as_by_the_largest_magnitude(num_bits: int) -> None:
    numbers = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(num_bits))
    for tensor in (numbers.clamp(min=0), numbers.clamp(min=-float(numbers.max())), torch.zeros(3)):
        found, wanted = quantize_by_largest(tensor, num_bits), quantize(tensor, num_bits, "symmetric")
        assert torch.equal(found.symbols, wanted.symbols) and torch.equal(found.scales, wanted.scales)


@pytest.mark.parametrize(
    ("numbers", "symbols", "scale"),
    [
        ([2.54, 0.031, -1.0, -2.56, -2.58, -50.0], [127, 2, -50, -128, -128, -128], 0.02),
        ([-1.27, -5.0], [127, 127], -0.01),
        ([0.0, -5.0], [0, 0], 0.0),
        ([1e-44, -3e38], [7, -128], SMALLEST),
    ],
)
def test_by_the_largest_number_by_hand(numbers: list[float], symbols: list[int], scale: float) -> None:
    found = quantize_by_largest(torch.tensor(numbers), 8)
    assert float(found.scales) == pytest.approx(scale, rel=1e-6)
    assert found.symbols.tolist() == symbols
    assert torch.isfinite(found.dequantize()).all()


def test_what_cannot_be_rounded_by_the_largest_number() -> None:
    with pytest.raises(ValueError, match="bits must be from 2 to 8 by the largest number, got 1"):
        quantize_by_largest(torch.ones(3), 1)
    with pytest.raises(ValueError, match="bits must be from 1 to 8, got 9"):
        quantize_by_largest(torch.ones(3), 9)
    with pytest.raises(NonFiniteError):
        quantize_by_largest(torch.tensor([-math.inf, 1.0]), 8)
