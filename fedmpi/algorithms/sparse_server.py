"""The server's half of training a masked model: the mask by version, who holds which, and the sparse mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    AlgorithmConfig,
    Conversation,
    ExchangeServer,
    GlobalModel,
    MessageTypes,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.budgets import empty_layers
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_messages import (
    MASK,
    NOTHING,
    SparseConfig,
    SparseModelDown,
    SparseModelUp,
    SparseSeedDown,
    initial_mask,
    same_or_new,
)
from fedmpi.errors import ProtocolError
from fedmpi.flat import Layout
from fedmpi.models.operations import count_operations
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, Mask, MaskedValues


class SparseMean:
    """Sum of weights over the clients that kept them, each divided once by the sum of those clients' weights."""

    def __init__(self, layout: Layout) -> None:
        self._sum_P = torch.zeros(layout.num_params, dtype=torch.float64)
        self.votes_P = torch.zeros(layout.num_params, dtype=torch.float64)
        self._buffers_B = torch.zeros(layout.num_state - layout.num_params, dtype=torch.float64)
        self._one = torch.ones((), dtype=torch.float64)
        self._ints_I: Tensor | None = None
        self.total = 0

    def reset(self) -> None:
        """Forget all that was added."""
        for vector in (self._sum_P, self.votes_P, self._buffers_B):
            vector.zero_()
        self._ints_I = None
        self.total = 0

    def add(self, up: SparseModelUp, indices_K: Tensor) -> None:
        """Add a client's weights, which lie at `indices_K`; integer buffers are those of the first added."""
        if up.weight < 1:
            raise ProtocolError(f"a client's model must have a weight of at least 1, got {up.weight}")
        self.total += up.weight
        # Every index stands once, so that the order of these additions does not matter.
        self._sum_P.index_add_(0, indices_K, up.weights.tensor_values().double(), alpha=up.weight)
        self.votes_P.index_add_(0, indices_K, self._one.expand(indices_K.numel()), alpha=up.weight)
        if up.buffers is not None:
            self._buffers_B.add_(up.buffers.tensor(), alpha=up.weight)
        if self._ints_I is None and up.int_buffers is not None:
            self._ints_I = up.int_buffers.tensor().clone()

    def mean_into(self, model: GlobalModel) -> None:
        """Write the mean over `model`: 0 where nobody kept a weight; where nothing was added, leave it as it is."""
        if not self.total:
            return
        num_params = self._sum_P.numel()
        mean_P = torch.where(self.votes_P > 0, self._sum_P / self.votes_P, 0.0)
        model.state_S[:num_params].copy_(mean_P)
        model.state_S[num_params:].copy_(self._buffers_B / self.total)
        if self._ints_I is not None:
            model.ints_I.copy_(self._ints_I)


