"""The values that messages are made of. A value says what is sent; a codec says how it becomes bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.wire.buffers import STAGING
from fedmpi.wire.known import KnownMask, KnownProbabilities, KnownVector

HEADROOM = 256
"""Bytes kept free before a framed vector: room for a frame's header, section table and scalars."""


DENSE_DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bfloat16")
"""Names of the dtypes of vectors. numpy has no bfloat16: its bit patterns are held as uint16."""

PAPER_NBITS = 32
"""What papers count for a number, unless its dtype is narrower, and for an index."""


def storage(dtype: str) -> np.dtype:
    """Return the numpy dtype that holds numbers of a named dtype."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def to_host(vector: Tensor) -> np.ndarray:
    """Copy a device's vector into a kept host buffer, which is pinned where there is a GPU."""
    host = STAGING.lease(vector.numel() * vector.element_size())
    torch.from_numpy(host).view(vector.dtype).copy_(vector)
    return host.view(storage(str(vector.dtype).removeprefix("torch.")))


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a vector's numbers in memory that numpy sees; a copy only where they are on a device."""
    vector = tensor.detach().reshape(-1)
    if vector.device.type != "cpu":
        return to_host(vector)
    vector = vector.contiguous()
    return (vector.view(torch.uint16) if vector.dtype == torch.bfloat16 else vector).numpy()


def as_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Return numbers of a named dtype as a tensor that shares their memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def all_finite(array: np.ndarray, dtype: str) -> bool:
    """Return whether no number of a vector is NaN or infinite."""
    if dtype == "bfloat16":
        return not bool(((array & 0x7F80) == 0x7F80).any())
    if array.dtype.kind != "f":
        return True
    # One number that is not finite makes the sum so; the sum of large numbers may be, too, and then each is asked.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


class Value:
    """Base of the values; a message's fields are values or plain numbers."""

    @property
    def numel(self) -> int:
        """Number of numbers that the value stands for."""
        raise NotImplementedError

    @property
    def num_kept(self) -> int:
        """How many of them it carries itself."""
        return self.numel

    @property
    def paper_nbits(self) -> float:
        """Size that papers would state."""
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
        Of one of `DENSE_DTYPES`.
    room : numpy.ndarray of uint8, optional
        Memory that ends with `array` and has at least `HEADROOM` bytes before it, so that the frame is built around
        the vector without copying it.
    dtype : str, optional
        Name of the dtype; that of `array` if not given.
    base : KnownVector, optional
        Numbers of the same dtype that the receiver holds: the difference travels, coded without loss.
    """

    array: np.ndarray
    room: np.ndarray | None = None
    dtype: str = ""
    base: KnownVector | None = None

    def __post_init__(self) -> None:
        _name_dtype(self, self.array)

    @property
    def numel(self) -> int:
        return int(self.array.size)

    @property
    def paper_nbits(self) -> float:
        return float(_paper_width(self.dtype) * self.numel)

    def is_finite(self) -> bool:
        return all_finite(self.array, self.dtype)

    @classmethod
    def of(cls, tensor: Tensor, base: KnownVector | None = None) -> Dense:
        """Wrap a vector; no copy where it is contiguous and on the CPU. It must not change until it is encoded."""
        return cls(as_array(tensor), dtype=str(tensor.dtype).removeprefix("torch."), base=base)

    @classmethod
    def framed(cls, numel: int, dtype: str = "float32") -> Dense:
        """Allocate a zero vector with room for a frame's header before it."""
        nbytes = numel * storage(dtype).itemsize
        # The vector itself starts on a cache line, wherever the allocation begins.
        raw = np.zeros(HEADROOM + nbytes + 64, np.uint8)
        skip = -(raw.ctypes.data + HEADROOM) % 64
        room = raw[skip : skip + HEADROOM + nbytes]
        return cls(room[HEADROOM:].view(storage(dtype)), room, dtype)

    def tensor(self) -> Tensor:
        """Return the vector as a tensor that shares its memory."""
        return as_tensor(self.array, self.dtype)


@dataclass(frozen=True, eq=False)
class Quantized(Value):
    """Whole numbers of few bits with the scales that they were rounded by: x = scale (symbol - zero point).

    Parameters
    ----------
    symbols : numpy.ndarray, uint8 or int8
        Of any shape. Unsigned ones are 0 to 2^bits - 1, signed ones -2^(bits - 1) to 2^(bits - 1) - 1; signed ones of
        1 bit are -1 and 1.
    bits : int
        1 to 8.
    scales : numpy.ndarray, shape (s,), float32
        Finite. One for all, or one for each index of `axis`.
    zero_points : numpy.ndarray, shape (s,), int32, optional
        Symbols that stand for 0, in the range of the symbols; 0 if not given. Signed symbols of 1 bit have none.
    axis : int, optional
        0 (a scale a sample) or 1 (a scale a channel); None for one scale.
    """

    symbols: np.ndarray
    bits: int
    scales: np.ndarray
    zero_points: np.ndarray | None = None
    axis: int | None = None

    @property
    def signed(self) -> bool:
        """Whether symbols may be negative."""
        return self.symbols.dtype == np.int8

    @property
    def numel(self) -> int:
        return int(self.symbols.size)

    @property
    def paper_nbits(self) -> float:
        return float(self.bits * self.numel + PAPER_NBITS * self.scales.size)

    def is_finite(self) -> bool:
        return all_finite(self.scales, "float32")

    def dequantize(self) -> Tensor:
        """Return the numbers that the symbols stand for, float32, of the symbols' shape.

        A product beyond float32 (the last level of a range as wide as float32 itself) becomes its largest number.
        """
        shape = [1] * self.symbols.ndim
        if self.axis is not None:
            shape[self.axis] = self.scales.size
        numbers = torch.from_numpy(self.symbols).to(torch.float32)
        if self.zero_points is not None:
            numbers -= torch.from_numpy(self.zero_points).to(torch.float32).view(shape)
        largest = torch.finfo(torch.float32).max
        return numbers.mul_(torch.from_numpy(self.scales).view(shape)).clamp_(-largest, largest)


