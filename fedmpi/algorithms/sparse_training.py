"""Federated training of a masked model: what FedDST and its kin have in common.

Both ends hold a mask, so only the weights that it keeps travel, in the order of their positions, and no index does.
Masks have versions. Version 0 follows from the initial model, so that a seed stands for it; a client that holds an
older one is sent the change, or the whole mask where that is smaller. What a client holds is the client's state.

The average is taken over those who kept a weight (FedDST, Bibikar et al. 2022, section 3)::

    theta_i = sum_k n_k theta_k,i m_k,i / sum_k n_k m_k,i      0 where nobody kept it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    AlgorithmConfig,
    Channel,
    ClientContext,
    ClientHalf,
    Conversation,
    ExchangeServer,
    GlobalModel,
    MessageTypes,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.budgets import Distribution, empty_layers, layer_counts
from fedmpi.algorithms.masking import Counts, MaskSpace
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel, Layout
from fedmpi.models.initial import InitialModel
from fedmpi.models.operations import count_operations
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message, Schema, dense, mask, masked_values, message
from fedmpi.wire.values import PAPER_NBITS, Dense, Mask, MaskedValues

MASK = "mask"
"""Name under which both ends hold masks, and of the field that carries one."""

NOTHING = -1
"""Version of the mask of a client that has not taken part."""


class SparseConfig(AlgorithmConfig):
    """Settings that all algorithms with a mask have."""

    density: float = Field(0.2, gt=0, le=1, description="share of the maskable weights that is kept; 1 is dense")
    layer_distribution: Distribution = Field(
        "erk",
        description="how the kept weights are shared out over the layers: erk, er (Evci et al. 2020), uniform, or "
        "erk_released, which the code of FedDST's authors makes of erk",
    )
    mu: float = Field(0.0, ge=0, description="weight of FedProx's proximal term; 0 leaves it out")


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


def counts_of(config: SparseConfig, space: MaskSpace, layout: Layout, density: float | None = None) -> Counts:
    """Return how many weights each layer keeps at the configured density, or at another one."""
    biases = [_bias_numel(layout, entry.name) for entry in space.weights]
    chosen = config.density if density is None else density
    return layer_counts(space.weights, chosen, config.layer_distribution, num_biases=biases)


def check_budgets(config: AlgorithmConfig, layout: Layout, run: RunConfig) -> list[str]:
    """Return a warning for each layer that keeps no weight.

    Raises
    ------
    ConfigError
        If the model has nothing to mask, or the density cannot be shared out so.
    """
    assert isinstance(config, SparseConfig)
    space = MaskSpace(layout)
    empty = empty_layers(space.weights, counts_of(config, space, layout))
    return [f"algorithm.density={config.density:g} leaves no weight of {name}: only its bias remains" for name in empty]


def _bias_numel(layout: Layout, weight: str) -> int:
    name = f"{weight.removesuffix('weight')}bias"
    return next((entry.numel for entry in layout.entries if entry.name == name and entry.role == "param"), 0)


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
    config : SparseConfig
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
        assert isinstance(config, SparseConfig)
        self.config = config
        self.space = MaskSpace(ctx.layout)
        self.model = GlobalModel(ctx.initial.state_S.clone(), ctx.initial.ints_I.clone())
        self.mean = SparseMean(ctx.layout)
        self._held: dict[int, int] = {}  # client: version of the mask that it has
        self._downs: dict[int, SparseModelDown] = {}
        self._seed_down: SparseSeedDown
        self._round_alpha = 0.0
        self.mask = KnownMask.of(self.first_mask(), 0)
        ctx.known.hold(MASK, self.mask)
        self._apply_mask()

    def first_mask(self) -> Tensor:
        """Return version 0 of the mask, (P,) bool: a function of the initial model, as the client's is."""
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
            has_model=int(round_idx > 0),
        )

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        is_new = client_id not in self._held
        if is_new and self.ctx.send_seed:
            yield self._seed_down
        if round_idx > 0 or not self.ctx.send_seed:
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
        if result.version != self.mask.version:
            raise ProtocolError(
                f"client {client_id} has trained with version {result.version} of the mask, the server's is "
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
            self.change_mask(self.next_mask(round_idx))
        return self.scalars(before)

    def change_mask(self, mask_P: Tensor | None) -> None:
        """Make a mask the newest version, unless it is the one in use, and zero what it leaves out."""
        if mask_P is not None and not np.array_equal(mask_P.numpy(), self.mask.array):
            self.mask = KnownMask.of(mask_P, self.mask.version + 1)
            self.ctx.known.hold(MASK, self.mask)
        self._apply_mask()
        needed = {0, self.mask.version, *self._held.values()}
        self.ctx.known.retain(MASK, needed)

    def _apply_mask(self) -> None:
        self.model.state_S[: self.space.num_params].masked_fill_(~torch.from_numpy(self.mask.array), 0.0)

    def scalars(self, before: KnownMask) -> dict[str, float]:
        """Return what the ledger keeps of a round: density, mask, operations a sample."""
        kept = self.space.kept(torch.from_numpy(self.mask.array))
        uses = self.ctx.weight_uses()
        counted = count_operations(
            self.space.sizes.tolist(), [uses[entry.name] for entry in self.space.weights], kept.tolist()
        )
        return {
            "density": self.mask.count / self.space.num_params,
            "weight_density": float(kept.sum()) / self.space.num_weights,
            "mask_version": float(self.mask.version),
            "mask_checksum": float(self.mask.checksum),
            "mask_num_grown": float(np.count_nonzero(self.mask.array & ~before.array)),
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


def initial_mask(config: SparseConfig, space: MaskSpace, layout: Layout, initial: InitialModel) -> Tensor:
    """Return the mask that keeps the largest initial weights of each layer, (P,) bool, on the CPU."""
    return space.first_mask(initial.state_S[: layout.num_params], counts_of(config, space, layout))


def same_or_new(held: object, packed: np.ndarray, version: int, num_params: int) -> KnownMask:
    """Return `held` if it is the mask of these bits, eight a byte, else a mask made of them."""
    if isinstance(held, KnownMask) and np.array_equal(held.packed, packed):
        return held
    return KnownMask(np.unpackbits(packed, count=num_params, bitorder="little").view(np.bool_), version)


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
        assert isinstance(config, SparseConfig)
        self.config = config
        self.space = MaskSpace(ctx.model.layout)
        self._ready: dict[int, MaskInUse] = {}
        self._first: tuple[int, KnownMask] | None = None

    def declare_state(self) -> dict[str, Tensor]:
        num_bytes = -(-self.space.num_params // 8)
        return {MASK: torch.zeros(num_bytes, dtype=torch.uint8), "version": torch.tensor([NOTHING])}

    def first_mask(self, initial: InitialModel) -> Tensor:
        """Return version 0 of the mask, (P,) bool, on the CPU; see `SparseServer.first_mask`."""
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
        after_step: Callable[[FlatModel], None],
        after_epoch: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        """Train under a mask, which `after_step` keeps, with FedProx's term where it has a weight.

        The term is over the active weights: the others are zero at the start and at every step.
        """
        mu = self.config.mu
        start_P = self.ctx.model.params_P.clone() if mu else None

        def proximal(w_P: Tensor) -> Tensor:
            assert start_P is not None
            return (w_P - start_P).square().sum() * (mu / 2)

        self.train_local(
            round_idx,
            client_id,
            shard,
            extra_loss=proximal if mu else None,
            after_step=after_step,
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
            self._first = down.init_seed, KnownMask.of(self.first_mask(initial), 0)
        first = self._first[1]
        if first.checksum != down.mask_checksum:
            raise ProtocolError(
                f"the mask made of seed {down.init_seed} has checksum {first.checksum:08x}, the server's has "
                f"{down.mask_checksum:08x}: this rank has other versions; server.initial_model=full sends it"
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


_MOST_READY = 4


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what algorithms with a mask send."""
    return SparseSeedDown, SparseModelDown, SparseModelUp
