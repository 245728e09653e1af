"""Packed states: every state comes back, and no changed byte goes unnoticed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.engine.statefile import pack_state, unpack_state
from fedmpi.errors import OutputError
from fedmpi.wire.buffers import BufferPool

State = dict[str, Any]


def packed(state: State) -> np.ndarray:
    return pack_state(state, BufferPool()).copy()


def same(a: State, b: State) -> bool:
    if list(a) != list(b):
        return False
    for x, y in zip(a.values(), b.values(), strict=True):
        if isinstance(x, torch.Tensor):
            if not isinstance(y, torch.Tensor) or x.dtype != y.dtype or x.shape != y.shape:
                return False
            if x.contiguous().numpy().tobytes() != y.contiguous().numpy().tobytes():
                return False
        elif type(x) is not type(y) or repr(x) != repr(y):
            return False
    return True


dtypes = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=rng).to(dtype)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


plain = st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=9)
states = st.dictionaries(st.text(max_size=9), tensors() | plain, max_size=5)


@given(state=states)
@settings(deadline=None)
def test_round_trip(state: State) -> None:
    body = packed(state)
    assert body.dtype == np.uint8
    assert same(unpack_state(body, "here"), state)


def test_by_hand() -> None:
    body = packed({"a": torch.tensor([1.0, 2.0]), "n": 3})
    text = b'{"a": ["float32", [2], 0], "n": 3}'
    assert body.size == 128  # header 24, table 34, padding 6, then the tensor at a multiple of 64
    assert body[64:72].view(np.float32).tolist() == [1.0, 2.0]
    assert bytes(body[24 : 24 + len(text)]) == text
    magic, text_nbytes, checksum = struct.unpack("<8sQQ", body[:24].tobytes())
    assert (magic, text_nbytes) == (b"fedmpiS1", len(text))
    assert checksum == xxhash.xxh3_64_intdigest(body[:16].tobytes() + body[24:].tobytes())


def test_tensors_are_aligned_views() -> None:
    pool = BufferPool()
    body = pack_state({"a": torch.ones(3), "b": torch.ones(5, dtype=torch.float64)}, pool)
    state = unpack_state(body, "here")
    for value in state.values():
        assert isinstance(value, torch.Tensor)
        assert np.shares_memory(value.numpy(), body)
        assert value.data_ptr() % 64 == 0


def test_a_reused_buffer_leaves_nothing_behind() -> None:
    state = {"a": torch.ones(3), "n": 1}
    pool = BufferPool()
    pool.lease(4000)[:] = 0xFF
    assert pack_state(state, pool).tobytes() == packed(state).tobytes()
    assert pool.allocated_nbytes == 4096


EXAMPLE = {"residual": torch.arange(20.0), "round": 17, "name": "é"}


def test_every_corrupt_byte_is_noticed() -> None:
    good = packed(EXAMPLE)
    assert same(unpack_state(good, "here"), EXAMPLE)
    unnoticed, wrong = [], []
    for position in range(good.size):
        for flip in (1, 128, 255):
            body = good.copy()
            body[position] ^= flip
            try:
                unpack_state(body, "here")
            except OutputError as error:
                assert "here" in str(error)  # noqa: PT017 - both ways out are counted
            except Exception as error:
                wrong.append((position, flip, repr(error)))
            else:
                unnoticed.append((position, flip))
    assert (unnoticed, wrong) == ([], [])


def test_every_truncation_and_extension_is_noticed() -> None:
    good = packed(EXAMPLE)
    for size in range(good.size):
        with pytest.raises(OutputError, match="here"):
            unpack_state(good[:size].copy(), "here")
    for extra in (1, 64):
        with pytest.raises(OutputError, match="damaged"):
            unpack_state(np.concatenate([good, np.zeros(extra, np.uint8)]), "here")


def test_another_file_is_named() -> None:
    with pytest.raises(OutputError, match="here: not a state of this version, it begins with b'\\\\x89HDF"):
        unpack_state(np.frombuffer(b"\x89HDF\r\n\x1a\n" + bytes(100), np.uint8), "here")
