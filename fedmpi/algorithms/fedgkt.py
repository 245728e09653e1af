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

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import AuxiliaryClient
from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Channel,
    ClientContext,
)
from fedmpi.algorithms.fedgkt_messages import (
    Begin,
    FedGktConfig,
    TestedDevice,
    TurnLogits,
    distillation,
    fedgkt_sizes,
    message_classes,
)
from fedmpi.algorithms.fedgkt_server import make_server
from fedmpi.algorithms.split_messages import (
    DeviceDown,
    DeviceSeedDown,
    LogitsDown,
    LogitsUp,
    encode_activations,
    labels_of,
    logits_of,
    split_warnings,
)
from fedmpi.config import RunConfig
from fedmpi.data.shard import Batches, Shard
from fedmpi.models.initial import InitialModel
from fedmpi.rng import ANY, stream
from fedmpi.train.local import LocalStats, seed_torch
from fedmpi.train.optimizer import make_step
from fedmpi.wire.values import Dense


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
