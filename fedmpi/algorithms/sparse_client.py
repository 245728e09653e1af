"""The client's half of training a masked model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import AlgorithmConfig, Channel, ClientContext, ClientHalf
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_messages import (
    MASK,
    NOTHING,
    DensityConfig,
    SparseConfig,
    SparseModelDown,
    SparseModelUp,
    SparseSeedDown,
    initial_mask,
    same_or_new,
)
from fedmpi.data.shard import Shard
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, Mask, MaskedValues

_MOST_READY = 4
"""Masks that a rank keeps ready for use."""


@dataclass(frozen=True, eq=False)
class MaskInUse:
    """A mask with what a client's training needs of it, on the device."""

    known: KnownMask
    mask_P: Tensor
    factor_P: Tensor
    indices_K: Tensor

    @classmethod
    def of(cls, known: KnownMask, device: torch.device) -> MaskInUse:
        """Put a mask on a device."""
        mask_P = torch.from_numpy(known.array).to(device)
        return cls(known, mask_P, mask_P.to(torch.float32), torch.from_numpy(known.indices).to(device))


@dataclass
class Keeper:
    """Keeps the weights outside a mask at zero after a step: one multiplication in place.

    Parameters
    ----------
    factor_P : Tensor, shape (P,), float32
        1 inside the mask, 0 outside.
    """

    factor_P: Tensor

    def __call__(self, model: FlatModel) -> None:
        model.params_P.mul_(self.factor_P)


