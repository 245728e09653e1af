"""FedGKT: the device's part and the server's teach each other by their logits.

He, Annavaram, Avestimehr: "Group Knowledge Transfer: Federated Learning of Large CNNs at the Edge", NeurIPS 2020,
Algorithm 1. With an auxiliary head phi behind the cut, a temperature T and

    KL_T(student, teacher) = T^2 KL(softmax(teacher / T) || softmax(student / T))

``variant: original``::

    client k:  E epochs: step W^C_k, phi_k (its own, kept) with CE(phi_k(A), y) + alpha KL_T(phi_k(A), z^S_k)
               send all A, z^C_k = phi_k(A), and the labels
    server:    epochs over all clients' A: step its one W^S with KL_T(f(A; W^S), z^C_k) + alpha CE(f(A; W^S), y)
               keep z^S_k = f(A; W^S), which client k is sent when it next takes part

``variant: averaged`` is what EcoFed (Wu et al. 2024) compares itself with::

    server:    send W^C, phi to each client of the cohort
    client k:  as above; then for each batch: send A and z^C_k; receive z^S_k and keep it
    server:    for each batch: one step of its copy W^S_k; answer with the logits of before the step
    server:    W^C, phi, W^S of the next round = means over the cohort, weighted by samples

A client that has no z^S_k yet trains with the cross entropy alone. In the original no network ever leaves a client, so
there is no whole network to test: what is tested is the mean of the round's device parts before the server's part, and
sending those is simulation traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import AuxiliaryClient, AuxiliaryServer, auxiliary_sizes
from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Channel,
    ClientContext,
    Conversation,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.replay import Upload
from fedmpi.algorithms.split_messages import (
    ACTIVATIONS,
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    LogitsDown,
    LogitsUp,
    SplitConfig,
    TurnLabels,
    decode_activations,
    encode_activations,
    labels_of,
    logits_of,
    message_types,
    split_warnings,
)
from fedmpi.algorithms.split_server import Bench, Criterion
from fedmpi.config import RunConfig
from fedmpi.data.shard import Batches, Shard
from fedmpi.models.initial import InitialModel
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import ANY, stream
from fedmpi.train.local import LocalStats, seed_torch
from fedmpi.train.optimizer import make_step
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message, counts, dense, message
from fedmpi.wire.values import Counts, Dense

_MOST, _MOST_FRAMES = 2**40, 2**20


class FedGktConfig(SplitConfig):
    """Settings of FedGKT."""

    variant: Literal["original", "averaged"] = Field(
        "averaged", description="original: clients keep their own networks; averaged: as EcoFed's comparison has it"
    )
    alpha: float = Field(1.0, ge=0, description="weight of the distillation on the client, of the labels on the server")
    temperature: float = Field(3.0, gt=0, description="T of the distillation")
    server_epochs: int = Field(1, ge=1, description="epochs of the server a round; only with variant=original")


@message("logits-all", "down")
class TurnLogits(Message):
    """The server's logits of what this client sent last, (samples, classes), in the order in which it sent them."""

    numbers: Dense = dense("most", at_most=True)


@message("control-begin", "down")
class Begin(Message):
    """The client is to go on with the network that it has."""

    has_logits: int


@message("evaluation-weights", "up")
class TestedDevice(Message):
    """A client's own device part, for the simulation's test of the model alone."""

    is_simulation = True

    num_samples: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")


@message("fedgkt-result", "up")
class FedGktResult(Message):
    """What a conversation comes to on the server in the original: all that a client sent."""

    num_samples: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")
    frames: Dense = dense("most", dtype="uint8", at_most=True)
    lengths: Counts = counts("num_frames", at_most=True)


