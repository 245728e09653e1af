"""The Shannon bound of what is sent, by the definitions of docs/wire_format.md: fewest bits under a model of the data.

Neither tables nor headers are counted, nor the word that says which model it was. No codec imports this module and it
imports none: the yardstick must not know the coder.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

from fedmpi.wire.known import P12_ONE, KnownMask, KnownProbabilities
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Numbers, Quantized, Sparse, Value

SCALE_NBITS = 32
"""Bits of a scale of quantized numbers: a float32."""


def bound_nbits(message: Message, schema: Schema) -> float:
    """Return the Shannon bound of a message in bits: that of its values and numbers before any coding."""
    nbits = 0.0
    for field, spec in zip(message.value_fields, schema.specs(type(message)), strict=True):
        value = getattr(message, field.name)
        if value is not None:
            nbits += value_bound_nbits(value, spec.segments)
    for number in message.number_fields:
        nbits += number_bound_nbits(number.number_class(getattr(message, number.name)), number.dtype)
    return nbits


def number_bound_nbits(number: int | float, dtype: str) -> float:
    """Return 64 for a float (32 for a "float32"), and for an int the bits of its zigzag form, at least 1."""
    if dtype != "int":
        return 32.0 if dtype == "float32" else 64.0
    whole = int(number)
    zigzag = 2 * whole if whole >= 0 else -2 * whole - 1
    return float(max(1, zigzag.bit_length()))


def value_bound_nbits(value: Value, segments: np.ndarray | None = None) -> float:
    """Return the Shannon bound of one value in bits.

    Parameters
    ----------
    value : Value
    segments : numpy.ndarray, shape (tensors + 1,), int64, optional
        Where the model's tensors begin, and the end, for sets of positions that have a density a tensor.

    Raises
    ------
    TypeError
        If no bound is defined for the value's class.
    """
    if isinstance(value, Dense):
        return 8.0 * value.array.nbytes
    if isinstance(value, Mask):
        return _mask_nbits(value, segments)
    if isinstance(value, Sparse):
        return _positions_nbits(value, segments) + _numbers_nbits(value.values, value.dtype)
    if isinstance(value, MaskedValues):
        return _numbers_nbits(value.values, value.dtype)
    if isinstance(value, Quantized):
        return _quantized_nbits(value)
    if isinstance(value, Labels):
        return value.numel * math.log2(max(1, value.num_classes))
    if isinstance(value, Counts):
        # The bit length of x >= 1 is the number of powers of 2 that are not above it.
        lengths = np.searchsorted(2 ** np.arange(63), value.array, side="right")
        return float(np.maximum(lengths, 1).sum())
    raise TypeError(f"no bound is defined for {type(value).__name__}")


def log2_choose(n: int, k: int) -> float:
    """Return log2 C(n, k), the bits that say which k of n positions; 0 for k = 0 and k = n."""
    if k in (0, n):
        return 0.0
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def entropy_nbits(counts: np.ndarray) -> float:
    """Return n H: the bits of n symbols coded by how often each occurs.

    Parameters
    ----------
    counts : numpy.ndarray, shape (..., symbols), int64
        A row for each class of symbols that is coded by itself.
    """
    totals = np.broadcast_to(counts.sum(axis=-1, keepdims=True), counts.shape)
    occurs = counts > 0
    # Every term is a ratio's logarithm, so that a single symbol costs exactly 0 and nothing is ever negative.
    return float((counts[occurs] * np.log2(totals[occurs] / counts[occurs])).sum())


def cross_entropy_nbits(bits: np.ndarray, prior: KnownProbabilities) -> float:
    """Return the sum of -log2 q over bits, with q the probability that each one's value was held to have.

    Parameters
    ----------
    bits : numpy.ndarray, shape (n,), bool
    prior : KnownProbabilities
        Of n bits.
    """
    # How often each probability met each bit is all that counts: 8192 logarithms instead of one a position.
    counts = np.bincount((prior.array << 1) | bits, minlength=2 * P12_ONE).reshape(P12_ONE, 2)[1:]
    p12 = np.arange(1, P12_ONE)
    return float((counts[:, 1] * np.log2(P12_ONE / p12) + counts[:, 0] * np.log2(P12_ONE / (P12_ONE - p12))).sum())


def _mask_nbits(value: Mask, segments: np.ndarray | None) -> float:
    bits = value.bits
    edges = _edges(bits.size, segments)
    models = [math.fsum(log2_choose(end - start, _count(bits[start:end])) for start, end in pairwise(edges))]
    if value.base is not None:
        models.append(_change_nbits(value.base, _count(bits), _count(bits & value.base.array)))
    if value.prior is not None:
        models.append(cross_entropy_nbits(bits, value.prior))
    # The sender may choose among all that both ends know of, and so may the yardstick.
    return min(models)


def _positions_nbits(value: Sparse, segments: np.ndarray | None) -> float:
    edges = _edges(value.size, segments)
    before = np.searchsorted(value.indices, edges).tolist()
    sizes = (end - start for start, end in pairwise(edges))
    kept = (end - start for start, end in pairwise(before))
    models = [math.fsum(map(log2_choose, sizes, kept))]
    if value.base is not None:
        in_both = _count(value.base.array[value.indices])
        models.append(_change_nbits(value.base, value.num_kept, in_both))
    return min(models)


def _edges(numel: int, segments: np.ndarray | None) -> list[int]:
    """Return where the sets begin that have a density of their own; a shorter vector's tensors are not known."""
    if segments is None or segments[-1] != numel:
        return [0, numel]
    edges: list[int] = segments.tolist()
    return edges


