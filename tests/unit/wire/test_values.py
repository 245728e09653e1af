"""Values: what shares memory and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.wire.values import HEADROOM, Dense


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