def distillation(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Return KL_T(student, teacher), the mean over the batch, a scalar; 0 where the logits agree."""
    student = F.log_softmax(student_BK / temperature, 1)
    teacher = F.log_softmax(teacher_BK / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class AveragedServer(AuxiliaryServer):
    """Answers every batch with its logits."""

    def __init__(self, config: FedGktConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.gkt = config

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        yield self._down
        labels = yield TurnLabels
        assert isinstance(labels, TurnLabels)
        y_N = torch.from_numpy(labels.labels.array.copy()).to(self.ctx.device)
        position = 0
        with self.bench(round_idx, client_id) as bench:
            while position < len(y_N):
                activations = yield ACTIVATIONS
                assert activations is not None
                a_BCHW = decode_activations(activations, self.cut.shape, self.ctx.device)
                y_B = self.labels_of_batch(y_N, position, len(a_BCHW), client_id)
                position += len(y_B)
                self.count_steps(len(y_B))
                message = yield LogitsUp
                assert isinstance(message, LogitsUp)
                teacher_BK = logits_of(message.numbers, len(y_B), self.cut.num_classes).to(self.ctx.device)
                logits_BK = teacher_BK
                if not self.ctx.dry_run:
                    logits_BK, _ = bench.train(a_BCHW, y_B, criterion=server_loss(self.gkt, teacher_BK))
                yield LogitsDown(numbers=Dense.of(logits_BK.reshape(-1)))
            up = yield DeviceUp
            assert isinstance(up, DeviceUp)
            self.ctx.stats.append(bench.stats())
            return bench.result(len(y_N), up)


def server_loss(config: FedGktConfig, teacher_BK: Tensor) -> Criterion:
    """Return the server's loss on a batch, whose client sent these logits."""

    def loss(logits_BK: Tensor, y_B: Tensor) -> Tensor:
        return distillation(logits_BK, teacher_BK, config.temperature) + config.alpha * F.cross_entropy(logits_BK, y_B)

    return loss


class OriginalServer(AuxiliaryServer):
    """Has one part for all clients, which it trains when all have sent."""

    def __init__(self, config: FedGktConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.gkt = config
        self._begun: set[int] = set()
        self._logits: dict[int, Tensor] = {}
        self._uploads: dict[int, Upload] = {}
        self._device_sum = torch.zeros(self.cut.device.layout.num_state, dtype=torch.float64)
        self._device_ints: Tensor | None = None
        self._total = 0

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        super().begin_round(round_idx, cohort)
        self._uploads.clear()
        self._device_sum.zero_()
        self._device_ints, self._total = None, 0

    def first_message(self, round_idx: int) -> Message:
        # A client begins with the initial device part whenever it first takes part: no other ever leaves a client.
        initial, part = self.ctx.initial, self.cut.device
        if self.ctx.send_seed:
            return DeviceSeedDown(init_seed=initial.init_seed, state_hash=initial.state_hash)
        return DeviceDown(
            int_buffers=dense_ints(initial.ints_I[part.ints]),
            state=Dense.of(part.take(initial.state_S)),
            auxiliary=Dense.of(self.auxiliary_A),
        )

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        logits = self._logits.get(client_id)
        if client_id not in self._begun:
            yield self._down
        yield Begin(has_logits=int(logits is not None))
        if logits is not None:
            yield TurnLogits(numbers=Dense.of(logits.reshape(-1)))
        labels = yield TurnLabels
        assert isinstance(labels, TurnLabels) and labels.received is not None
        frames, num_left = [labels.received.copy()], labels.labels.numel
        while num_left > 0:
            activations = yield ACTIVATIONS
            assert activations is not None and activations.received is not None
            frames.append(activations.received.copy())
            logits_up = yield LogitsUp
            assert isinstance(logits_up, LogitsUp) and logits_up.received is not None
            frames.append(logits_up.received.copy())
            num_left -= logits_up.numbers.numel // self.cut.num_classes
        tested = yield TestedDevice
        assert isinstance(tested, TestedDevice)
        upload = Upload.of(frames)
        return FedGktResult(
            num_samples=labels.labels.numel,
            int_buffers=Dense(tested.int_buffers.array.copy()) if tested.int_buffers is not None else None,
            state=Dense(tested.state.array.copy()),
            frames=Dense(upload.frames),
            lengths=Counts(upload.lengths),
        )

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, FedGktResult)
        self._begun.add(client_id)
        self._uploads[client_id] = Upload(result.frames.array.copy(), result.lengths.array.copy())
        self._device_sum.add_(result.state.tensor(), alpha=result.num_samples)
        self._total += result.num_samples
        if self._device_ints is None and result.int_buffers is not None:
            self._device_ints = result.int_buffers.tensor().clone()

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        if not self._total:
            return {}
        with self.bench(round_idx, ANY) as bench:
            for _ in range(self.gkt.server_epochs):
                for client_id in self._uploads:
                    self._pass(bench, client_id, trains=True)
            bench.model.module.eval()
            for client_id in self._uploads:
                self._logits[client_id] = self._pass(bench, client_id, trains=False)
            self.model.state_S.copy_(bench.model.state_S)
            self.model.ints_I.copy_(bench.model.ints_I)
        self.cut.device.put((self._device_sum / self._total).float(), self.model.state_S)
        if self._device_ints is not None:
            self.model.ints_I[self.cut.device.ints] = self._device_ints
        return {"server_loss": bench.stats().loss}

    def _pass(self, bench: Bench, client_id: int, *, trains: bool) -> Tensor:
        """Go through what a client sent, training on it or not; return the logits, (samples, classes)."""
        assert self.ctx.schema is not None
        first, *frames = self._uploads[client_id].split()
        labels, _ = framing.decode(first, (TurnLabels,), self.ctx.schema)
        assert isinstance(labels, TurnLabels)
        y_N, found, position = torch.from_numpy(labels.labels.array).to(self.ctx.device), [], 0
        for activation_frame, logits_frame in zip(frames[::2], frames[1::2], strict=True):
            activations, _ = framing.decode(activation_frame, ACTIVATIONS, self.ctx.schema)
            logits_up, _ = framing.decode(logits_frame, (LogitsUp,), self.ctx.schema)
            assert isinstance(logits_up, LogitsUp)
            a_BCHW = decode_activations(activations, self.cut.shape, self.ctx.device)
            y_B = self.labels_of_batch(y_N, position, len(a_BCHW), client_id)
            position += len(y_B)
            if trains:
                self.count_steps(len(y_B))
            teacher_BK = logits_of(logits_up.numbers, len(y_B), self.cut.num_classes).to(self.ctx.device)
            if self.ctx.dry_run:
                found.append(teacher_BK)
            elif trains:
                found.append(bench.train(a_BCHW, y_B, criterion=server_loss(self.gkt, teacher_BK))[0])
            else:
                with torch.no_grad():
                    found.append(bench.server.module(a_BCHW))
        return torch.cat(found).cpu()

    def state_dict(self) -> StateDict:
        state = super().state_dict()
        state["begun"] = torch.tensor(sorted(self._begun), dtype=torch.int64)
        for client_id, logits in self._logits.items():
            state[f"logits.{client_id}"] = logits
        return state

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        begun = state["begun"]
        assert isinstance(begun, Tensor)
        self._begun = set(begun.tolist())
        self._logits = {
            int(key.removeprefix("logits.")): value.clone()
            for key, value in state.items()
            if key.startswith("logits.") and isinstance(value, Tensor)
        }


def make_server(config: FedGktConfig, ctx: ServerContext) -> AuxiliaryServer:
    """Return the server's half of the variant."""
    return (OriginalServer if config.variant == "original" else AveragedServer)(config, ctx)


class FedGktClient(AuxiliaryClient):
    """Trains the device's part with the server's logits, and sends its own."""

    def __init__(self, config: FedGktConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.gkt = config

    def declare_state(self) -> dict[str, Tensor]:
        state = {
            "teacher": torch.zeros(self.ctx.max_samples, self.num_classes),
            "has_teacher": torch.zeros(1, dtype=torch.int64),
        }
        if self.gkt.variant == "original":
            layout = self.device.layout
            state["device"] = torch.zeros(layout.num_state)
            state["device_ints"] = torch.zeros(layout.num_int_buffers, dtype=torch.int64)
            state["head"] = torch.zeros(self.head.layout.num_state)
        return state

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        if self.gkt.variant == "averaged":
            self.load_device(channel.recv(DeviceSeedDown, DeviceDown))
        else:
            self._go_on(client_id, shard, channel)
        self._train(round_idx, client_id, shard)
        batches = self._in_order(client_id, shard, 1, self.rng(round_idx, client_id, "sent augmentation"))
        channel.send(labels_of(batches.labels(), self.num_classes))
        for (x_BCHW, _), positions_B in zip(batches, batches.positions(), strict=True):
            with torch.no_grad():
                a_BCHW = self.device.module(x_BCHW)
                logits_BK = self.head.module(a_BCHW)
            self.count_passes(forward=len(x_BCHW))
            channel.send(encode_activations(a_BCHW, self.config))
            channel.send(LogitsUp(numbers=Dense.of(logits_BK.reshape(-1))))
            if self.gkt.variant == "averaged":
                answer = channel.recv(LogitsDown).numbers
                self.client_state["teacher"][positions_B] = logits_of(answer, len(positions_B), self.num_classes)
                self.client_state["has_teacher"].fill_(1)
        if self.gkt.variant == "averaged":
            channel.send(self.uplink())
            return
        for name, kept in (("device", self.device.state_S), ("device_ints", self.device.ints_I)):
            self.client_state[name].copy_(kept)
        self.client_state["head"].copy_(self.head.state_S)
        ints, state = dense_ints(self.device.ints_I), Dense.of(self.device.state_S)
        channel.send(TestedDevice(num_samples=shard.num_samples, int_buffers=ints, state=state))

    def _go_on(self, client_id: int, shard: Shard, channel: Channel) -> None:
        """Load the client's own network, or the one that it begins with, and what the server has to teach."""
        state = self.client_state
        down = channel.recv(DeviceSeedDown, DeviceDown, Begin)
        if isinstance(down, (DeviceSeedDown, DeviceDown)):
            self.load_device(down)
            down = channel.recv(Begin)
        else:
            self.device.load(state["device"], state["device_ints"])
            self.head.load(state["head"])
        assert isinstance(down, Begin)
        state["has_teacher"].fill_(down.has_logits)
        if down.has_logits:
            # In the order of the batches that they answer, which is that of every round.
            order_N = torch.cat(list(self._in_order(client_id, shard, 1, None).positions()))
            state["teacher"][order_N] = logits_of(channel.recv(TurnLogits).numbers, len(order_N), self.num_classes)

    def _train(self, round_idx: int, client_id: int, shard: Shard) -> None:
        """Train the device's part and the head on the labels and, where there are any, the server's logits."""
        if self.ctx.dry_run:
            return
        cfg, state = self.ctx.train_config, self.client_state
        rng = self.rng(round_idx, client_id, "batches")
        seed_torch(self.device.device, int(rng.integers(2**63)))
        batches = self._in_order(client_id, shard, cfg.local_epochs, rng)
        parts = self.device, self.head
        steps = [make_step(part, cfg) for part in parts]
        has_teacher = bool(state["has_teacher"])
        loss_sum, num_steps, num_samples = torch.zeros((), dtype=torch.float64, device=self.device.device), 0, 0
        for (x_BCHW, y_B), positions_B in zip(batches, batches.positions(), strict=True):
            for part in parts:
                part.grads_P.zero_()
            logits_BK = self.head.module(self.device.module(x_BCHW))
            loss = F.cross_entropy(logits_BK, y_B)
            loss_sum.add_(loss.detach(), alpha=y_B.numel())
            if has_teacher:
                teacher_BK = state["teacher"][positions_B].to(logits_BK.device)
                loss = loss + self.gkt.alpha * distillation(logits_BK, teacher_BK, self.gkt.temperature)
            loss.backward()  # type: ignore[no-untyped-call]
            for step in steps:
                step()
            num_steps += 1
            num_samples += y_B.numel()
            self.count_passes(forward=len(x_BCHW), backward=len(x_BCHW))
            self.ctx.progress()
        self.ctx.stats.append(LocalStats(num_steps, num_samples, loss_sum.item() / max(1, num_samples)))

    def _in_order(self, client_id: int, shard: Shard, num_epochs: int, chance: np.random.Generator | None) -> Batches:
        """Return batches in an order that is the client's own and the same in all rounds.

        `chance` decides what augmentation makes of the samples, anew each time; None where only the order counts.
        """
        order = stream(self.ctx.seed, ANY, client_id, "batches")
        return shard.plan(self.ctx.train_config.batch_size, num_epochs, order, chance)


def fedgkt_sizes(config: AlgorithmConfig, spec: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that FedGKT's messages name."""
    return {**auxiliary_sizes(config, spec, run), "most": _MOST, "num_frames": _MOST_FRAMES}


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what FedGKT sends."""
    assert isinstance(config, FedGktConfig)
    common: tuple[type[Message], ...] = (DeviceSeedDown, DeviceDown, TurnLabels, message_types(config), LogitsUp)
    if config.variant == "original":
        return (*common, Begin, TurnLogits, TestedDevice)
    return (*common, LogitsDown, DeviceUp)


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about settings."""
    assert isinstance(config, FedGktConfig)
    warnings = split_warnings(config)
    if config.variant == "averaged" and config.server_epochs != 1:
        warnings.append("algorithm.server_epochs does nothing with algorithm.variant=averaged")
    return warnings


ALGORITHM = Algorithm(
    "fedgkt",
    FedGktConfig,
    make_server,
    FedGktClient,
    model_sizes=fedgkt_sizes,
    messages=message_classes,
    check=check,
)
