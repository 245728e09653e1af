"""The server's half of FedGKT, of either variant; see `fedgkt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import AuxiliaryServer
from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    Conversation,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.fedgkt_messages import Begin, FedGktConfig, FedGktResult, TestedDevice, TurnLogits, distillation
from fedmpi.algorithms.replay import Upload
from fedmpi.algorithms.split_messages import (
    ACTIVATIONS,
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    LogitsDown,
    LogitsUp,
    TurnLabels,
    decode_activations,
    logits_of,
)
from fedmpi.algorithms.split_server import Bench, Criterion
from fedmpi.rng import ANY
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message
from fedmpi.wire.values import Counts, Dense


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
            else:
                self.ctx.count_ops(len(y_B) * self.cut.operations().server.forward)
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