class SparseServer(ExchangeServer):
    """Keeps the masked model, its mask in every version that a client may hold, and who holds which.

    Alone it keeps the initial mask for ever; algorithms that move masks change `alpha` and `next_mask`.

    Parameters
    ----------
    config : AlgorithmConfig
        A `SparseConfig`, unless `first_mask` is another.
    ctx : ServerContext

    Attributes
    ----------
    space : MaskSpace
    model : GlobalModel
        Zero outside the mask.
    mask : KnownMask
        The newest version.
    """

    up_types: MessageTypes = SparseModelUp

    def __init__(self, config: AlgorithmConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self.space = MaskSpace(ctx.layout)
        self.model = GlobalModel(ctx.initial.state_S.clone(), ctx.initial.ints_I.clone())
        self.mean = SparseMean(ctx.layout)
        self._held: dict[int, int] = {}  # client: version of the mask that it has
        self._downs: dict[int, SparseModelDown] = {}
        self._seed_down: SparseSeedDown
        self._round_alpha = 0.0
        self._is_initial = True  # the model is still the one that the seed stands for
        self._warned_of: set[str] = set()
        self.mask = KnownMask.of(self.space.checked(self.first_mask(), f"first_mask of {type(self).__name__}"), 0)
        ctx.known.hold(MASK, self.mask)
        self._apply_mask()

    def first_mask(self) -> Tensor:
        """Return version 0 of the mask, (P,) bool: a function of the initial model, as the client's is."""
        assert isinstance(self.config, SparseConfig)
        return initial_mask(self.config, self.space, self.ctx.layout, self.ctx.initial)

    def alpha(self, round_idx: int) -> float:
        """Return the share of the weights that clients move in a round; 0 for none."""
        return 0.0

    def next_mask(self, round_idx: int) -> Tensor | None:
        """Return the mask after a round, given the mean and its votes, or None to keep it."""
        return None

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        self.mean.reset()
        self._downs.clear()
        self._round_alpha = self.alpha(round_idx)
        initial = self.ctx.initial
        first = self.ctx.known.get(MASK, 0)
        assert first is not None
        self._seed_down = SparseSeedDown(
            init_seed=initial.init_seed,
            state_hash=initial.state_hash,
            mask_checksum=first.checksum,
            has_model=int(not self._is_initial),
        )

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        is_seeded = self.ctx.send_seed and client_id not in self._held
        if is_seeded:
            yield self._seed_down
        if not (is_seeded and self._is_initial):
            yield self.downlink(round_idx, client_id)
        return self.up_types

    def downlink(self, round_idx: int, client_id: int) -> Message:
        held = self._held.get(client_id, 0 if self.ctx.send_seed else NOTHING)
        if held not in self._downs:
            self._downs[held] = self._model_down(held)
        return self._downs[held]

    def _model_down(self, held: int) -> SparseModelDown:
        num_params = self.ctx.layout.num_params
        change = None
        if held != self.mask.version:
            base = self.ctx.known.get(MASK, held)
            assert base is None or isinstance(base, KnownMask)
            change = Mask(self.mask.array, base=base)
        buffers_B = self.model.state_S[num_params:]
        return SparseModelDown(
            version=self.mask.version,
            alpha=self._round_alpha,
            mask=change,
            int_buffers=dense_ints(self.model.ints_I),
            buffers=Dense.of(buffers_B) if buffers_B.numel() else None,
            weights=MaskedValues.of(self.model.state_S[torch.from_numpy(self.mask.indices)], self.mask),
        )

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, SparseModelUp)
        versions = {result.version, result.weights.mask.version}
        if versions != {self.mask.version}:
            wrong = next(iter(versions - {self.mask.version}))
            raise ProtocolError(
                f"client {client_id} has trained with version {wrong} of the mask, the server's is "
                f"{self.mask.version}: its state is of another run or a later round"
            )
        if result.mask is not None:
            problem = self.space.refuses(torch.from_numpy(result.mask.bits))
            if problem is not None:
                raise ProtocolError(f"client {client_id}, round {round_idx}: {problem}")
        self.mean.add(result, torch.from_numpy(result.weights.mask.indices))
        self._held[client_id] = self.mask.version

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        before = self.mask
        if self.mean.total:
            self.mean.mean_into(self.model)
            self._is_initial = False
            self.change_mask(self.next_mask(round_idx))
        return self.scalars(before)

    def change_mask(self, mask_P: Tensor | None) -> None:
        """Make a mask the newest version, unless it is the one in use, and zero what it leaves out."""
        if mask_P is not None and not np.array_equal(mask_P.numpy(), self.mask.array):
            self.new_version(mask_P)
        self._apply_mask()
        needed = {0, self.mask.version, *self._held.values()}
        self.ctx.known.retain(MASK, needed)

    def new_version(self, mask_P: Tensor) -> None:
        """Make a mask the newest version, whatever it keeps; `change_mask` does the rest.

        Raises
        ------
        ValueError
            If it is no mask of this model: `next_mask` has made a mistake.
        """
        checked_P = self.space.checked(mask_P, f"next_mask of {type(self).__name__}")
        self.mask = KnownMask.of(checked_P, self.mask.version + 1)
        self.ctx.known.hold(MASK, self.mask)
        self._is_initial = False
        for name in empty_layers(self.space.weights, self.space.kept(mask_P)):
            if name not in self._warned_of:
                self._warned_of.add(name)
                self.ctx.warn(
                    f"version {self.mask.version} of the mask keeps no weight of {name}: only its bias remains"
                )

    def _apply_mask(self) -> None:
        self.model.state_S[: self.space.num_params].masked_fill_(~torch.from_numpy(self.mask.array), 0.0)

    def scalars(self, before: KnownMask) -> dict[str, float]:
        """Return what the ledger keeps of a round.

        Density and mask are those that the round came to; operations a sample those of `before`, the mask that its
        clients began with.
        """
        kept = self.space.kept(torch.from_numpy(self.mask.array))
        uses = self.ctx.weight_uses()
        counted = count_operations(
            self.space.sizes.tolist(),
            [uses[entry.name] for entry in self.space.weights],
            self.space.kept(torch.from_numpy(before.array)).tolist(),
        )
        return {
            "density": self.mask.count / self.space.num_params,
            "weight_density": float(kept.sum()) / self.space.num_weights,
            "mask_version": float(self.mask.version),
            "mask_checksum": float(self.mask.checksum),
            "mask_num_grown": float(np.count_nonzero(self.mask.array & ~before.array)),
            "num_empty_layers": float(np.count_nonzero(kept == 0)),
            **{f"{name}_ops": float(value) for name, value in counted._asdict().items()},
        }

    def global_model(self) -> GlobalModel:
        return self.model

    def state_dict(self) -> StateDict:
        masks = {}
        for version in self.ctx.known.versions(MASK):
            held = self.ctx.known.get(MASK, version)
            assert isinstance(held, KnownMask)
            masks[f"mask.{version}"] = torch.from_numpy(held.packed)
        return {
            "state": self.model.state_S,
            "int_buffers": self.model.ints_I,
            "version": self.mask.version,
            "is_initial": int(self._is_initial),
            "held": torch.tensor(sorted(self._held.items()), dtype=torch.int64).reshape(-1, 2),
            **masks,
        }

    def load_state_dict(self, state: StateDict) -> None:
        for target, key in ((self.model.state_S, "state"), (self.model.ints_I, "int_buffers")):
            source = state[key]
            assert isinstance(source, Tensor)
            target.copy_(source)
        held = state["held"]
        assert isinstance(held, Tensor)
        self._held = dict(held.tolist())
        self._is_initial = bool(state["is_initial"])
        known = self.ctx.known
        versions = [int(name.removeprefix("mask.")) for name in state if name.startswith("mask.")]
        known.retain(MASK, versions)
        for version in versions:
            packed = state[f"mask.{version}"]
            assert isinstance(packed, Tensor)
            known.hold(MASK, same_or_new(known.get(MASK, version), packed.numpy(), version, self.space.num_params))
        newest = known.get(MASK, int(state["version"]))
        assert isinstance(newest, KnownMask)
        self.mask = newest