Numbers = np.ndarray | Quantized
"""What stands at chosen positions: a vector of a dtype, or whole numbers with a scale."""


@dataclass(frozen=True, eq=False)
class Mask(Value):
    """A bit for each position.

    Parameters
    ----------
    bits : numpy.ndarray, shape (n,), bool
        True where kept.
    prior : KnownProbabilities, optional
        The probability of each bit, which the receiver holds.
    base : KnownMask, optional
        An earlier mask that the receiver holds: the change travels, where that is smaller.
    """

    bits: np.ndarray
    prior: KnownProbabilities | None = None
    base: KnownMask | None = None

    @property
    def numel(self) -> int:
        return int(self.bits.size)

    @property
    def paper_nbits(self) -> float:
        return float(self.numel)

    def is_finite(self) -> bool:
        return True

    @classmethod
    def of(cls, bits: Tensor, *, prior: KnownProbabilities | None = None, base: KnownMask | None = None) -> Mask:
        """Wrap a vector of bool; numbers are True where they are not 0."""
        return cls(as_array(bits.bool()), prior, base)


class _AtPositions(Value):
    """What sparse and masked values have in common: numbers, with a dtype or quantized."""

    values: Numbers
    dtype: str

    def __post_init__(self) -> None:
        _name_dtype(self, self.values)

    @property
    def paper_nbits(self) -> float:
        if isinstance(self.values, Quantized):
            return self.values.paper_nbits
        return float(_paper_width(self.dtype) * self.values.size)

    def is_finite(self) -> bool:
        return self.values.is_finite() if isinstance(self.values, Quantized) else all_finite(self.values, self.dtype)

    def tensor_values(self) -> Tensor:
        """Return the values as a vector: of their dtype, or float32 if they are quantized."""
        return self.values.dequantize() if isinstance(self.values, Quantized) else as_tensor(self.values, self.dtype)


@dataclass(frozen=True, eq=False)
class Sparse(_AtPositions):
    """Numbers at k of n positions; the others are 0.

    Parameters
    ----------
    size : int
        n.
    indices : numpy.ndarray, shape (k,), int64
        Strictly ascending.
    values : numpy.ndarray or Quantized, shape (k,)
    dtype : str, optional
        Name of the dtype of `values`; that of the array if not given, "" for `Quantized`.
    base : KnownMask, optional
        A set of positions near this one that the receiver holds: the change travels, where that is smaller.
    """

    size: int
    indices: np.ndarray
    values: Numbers
    dtype: str = ""
    base: KnownMask | None = None

    @property
    def numel(self) -> int:
        return self.size

    @property
    def num_kept(self) -> int:
        return int(self.indices.size)

    @property
    def paper_nbits(self) -> float:
        return PAPER_NBITS * self.num_kept + super().paper_nbits

    @classmethod
    def of(cls, size: int, indices_K: Tensor, values_K: Tensor, base: KnownMask | None = None) -> Sparse:
        """Wrap int64 indices and their values; they must not change until they are encoded."""
        return cls(size, as_array(indices_K), as_array(values_K), str(values_K.dtype).removeprefix("torch."), base)


@dataclass(frozen=True, eq=False)
class MaskedValues(_AtPositions):
    """Numbers at the positions of a mask that both ends hold; the others are 0. No position travels.

    Parameters
    ----------
    values : numpy.ndarray or Quantized, shape (k,)
        In the order of the mask's positions.
    mask : KnownMask
        With k positions kept.
    dtype : str, optional
        Name of the dtype of `values`; that of the array if not given, "" for `Quantized`.
    """

    values: Numbers
    mask: KnownMask
    dtype: str = ""

    @property
    def numel(self) -> int:
        return int(self.mask.array.size)

    @property
    def num_kept(self) -> int:
        return self.values.numel if isinstance(self.values, Quantized) else int(self.values.size)

    @classmethod
    def of(cls, values_K: Tensor, mask: KnownMask) -> MaskedValues:
        """Wrap the values; they must not change until they are encoded."""
        return cls(as_array(values_K), mask, str(values_K.dtype).removeprefix("torch."))


class _WholeNumbers(Value):
    """What labels and counts have in common."""

    array: np.ndarray

    @property
    def numel(self) -> int:
        return int(self.array.size)

    @property
    def paper_nbits(self) -> float:
        return float(PAPER_NBITS * self.numel)

    def is_finite(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Labels(_WholeNumbers):
    """Class labels.

    Parameters
    ----------
    array : numpy.ndarray, shape (n,), int64
        0 to `num_classes` - 1.
    num_classes : int
    """

    array: np.ndarray
    num_classes: int


@dataclass(frozen=True, eq=False)
class Counts(_WholeNumbers):
    """Whole numbers from 0 that are mostly small, such as samples of each class.

    Parameters
    ----------
    array : numpy.ndarray, shape (n,), int64
        Not negative.
    """

    array: np.ndarray


def _name_dtype(value: Dense | _AtPositions, numbers: Numbers) -> None:
    if not value.dtype and not isinstance(numbers, Quantized):
        object.__setattr__(value, "dtype", str(numbers.dtype))


def _paper_width(dtype: str) -> int:
    return min(PAPER_NBITS, 8 * storage(dtype).itemsize)
