"""The server's side of split learning: it trains its part of the network on what clients send across the cut."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.averaging import ModelUp, WeightedMean, dense_ints
from fedmpi.algorithms.base import (
    Conversation,
    GlobalModel,
    ServerContext,
    ServerHalf,
    StateDict,
)
from fedmpi.algorithms.split_messages import (
    ACTIVATIONS,
    Cut,
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    SplitConfig,
    SplitResult,
    TurnLabels,
    cut_of,
    decode_activations,
)
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.models.split import split
from fedmpi.parts import FlatPart
from fedmpi.rng import stream_seed
from fedmpi.train.direct import make_direct_step
from fedmpi.train.local import LocalStats, random_state, seed_torch, set_random_state
from fedmpi.train.optimizer import make_step
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``f(logits (B, K), labels (B,))`` returning the mean loss."""


class Bench:
    """A network that one conversation at a time trains the server's part of.

    Parameters
    ----------
    ctx : ServerContext
    cut : Cut
    point : int
    """

    def __init__(self, ctx: ServerContext, cut: Cut, point: int) -> None:
        assert ctx.spec is not None
        self.cut = cut
        self.model = FlatModel(ctx.spec.build(), ctx.device)
        device, server = split(self.model.module, point)
        self.device, self.server = FlatPart(self.model, device), FlatPart(self.model, server)
        self._config = ctx.train_config
        self._backward_and_step: Callable[[Tensor], None]
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=ctx.device)
        self._num_steps = self._num_samples = 0
        self._random_state = random_state(ctx.device)

    def begin(self, model: GlobalModel, torch_seed: int) -> None:
        """Start from a whole network, with a fresh optimizer; the seed is that of dropout and the like."""
        self.model.load(model.state_S, model.ints_I)
        # The state is put back: a client may be training on this rank.
        others = random_state(self.model.device)
        seed_torch(self.model.device, torch_seed)
        self._random_state = random_state(self.model.device)
        set_random_state(self.model.device, others)
        self.model.module.train()
        self._backward_and_step = make_direct_step(self.server, self._config) or self._in_two()
        self._loss_sum.zero_()
        self._num_steps = self._num_samples = 0

    def train(
        self, a_BCHW: Tensor, y_B: Tensor, *, wants_gradient: bool = False, criterion: Criterion = F.cross_entropy
    ) -> tuple[Tensor, Tensor | None]:
        """Take one step on a batch of activations.

        Returns
        -------
        logits : Tensor, shape (B, K)
            Before the step.
        gradient : Tensor or None
            Of the mean loss by the activations, before the step, if it is wanted.
        """
        if wants_gradient:
            a_BCHW = a_BCHW.detach().requires_grad_()
        # Other conversations train between two batches of this one: neither draws the other's random numbers.
        device = self.model.device
        others = random_state(device)
        set_random_state(device, self._random_state)
        logits = self.server.module(a_BCHW)
        loss = criterion(logits, y_B)
        self._backward_and_step(loss)
        self._random_state = random_state(device)
        set_random_state(device, others)
        # Of the labels alone, as clients count it.
        data_loss = loss if criterion is F.cross_entropy else F.cross_entropy(logits.detach(), y_B)
        self._loss_sum.add_(data_loss.detach(), alpha=y_B.numel())
        self._num_steps += 1
        self._num_samples += y_B.numel()
        return logits.detach(), a_BCHW.grad

    def _in_two(self) -> Callable[[Tensor], None]:
        update = make_step(self.server, self._config)

        def step(loss: Tensor) -> None:
            self.server.grads_P.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            update()

        return step

    def stats(self) -> LocalStats:
        """Return what was trained since `begin`."""
        return LocalStats(self._num_steps, self._num_samples, self._loss_sum.item() / max(1, self._num_samples))

    def result(self, num_samples: int, up: DeviceUp | None = None) -> SplitResult:
        """Return the whole network: the part trained here, and the device's as it came, or as it was."""
        if up is not None:
            self.device.load(up.state.tensor(), up.int_buffers.tensor() if up.int_buffers is not None else None)
        return SplitResult(
            num_samples=num_samples,
            int_buffers=dense_ints(self.model.ints_I.cpu().clone()),
            state=Dense.of(self.model.state_S.cpu().clone()),
            auxiliary=Dense(up.auxiliary.array.copy()) if up is not None and up.auxiliary is not None else None,
        )


