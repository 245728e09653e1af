"""An algorithm for tests: a client sends NaN, goes on training, and sends more before it waits for the server."""

from __future__ import annotations

import torch

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown, load_downlink, model_uplink
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, Channel, ClientHalf, Conversation
from fedmpi.algorithms.fedavg import FedAvgServer
from fedmpi.data.shard import Shard
from fedmpi.wire.message import Message, dense, message
from fedmpi.wire.values import Dense


@message("hasty early", "up")
class Early(Message):
    numbers: Dense = dense(4)


class HastyServer(FedAvgServer):
    def converse(self, round_idx: int, client_id: int) -> Conversation:
        yield self.downlink(round_idx, client_id)
        yield Early
        return ModelUp


class HastyClient(ClientHalf):
    def declare_state(self) -> dict[str, torch.Tensor]:
        return {"turns": torch.zeros(1)}

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        load_downlink(self.ctx, channel.recv(SeedDown, ModelDown))
        bad = round_idx == 1 and client_id % 2
        channel.send(Early(numbers=Dense.of(torch.full((4,), float("nan") if bad else 1.0))))
        for _ in range(20):
            self.train_local(round_idx, client_id, shard)
        self.client_state["turns"] += 1
        self.ctx.model.params_P.add_(1e-3 * float(self.client_state["turns"]))
        channel.send(model_uplink(self.ctx.model, shard.num_samples))


HASTY = Algorithm("hasty", AlgorithmConfig, HastyServer, HastyClient)