def _count(kept: np.ndarray) -> int:
    return int(np.count_nonzero(kept))


def _change_nbits(base: KnownMask, num_kept: int, in_both: int) -> float:
    """Return the bits of which positions of `base` were dropped, and which of the others were added."""
    before = _count(base.array)
    return log2_choose(before, before - in_both) + log2_choose(base.array.size - before, num_kept - in_both)


def _numbers_nbits(numbers: Numbers, dtype: str) -> float:
    """Return the bits of numbers coded by how often each byte occurs among those of its significance."""
    if isinstance(numbers, Quantized):
        return _quantized_nbits(numbers)
    width = numbers.dtype.itemsize
    words = np.ascontiguousarray(numbers)
    if "float" in dtype:
        # With the sign at the bottom the top byte holds the exponent only, which is what repeats.
        unsigned = words.view(f"u{width}")
        words = (unsigned << 1) | (unsigned >> (8 * width - 1))
    elif dtype.startswith("int"):
        words = (words << 1) ^ (words >> (8 * width - 1))  # 0, -1, 1, -2: small numbers have small bytes
    planes = words.view(np.uint8).reshape(-1, width)
    return entropy_nbits(np.stack([np.bincount(planes[:, byte], minlength=256) for byte in range(width)]))


def _quantized_nbits(value: Quantized) -> float:
    nbits = float(SCALE_NBITS * value.scales.size)
    if value.zero_points is not None:
        nbits += value.bits * value.zero_points.size
    if not value.numel:
        return nbits
    lowest = -(2 ** (value.bits - 1)) if value.signed else 0
    # Modulo 256 this is symbol - lowest, for int8 as for uint8.
    symbols: np.ndarray = value.symbols.view(np.uint8) - np.uint8(lowest % 256)
    if value.signed and value.bits == 1:
        symbols = symbols >> 1  # signs are -1 and 1
    height, width = (1, 1, *symbols.shape)[-2:]
    zero = _zero_symbol(value) - lowest
    counts = _count_by_neighbours(symbols.reshape(-1, height, width), value.bits, zero)
    return nbits + entropy_nbits(np.add.reduceat(counts, _class_starts(value.bits, zero), axis=0))


def _zero_symbol(value: Quantized) -> int:
    """Return the symbol that stands for 0 in most places: of several zero points the median, the upper of two."""
    if value.zero_points is None:
        return 0
    middle = value.zero_points.size // 2
    return int(np.partition(value.zero_points, middle)[middle])


def _count_by_neighbours(maps_MHW: np.ndarray, bits: int, zero: int) -> np.ndarray:
    """Return how often each symbol follows each sum of its left and upper neighbours.

    Of shape (2^(bits + 1) - 1, 2^bits). At the left and upper edge the neighbour that is there counts twice.
    """
    seen_MHW = np.zeros(maps_MHW.shape, np.uint32)
    seen_MHW[:, :, 1:] = maps_MHW[:, :, :-1]
    seen_MHW[:, 1:, :] += maps_MHW[:, :-1, :]
    seen_MHW[:, 0, 1:] *= 2
    seen_MHW[:, 1:, 0] *= 2
    seen_MHW[:, 0, 0] = 2 * zero
    # Sum and symbol as one number, so that one pass of numpy counts all pairs: 4 ms for 10^6 symbols.
    seen_MHW <<= bits
    seen_MHW |= maps_MHW
    num_sums, num_symbols = 2 ** (bits + 1) - 1, 2**bits
    return np.bincount(seen_MHW.reshape(-1), minlength=num_sums * num_symbols).reshape(num_sums, num_symbols)


@lru_cache
def _class_starts(bits: int, zero: int) -> tuple[int, ...]:
    """Return the sums of two neighbours at which a class begins; classes rise with the sum."""
    classes = [_neighbour_class(total - 2 * zero, bits, zero) for total in range(2 ** (bits + 1) - 1)]
    return 0, *(at for at in range(1, len(classes)) if classes[at] != classes[at - 1])


def _neighbour_class(excess: int, bits: int, zero: int) -> int:
    """Return the class of two neighbours by how far their sum is above that of two zeros, 0 to 11."""
    if zero == 0:
        return _half_octave(excess, 2 * max(bits - 5, 0))
    octave = min(5, max(1, abs(excess).bit_length() - max(bits - 5, 0)))
    return 5 + octave * ((excess > 0) - (excess < 0))


def _half_octave(total: int, skipped: int) -> int:
    """Return 0 for 0, else the rank of the half octave in 1, 2, 3, 4-5, 6-7, 8-11, ... without the first `skipped`."""
    if total < 2:
        return total
    digits = total.bit_length()
    return max(1, 2 * digits - 2 + (total >> (digits - 2) & 1) - skipped)
