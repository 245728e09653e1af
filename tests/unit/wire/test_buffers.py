"""The pool: a buffer comes back when its last view has gone, not before, and nothing more is allocated then."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.wire.buffers import BufferPool

PAGE = mmap.PAGESIZE

VIEWS: dict[str, Callable[[np.ndarray], object]] = {
    "slice": lambda a: a[8:16],
    "slice of a slice": lambda a: a[8:][4:][::2],
    "another dtype": lambda a: a[:64].view(np.float32),
    "reshaped": lambda a: a[:64].reshape(8, 8).T,
    "torch": torch.from_numpy,
    "slice of torch": lambda a: torch.from_numpy(a[:64].view(np.float32)).view(4, 4)[1:].t(),
    "torch and back": lambda a: torch.from_numpy(a).numpy(),
    "memoryview": memoryview,
    "slice of a memoryview": lambda a: memoryview(a)[3:9].cast("B"),
    "frombuffer": lambda a: np.frombuffer(memoryview(a), np.uint8),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_a_view_keeps_the_buffer(make: Callable[[np.ndarray], object]) -> None:
    pool = BufferPool()
    lease = pool.lease(1000)
    address = lease.ctypes.data
    view = make(lease)
    del lease
    other = pool.lease(1000)
    assert other.ctypes.data != address
    assert pool.allocated_nbytes == 2 * PAGE
    del view
    again = pool.lease(1000)
    assert again.ctypes.data == address
    assert pool.allocated_nbytes == 2 * PAGE


def test_a_view_keeps_its_content() -> None:
    pool = BufferPool()
    lease = pool.lease(4096)
    lease[:] = 7
    tensor = torch.from_numpy(lease[100:200])
    del lease
    for _ in range(10):
        pool.lease(4096)[:] = 9
    assert tensor.tolist() == [7] * 100


@pytest.mark.parametrize("nbytes", [0, 1, PAGE - 1, PAGE, PAGE + 1, 10 * PAGE])
def test_leases_are_page_aligned_bytes_of_the_size_asked_for(nbytes: int) -> None:
    lease = BufferPool().lease(nbytes)
    assert (lease.shape, lease.dtype, type(lease)) == ((nbytes,), np.uint8, np.ndarray)
    assert lease.flags.writeable
    assert nbytes == 0 or lease.ctypes.data % PAGE == 0


def test_the_smallest_buffer_that_fits_is_taken() -> None:
    pool = BufferPool()
    leases = [pool.lease(pages * PAGE) for pages in (12, 8, 10, 9)]
    nine = leases[3].ctypes.data
    del leases
    assert pool.lease(8 * PAGE + 1).ctypes.data == nine


def test_a_buffer_much_too_large_is_left_for_others() -> None:
    pool = BufferPool()
    large = pool.lease(100 * PAGE)
    address = large.ctypes.data
    del large
    assert pool.lease(10 * PAGE).ctypes.data != address
    assert pool.lease(60 * PAGE).ctypes.data == address


def test_nothing_is_allocated_in_the_steady_state() -> None:
    pool = BufferPool()

    def one_round() -> None:
        held = [pool.lease(size) for size in (100, 50_000, 400_000, 400_000, 7)]
        first = held.pop(0)
        held.append(pool.lease(50_000))
        del first, held
        pool.lease(100)

    one_round()
    after_one = pool.allocated_nbytes
    for _ in range(20):
        one_round()
    assert pool.allocated_nbytes == after_one > 0


@given(ops=st.lists(st.tuples(st.booleans(), st.integers(0, 6 * PAGE)), max_size=40))
def test_live_leases_never_overlap(ops: list[tuple[bool, int]]) -> None:
    pool = BufferPool()
    live: list[np.ndarray] = []
    for number, (drop, size) in enumerate(ops):
        if drop and live:
            live.pop(size % len(live))
        else:
            lease = pool.lease(size)
            lease[:] = number % 251
            live.append(lease)
        for lease in live:
            assert lease.size == 0 or lease.min() == lease.max()
        spans = sorted((a.ctypes.data, a.ctypes.data + a.size) for a in live if a.size)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_memory_of_another_kind() -> None:
    """As pinned memory is: an array where the usual is a mapping."""
    pool = BufferPool()
    pool.lease(100)
    sizes: list[int] = []

    def allocate(nbytes: int) -> np.ndarray:
        sizes.append(nbytes)
        return np.zeros(nbytes, np.uint8)

    pool.allocate_with(allocate)
    first = pool.lease(3 * PAGE - 5)
    assert sizes == [3 * PAGE]  # what was free before is given up
    first[:] = 7
    view, address = first[5:].view(), first.ctypes.data
    del first
    assert pool.lease(3 * PAGE).ctypes.data != address
    assert (view == 7).all()
    del view
    both = [pool.lease(3 * PAGE) for _ in range(2)]
    assert address in {lease.ctypes.data for lease in both}
    assert len(sizes) == 2
