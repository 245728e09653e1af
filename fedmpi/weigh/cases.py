"""Arrays as messages of one value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fedmpi.compress.quantize import levels_for, quantize
from fedmpi.errors import ConfigError
from fedmpi.weigh.arrays import MAX_BITS, Options, load_array, name_dtype, nonzero, way_to_dense
from fedmpi.wire.known import Known, KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.message import KINDS, Message, dense, mask, message, quantized, sparse
from fedmpi.wire.values import Dense, Mask, Quantized, Sparse, storage


class Case(NamedTuple):
    """An array as a message.

    Attributes
    ----------
    message : Message
    known : Known
        What both ends hold.
    rounding_error : float, optional
        The largest that was made before there were whole numbers to send.
    """

    message: Message
    known: Known
    rounding_error: float | None = None


def make_case(path: Path, array: np.ndarray, kind: str, options: Options) -> Case:
    """Return an array as a message of one value, and what it may be coded against.

    Raises
    ------
    ConfigError
        If the options do not fit the array, or what their files hold.
    DataError
        If a file of theirs is missing or broken.
    """
    case = _MAKERS[kind](path, array, options)
    # The table of kinds is for messages that may come, and no run sends this one. (A maker makes its class at last.)
    del KINDS[case.message.kind_id]
    return case


def _mask_case(path: Path, array: np.ndarray, options: Options) -> Case:
    known, prior = Known(), None
    if options.prior is not None:
        theta = _companion(options.prior, array, "the probabilities", "floats")
        try:
            prior = KnownProbabilities.of(theta, 0)
        except ValueError as error:
            raise ConfigError(f"{options.prior}: {error}") from None
        known.hold("prior", prior)
    bits = Mask(array.reshape(-1), prior, _base_mask(array, options, known))

    @message("weighed-mask", "up")
    class WeighedMask(Message):
        value: Mask = mask(array.size, prior="prior", base="base")

    return Case(WeighedMask(value=bits), known)


def _sparse_case(path: Path, array: np.ndarray, options: Options) -> Case:
    numbers, dtype, known = array.reshape(-1), name_dtype(path, array, options), Known()
    indices = np.flatnonzero(nonzero(numbers))
    update = Sparse(array.size, indices, numbers[indices], dtype, _base_mask(array, options, known))

    @message("weighed-sparse", "up")
    class WeighedSparse(Message):
        value: Sparse = sparse(array.size, dtype=dtype, base="base")

    return Case(WeighedSparse(value=update), known)


def _quantized_case(path: Path, array: np.ndarray, options: Options) -> Case:
    numbers, bits, error = np.atleast_1d(array), options.bits, None
    if array.dtype.kind != "f":
        symbols = _whole_numbers(path, numbers, bits)
    elif bits is None:
        raise ConfigError(f"{path}: {array.dtype} must be rounded to be sent as quantized; say to how many --bits")
    else:
        symbols, error = _rounded(path, numbers, bits)

    @message("weighed-quantized", "up")
    class WeighedQuantized(Message):
        value: Quantized = quantized(numbers.shape)

    return Case(WeighedQuantized(value=symbols), Known(), error)


def _dense_case(path: Path, array: np.ndarray, options: Options) -> Case:
    dtype, known, base = name_dtype(path, array, options), Known(), None
    if options.base is not None:
        base = KnownVector(_companion(options.base, array, "the numbers that are held", str(storage(dtype))), 0)
        known.hold("base", base)

    @message("weighed-dense", "up")
    class WeighedDense(Message):
        value: Dense = dense(array.size, dtype=dtype, base="base")

    return Case(WeighedDense(value=Dense(array.reshape(-1), dtype=dtype, base=base)), known)


_MAKERS: dict[str, Callable[[Path, np.ndarray, Options], Case]] = {
    "mask": _mask_case,
    "sparse": _sparse_case,
    "quantized": _quantized_case,
    "dense": _dense_case,
}


def _companion(path: Path, array: np.ndarray, what: str, wanted: str) -> np.ndarray:
    """Load a vector that goes with an array; `wanted` is a dtype or "floats"."""
    found = load_array(path)
    if found.shape != array.shape:
        raise ConfigError(f"{path}: {what} must have the array's shape {array.shape}, got {found.shape}")
    if found.dtype.kind != "f" if wanted == "floats" else str(found.dtype) != wanted:
        raise ConfigError(f"{path}: {what} must be {wanted}, got {found.dtype}")
    return found.reshape(-1)


def _base_mask(array: np.ndarray, options: Options, known: Known) -> KnownMask | None:
    if options.base is None:
        return None
    base = KnownMask(_companion(options.base, array, "the mask that is held", "bool"), 0)
    known.hold("base", base)
    return base


def _whole_numbers(path: Path, numbers: np.ndarray, bits: int | None) -> Quantized:
    lowest, highest = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    signed = lowest < 0
    needed = max(1, highest.bit_length() + signed, (-lowest - 1).bit_length() + 1 if signed else 0)
    if signed and needed <= 2:
        needed = 1 if bool((np.abs(numbers) == 1).all()) else 2  # one bit with a sign is the sign, and has no 0
    if needed > (bits or MAX_BITS):
        limit = f"--bits {bits}" if bits else str(MAX_BITS)
        way_out = f": {way_to_dense(numbers)}" if needed > MAX_BITS else ""
        raise ConfigError(f"{path}: numbers from {lowest} to {highest} need {needed} bits, more than {limit}{way_out}")
    symbols = numbers.astype(np.int8 if signed else np.uint8)
    return Quantized(symbols, bits or needed, np.ones(1, np.float32))


def _rounded(path: Path, numbers: np.ndarray, bits: int) -> tuple[Quantized, float]:
    """Return floats rounded to whole numbers, and the largest error that this makes."""
    with np.errstate(over="ignore"):
        singles = numbers.astype(np.float32)
    if not np.isfinite(singles).all():
        raise ConfigError(f"{path}: NaN, infinity and numbers beyond float32 cannot be rounded to {bits} bits")
    if not singles.size:
        return Quantized(singles.astype(np.uint8), bits, np.ones(1, np.float32)), 0.0
    tensor = torch.from_numpy(singles)
    rounded = quantize(tensor, bits, levels_for(tensor))
    value = Quantized(rounded.symbols.numpy(), bits, rounded.scales.numpy())
    return value, float(np.abs(value.dequantize().numpy().astype(np.float64) - numbers).max())
