"""Measuring a message: real sizes, and no figure without an exact round trip."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.errors import ProtocolError
from fedmpi.weigh.measure import check_equal, measure
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import encode
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import KINDS, Message, Schema, dense, message
from fedmpi.wire.values import Dense, Mask, MaskedValues, Quantized, Sparse, Value


@pytest.fixture(autouse=True)
def _own_kinds():
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def vector(*numbers: float, dtype: str = "float32") -> np.ndarray:
    return np.array(numbers, dtype)


def quantized(*symbols: int, bits: int = 3, scale: float = 1.0) -> Quantized:
    return Quantized(np.array(symbols, np.uint8), bits, vector(scale))


EQUAL: list[tuple[Value, Value]] = [
    (Dense(vector(np.nan, -0.0)), Dense(vector(np.nan, -0.0))),
    (Mask(np.array([True, False])), Mask(np.array([True, False]), base=KnownMask(np.ones(2, np.bool_), 3))),
    (Sparse(4, np.array([1, 3]), vector(1, 2)), Sparse(4, np.array([1, 3]), vector(1, 2))),
    (Sparse(4, np.array([1, 3]), quantized(1, 7)), Sparse(4, np.array([1, 3]), quantized(1, 7))),
]
UNEQUAL: list[tuple[Value, Value]] = [
    (Dense(vector(0.0)), Dense(vector(-0.0))),
    (Dense(vector(1)), Dense(vector(1, dtype="float64"))),
    (Dense(vector(1)), Dense(vector(1, 1))),
    (Mask(np.array([True, False])), Mask(np.array([True, True]))),
    (Sparse(4, np.array([1, 3]), vector(1, 2)), Sparse(5, np.array([1, 3]), vector(1, 2))),
    (Sparse(4, np.array([1, 3]), vector(1, 2)), Sparse(4, np.array([1, 2]), vector(1, 2))),
    (Sparse(4, np.array([1, 3]), quantized(1, 7)), Sparse(4, np.array([1, 3]), quantized(1, 6))),
    (Sparse(4, np.array([1]), quantized(1)), Sparse(4, np.array([1]), vector(1))),
    (quantized(1, 2), quantized(1, 2, bits=4)),
    (quantized(1, 2), quantized(1, 2, scale=2.0)),
    (quantized(1), Quantized(np.ones(1, np.uint8), 3, vector(1), np.zeros(1, np.int32))),
    (
        MaskedValues(vector(1), KnownMask(np.ones(1, np.bool_), 0)),
        MaskedValues(vector(2), KnownMask(np.ones(1, np.bool_), 0)),
    ),
]


@pytest.mark.parametrize("pair", EQUAL)
def test_equal_values(pair: tuple[Value, Value]) -> None:
    check_equal(*pair, "raw")


@pytest.mark.parametrize("pair", UNEQUAL)
def test_a_bit_that_differs_is_an_error_of_the_protocol(pair: tuple[Value, Value]) -> None:
    with pytest.raises(ProtocolError, match="codec raw did not give back what it was given") as caught:
        check_equal(*pair, "raw")
    assert caught.value.exit_status == 5


@pytest.mark.parametrize("in_place", [False, True])
def test_the_figures_are_those_of_the_frame(in_place: bool) -> None:
    @message("measured", "up")
    class Measured(Message):
        num_samples: int
        state: Dense = dense("state")

    state = Dense.framed(1000)
    state.array[:] = np.arange(1000)
    schema = Schema({"state": 1000}, 7)
    sent = Measured(num_samples=3, state=state)
    row = measure(sent, schema, in_place=in_place, budget_s=0.0)
    frame = encode(sent, schema, BufferPool())
    assert (row.wire_nbytes, row.payload_nbytes, row.codec) == (frame.wire_nbytes, frame.payload_nbytes, "raw")
    assert row.header_nbytes + row.payload_nbytes == row.wire_nbytes
    assert (row.kind, row.num_params, row.dense_nbytes) == ("measured", 1000, 4000)
    assert row.encode_s > 0
    assert row.decode_s > 0
