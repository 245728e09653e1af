"""FedAvgM: FedAvg with momentum on the server.

Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
section 3.3::

    dw = w_t - sum_k n_k w_k / sum_k n_k         (what FedAvg would subtract)
    v <- beta v + dw
    w_{t+1} = w_t - eta v                         (eta = 1 in the paper)

Buffers take FedAvg's mean: they are statistics, not steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.base import Algorithm, ServerContext, StateDict
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer, compile_choice, message_classes
from fedmpi.algorithms.sparse_updates import UplinkConfig


class FedAvgMConfig(UplinkConfig):
    """Settings of FedAvgM."""

    server_momentum: float = Field(0.9, ge=0, lt=1, description="beta")
    server_lr: float = Field(1.0, gt=0, description="eta")


class FedAvgMServer(FedAvgServer):
    """FedAvg's server with another `end_round`."""

    def __init__(self, config: FedAvgMConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self._velocity_P = torch.zeros(ctx.layout.num_params)
        self._previous_P = torch.empty(ctx.layout.num_params)

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        w_P = self.model.state_S[: self.ctx.layout.num_params]
        previous_P = self._previous_P.copy_(w_P)
        super().end_round(round_idx)
        if not self.mean.total_samples:
            return {}  # nobody replied: as elsewhere, the model stays
        self._velocity_P.mul_(self.config.server_momentum).add_(previous_P - w_P)
        torch.add(previous_P, self._velocity_P, alpha=-self.config.server_lr, out=w_P)
        return {}

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "velocity": self._velocity_P}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        velocity = state["velocity"]
        assert isinstance(velocity, Tensor)
        self._velocity_P.copy_(velocity)


ALGORITHM = Algorithm(
    "fedavgm", FedAvgMConfig, FedAvgMServer, FedAvgClient, messages=message_classes, warm_up=compile_choice
)
