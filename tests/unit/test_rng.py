"""Streams: a pure function of their key, pinned, and different for different keys."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.rng import ANY, stream, stream_key, stream_seed

seeds = st.integers(0, 2**63 - 1)
indices = st.integers(ANY, 2**40)
keys = st.tuples(seeds, indices, indices, st.text(max_size=12))


def test_keys_and_numbers_are_pinned() -> None:
    """A change here changes every run ever made: it must be wanted."""
    assert stream_key(0, ANY, ANY, "cohort") == 0x764190564B9BC7FA028951FC2310A84A
    assert stream_key(2**63 - 1, 3, 17, "batches") == 0xD834C926BED35703172F5DA901CAF6F3
    assert stream(0, 0, 5, "batches").integers(0, 1000, 5).tolist() == [376, 304, 382, 49, 217]


@given(a=keys, b=keys)
def test_different_keys_different_streams(a: tuple[int, int, int, str], b: tuple[int, int, int, str]) -> None:
    assert (stream_key(*a) == stream_key(*b)) == (a == b)


@pytest.mark.parametrize("other", [(2, 3, 4, "a"), (1, 4, 4, "a"), (1, 3, 3, "a"), (1, 3, 4, "b"), (1, 4, 3, "a")])
def test_each_part_of_the_key_matters(other: tuple[int, int, int, str]) -> None:
    first = stream(1, 3, 4, "a").integers(0, 2**62, 8)
    assert not np.array_equal(first, stream(*other).integers(0, 2**62, 8))


@given(key=keys)
def test_a_stream_starts_afresh_every_time(key: tuple[int, int, int, str]) -> None:
    first = stream(*key)
    first.random(3)
    assert np.array_equal(stream(*key).random(5), stream(*key).random(5))
    assert isinstance(first.bit_generator, np.random.Philox)


@given(key=keys)
def test_a_seed_for_torch_is_63_bits_of_the_key(key: tuple[int, int, int, str]) -> None:
    seed = stream_seed(*key)
    assert 0 <= seed < 2**63
    assert (stream_key(*key) - seed) % 2**63 == 0
    torch.Generator().manual_seed(seed)


def test_global_states_are_neither_used_nor_changed() -> None:
    np_state, py_state, torch_state = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state()
    before = stream(9, 9, 9, "x").random(4)
    assert np.random.get_state()[1].tolist() == np_state
    assert random.getstate() == py_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    random.random(), torch.rand(1)
    assert np.array_equal(stream(9, 9, 9, "x").random(4), before)
