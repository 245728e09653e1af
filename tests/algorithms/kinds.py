"""An algorithm that sends every kind of value, with all that it can be coded against; its model does learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms.averaging import ModelUp, WeightedMean, dense_ints
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    ClientContext,
    ExchangeClient,
    ExchangeServer,
    GlobalModel,
    ServerContext,
    StateDict,
)
from fedmpi.data.shard import Shard
from fedmpi.rng import ANY, stream
from fedmpi.wire.known import KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.message import (
    Message,
    counts,
    dense,
    labels,
    mask,
    masked_values,
    message,
    quantized,
    single,
    sparse,
)
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse

FIRST = 0
"""Version of the mask that both ends make themselves, before anything is sent."""


@message("kinds", "down")
class KindsDown(Message):
    """The global model, half of it at the positions of this round's mask."""

    mask: Mask = mask("params", base="mask")
    theta: Dense = dense("params")
    kept: MaskedValues = masked_values("params", mask="mask")
    state: Dense = dense("state")
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")


@message("kinds", "up")
class KindsUp(Message):
    """What a client sends."""

    num_samples: int
    loss: float = single()
    state: Dense = dense("state", base="state")
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    drawn: Mask = mask("params", prior="theta", base="mask")
    kept: MaskedValues = masked_values("params", mask="mask", dtype="bfloat16")
    largest: Sparse = sparse("params", base="mask")
    levels: Sparse = sparse("params", dtype="")
    activations: Quantized = quantized((8, 2, 4, 4), at_most=True)
    targets: Labels = labels(8, num_classes=10, at_most=True)
    classes: Counts = counts(10)


def first_mask(seed: int, numel: int) -> KnownMask:
    return KnownMask(stream(seed, ANY, ANY, "first mask").random(numel) < 0.3, FIRST)


def moved(base: KnownMask, round_idx: int, seed: int) -> np.ndarray:
    """Return a mask near the first one."""
    flips = stream(seed, round_idx, ANY, "moves").random(base.array.size) < 0.02
    return base.array ^ flips


class KindsServer(ExchangeServer):
    """FedAvg's mean of the states, and checks of all the rest."""

    up_types = KindsUp

    def __init__(self, config: AlgorithmConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.model = GlobalModel(ctx.initial.state_S.clone(), ctx.initial.ints_I.clone())
        self.mean = WeightedMean(ctx.layout)
        self.first = first_mask(ctx.seed, ctx.layout.num_params)
        ctx.known.hold("mask", self.first)
        self._down: KindsDown

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        self.mean.reset()
        version = round_idx + 1
        num_params = self.ctx.layout.num_params
        bits = moved(self.first, round_idx, self.ctx.seed)
        theta = stream(self.ctx.seed, round_idx, ANY, "theta").random(num_params).astype(np.float32)
        held = KnownMask(bits, version)
        # What a client will derive from the bytes of the downlink, this end derives from the same numbers.
        self.ctx.known.hold("mask", held)
        self.ctx.known.hold("theta", KnownProbabilities.of(theta, version))
        state = self.model.state_S.clone()
        self.ctx.known.hold("state", KnownVector(state.numpy(), version))
        for name in ("mask", "theta", "state"):
            if name != "mask":
                self.ctx.known.forget(name, before=version)
        self._down = KindsDown(
            mask=Mask(bits, base=self.first),
            theta=Dense(theta),
            kept=MaskedValues.of(state[:num_params][torch.from_numpy(held.indices)], held),
            state=Dense.of(state),
            int_buffers=dense_ints(self.model.ints_I),
        )

    def downlink(self, round_idx: int, client_id: int) -> Message:
        return self._down

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, KindsUp)
        expected = what_is_sent(round_idx, client_id, self.ctx.seed, self.ctx.layout.num_params)
        assert np.array_equal(result.drawn.bits, expected.bits)
        assert np.array_equal(result.activations.symbols, expected.symbols)
        assert result.targets.array.tolist() == expected.targets.tolist()
        assert result.classes.array.tolist() == expected.classes.tolist()
        state = result.state.tensor()
        assert torch.equal(state[: self.ctx.layout.num_params][result.largest.indices], result.largest.tensor_values())
        assert result.levels.tensor_values().abs().max() <= 3 * 0.5
        self.mean.add(ModelUp(num_samples=result.num_samples, state=result.state, int_buffers=result.int_buffers))

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        self.mean.mean_into(self.model)
        return {}

    def global_model(self) -> GlobalModel:
        return self.model

    def state_dict(self) -> StateDict:
        return {"state": self.model.state_S, "int_buffers": self.model.ints_I}

    def load_state_dict(self, state: StateDict) -> None:
        for target, key in ((self.model.state_S, "state"), (self.model.ints_I, "int_buffers")):
            source = state[key]
            assert isinstance(source, Tensor)
            target.copy_(source)


