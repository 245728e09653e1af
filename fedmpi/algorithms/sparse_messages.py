"""Federated training of a masked model: what FedDST and its kin have in common.

Both ends hold a mask, so only the weights that it keeps travel, in the order of their positions, and no index does.
Masks have versions. Version 0 follows from the initial model, so that a seed stands for it; a client that holds an
older one is sent the change, or the whole mask where that is smaller. What a client holds is the client's state.

The average is taken over those who kept a weight (FedDST, Bibikar et al. 2022, section 3)::

    theta_i = sum_k n_k theta_k,i m_k,i / sum_k n_k m_k,i      0 where nobody kept it
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.base import AlgorithmConfig
from fedmpi.algorithms.budgets import Distribution, empty_layers, layer_counts
from fedmpi.algorithms.masking import Counts, MaskSpace
from fedmpi.config import RunConfig
from fedmpi.flat import Layout
from fedmpi.models.initial import InitialModel
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message, Schema, dense, mask, masked_values, message
from fedmpi.wire.values import PAPER_NBITS, Dense, Mask, MaskedValues

MASK = "mask"
"""Name under which both ends hold masks, and of the field that carries one."""

NOTHING = -1
"""Version of the mask of a client that has not taken part."""


class DensityConfig(AlgorithmConfig):
    """Settings of algorithms with a mask whose density is set beforehand."""

    density: float = Field(0.2, gt=0, le=1, description="share of the maskable weights that is kept; 1 is dense")
    mu: float = Field(0.0, ge=0, description="weight of FedProx's proximal term; 0 leaves it out")


class SparseConfig(DensityConfig):
    """Settings of algorithms that fix how many weights each layer keeps."""

    layer_distribution: Distribution = Field(
        "erk",
        description="how the kept weights are shared out over the layers: erk, er (Evci et al. 2020), uniform, or "
        "erk_released, which the code of FedDST's authors makes of erk",
    )


@message("sparse-seed", "down")
class SparseSeedDown(Message):
    """A client's first message: the seed of the initial model and of its mask, and what to check them by."""

    init_seed: int
    state_hash: int
    mask_checksum: int
    has_model: int

    def num_params(self, schema: Schema) -> int:
        return schema.size("state") + schema.size("int_buffers")

    def num_kept(self, schema: Schema) -> int:
        return 0

    def paper_nbits(self, schema: Schema) -> float:
        """Nothing: the authors count no download for the clients of the first round."""
        return 0.0


@message("sparse-model", "down")
class SparseModelDown(Message):
    """The weights that the server's mask keeps, and the mask where the client's is older.

    ``alpha`` is the share of the weights that the client is to move in this round, 0 for none.
    """

    version: int
    alpha: float
    mask: Mask | None = mask("params", base=MASK)
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    buffers: Dense | None = dense("buffers")
    weights: MaskedValues = masked_values("params", mask=MASK)

    def num_params(self, schema: Schema) -> int:
        return schema.size("state") + schema.size("int_buffers")

    def num_kept(self, schema: Schema) -> int:
        return _numbers(self)

    def paper_nbits(self, schema: Schema) -> float:
        """32 bits a number; the authors' code counts no mask down (its comparison never finds it changed)."""
        return float(PAPER_NBITS * _numbers(self))


@message("sparse-model", "up")
class SparseModelUp(Message):
    """A client's trained weights, its mask where that has moved, and how much it weighs in the average."""

    weight: int
    version: int
    mask: Mask | None = mask("params", base=MASK)
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    buffers: Dense | None = dense("buffers")
    weights: MaskedValues = masked_values("params", mask=MASK)

    def num_params(self, schema: Schema) -> int:
        return schema.size("state") + schema.size("int_buffers")

    def num_kept(self, schema: Schema) -> int:
        return _numbers(self)

    def paper_nbits(self, schema: Schema) -> float:
        """32 bits a number, and 1 bit an active weight where a mask travels, as the authors count it."""
        moved = self.weights.num_kept - schema.size("biases") if self.mask is not None else 0
        return float(PAPER_NBITS * _numbers(self) + moved)


def _numbers(sent: SparseModelDown | SparseModelUp) -> int:
    parts = (sent.weights, sent.buffers, sent.int_buffers)
    return sum(part.num_kept for part in parts if part is not None)


def mask_sizes(config: AlgorithmConfig, layout: Layout) -> dict[str, int]:
    """Return the sizes that messages about masks name."""
    space = MaskSpace(layout)
    return {"biases": space.num_biases, "weights": space.num_weights}


def counts_of(
    config: SparseConfig, space: MaskSpace, layout: Layout, density: float | None = None, setting: str = "density"
) -> Counts:
    """Return how many weights each layer keeps at the configured density, or at another one, called `setting`."""
    biases = [_bias_numel(layout, entry.name) for entry in space.weights]
    chosen = config.density if density is None else density
    return layer_counts(space.weights, chosen, config.layer_distribution, num_biases=biases, setting=setting)


def check_budgets(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return a warning for each layer that keeps no weight.

    Raises
    ------
    ConfigError
        If the model has nothing to mask, or the density cannot be shared out so.
    """
    assert isinstance(config, SparseConfig)
    space = MaskSpace(initial.layout)
    return empty_warnings(config.density, space, counts_of(config, space, initial.layout))


def empty_warnings(density: float, space: MaskSpace, counts: Counts, setting: str = "density") -> list[str]:
    """Return a warning for each layer that keeps no weight at a density, called `setting`."""
    empty = empty_layers(space.weights, counts)
    return [f"algorithm.{setting}={density:g} leaves no weight of {name}: only its bias remains" for name in empty]


def _bias_numel(layout: Layout, weight: str) -> int:
    name = f"{weight.removesuffix('weight')}bias"
    return next((entry.numel for entry in layout.entries if entry.name == name and entry.role == "param"), 0)


def initial_mask(config: SparseConfig, space: MaskSpace, layout: Layout, initial: InitialModel) -> Tensor:
    """Return the mask that keeps the largest initial weights of each layer, (P,) bool, on the CPU."""
    return space.first_mask(initial.state_S[: layout.num_params], counts_of(config, space, layout))


def same_or_new(held: object, packed: np.ndarray, version: int, num_params: int) -> KnownMask:
    """Return `held` if it is the mask of these bits, eight a byte, else a mask made of them."""
    if isinstance(held, KnownMask) and np.array_equal(held.packed, packed):
        return held
    return KnownMask(np.unpackbits(packed, count=num_params, bitorder="little").view(np.bool_), version)


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what algorithms with a mask send."""
    return SparseSeedDown, SparseModelDown, SparseModelUp
