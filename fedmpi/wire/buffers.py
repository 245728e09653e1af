"""Kept buffers: leased for one message, given back by themselves when the last view of them is gone.

Fresh large buffers page-fault on every round; a pool that must be told when a buffer is free invites use after
release. Here the lease is an ndarray whose views (numpy or torch) keep it alive, and whose end returns the memory.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

_PAGE = mmap.PAGESIZE
Memory: TypeAlias = mmap.mmap | np.ndarray


class _Lease(np.ndarray):
    """Owner of one lease. A subclass, because numpy lets views of views skip owners of their own type."""


class _Room(np.ndarray):
    """Stands between a lease and memory that is an array itself."""


def _lease_of(memory: np.ndarray) -> _Lease:
    """Return memory that is an array as a lease."""
    # Between the two stands another subclass: views of the lease would skip it if its own base were a plain array.
    lease: _Lease = memory.view(_Room).view(_Lease)
    return lease


class BufferPool:
    """Page-aligned byte buffers that are reused from message to message.

    Attributes
    ----------
    allocated_nbytes : int
        Bytes ever allocated; constant once a run has reached its steady state.
    """

    def __init__(self) -> None:
        self._allocate: Callable[[int], Memory] = partial(mmap.mmap, -1)
        self._free: list[Memory] = []
        self.allocated_nbytes = 0

    def allocate_with(self, allocate: Callable[[int], Memory]) -> None:
        """Take new memory from ``allocate(nbytes)`` from now on; what is free already is given up."""
        self._allocate = allocate
        self._free = []  # another list: what is leased now comes back to the old one

    def lease(self, nbytes: int) -> np.ndarray:
        """Return a uint8 array of shape (nbytes,), contents undefined.

        The smallest free buffer that fits is taken, if it is at most twice as large (or four pages); else a new one.
        """
        best = -1
        limit = max(2 * nbytes, 4 * _PAGE)
        for position, memory in enumerate(self._free):
            size = len(memory)
            if nbytes <= size <= limit and (best < 0 or size < len(self._free[best])):
                best = position
        if best >= 0:
            memory = self._free.pop(best)
        else:
            size = max(_PAGE, -(-nbytes // _PAGE) * _PAGE)
            memory = self._allocate(size)
            self.allocated_nbytes += size
        if isinstance(memory, np.ndarray):
            lease = _lease_of(memory[:nbytes])
        else:
            lease = np.ndarray.__new__(_Lease, (nbytes,), np.uint8, buffer=memory)
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return lease.view(np.ndarray)


def pinned_memory(nbytes: int) -> np.ndarray:
    """Return memory that a GPU copies to and from directly; pageable memory goes through a copy of CUDA's."""
    import torch

    pinned: np.ndarray = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    return pinned


STAGING = BufferPool()
"""Where vectors of a GPU wait to be encoded: pinned once the rank has a GPU."""


_FRAMED: weakref.WeakValueDictionary[int, _Lease] = weakref.WeakValueDictionary()
"""The frames in use that were made around a vector where it lies, by the address of its memory."""


def lease_in_place(memory: np.ndarray, start: int) -> np.ndarray | None:
    """Return ``memory[start:]`` as a lease of its own, None while an earlier one of the same memory is in use."""
    address = memory.ctypes.data
    if address in _FRAMED:
        return None
    lease = _lease_of(memory[start:])
    _FRAMED[address] = lease
    return lease.view(np.ndarray)


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to 1 GiB.

    By default glibc gives large blocks back to the system and takes them again: every step of training then faults in
    the pages of its activations anew, a sixth of the time of a small CNN. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return
