"""How large a set's codecs may come out, before any is run: at random, and where its positions may cluster.

Floats may decide here: the codec that is chosen travels, and the coders' own tables are integers.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fedmpi.wire.codecs import change, layers
from fedmpi.wire.codecs import positions as sets
from fedmpi.wire.codecs.base import NAMES, ZSTD
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import P12_ONE

REFERENCE_NBYTES = 5
"""Bytes of a reference at least."""

_LEAST_PIECE = 256
"""Bytes of a piece of a sample below which zstd is run at once."""

_TABLES = 1024
"""Bytes that eight times a sample's own tables may come to."""

SMALL = 4096
"""Positions of a set so small that everything is tried: estimates of it say little, and coding it takes no time."""

_FEW = 32
"""Every 32nd position: no more moves than these are ranked at once, which takes as long as a test of clusters."""

_PIECES, _PIECE = 32, 1 / 256
"""Pieces of a sample of what moved, each this part of it."""


def may_cluster(positions: Positions, nbytes: int) -> bool:
    """Return whether zstd may bring a set below a size, judged by eight samples of a 64th each."""
    packed = positions.packed
    piece = packed.size // 64
    if piece < _LEAST_PIECE:
        return True
    # A sample repeats itself less than the whole, and pays for tables of its own.
    return 8 * _zstd_nbytes(_sample(packed, 8, piece)) < 4 * nbytes + _TABLES


def moves_may_cluster(moves: change.Moves, best: int) -> bool:
    """Return whether ranks may come below a size, though they would not at random."""
    numel, num_moved = moves.positions.numel, moves.num_dropped + moves.num_grown
    if numel <= SMALL or num_moved <= numel // _FEW:
        return True
    # The sets of ranks cluster about as the moves do: by as much as zstd needs less for these than for random ones.
    size = moves.changed.size
    sample = _sample(moves.changed, _PIECES, max(int(size * _PIECE), 1)) if size > 1 << 13 else moves.changed
    return _zstd_nbytes(sample) * size / sample.size * ranks_nbytes(moves) < best * set_nbytes(numel, num_moved)


def _sample(packed: np.ndarray, pieces: int, length: int) -> np.ndarray:
    """Return pieces of packed bits from all over them, one after the other."""
    return packed[: packed.size // pieces * pieces].reshape(pieces, -1)[:, :length].reshape(-1)


def _zstd_nbytes(packed: np.ndarray) -> int:
    return sets.encode_set(Positions(8 * packed.size, packed=packed), NAMES[ZSTD]).payload.size


def layers_nbytes(positions: Positions, segments: np.ndarray) -> float:
    """Estimate the size of a set coded tensor by tensor, none of which clusters."""
    kept = layers.counts_kept(positions, segments).tolist()
    numels = np.diff(segments).tolist()
    return sum(1 + set_nbytes(n, k) if 0 < k < n else min(n, 1) for n, k in zip(numels, kept, strict=True))


def ranks_nbytes(moves: change.Moves) -> float:
    """Estimate the size of what was dropped and what was grown, as ranks that do not cluster."""
    num_dropped, num_grown, num_kept, num_others = moves.sizes
    dropped = 1 + set_nbytes(num_kept, num_dropped) if num_dropped else 0
    return REFERENCE_NBYTES + 1 + dropped + (set_nbytes(num_others, num_grown) if num_grown else 0)


def set_nbytes(numel: int, count: int) -> float:
    """Estimate from below the size of a set at random: log2 C(n, k) bits and a header, a byte a gap, or all bits."""
    nbytes = (math.lgamma(numel + 1) - math.lgamma(count + 1) - math.lgamma(numel - count + 1)) / (8 * math.log(2))
    header = ((2 * min(count, numel - count) | 1).bit_length() + 6) // 7
    long_gaps = count * (1 - count / numel) ** 128 if numel > 128 else 0  # of two bytes where seven bits are too few
    return min(numel / 8, header + nbytes, count + long_gaps)


_COSTS = np.round(-np.log2(np.arange(1, P12_ONE + 1) / P12_ONE) * (1 << 16)).astype(np.int64)
"""Bits that a symbol of probability (i + 1) / 4096 costs, in units of 2^-16."""


@njit(cache=True)
def _cross_entropy(bits, p12, costs):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(bits.size):
        p = np.int64(p12[i])
        total += costs[(p if bits[i] else P12_ONE - p) - 1]
    return total


def cross_entropy_nbytes(bits: np.ndarray, p12: np.ndarray) -> float:
    """Return the bytes that bits cost under known probabilities."""
    # A read-only array is another type to numba, which would compile the kernel again.
    return float(_cross_entropy(bits, np.require(p12, np.uint16, ["C", "W"]), _COSTS)) / (8 << 16)
