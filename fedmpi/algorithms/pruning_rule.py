"""PruneFL's rule: which weights are worth the time that they take, and when a model's size has settled.

A mask's worth is the decrease of the loss in a unit of time, over the weights that a mask may leave out::

    Delta / T = sum_K I / (c + sum_K t)

Adding a weight j raises a quotient exactly if j's own, I_j / t_j, is larger. So the best K to be had with what always
stays takes the others in descending order of their own quotients, up to the first that would not raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms.masking import MaskSpace
from fedmpi.errors import NonFiniteError

STEADY_CHANGE = 0.1
STEADY_TIMES = 5
"""A size has settled once it has changed by less than a tenth, so many reconfigurations in a row."""


def reconfigure(
    space: MaskSpace,
    params_P: Tensor,
    importance_N: Tensor,
    mask_P: Tensor,
    *,
    times_L: np.ndarray,
    constant_s: float,
    removable: float,
) -> Tensor:
    """Return the mask of the largest Delta / T that keeps the larger weights of each layer.

    Parameters
    ----------
    space : MaskSpace
    params_P : Tensor, shape (P,), float32, on the CPU
    importance_N : Tensor, shape (N_w,), on the CPU
        Mean squared gradients, not negative, of all weights in stored order; their scale does not matter.
    mask_P : Tensor, shape (P,), bool, on the CPU
    times_L : numpy.ndarray, shape (L,), float64
        Seconds that a weight of each layer takes, above 0.
    constant_s : float
        Above 0.
    removable : float
        d: of a layer's n active weights the ``floor(d n)`` smallest need not stay, of equal ones the last.

    Returns
    -------
    Tensor, shape (P,), bool

    Raises
    ------
    NonFiniteError
        If a weight is NaN or an importance is not finite.
    """
    if not bool(importance_N.isfinite().all()):
        raise NonFiniteError("the squares of gradients hold NaN or infinity: has the training diverged?")
    is_weight_P = space.is_weight(mask_P.device)
    active = space.kept(mask_P)
    stay = active - np.floor(active * removable).astype(np.int64)
    kept_N = space.largest(params_P, stay, mask_P)[is_weight_P].numpy()
    gain_N, time_N = importance_N.double().numpy(), np.repeat(times_L, space.sizes)
    others = np.flatnonzero(~kept_N)
    others = others[np.argsort(-(gain_N[others] / time_N[others]), kind="stable")]
    # Sums before each candidate, as if all those ahead of it had been added. They have been, up to the first that
    # fails; and where one fails the quotient stays as it is, while those behind are worth no more: no other is added.
    gains = np.cumsum(np.concatenate([[gain_N[kept_N].sum()], gain_N[others]]))[:-1]
    times = np.cumsum(np.concatenate([[constant_s + time_N[kept_N].sum()], time_N[others]]))[:-1]
    fails = np.flatnonzero(gain_N[others] * times <= gains * time_N[others])
    kept_N[others[: fails[0] if fails.size else others.size]] = True
    new_P = space.full()
    new_P[is_weight_P] = torch.from_numpy(kept_N)
    return new_P


def is_steady(sizes: Sequence[int]) -> bool:
    """Return whether a model's size has settled.

    Parameters
    ----------
    sizes : sequence of int
        Parameters that the model keeps: of the dense model, then after each reconfiguration so far.
    """
    last = sizes[-STEADY_TIMES - 1 :]
    return len(last) > STEADY_TIMES and all(
        abs(size - before) / before < STEADY_CHANGE for before, size in pairwise(last)
    )
