"""Magnitude pruning at the start: federated averaging of the largest initial weights of the whole model.

A baseline that looks at no data::

    theta_0    from the seed
    m          the round(density N_w) largest |theta_0| over all layers at once
    rounds     RandomMask's, under m

Layers of many inputs start with small weights, so they lose most, down to all of them: `num_empty_layers` in the ledger
says how many did.
"""

from __future__ import annotations

from torch import Tensor

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.masking import MaskSpace, compile_choice
from fedmpi.algorithms.sparse_client import SparseClient
from fedmpi.algorithms.sparse_messages import DensityConfig, empty_warnings, mask_sizes, message_classes
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.compress.topk import num_kept
from fedmpi.config import RunConfig
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


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return a warning for each layer that keeps no weight.

    Raises
    ------
    ConfigError
        If the model has nothing to mask.
    """
    assert isinstance(config, DensityConfig)
    space = MaskSpace(initial.layout)
    return empty_warnings(config.density, space, space.kept(largest_mask(config, space, initial)))


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
