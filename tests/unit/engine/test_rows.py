"""Ledger rows on their way: nothing is lost, and the figures are those of the frame."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.engine.rows import Figures, join_parts, pack_rows, split_parts, unpack_rows
from fedmpi.ledger.schema import MessageRow
from fedmpi.wire.bound import bound_nbits
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import encode
from fedmpi.wire.message import Schema
from fedmpi.wire.values import Dense

SCHEMA = Schema({"params": 4, "state": 5, "int_buffers": 2}, 1)
TEXTS = ("direction", "kind", "codec")
FLOATS = ("bound_nbits", "paper_nbits", "encode_s", "decode_s", "send_t", "recv_t")

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=32)
fields = {
    name: names if name in TEXTS else st.floats(allow_nan=False) if name in FLOATS else st.integers(-1, 2**53)
    for name in MessageRow._fields
}
rows = st.builds(MessageRow, **fields)


@given(many=st.lists(rows, max_size=4))
def test_rows_round_trip(many: list[MessageRow]) -> None:
    body = pack_rows(many)
    assert (body.dtype, body.ndim) == (np.uint8, 1)
    back = unpack_rows(body)
    assert back == many
    assert [[type(value) for value in row] for row in back] == [[type(value) for value in row] for row in many]


def test_the_figures_of_an_uplink() -> None:
    up = ModelUp(num_samples=600, int_buffers=Dense(np.zeros(2, np.int64)), state=Dense(np.zeros(5, np.float32)))
    frame = encode(up, SCHEMA, BufferPool())
    row = Figures(up, frame, SCHEMA, bound_nbits(up, SCHEMA)).row((3, 0, 17, 2), 0.25, 0.5, 1.5, 2.5)
    assert row == MessageRow(
        round_idx=3, step=0, client_id=17, rank=2, direction="up", kind="model", codec="raw",
        header_nbytes=24 + 9 + 5, payload_nbytes=2 + 16 + 20, wire_nbytes=76, index_nbytes=0, value_nbytes=36,
        dense_nbytes=28, bound_nbits=11 + 128 + 160, paper_nbits=224.0, num_params=7, num_kept=7,
        encode_s=0.25, decode_s=0.5, send_t=1.5, recv_t=2.5,
    )  # fmt: skip
    assert unpack_rows(pack_rows([row])) == [row]


def test_the_figures_of_a_seed_and_of_the_model_it_stands_for() -> None:
    seed = SeedDown(init_seed=5, state_hash=255)
    full = ModelDown(int_buffers=Dense(np.zeros(2, np.int64)), state=Dense(np.zeros(5, np.float32)))
    of_seed, of_full = (
        Figures(m, encode(m, SCHEMA, BufferPool()), SCHEMA, bound_nbits(m, SCHEMA)).row((0, 0, 0, 0), 0, 0, 0, 0)
        for m in (seed, full)
    )
    assert (of_seed.direction, of_seed.kind, of_seed.codec) == ("down", "seed", "numbers")
    assert (of_seed.wire_nbytes, of_seed.payload_nbytes, of_seed.value_nbytes) == (24 + 3 + 3, 3, 0)
    assert (of_seed.num_params, of_seed.num_kept) == (7, 0)
    assert (of_seed.dense_nbytes, of_full.dense_nbytes) == (28, 28)
    assert (of_full.num_params, of_full.num_kept, of_full.bound_nbits) == (7, 7, 128 + 160)


@given(parts=st.lists(st.binary(max_size=40), max_size=6))
def test_parts_round_trip(parts: list[bytes]) -> None:
    body = join_parts(*(np.frombuffer(part, np.uint8) for part in parts))
    back = split_parts(body)
    assert [part.tobytes() for part in back] == parts
    for part in back:
        assert part.size == 0 or np.shares_memory(part, body)
        assert part.size == 0 or (part.ctypes.data - body.ctypes.data) % 8 == 0