class SplitServer(ServerHalf):
    """Keeps the whole network, sends its device part, and averages what conversations come to.

    Parameters
    ----------
    config : SplitConfig
    ctx : ServerContext
    """

    returns_gradients: ClassVar[bool] = False
    """Whether clients are sent the gradients by their activations."""

    def __init__(self, config: SplitConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        assert ctx.spec is not None
        self.config = config
        self.cut = cut_of(ctx.spec, config.point)
        ops = self.cut.operations(passes_back=self.returns_gradients).server
        self._ops_per_sample = ops.forward + ops.backward
        self.model = GlobalModel(ctx.initial.state_S.clone(), ctx.initial.ints_I.clone())
        self.mean = WeightedMean(ctx.layout)
        self._idle: list[Bench] = []
        self._down: Message

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        self.mean.reset()
        self._down = self.first_message(round_idx)

    def first_message(self, round_idx: int) -> Message:
        """Return what each client of a round is sent first: the device's part, or the seed of it."""
        if round_idx == 0 and self.ctx.send_seed:
            initial = self.ctx.initial
            return DeviceSeedDown(init_seed=initial.init_seed, state_hash=initial.state_hash)
        state_D = self.cut.device.take(self.model.state_S)
        ints = self.model.ints_I[self.cut.device.ints]
        return DeviceDown(int_buffers=dense_ints(ints), state=Dense.of(state_D), auxiliary=None)

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        yield self._down
        labels = yield TurnLabels
        assert isinstance(labels, TurnLabels)
        y_N = torch.from_numpy(labels.labels.array.copy()).to(self.ctx.device)
        with self.bench(round_idx, client_id) as bench:
            position = 0
            while position < len(y_N):
                activations = yield ACTIVATIONS
                assert activations is not None
                a_BCHW = decode_activations(activations, self.cut.shape, self.ctx.device)
                y_B = self.labels_of_batch(y_N, position, len(a_BCHW), client_id)
                position += len(y_B)
                self.count_steps(len(y_B))
                answer = self.answer(bench, a_BCHW, y_B)
                if answer is not None:
                    yield answer
            up = yield DeviceUp
            assert isinstance(up, DeviceUp)
            self.ctx.stats.append(bench.stats())
            return bench.result(len(y_N), up)

    def answer(self, bench: Bench, a_BCHW: Tensor, y_B: Tensor) -> Message | None:
        """Train on one batch and return what the client is told of it: nothing here."""
        if not self.ctx.dry_run:
            bench.train(a_BCHW, y_B)
        return None

    def count_steps(self, num_samples: int) -> None:
        """Count the operations of training on so many samples, for the round's virtual time."""
        self.ctx.count_ops(num_samples * self._ops_per_sample)

    @contextlib.contextmanager
    def bench(self, round_idx: int, client_id: int) -> Iterator[Bench]:
        """Lend a network that holds the global one; a conversation that is given up gives it back, too."""
        bench = self._idle.pop() if self._idle else Bench(self.ctx, self.cut, self.config.point)
        bench.begin(self.model, stream_seed(self.ctx.seed, round_idx, client_id, "server torch"))
        try:
            yield bench
        finally:
            self._idle.append(bench)

    def labels_of_batch(self, y_N: Tensor, position: int, num: int, client_id: int) -> Tensor:
        """Return the labels of the batch that begins at a position; raises ProtocolError if there are not so many."""
        if not 0 < num <= len(y_N) - position:
            raise ProtocolError(
                f"client {client_id} sent activations of {num} samples where {len(y_N) - position} labels are left"
            )
        return y_N[position : position + num]

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, SplitResult)
        self.mean.add(ModelUp(num_samples=result.num_samples, int_buffers=result.int_buffers, state=result.state))

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        self.mean.mean_into(self.model)
        return {}

    def global_model(self) -> GlobalModel:
        return self.model

    def state_dict(self) -> StateDict:
        return self.model.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.model.load_state_dict(state)
