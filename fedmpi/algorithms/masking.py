"""Which weights a mask keeps: choosing the largest of each layer, and moving a part of them during training.

A mask is a bool vector over all parameters in stored order. What is never masked, biases and the numbers of
normalizations, is always True in it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.compress.topk import topk_indices, warm_up
from fedmpi.errors import ConfigError
from fedmpi.flat import Layout

Counts: TypeAlias = NDArray[np.int64]
"""Weights to keep, or kept, of each layer: (L,)."""

Growth: TypeAlias = Literal["inactive", "pruned_stay", "all"]
"""Where weights grow; see `readjust`."""


def compile_choice(config: object) -> None:
    """Compile what chooses weights, on a CPU."""
    warm_up()


class MaskSpace:
    """The layers of a model whose weights a mask may leave out.

    Parameters
    ----------
    layout : Layout

    Attributes
    ----------
    weights : tuple of Entry
        Weights of convolutions and fully connected layers, L of them, in stored order.
    sizes : numpy.ndarray, shape (L,), int64
        Weights of each.
    num_params : int
        P, all parameters.
    num_weights : int
        N_w, those that a mask may leave out.

    Raises
    ------
    ConfigError
        If there is none.
    """

    def __init__(self, layout: Layout) -> None:
        self.weights = layout.maskable_entries
        if not self.weights:
            raise ConfigError("the model has no weight of a convolution or fully connected layer to mask")
        self.num_params = layout.num_params
        self.sizes: Counts = np.array([entry.numel for entry in self.weights], np.int64)
        self.num_weights = int(self.sizes.sum())
        self.spans = [(entry.offset, entry.offset + entry.numel) for entry in self.weights]
        self._is_weight = torch.zeros(self.num_params, dtype=torch.bool)
        for start, stop in self.spans:
            self._is_weight[start:stop] = True

    @property
    def num_biases(self) -> int:
        """Parameters that are never masked, N_b."""
        return self.num_params - self.num_weights

    def full(self, device: torch.device | None = None) -> Tensor:
        """Return the mask that keeps everything, (P,) bool."""
        return torch.ones(self.num_params, dtype=torch.bool, device=device)

    def is_weight(self, device: torch.device) -> Tensor:
        """Return where weights are that a mask may leave out, (P,) bool."""
        if self._is_weight.device != device:
            self._is_weight = self._is_weight.to(device)
        return self._is_weight

    def kept(self, mask_P: Tensor) -> Counts:
        """Return how many weights of each layer a mask keeps."""
        return np.array([int(torch.count_nonzero(mask_P[start:stop])) for start, stop in self.spans], np.int64)

    def refuses(self, mask_P: Tensor) -> str | None:
        """Say why a vector of bool is no mask of this model, None if it is one."""
        if mask_P.dtype != torch.bool:
            return f"a mask is a vector of bool, got {mask_P.dtype}"
        if mask_P.numel() != self.num_params:
            return f"a mask of this model has {self.num_params} positions, got {mask_P.numel()}"
        left_out = int(torch.count_nonzero(~(mask_P | self.is_weight(mask_P.device))))
        return f"a mask leaves out {left_out} numbers that are never masked" if left_out else None

    def checked(self, mask_P: Tensor, made_by: str) -> Tensor:
        """Return a mask that an algorithm's own code has made; ValueError naming that code if it is none."""
        problem = self.refuses(mask_P)
        if problem is not None:
            raise ValueError(f"{made_by}: {problem}")
        return mask_P

    def largest(self, values_P: Tensor, counts: Counts, among_P: Tensor | None = None) -> Tensor:
        """Choose the weights of largest magnitude, so many of each layer, as a (P,) bool without the biases.

        Parameters
        ----------
        values_P : Tensor, shape (P,), float32
        counts : numpy.ndarray, shape (L,), int64
        among_P : Tensor, shape (P,), bool, optional
            Choose among these alone; each layer must have as many as it is to keep.

        Raises
        ------
        NonFiniteError
            If a value to choose among is NaN.
        """
        chosen_P = torch.zeros(self.num_params, dtype=torch.bool, device=values_P.device)
        parts, sizes, wanted = [], [], []
        for (start, stop), count in zip(self.spans, counts.tolist(), strict=True):
            if count:
                part = torch.arange(start, stop, device=values_P.device)
                part = part if among_P is None else part[among_P[start:stop]]
                parts.append(part)
                sizes.append(part.numel())
                wanted.append(count)
        if parts:
            positions_K = torch.cat(parts)
            offsets = np.concatenate([[0], np.cumsum(sizes)])
            chosen_P[positions_K[topk_indices(values_P[positions_K], wanted, offsets)]] = True
        return chosen_P

    def first_mask(self, params_P: Tensor, counts: Counts) -> Tensor:
        """Return the mask that keeps the largest weights of each layer, and all that is never masked."""
        return self.largest(params_P, counts) | ~self.is_weight(params_P.device)

    def largest_of_model(self, values_P: Tensor, count: int) -> Tensor:
        """Return the mask that keeps the `count` largest weights of the whole model, whichever layers they are in."""
        positions_N = self.is_weight(values_P.device).nonzero().squeeze(1)
        mask_P = ~self.is_weight(values_P.device)
        mask_P[positions_N[topk_indices(values_P[positions_N], count)]] = True
        return mask_P


