"""The k numbers of largest magnitude, exactly: of equal magnitudes those of the lowest index.

The result is a function of the numbers alone, the same on every device: sparse messages, their sizes and the sums made
of them are then the same, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmpi.errors import NonFiniteError

_INFINITY = 0x7F800000


def num_kept(numel: int, density: float) -> int:
    """Return how many of `numel` numbers a density keeps: density * numel, rounded half to even, and at least one.

    Raises
    ------
    ValueError
        If the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}; 1.0 is dense")
    return min(numel, max(1, round(density * numel)))


def counts_by_segment(offsets: Sequence[int] | np.ndarray, density: float) -> np.ndarray:
    """Return `num_kept` of each segment, shape (L,), int64; `offsets` has shape (L + 1,)."""
    return np.array([num_kept(int(numel), density) for numel in np.diff(offsets)], np.int64)


def topk_indices(
    vector_P: Tensor, k: int | Sequence[int] | np.ndarray, offsets: Sequence[int] | np.ndarray | None = None
) -> Tensor:
    """Return the indices of the k numbers of largest magnitude, of the whole vector or of each of its segments.

    Parameters
    ----------
    vector_P : Tensor, shape (P,), float32, any device
        May hold infinity, which is larger than every number.
    k : int, or L ints
        How many of the vector, or of each segment: from 1 to its length, 0 only where it is empty.
    offsets : L + 1 ints, optional
        Segment l is ``vector_P[offsets[l] : offsets[l + 1]]``; they cover the vector.

    Returns
    -------
    Tensor, shape (sum of k,), int64, ascending, on the vector's device
        All magnitudes among the chosen are at least as large as any that is not; of those equal to the smallest chosen
        one the lowest indices are taken. -0.0 and 0.0 are equal.

    Raises
    ------
    NonFiniteError
        If the vector holds NaN.
    ValueError
        If it is not a vector of float32, or k or the offsets do not fit it.
    """
    if vector_P.ndim != 1 or vector_P.dtype != torch.float32:
        raise ValueError(f"expected a vector of float32, got {vector_P.dtype} of shape {tuple(vector_P.shape)}")
    bounds = np.array([0, vector_P.numel()] if offsets is None else offsets, np.int64)
    counts = np.array([k] if offsets is None else k, np.int64)
    _check_segments(vector_P.numel(), bounds, counts)
    words_P = vector_P.detach().contiguous().view(torch.int32)
    if vector_P.device.type != "cpu":
        return _topk_on_device(words_P, bounds, counts)
    from fedmpi.compress.select_kernels import largest_by_segment  # numba: only a run that selects loads it

    out = np.empty(int(counts.sum()) + 1, np.int64)
    if largest_by_segment(words_P.numpy(), bounds, counts, out):
        raise _nan_error()
    return torch.from_numpy(out[:-1])


def warm_up() -> None:
    """Compile, or load from the cache, what choosing on a CPU needs: for short vectors and for long ones."""
    from fedmpi.compress.select_kernels import MIN_SAMPLED

    for numel in (10, MIN_SAMPLED + 1):
        topk_indices(torch.arange(numel, dtype=torch.float32), 1)
        topk_indices(torch.arange(numel, dtype=torch.float32), [1, 1], [0, 1, numel])


def _topk_on_device(words_P: Tensor, offsets: np.ndarray, counts: np.ndarray) -> Tensor:
    """Do as `topk_indices` does, in torch's operations alone; waits for the device twice, whatever the segments.

    The bits without the sign, read as integers, are ordered as the magnitudes are, and no mode of a device flushes
    small integers to zero.
    """
    keys_P = words_P & 0x7FFFFFFF
    if bool((keys_P > _INFINITY).any()):
        raise _nan_error()
    chosen_P = torch.zeros(keys_P.shape, dtype=torch.bool, device=keys_P.device)
    for start, stop, k in zip(offsets[:-1].tolist(), offsets[1:].tolist(), counts.tolist(), strict=True):
        if k == 0:
            continue
        keys, chosen = keys_P[start:stop], chosen_P[start:stop]
        threshold = torch.topk(keys, k, sorted=False).values.min()
        torch.gt(keys, threshold, out=chosen)
        ties = keys == threshold
        chosen |= ties & (ties.cumsum(0, dtype=torch.int32) <= k - chosen.sum(dtype=torch.int32))
    return chosen_P.nonzero().squeeze(1)


def _check_segments(numel: int, offsets: np.ndarray, counts: np.ndarray) -> None:
    if offsets.ndim != 1 or counts.shape != (offsets.size - 1,):
        raise ValueError(f"L segments have L + 1 offsets and L counts, got shapes {offsets.shape} and {counts.shape}")
    if offsets[0] != 0 or offsets[-1] != numel or bool((np.diff(offsets) < 0).any()):
        raise ValueError(f"the offsets of segments must rise from 0 to {numel}, got {offsets.tolist()}")
    wrong = (counts < np.minimum(1, np.diff(offsets))) | (counts > np.diff(offsets))
    if bool(wrong.any()):
        first = int(wrong.argmax())
        lengths = np.diff(offsets)
        raise ValueError(f"k must be from 1 to {lengths[first]}, the length of segment {first}, got {counts[first]}")


def _nan_error() -> NonFiniteError:
    return NonFiniteError("the vector to choose the largest numbers of holds NaN: has the training diverged?")
