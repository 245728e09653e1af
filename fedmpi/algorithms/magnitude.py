"""Magnitude pruning at the start: federated averaging of the largest initial weights of the whole model.

A baseline that looks at no data::

    theta_0    from the seed
    m          the round(density N_w) largest |theta_0| over all layers at once
    rounds     RandomMask's, under m

Layers of many inputs start with small weights, so they lose most, down to all of them: `num_empty_layers` in the ledger
says how many did.
"""

from __future__ import annotations

import math

from torch import Tensor

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.feddst import compile_choice
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_client import SparseClient
from fedmpi.algorithms.sparse_messages import DensityConfig, mask_sizes, message_classes
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.compress.topk import num_kept
from fedmpi.config import RunConfig
from fedmpi.flat import Layout
from fedmpi.models.initial import InitialModel


class MagnitudeServer(SparseServer):
    """Keeps the largest initial weights of the model."""

    def first_mask(self) -> Tensor:
        return largest_mask(self.config, self.space, self.ctx.initial)


class MagnitudeClient(SparseClient):
    """Works out the same mask from the seed."""

    def first_mask(self, initial: InitialModel) -> Tensor:
        return largest_mask(self.config, self.space, initial)


def largest_mask(config: AlgorithmConfig, space: MaskSpace, initial: InitialModel) -> Tensor:
    """Return the mask that keeps the largest initial weights of the whole model, (P,) bool, on the CPU."""
    assert isinstance(config, DensityConfig)
    count = num_kept(space.num_weights, config.density)
    return space.largest_of_model(initial.state_S[: space.num_params], count)


def check(config: AlgorithmConfig, layout: Layout, run: RunConfig) -> list[str]:
    """Return a warning for each layer that is likely to keep no weight.

    The weights themselves are not known here: they are taken to be uniform over +-1/sqrt(inputs), as torch starts
    convolutions and fully connected layers. A threshold b leaves ``N_l (1 - b / b_l)`` of a layer that reaches to b_l,
    so a layer that reaches to b alone is empty if the wider ones fill the mask at that threshold.

    Raises
    ------
    ConfigError
        If the model has nothing to mask.
    """
    assert isinstance(config, DensityConfig)
    space = MaskSpace(layout)
    count = num_kept(space.num_weights, config.density)
    reach = [1 / math.sqrt(math.prod(entry.shape[1:])) for entry in space.weights]
    warnings = []
    for entry, bound in zip(space.weights, reach, strict=True):
        larger = sum(w.numel * (1 - bound / b) for w, b in zip(space.weights, reach, strict=True) if b > bound)
        if larger >= count:
            warnings.append(
                f"algorithm.density={config.density:g} of the whole model leaves no weight of {entry.name}, if its "
                "initial weights are in torch's usual range: only its bias remains"
            )
    return warnings


ALGORITHM = Algorithm(
    "magnitude",
    DensityConfig,
    MagnitudeServer,
    MagnitudeClient,
    sizes=mask_sizes,
    messages=message_classes,
    check=check,
    warm_up=compile_choice,
)
