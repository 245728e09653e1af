"""Uniform rounding to b bits: of activations, and of the values of an update.

With L levels above zero and a step s, a number x becomes the symbol q and is read as x':

    unsigned    L = 2^b - 1          s = max(x) / L                          q = round(x / s)        x' = q s
    symmetric   L = 2^(b-1) - 1      s = max|x| / L                          q = round(x / s)        x' = q s
    affine      L = 2^b - 1          s = (max(x, 0) - min(x, 0)) / L         q = round(x / s) + z    x' = (q - z) s
                                     z = round(-min(x, 0) / s)
    symmetric   b = 1                s = mean|x|                             q = sign(x), 1 for 0    x' = q s

The affine form is that of Jacob et al. 2018 ("Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", equation 1), whose range always holds 0, so that 0 comes back as 0. One bit with a
sign is the sign times the mean magnitude, the scale of least squares (Rastegari et al. 2016, XNOR-Net, equation 6;
Karimireddy et al. 2019 for updates); it alone has no level at 0.

Rounding is to nearest, half to even, or stochastic: up with the probability of the rest, so that the mean of x' is x
(Alistarh et al. 2017, QSGD, section 3.1, with uniform levels of max|x|). Stochastic signs have s = max|x| and are 1
with probability (1 + x / s) / 2.

For numbers that are not clipped, the error |x - x'| is at most s / 2 (s if stochastic) and |x| 2^-23 more for the two
roundings in float32, or 2^-149 among subnormal numbers; signs alone have no such bound. Steps are rounded up to
float32, so that the largest number never lies beyond the last level, not even among subnormal numbers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedmpi.compress.quantized import QuantizedTensor, along, count_scales
from fedmpi.errors import NonFiniteError

Levels = Literal["unsigned", "symmetric", "affine"]

_LARGEST = torch.finfo(torch.float32).max


@torch.no_grad()
def quantize(
    tensor: Tensor,
    bits: int,
    levels: Levels,
    *,
    axis: int | None = None,
    clip_percentile: float | None = None,
    rng: np.random.Generator | None = None,
) -> QuantizedTensor:
    """Round a tensor to b bits a number.

    Parameters
    ----------
    tensor : Tensor, float32, any shape but an empty one, any device
    bits : int
        b, from 1 to 8.
    levels : {"unsigned", "symmetric", "affine"}
        "unsigned" is for numbers that are never negative, such as activations behind a ReLU; see `levels_for`.
    axis : int, optional
        A scale for each index of this axis: 0 for each sample of a batch or each output channel of a weight, 1 for each
        channel of activations of shape (B, C, H, W). One scale for all by default.
    clip_percentile : float, optional
        In (0, 100): the range ends at this percentile of the magnitudes (by nearest rank, for each scale), and what
        lies beyond takes the last level. Where the percentile is 0 the range is left as it is.
    rng : numpy.random.Generator, optional
        Round stochastically with uniform numbers from here: one a number, in the tensor's logical order, drawn on the
        host, so that the result is the same on every device. By default rounding is to nearest.

    Returns
    -------
    QuantizedTensor
        On the tensor's device, its symbols contiguous whatever the tensor's memory format.

    Raises
    ------
    NonFiniteError
        If the tensor holds NaN or infinity.
    ValueError
        If an argument is out of range, a number is negative and the levels are unsigned, or the step does not fit
        float32 (1 bit, affine, of a range wider than float32's largest number).

    Notes
    -----
    Stochastic rounding is unbiased for numbers within the levels. Those of "unsigned" and "symmetric" hold all that is
    not clipped; the outermost half step of "affine" may be, where the zero point was rounded.
    """
    _check(tensor, bits, levels, clip_percentile)
    num_scales = count_scales(tensor, axis)
    lowest, highest = _ranges(tensor, axis)
    if levels == "unsigned" and bool((lowest < 0).any()):
        raise ValueError(
            f"unsigned levels are for numbers >= 0, got {float(lowest.min()):.6g}: use symmetric or affine"
        )
    if clip_percentile is not None:
        limits = _percentiles(tensor, num_scales, axis, clip_percentile)
        lowest, highest = torch.maximum(lowest, -limits), torch.minimum(highest, limits)
    signs = levels == "symmetric" and bits == 1
    last = 2 ** (bits - 1) - 1 if levels == "symmetric" and not signs else 2**bits - 1
    zero_points = None
    if levels == "affine":
        low, high = lowest.double().clamp(max=0), highest.double().clamp(min=0)
        scales = _steps((high - low) / last)
        if bits == 1 and bool(torch.isinf(scales).any()):
            raise ValueError("1 bit, affine: the range is wider than float32's largest number, use symmetric levels")
        zero_points = (-low / _divisors(scales).double()).round().clamp(0, last).to(torch.uint8)
    elif signs and rng is None:
        scales = _mean_magnitudes(tensor, axis)
    else:
        scales = _steps(torch.maximum(-lowest, highest).double() / last)
    first = -last if levels == "symmetric" else 0
    ratios = tensor / along(_divisors(scales), axis, tensor.ndim)
    if signs:
        # The two levels are two steps apart: in steps of two, from the lower one.
        bit = (ratios >= 0).float() if rng is None else _round(ratios.add_(1).div_(2).clamp_(0, 1), rng)
        symbols = bit.mul_(2).sub_(1)
    else:
        symbols = _round(ratios, rng)
        if zero_points is not None:
            symbols += along(zero_points.float(), axis, tensor.ndim)
        symbols.clamp_(first, last)
    signed = levels == "symmetric"
    dtype = torch.int8 if signed else torch.uint8
    symbols = symbols.to(dtype, memory_format=torch.contiguous_format)
    return QuantizedTensor(symbols, bits, signed, axis, scales, zero_points)


@torch.no_grad()
def quantize_by_largest(tensor: Tensor, bits: int) -> QuantizedTensor:
    """Round to signed levels by the largest number in place of the largest magnitude, as EcoFed's code does.

    With L = 2^(b-1) - 1: s = max(x) / L, q = round(x / s), from -(L + 1) to L. Where no number is further from 0 than
    the largest this is what `quantize` makes with symmetric levels. Otherwise numbers below -(L + 1) s are cut off, and
    where all are negative, s is too, and each is read as the largest.

    Parameters
    ----------
    tensor : Tensor, float32, any shape but an empty one, any device
    bits : int
        b, from 2 to 8.

    Raises
    ------
    NonFiniteError
        If the tensor holds NaN or infinity.
    ValueError
        If an argument is out of range.
    """
    _check(tensor, bits, "symmetric", None)
    if bits == 1:
        raise ValueError("bits must be from 2 to 8 by the largest number, got 1")
    _, highest = _ranges(tensor, None)
    last = 2 ** (bits - 1) - 1
    scales = _steps(highest.double() / last)
    # Without a step all is read as 0, whatever the symbols.
    ratios = tensor / along(torch.where(scales != 0, scales, math.inf), None, tensor.ndim)
    symbols = _round(ratios, None).clamp_(-last - 1, last)
    return QuantizedTensor(symbols.to(torch.int8, memory_format=torch.contiguous_format), bits, True, None, scales)


def levels_for(tensor: Tensor) -> Levels:
    """Return the levels that fit a tensor: "unsigned" if no number is negative, which halves the step, else symmetric.

    Waits for the device.
    """
    return "symmetric" if bool(tensor.amin() < 0) else "unsigned"  # one pass; NaN is for `quantize` to refuse


def _check(tensor: Tensor, bits: int, levels: str, clip_percentile: float | None) -> None:
    if tensor.dtype != torch.float32 or tensor.numel() == 0:
        raise ValueError(f"quantize takes numbers of float32, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, got {bits}")
    if levels not in get_args(Levels):
        raise ValueError(f"levels must be one of {', '.join(get_args(Levels))}, got {levels!r}")
    if clip_percentile is not None and not 0 < clip_percentile < 100:
        raise ValueError(f"clip_percentile must be in (0, 100), got {clip_percentile}; None clips nothing")


def _other_axes(tensor: Tensor, axis: int | None) -> list[int]:
    return [dim for dim in range(tensor.ndim) if dim != axis]


def _ranges(tensor: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest number of each scale, shape (num_scales,); raise NonFiniteError."""
    axes = _other_axes(tensor, axis)
    if axes:
        lowest, highest = tensor.amin(axes).view(-1), tensor.amax(axes).view(-1)
    else:
        lowest = highest = tensor.view(-1)
    # Both pass a NaN on, and an infinity is one of them.
    if not bool((torch.isfinite(lowest) & torch.isfinite(highest)).all()):
        raise NonFiniteError("the tensor to be quantized holds NaN or infinity")
    return lowest, highest


def _percentiles(tensor: Tensor, num_scales: int, axis: int | None, percentile: float) -> Tensor:
    """Return the percentile of the magnitudes of each scale, by nearest rank; the largest number where it is 0."""
    rows = (tensor if axis is None else tensor.movedim(axis, 0)).reshape(num_scales, -1)
    # In decimals: 99.9 / 100 * 1000 is 999.0000000000001 in float64, one rank too high.
    rank = rows.shape[1] - math.ceil(Fraction(str(percentile)) * rows.shape[1] / 100) + 1
    if tensor.device.type == "cpu":
        from fedmpi.compress.select_kernels import kth_largest_of_rows  # numba: only a run that clips loads it

        words = rows.contiguous().view(torch.int32).numpy()
        limits = torch.from_numpy(kth_largest_of_rows(words, rank)).view(torch.float32)
    else:
        limits = torch.topk(rows.abs(), rank, sorted=False).values.amin(1)
    return torch.where(limits > 0, limits, _LARGEST)


def _mean_magnitudes(tensor: Tensor, axis: int | None) -> Tensor:
    """Return the mean magnitude of each scale; summed in float64, where no finite numbers overflow."""
    axes = _other_axes(tensor, axis)
    magnitudes = tensor.abs().double()
    return _steps(magnitudes.mean(axes).view(-1) if axes else magnitudes.view(-1))


def _steps(exact: Tensor) -> Tensor:
    """Round steps from float64 up to float32; what is not 0 stays so."""
    steps = exact.float()
    return torch.where(steps.double() < exact, torch.nextafter(steps, torch.full_like(steps, math.inf)), steps)


def _divisors(scales: Tensor) -> Tensor:
    """Return the scales with 1 in place of 0: such a slice is all 0, and stays so."""
    return torch.where(scales > 0, scales, 1.0)


def _round(ratios: Tensor, rng: np.random.Generator | None) -> Tensor:
    """Round to integers, half to even or, with a generator, up with the probability of the fraction."""
    if rng is None:
        return ratios.round_()
    uniforms = torch.from_numpy(rng.random(tuple(ratios.shape), np.float32)).to(ratios.device)
    below = ratios.floor()
    # Not floor(x + u): that sum can round up to the next integer, and an integer would not stay one.
    return below + (uniforms < ratios - below)
