"""Casts: nearest even, overflow in words, and the arrays that the numbers travel in."""

from __future__ import annotations

import pytest
import torch

from fedmpi.compress.cast import CastOverflowError, cast
from fedmpi.errors import FedmpiError, NonFiniteError

HALVES = (torch.float16, torch.bfloat16)


def all_finite(dtype: torch.dtype) -> torch.Tensor:
    """Return every finite number of a 16-bit type, ascending, -0.0 left out, as float64."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return torch.unique(every[torch.isfinite(every)].double())


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_of_the_type_survives(dtype: torch.dtype) -> None:
    numbers = all_finite(dtype).float()
    assert torch.equal(cast(numbers, dtype).float(), numbers)


@pytest.mark.parametrize("dtype", HALVES)
def test_between_two_neighbours_the_nearest_is_taken_and_the_even_one_from_the_middle(dtype: torch.dtype) -> None:
    exact = all_finite(dtype)
    middle = (exact[:-1] + exact[1:]) / 2
    numbers = middle.float()
    kept = numbers.double() == middle  # bfloat16 at its smallest: the middle of two is no float32
    assert kept.double().mean() > 0.99
    even = cast(numbers[kept], dtype).view(torch.int16)
    assert not (even & 1).any()
    below = torch.nextafter(numbers, torch.full_like(numbers, -torch.inf))
    above = torch.nextafter(numbers, torch.full_like(numbers, torch.inf))
    assert torch.equal(cast(below[kept], dtype).double(), exact[:-1][kept])
    assert torch.equal(cast(above[kept], dtype).double(), exact[1:][kept])


def test_float32_is_left_as_it_is() -> None:
    numbers = torch.randn(5)
    assert cast(numbers, torch.float32).data_ptr() == numbers.data_ptr()


@pytest.mark.parametrize(("dtype", "first_too_large"), [(torch.float16, 65520.0), (torch.bfloat16, 3.3961775e38)])
def test_a_number_too_large_for_the_type_is_said_in_words(dtype: torch.dtype, first_too_large: float) -> None:
    numbers = torch.tensor([1.0, -first_too_large, first_too_large])
    with pytest.raises(
        CastOverflowError, match=r"2 of 3 numbers are too large for b?float16: the largest is "
    ) as raised:
        cast(numbers, dtype)
    assert isinstance(raised.value, (ValueError, FedmpiError))
    just_below = torch.nextafter(numbers[2], torch.tensor(0.0)).reshape(1)
    assert float(cast(just_below, dtype)) == torch.finfo(dtype).max


@pytest.mark.parametrize("dtype", HALVES)
def test_clamping_gives_the_largest_number_of_the_type(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    numbers = torch.tensor([3.4e38, -3.4e38, 1.5])
    assert cast(numbers, dtype, on_overflow="clamp").tolist() == [largest, -largest, 1.5]


@pytest.mark.parametrize("on_overflow", ["raise", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(dtype: torch.dtype, on_overflow: str, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="hold NaN or infinity"):
        cast(torch.tensor([1.0, bad, 1e38]), dtype, on_overflow=on_overflow)  # type: ignore[arg-type]


def test_other_types_and_words_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        cast(torch.ones(2), torch.float64)
    with pytest.raises(ValueError, match="takes float32, got"):
        cast(torch.ones(2, dtype=torch.float64), torch.float16)
    with pytest.raises(ValueError, match="'wrap'"):
        cast(torch.ones(2), torch.float16, on_overflow="wrap")  # type: ignore[arg-type]


def test_no_numbers_are_cast_to_no_numbers() -> None:
    assert cast(torch.empty(0), torch.float16).shape == (0,)
