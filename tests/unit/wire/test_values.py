"""Values: what shares memory and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.wire.values import HEADROOM, Dense, all_finite, as_array, as_tensor, to_host


def test_of_shares_the_memory_of_a_contiguous_tensor() -> None:
    tensor = torch.arange(6.0)
    value = Dense.of(tensor)
    tensor[2] = 9
    assert value.array.tolist() == [0, 1, 9, 3, 4, 5]
    assert (value.numel, value.room) == (6, None)


def test_of_makes_a_contiguous_vector_of_anything_else() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert Dense.of(matrix).array.tolist() == [0, 1, 2, 3, 4, 5]
    across = Dense.of(matrix.t()).array
    assert across.tolist() == [0, 3, 1, 4, 2, 5]
    assert across.flags.c_contiguous
    assert Dense.of(torch.tensor(3)).array.tolist() == [3]
    assert Dense.of(torch.ones(2, requires_grad=True)).array.tolist() == [1, 1]


@pytest.mark.parametrize("numel", [0, 1, 7, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_framed_has_room_before_it(numel: int, dtype: str) -> None:
    value = Dense.framed(numel, dtype)
    assert value.array.dtype == dtype
    assert value.array.shape == (numel,)
    assert not value.array.any()
    assert value.room is not None
    assert value.room.dtype == np.uint8
    assert value.room.size == HEADROOM + value.array.nbytes
    start = value.room.ctypes.data + HEADROOM
    assert start % 64 == 0
    if numel:
        assert value.array.ctypes.data == start


def test_tensor_shares_memory() -> None:
    value = Dense.framed(3)
    value.tensor().fill_(4.0)
    assert value.array.tolist() == [4, 4, 4]
    assert value.tensor().data_ptr() == value.array.ctypes.data


def test_values_are_compared_by_identity() -> None:
    array = np.zeros(2, np.float32)
    assert Dense(array) != Dense(array)
    assert len({Dense(array), Dense(array)}) == 2


@pytest.mark.parametrize(
    ("numbers", "finite"),
    [
        ([], True),
        ([0.0, -0.0, 1e38], True),
        ([3e38, 3e38], True),  # their sum is infinite, they are not
        ([1.0, np.nan], False),
        ([np.inf, -np.inf], False),
        ([1.0, -np.inf, 1.0], False),
    ],
)
def test_is_finite(numbers: list[float], finite: bool) -> None:
    assert Dense(np.array(numbers, np.float32)).is_finite() is finite


def test_half_precision_overflows_in_a_sum_and_integers_are_finite() -> None:
    assert Dense(np.full(100, 6e4, np.float16)).is_finite()
    assert not Dense(np.array([6e4, np.inf], np.float16)).is_finite()
    assert Dense(np.array([2**62, 2**62], np.int64)).is_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.float16])
def test_what_comes_from_a_device_lies_in_kept_host_memory(dtype: torch.dtype) -> None:
    """On a CPU as well: where the vector comes from does not matter to the copy."""
    vector = torch.arange(50_000).to(dtype)
    first = to_host(vector)
    assert first.dtype == str(dtype).removeprefix("torch.")
    assert np.array_equal(first, vector.numpy())
    held = to_host(vector + 1)
    assert np.array_equal(first, vector.numpy())  # a value in use is not overwritten
    address = first.ctypes.data
    del first
    assert to_host(vector).ctypes.data == address
    del held


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "uint16")]
)
def test_tensors_and_arrays_share_bits(dtype: torch.dtype, name: str) -> None:
    numbers = torch.randn(4, 6).to(dtype).t()  # not contiguous
    array = as_array(numbers)
    assert (array.dtype, array.shape) == (np.dtype(name), (24,))
    back = as_tensor(array, str(dtype).removeprefix("torch."))
    assert back.dtype == dtype and torch.equal(back, numbers.reshape(-1))


def test_the_bits_of_bfloat16_are_the_upper_half_of_float32() -> None:
    assert as_array(torch.tensor([1.0, -2.0, 0.0], dtype=torch.bfloat16)).tolist() == [0x3F80, 0xC000, 0]
    assert as_tensor(np.array([0x3F80, 0xC000], np.uint16), "bfloat16").tolist() == [1.0, -2.0]


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC1, 0xFFFF])
def test_bfloat16_that_is_not_finite(bits: int) -> None:
    array = np.array([0x3F80, 0x7F7F, 0xFF7F, 0x0001], np.uint16)
    assert all_finite(array, "bfloat16")
    array[2] = bits
    assert not all_finite(array, "bfloat16")
    assert not Dense(array, dtype="bfloat16").is_finite()
