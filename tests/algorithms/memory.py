"""An algorithm for tests: every client keeps a tensor from round to round, and sends what it makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpi.algorithms.averaging import load_downlink, model_uplink
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer
from fedmpi.data.shard import Shard
from fedmpi.wire.message import Message


class MemoryClient(FedAvgClient):
    """Adds half of what it changed in its earlier turns."""

    def declare_state(self) -> dict[str, Tensor]:
        model = self.ctx.model
        return {"memory": torch.zeros_like(model.params_P), "turns": torch.zeros(1, dtype=torch.int64)}

    def train(self, round_idx: int, client_id: int, down: Message, shard: Shard) -> Message:
        load_downlink(self.ctx, down)
        model, memory = self.ctx.model, self.client_state["memory"]
        start = model.params_P.clone()
        self.train_local(round_idx, client_id, shard)
        memory.mul_(0.5).add_(model.params_P - start, alpha=0.5)
        self.client_state["turns"] += 1
        model.params_P.add_(memory).add_(1e-3 * int(self.client_state["turns"]))
        return model_uplink(model, shard.num_samples)


MEMORY = Algorithm("memory", AlgorithmConfig, FedAvgServer, MemoryClient)