class SparseClient(ClientHalf):
    """Trains the weights that the mask keeps and sends them back.

    What the client holds between rounds, its mask and that mask's version, is its state, and moves with it to whichever
    rank plays it next. The rank keeps the masks it has seen by version, ready for use.
    """

    def __init__(self, config: AlgorithmConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self.mu = config.mu if isinstance(config, DensityConfig) else 0.0
        self.space = MaskSpace(ctx.model.layout)
        self._ready: dict[int, MaskInUse] = {}
        self._first: tuple[int, KnownMask] | None = None

    def declare_state(self) -> dict[str, Tensor]:
        num_bytes = -(-self.space.num_params // 8)
        return {MASK: torch.zeros(num_bytes, dtype=torch.uint8), "version": torch.tensor([NOTHING])}

    def first_mask(self, initial: InitialModel) -> Tensor:
        """Return version 0 of the mask, (P,) bool, on the CPU; see `SparseServer.first_mask`."""
        assert isinstance(self.config, SparseConfig)
        return initial_mask(self.config, self.space, self.ctx.model.layout, initial)

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        used = self._recall()
        down = channel.recv(SparseSeedDown, SparseModelDown)
        alpha = 0.0
        if isinstance(down, SparseSeedDown):
            used = self._begin(down)
            if down.has_model:
                down = channel.recv(SparseModelDown)
        if isinstance(down, SparseModelDown):
            used, alpha = self._load(down, used), down.alpha
        assert used is not None
        channel.send(self.train(round_idx, client_id, shard, used, alpha))
        self.client_state[MASK].copy_(torch.from_numpy(used.known.packed))
        self.client_state["version"].fill_(used.known.version)

    def train(self, round_idx: int, client_id: int, shard: Shard, used: MaskInUse, alpha: float) -> Message:
        """Train the model that is loaded and return the uplink."""
        self.fit(round_idx, client_id, shard, Keeper(used.factor_P))
        return self.uplink(self.weight(shard), used)

    def fit(
        self,
        round_idx: int,
        client_id: int,
        shard: Shard,
        keeper: Keeper,
        *,
        after_backward: Callable[[FlatModel], None] | None = None,
        after_epoch: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        """Train under a mask, which `keeper` keeps, with FedProx's term where it has a weight.

        The term is over the active weights: the others are zero at the start and at every step. Where gradients are
        clipped, their norm is that by the active weights alone.
        """
        mu = self.mu
        start_P = self.ctx.model.params_P.clone() if mu else None

        def proximal(w_P: Tensor) -> Tensor:
            assert start_P is not None
            return (w_P - start_P).square().sum() * (mu / 2)

        clips = self.ctx.train_config.clip_norm is not None

        def complete(model: FlatModel) -> None:
            if after_backward is not None:
                after_backward(model)
            if clips:
                model.grads_P.mul_(keeper.factor_P)

        self.train_local(
            round_idx,
            client_id,
            shard,
            extra_loss=proximal if mu else None,
            after_backward=complete if clips or after_backward is not None else None,
            after_step=keeper,
            after_epoch=after_epoch,
        )

    def weight(self, shard: Shard) -> int:
        """Return how much the client weighs in the average."""
        return shard.num_samples

    def uplink(self, weight: int, used: MaskInUse, new_P: Tensor | None = None) -> SparseModelUp:
        """Return the message that carries the weights of the mask in use, or of a new one and that one itself."""
        model, version = self.ctx.model, used.known.version
        known, indices_K, change = used.known, used.indices_K, None
        if new_P is not None:
            known = KnownMask.of(new_P, version)
            indices_K = torch.from_numpy(known.indices).to(model.device)
            change = Mask(known.array, base=used.known)
        buffers_B = model.state_S[self.space.num_params :]
        return SparseModelUp(
            weight=weight,
            version=version,
            mask=change,
            int_buffers=dense_ints(model.ints_I),
            buffers=Dense.of(buffers_B) if buffers_B.numel() else None,
            weights=MaskedValues.of(model.params_P[indices_K], known),
        )

    def _recall(self) -> MaskInUse | None:
        """Make what this client holds known, and nothing else: the rank may have played others."""
        self.ctx.known.retain(MASK, ())
        version = int(self.client_state["version"])
        return None if version == NOTHING else self._hold(self.client_state[MASK].numpy(), version)

    def _hold(self, packed: np.ndarray, version: int) -> MaskInUse:
        ready = self._ready.get(version)
        known = same_or_new(ready.known if ready is not None else None, packed, version, self.space.num_params)
        if ready is None or ready.known is not known:
            ready = self._ready[version] = MaskInUse.of(known, self.ctx.model.device)
            self._forget_old()
        self.ctx.known.hold(MASK, known)
        return ready

    def _forget_old(self) -> None:
        """Keep the newest masks ready: clients of a round mostly hold one of them or are given it."""
        for version in sorted(self._ready)[:-_MOST_READY]:
            del self._ready[version]

    def _begin(self, down: SparseSeedDown) -> MaskInUse:
        initial = self.ctx.initial_model(down.init_seed)
        if initial.state_hash != down.state_hash:
            raise ProtocolError(
                f"the model built from seed {down.init_seed} has hash {initial.state_hash:08x}, the server's has "
                f"{down.state_hash:08x}: this rank has another CPU or other versions; server.initial_model=full sends "
                "it"
            )
        if self._first is None or self._first[0] != down.init_seed:
            mask_P = self.space.checked(self.first_mask(initial), f"first_mask of {type(self).__name__}")
            self._first = down.init_seed, KnownMask.of(mask_P, 0)
        first = self._first[1]
        if first.checksum != down.mask_checksum:
            raise ProtocolError(
                f"the mask made of seed {down.init_seed} has checksum {first.checksum:08x}, the server's has "
                f"{down.mask_checksum:08x}: this rank has other versions (server.initial_model=full sends the mask) "
                "or the algorithm's two halves differ in first_mask"
            )
        used = self._hold(first.packed, 0)
        self.ctx.model.load(initial.state_S, initial.ints_I)
        self.ctx.model.params_P.mul_(used.factor_P)
        return used

    def _load(self, down: SparseModelDown, used: MaskInUse | None) -> MaskInUse:
        model = self.ctx.model
        if down.mask is not None:
            problem = self.space.refuses(torch.from_numpy(down.mask.bits))
            if problem is not None:
                raise ProtocolError(problem)
            used = self._hold(np.packbits(down.mask.bits, bitorder="little"), down.version)
        if used is None or used.known.version != down.version:
            held = "none" if used is None else f"version {used.known.version}"
            raise ProtocolError(
                f"the server's mask has version {down.version}, this client holds {held}: its state is of another run "
                "or a later round"
            )
        model.params_P.zero_()
        model.params_P[used.indices_K] = down.weights.tensor_values().to(model.device)
        if down.buffers is not None:
            model.state_S[self.space.num_params :].copy_(down.buffers.tensor())
        if down.int_buffers is not None:
            model.ints_I.copy_(down.int_buffers.tensor())
        return used
