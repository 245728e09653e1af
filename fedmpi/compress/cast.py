"""Fewer bits a number by another float type, and the numpy arrays that such numbers travel in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedmpi.errors import NonFiniteError

CAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types that a float32 number can be sent as."""


class CastOverflowError(NonFiniteError, ValueError):
    """A finite number is too large for the type that it is to be sent in."""


def cast(numbers: Tensor, dtype: torch.dtype, *, on_overflow: Literal["raise", "clamp"] = "raise") -> Tensor:
    """Round float32 numbers to the nearest of `dtype`, ties to even (IEEE 754, roundTiesToEven).

    float16 has 11 significant bits, a largest number of 65504, a smallest normal one of 2^-14 and steps of 2^-24 below
    it: what is at most 2^-25 becomes 0. bfloat16 has 8 significant bits and the exponents of float32. The way back,
    ``result.float()``, is exact.

    Parameters
    ----------
    numbers : Tensor, float32, any shape and device
    dtype : {torch.float32, torch.float16, torch.bfloat16}
        float32 changes nothing, and gives back `numbers` itself.
    on_overflow : {"raise", "clamp"}
        What becomes of a finite number that would round to infinity: an error, or the largest number of `dtype`.

    Returns
    -------
    Tensor of `dtype`, finite

    Raises
    ------
    NonFiniteError
        If there is a NaN or an infinity among the numbers.
    CastOverflowError
        If a finite number is too large and `on_overflow` is "raise".
    ValueError
        For other dtypes, and another word for `on_overflow`.
    """
    if dtype not in CAST_DTYPES:
        raise ValueError(f"a cast gives float32, float16 or bfloat16, got {dtype}")
    if numbers.dtype != torch.float32:
        raise ValueError(f"a cast takes float32, got {numbers.dtype}")
    if on_overflow not in ("raise", "clamp"):
        raise ValueError(f"on_overflow must be 'raise' or 'clamp', got {on_overflow!r}")
    result = numbers.detach().to(dtype)
    if bool(torch.isfinite(result).all()):  # the one wait for the device in the usual case
        return result
    if not bool(torch.isfinite(numbers).all()):
        raise NonFiniteError(f"the numbers to be sent as {_name(dtype)} hold NaN or infinity")
    largest = torch.finfo(dtype).max
    if on_overflow == "clamp":
        return numbers.detach().clamp(-largest, largest).to(dtype)
    too_large = int(torch.isinf(result).sum())
    raise CastOverflowError(
        f"{too_large} of {numbers.numel()} numbers are too large for {_name(dtype)}: the largest is "
        f"{float(numbers.abs().max()):.6g}, the limit {largest:.6g}. Send them as bfloat16 or float32, or clamp them"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
