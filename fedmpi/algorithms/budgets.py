"""How many weights each layer of a sparse network keeps.

Erdos-Renyi-kernel (ERK), of Evci et al.: "Rigging the Lottery", ICML 2020, as Bibikar et al.: "Federated Dynamic Sparse
Training", AAAI 2022, use it::

    density_l = eps (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w)     convolution
    density_l = eps (n_in + n_out) / (n_in n_out)                         fully connected
    eps such that sum_l density_l N_l = density N, where density_l is at most 1

ER (Mocanu et al. 2018) is the same without k_h + k_w and k_h k_w. Convolutions of one or three dimensions have as many
terms of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from fedmpi.errors import ConfigError
from fedmpi.flat import Entry

Distribution: TypeAlias = Literal["erk", "er", "uniform", "erk_released"]


def layer_counts(
    weights: Sequence[Entry],
    density: float,
    distribution: Distribution,
    *,
    num_biases: Sequence[int] | None = None,
    setting: str = "density",
) -> np.ndarray:
    """Return how many weights each layer keeps.

    Parameters
    ----------
    weights : sequence of L Entry
        Weights of shape (out, in, *kernel), or (out, in).
    density : float
        Share of all N weights that is kept, in (0, 1]; 1 is dense everywhere.
    distribution : {"erk", "er", "uniform", "erk_released"}
        erk, er: as above; uniform: the same density in each layer. Their counts sum to ``round(density * N)``. A share
        that is no whole number is rounded by the largest remainders, of equal ones the first layer's; a layer's count
        can therefore fall by one where the density rises.

        erk_released: what FedDST's released code does instead. It scales the *sparsities* ``1 - density_l`` at eps = 1
        by one factor, which makes them nearly equal, counts biases as weights in doing so and rounds down: the sum is
        a little off.
    num_biases : sequence of L ints, optional
        Biases beside each of `weights`, none by default; only erk_released asks.
    setting : str
        What the density is called under `algorithm`, for errors.

    Returns
    -------
    ndarray, shape (L,), int64
        From 0 to the layer's number of weights; see `empty_layers`.

    Raises
    ------
    ConfigError
        If there are no weights, the density is not in (0, 1] or keeps no weight at all, or erk_released comes to a
        density of a layer that is not in [0, 1].
    ValueError
        For another distribution, or `num_biases` of another length than `weights`.
    """
    total = sum(entry.numel for entry in weights)
    if not total:
        raise ConfigError("algorithm: the model has no weight of a convolution or linear layer to mask")
    if not 0 < density <= 1:
        raise ConfigError(f"algorithm.{setting} must be in (0, 1], got {density}; 1.0 is dense")
    numels = [entry.numel for entry in weights]
    if distribution == "erk_released":
        counts = _released(weights, density, [0] * len(weights) if num_biases is None else num_biases, setting)
    else:
        counts = _apportion(round(density * total), [_share(entry, distribution) for entry in weights], numels)
    if not any(counts):
        raise ConfigError(
            f"algorithm.{setting} must keep at least one of the {total} weights that can be masked; {density} of them "
            f"is {density * total:.3g}, rounded to 0"
        )
    return np.array(counts, np.int64)


def empty_layers(weights: Sequence[Entry], counts: Sequence[int] | np.ndarray) -> list[str]:
    """Return the names of the layers of which no weight is kept: nothing gets through them but their biases."""
    return [entry.name for entry, count in zip(weights, counts, strict=True) if count == 0]


def _share(entry: Entry, distribution: Distribution) -> int:
    """Return density_l N_l at eps = 1, a whole number."""
    num_out, num_in, *kernel = entry.shape
    if distribution == "erk":
        return num_in + num_out + sum(kernel)
    if distribution == "er":
        return (num_in + num_out) * math.prod(kernel)
    if distribution == "uniform":
        return entry.numel
    raise ValueError(f"no budgets of layers follow from the distribution {distribution!r}")


def _apportion(total: int, shares: Sequence[int], numels: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to shares, no layer getting more than it has; exact, in integers."""
    counts = list(numels)
    free, left = list(range(len(shares))), total
    while True:
        whole = sum(shares[i] for i in free)
        full = [i for i in free if left * shares[i] > numels[i] * whole]
        if not full:
            break
        left -= sum(numels[i] for i in full)
        free = [i for i in free if i not in full]
    for i in free:
        counts[i] = left * shares[i] // whole
    # What is left now is less than the number of layers that were rounded down.
    by_remainder = sorted(free, key=lambda i: -(left * shares[i] % whole))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _released(weights: Sequence[Entry], density: float, num_biases: Sequence[int], setting: str) -> list[int]:
    sizes = [entry.numel + biases for entry, biases in zip(weights, num_biases, strict=True)]
    if density == 1:
        return [entry.numel for entry in weights]
    sparsities = [1 - _share(entry, "erk") / entry.numel for entry in weights]
    mean = math.fsum(s * size for s, size in zip(sparsities, sizes, strict=True)) / sum(sizes)
    if mean <= 0:
        raise ConfigError(
            "algorithm: with erk_released the mean sparsity of layers before scaling must be positive, got "
            f"{mean:.4f}; take erk"
        )
    factor = (1 - density) / mean
    counts = []
    for entry, sparsity, size in zip(weights, sparsities, sizes, strict=True):
        layer_density = 1 - factor * sparsity
        if not 0 <= layer_density <= 1:
            raise ConfigError(
                f"algorithm.{setting}={density}: with erk_released {entry.name} comes to a density of "
                f"{layer_density:.4f}, which must be in [0, 1]; take erk or another density"
            )
        # The released code leaves a layer dense where biases make the count larger than the number of its weights.
        counts.append(min(entry.numel, math.floor(layer_density * size)))
    return counts
