"""The Shannon bound, worked by hand for each kind of message."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.wire.bound import bound_nbits, number_bound_nbits, value_bound_nbits
from fedmpi.wire.values import Dense, Value


def test_seed_down() -> None:
    # 5 is 10 as zigzag, 0b1010: 4 bits. 255 is 510, 0b111111110: 9 bits.
    assert bound_nbits(SeedDown(init_seed=5, state_hash=255)) == 4 + 9


def test_model_down() -> None:
    state, ints = Dense(np.zeros(3, np.float32)), Dense(np.zeros(2, np.int64))
    assert bound_nbits(ModelDown(state=state, int_buffers=None)) == 3 * 32
    assert bound_nbits(ModelDown(state=state, int_buffers=ints)) == 3 * 32 + 2 * 64


def test_model_up() -> None:
    # 600 is 1200 as zigzag, between 2^10 and 2^11: 11 bits.
    up = ModelUp(num_samples=600, int_buffers=None, state=Dense(np.zeros(7, np.float32)))
    assert bound_nbits(up) == 11 + 7 * 32


@pytest.mark.parametrize(
    ("dtype", "nbits"), [("float32", 32), ("float64", 64), ("float16", 16), ("int64", 64), ("int32", 32), ("uint8", 8)]
)
def test_a_dense_vector_costs_its_width(dtype: str, nbits: int) -> None:
    assert value_bound_nbits(Dense(np.ones(5, dtype))) == 5 * nbits
    assert value_bound_nbits(Dense(np.ones(0, dtype))) == 0


@pytest.mark.parametrize(
    ("number", "nbits"),
    [(0, 1), (-1, 1), (1, 2), (-2, 2), (2, 3), (3, 3), (-4, 3), (4, 4), (2**31 - 1, 32), (2**63 - 1, 64),
     (-(2**63), 64), (0.0, 64), (1.5, 64)],
)  # fmt: skip
def test_numbers(number: float, nbits: int) -> None:
    assert number_bound_nbits(number) == nbits


def test_integers_on_both_sides_of_every_power_of_two() -> None:
    """With the zigzag forms 2^e - 2, 2^e - 1, 2^e, 2^e + 1."""
    wrong = []
    for exponent in range(2, 63):
        half = 2 ** (exponent - 1)
        got = [number_bound_nbits(number) for number in (half - 1, -half, half, -half - 1)]
        if got != [exponent, exponent, exponent + 1, exponent + 1]:
            wrong.append((exponent, got))
    assert wrong == []


def test_a_value_without_a_definition_is_refused() -> None:
    class Unknown(Value):
        pass

    with pytest.raises(TypeError, match="no bound is defined for Unknown"):
        value_bound_nbits(Unknown())