@dataclass
class Sent:
    """What a client makes up, which the server can make up as well."""

    bits: np.ndarray
    symbols: np.ndarray
    targets: np.ndarray
    classes: np.ndarray
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def what_is_sent(round_idx: int, client_id: int, seed: int, num_params: int) -> Sent:
    rng = stream(seed, round_idx, client_id, "made up")
    count = int(rng.integers(1, 9))
    return Sent(
        rng.random(num_params) < 0.5,
        rng.integers(0, 16, (count, 2, 4, 4), np.uint8),
        rng.integers(0, 10, count),
        rng.integers(0, 600, 10),
        np.sort(rng.choice(num_params, num_params // 20, replace=False)),
    )


class KindsClient(ExchangeClient):
    """Trains FedAvg's way and sends one of everything."""

    down_types = (KindsDown,)

    def __init__(self, config: AlgorithmConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.ctx.known.hold("mask", first_mask(ctx.seed, ctx.model.layout.num_params))

    def train(self, round_idx: int, client_id: int, down: Message, shard: Shard) -> Message:
        assert isinstance(down, KindsDown)
        known, model, version = self.ctx.known, self.ctx.model, round_idx + 1
        num_params = model.layout.num_params
        if known.get("theta", version) is None:
            known.hold("mask", KnownMask(down.mask.bits.copy(), version))
            known.hold("theta", KnownProbabilities.of(down.theta.array.copy(), version))
            known.hold("state", KnownVector(down.state.array.copy(), version))
        held, theta, state = known.get("mask", version), known.get("theta", version), known.get("state", version)
        assert isinstance(held, KnownMask) and isinstance(theta, KnownProbabilities) and isinstance(state, KnownVector)
        assert np.array_equal(down.state.array[:num_params][held.indices], down.kept.values)
        model.load(down.state.tensor(), down.int_buffers.tensor() if down.int_buffers else None)
        self.train_local(round_idx, client_id, shard)
        made = what_is_sent(round_idx, client_id, self.ctx.seed, num_params)
        params_P = model.params_P.detach()
        first = known.get("mask", FIRST)
        assert isinstance(first, KnownMask)
        positions = torch.from_numpy(first.indices)
        one = np.array([0.5], np.float32)
        return KindsUp(
            num_samples=shard.num_samples,
            loss=0.25,
            state=Dense.of(model.state_S, base=state),
            int_buffers=dense_ints(model.ints_I),
            drawn=Mask(made.bits, prior=theta, base=first),
            kept=MaskedValues.of(params_P[torch.from_numpy(held.indices)].bfloat16(), held),
            largest=Sparse.of(num_params, positions, params_P[positions], base=first),
            levels=Sparse(num_params, made.positions, Quantized((made.positions % 7 - 3).astype(np.int8), 3, one)),
            activations=Quantized(made.symbols, 4, one),
            targets=Labels(made.targets, 10),
            classes=Counts(made.classes),
        )


KINDS = Algorithm("kinds", AlgorithmConfig, KindsServer, KindsClient, messages=lambda _: (KindsDown, KindsUp))
