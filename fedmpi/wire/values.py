"""The values that messages are made of. A value says what is sent; a codec says how it becomes bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.wire.buffers import STAGING

HEADROOM = 256
"""Bytes kept free before a framed vector: room for a frame's header, section table and scalars."""


DENSE_DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8")
"""numpy names of the dtypes of a `Dense`."""


def to_host(vector: Tensor) -> np.ndarray:
    """Copy a device's vector into a kept host buffer, which is pinned where there is a GPU."""
    host = STAGING.lease(vector.numel() * vector.element_size())
    torch.from_numpy(host).view(vector.dtype).copy_(vector)
    return host.view(str(vector.dtype).removeprefix("torch."))


class Value:
    """Base of the values; a message's fields are values or plain numbers."""

    @property
    def numel(self) -> int:
        """Number of numbers that the value stands for."""
        raise NotImplementedError

    def is_finite(self) -> bool:
        """Return whether no number is NaN or infinite."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Dense(Value):
    """A vector of numbers, all of them sent.

    Parameters
    ----------
    array : numpy.ndarray, shape (n,), C-contiguous
        One of the dtypes of `DENSE_DTYPES`.
    room : numpy.ndarray of uint8, optional
        Memory that ends with `array` and has at least `HEADROOM` bytes before it, so that the frame is built around
        the vector without copying it.
    """

    array: np.ndarray
    room: np.ndarray | None = None

    @property
    def numel(self) -> int:
        return int(self.array.size)

    def is_finite(self) -> bool:
        if self.array.dtype.kind != "f":
            return True
        # One number that is not finite makes the sum so; the sum of large numbers may be, too, and then each is asked.
        with np.errstate(all="ignore"):
            return bool(np.isfinite(self.array.sum())) or bool(np.isfinite(self.array).all())

    @classmethod
    def of(cls, tensor: Tensor) -> Dense:
        """Wrap a vector; no copy where it is contiguous and on the CPU. It must not change until it is encoded."""
        vector = tensor.detach().reshape(-1)
        return cls(vector.contiguous().numpy() if vector.device.type == "cpu" else to_host(vector))

    @classmethod
    def framed(cls, numel: int, dtype: str = "float32") -> Dense:
        """Allocate a zero vector with room for a frame's header before it."""
        nbytes = numel * np.dtype(dtype).itemsize
        # The vector itself starts on a cache line, wherever the allocation begins.
        raw = np.zeros(HEADROOM + nbytes + 64, np.uint8)
        skip = -(raw.ctypes.data + HEADROOM) % 64
        room = raw[skip : skip + HEADROOM + nbytes]
        return cls(room[HEADROOM:].view(dtype), room)

    def tensor(self) -> Tensor:
        """Return the vector as a tensor that shares its memory."""
        return torch.from_numpy(self.array)
