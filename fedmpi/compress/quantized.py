"""Integer symbols with the steps that turn them back into numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.wire.values import Quantized

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor in b bits a number: number = (symbol - zero_point) * scale.

    Parameters
    ----------
    symbols : Tensor, the tensor's shape
        int8 if signed: for b >= 2 from -2^(b-1), which symmetric levels do not use, to 2^(b-1) - 1, for b = 1 the signs
        -1 and 1.
        uint8 if not: from 0 to 2^b - 1.
    bits : int
        b, from 1 to 8.
    signed : bool
    axis : int or None
        The axis that has a scale for each of its indices; None is one scale for all.
    scales : Tensor, shape (num_scales,), float32
        The step between two levels (b = 1 signed: half of it). 0 where all numbers are 0.
    zero_points : Tensor, shape (num_scales,), uint8, or None
        The symbol of the number 0, of affine levels alone.

    Raises
    ------
    ValueError
        If these do not fit each other.
    """

    symbols: Tensor
    bits: int
    signed: bool
    axis: int | None
    scales: Tensor
    zero_points: Tensor | None = None

    def __post_init__(self) -> None:
        dtype = torch.int8 if self.signed else torch.uint8
        if not 1 <= self.bits <= 8 or self.symbols.dtype != dtype:
            raise ValueError(f"expected 1 to 8 bits in {dtype}, got {self.bits} in {self.symbols.dtype}")
        num_scales = count_scales(self.symbols, self.axis)
        if self.scales.shape != (num_scales,) or self.scales.dtype != torch.float32:
            got = f"{self.scales.dtype} of shape {tuple(self.scales.shape)}"
            raise ValueError(f"expected {num_scales} scales of float32, got {got}")
        points = self.zero_points
        if points is not None and (self.signed or points.shape != (num_scales,) or points.dtype != torch.uint8):
            got = f"{points.dtype} of shape {tuple(points.shape)}"
            raise ValueError(f"zero points are {num_scales} of uint8 beside unsigned symbols, got {got}")

    def dequantize(self) -> Tensor:
        """Return the numbers, float32, on the symbols' device.

        A product beyond float32 (the last level of a range as wide as float32 itself) becomes its largest number.
        """
        numbers = self.symbols.float()
        if self.zero_points is not None:
            numbers -= along(self.zero_points.float(), self.axis, numbers.ndim)
        return numbers.mul_(along(self.scales, self.axis, numbers.ndim)).clamp_(-_LARGEST, _LARGEST)

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """Return the same on another device: a byte a number moves, not four."""
        points = None if self.zero_points is None else self.zero_points.to(device)
        symbols, scales = self.symbols.to(device), self.scales.to(device)
        return QuantizedTensor(symbols, self.bits, self.signed, self.axis, scales, points)

    def value(self) -> Quantized:
        """Return what a message carries, in memory that numpy sees; a copy only where it is on a device."""
        points = None if self.zero_points is None else self.zero_points.cpu().numpy().astype(np.int32)
        return Quantized(self.symbols.cpu().numpy(), self.bits, self.scales.cpu().numpy(), points, self.axis)


def count_scales(tensor: Tensor, axis: int | None) -> int:
    """Return how many scales a tensor has; raises ValueError if it does not have the axis."""
    if axis is None:
        return 1
    if not 0 <= axis < tensor.ndim:
        raise ValueError(f"axis must be None or from 0 to {tensor.ndim - 1}, got {axis}")
    return tensor.shape[axis]


def along(per_scale: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Return one number a scale in a shape that broadcasts against the tensor.

    Never a number on the host: torch divides a tensor of a GPU by such a one by multiplying with its reciprocal, whose
    rounding differs.
    """
    if axis is None:
        return per_scale.view([1] * ndim)
    return per_scale.view([-1 if dim == axis else 1 for dim in range(ndim)])