class Readjusted(NamedTuple):
    """A mask after some of its weights have moved.

    Parameters
    ----------
    mask_P : Tensor, shape (P,), bool
    grown_P : Tensor, shape (P,), bool
        Weights that start anew, from zero: those chosen by their gradient, and what a layer lacked that is dense now.
    """

    mask_P: Tensor
    grown_P: Tensor


def num_staying(counts: Counts, alpha: float) -> Counts:
    """Return how many of each layer's weights are not chosen anew where the share `alpha` is, (L,) int64."""
    staying: Counts = np.rint(counts * (1.0 - alpha)).astype(np.int64)
    return staying


def readjust(
    space: MaskSpace,
    params_P: Tensor,
    grads_P: Tensor,
    mask_P: Tensor,
    counts: Counts,
    alpha: float,
    growth: Growth = "inactive",
) -> Readjusted:
    """Drop the smallest weights of each layer and grow as many where the gradient is largest (FedDST, section 3).

    Parameters
    ----------
    space : MaskSpace
    params_P : Tensor, shape (P,), float32
        Zero outside the mask.
    grads_P : Tensor, shape (P,), float32
        Gradient of the data loss, of every weight.
    mask_P : Tensor, shape (P,), bool
    counts : numpy.ndarray, shape (L,), int64
        Weights that each layer keeps afterwards. Layers that keep all have nothing to move.
    alpha : float
        Share of them that is chosen anew, in (0, 1].
    growth : {"inactive", "pruned_stay", "all"}
        Where weights grow. inactive: where none is after dropping, so that one may come back, with value zero;
        pruned_stay: where none was before either; all: anywhere, as the authors' code does it, so that a trained
        weight may be chosen, is set to zero, and opens no position.

    Raises
    ------
    NonFiniteError
        If a weight or a gradient is NaN.
    """
    before = space.kept(mask_P)
    moves = counts < space.sizes
    keep = np.where(moves, num_staying(counts, alpha), 0)
    if growth == "all":
        kept_P = space.largest(params_P, keep)
    else:
        keep = np.minimum(keep, before)
        if growth == "pruned_stay":
            keep = np.where(moves, np.maximum(keep, np.minimum(before, counts - (space.sizes - before))), 0)
        kept_P = space.largest(params_P, keep, mask_P)
    grow = np.where(moves, counts - keep, 0)
    if growth == "all":
        grown_P = space.largest(grads_P, grow)
    else:
        grown_P = space.largest(grads_P, grow, ~(mask_P if growth == "pruned_stay" else kept_P))
    new_P = kept_P | grown_P | ~space.is_weight(mask_P.device)
    for (start, stop), is_moving in zip(space.spans, moves.tolist(), strict=True):
        if not is_moving:
            grown_P[start:stop] = ~mask_P[start:stop]
            new_P[start:stop] = True
    return Readjusted(new_P, grown_P)


def reprune(space: MaskSpace, params_P: Tensor, votes_P: Tensor, counts: Counts) -> Tensor:
    """Return the mask that keeps the largest weights of each layer among those that some client kept.

    Parameters
    ----------
    space : MaskSpace
    params_P : Tensor, shape (P,), float32, on the CPU
        The averaged weights.
    votes_P : Tensor, shape (P,), float64, on the CPU
        Sum of the weights of the clients that kept a position. Of equal magnitudes, zeros above all, those with more
        votes stay, then those of lower index.
    counts : numpy.ndarray, shape (L,), int64
        A layer in which fewer were kept by any client keeps those.
    """
    mask = np.ones(space.num_params, np.bool_)
    magnitudes, votes = params_P.abs().numpy(), votes_P.numpy()
    for (start, stop), count in zip(space.spans, counts.tolist(), strict=True):
        union = np.flatnonzero(votes[start:stop] > 0) + start
        if union.size > count:
            # The last key is the first to be sorted by; what is equal in both stays in ascending order.
            union = union[np.lexsort((-votes[union], -magnitudes[union]))[:count]]
        mask[start:stop] = False
        mask[union] = True
    return torch.from_numpy(mask)


def reprune_released(space: MaskSpace, params_P: Tensor, votes_P: Tensor, counts: Counts) -> Tensor:
    """Prune as the authors' code does, which loses weights.

    It keeps the largest of all positions of a layer, though not those that no client kept: where fewer than `counts`
    differ from zero, the places go to zeros of low index, of which hardly any is in a client's mask. And it prunes only
    while the whole model is denser than it should be. Parameters as for `reprune`.
    """
    union_P = votes_P > 0
    if int(space.kept(union_P).sum()) <= int(counts.sum()):
        return union_P | ~space.is_weight(union_P.device)
    return (space.largest(params_P, counts) & union_P) | ~space.is_weight(union_P.device)
