"""FedProx: FedAvg whose clients are held to the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated Optimization in Heterogeneous Networks", MLSys 2020,
equation 2::

    client k minimizes  F_k(w) + mu / 2 ||w - w_t||^2

The server's side is FedAvg's; every client does the same number of epochs.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.base import Algorithm, ClientContext
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer, compile_choice, message_classes
from fedmpi.algorithms.sparse_updates import UplinkConfig
from fedmpi.data.shard import Shard


class FedProxConfig(UplinkConfig):
    """Settings of FedProx."""

    mu: float = Field(0.01, ge=0, description="weight of the proximal term; 0 is FedAvg")


class FedProxClient(FedAvgClient):
    """FedAvg's client with one more term in the loss."""

    def __init__(self, config: FedProxConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.config = config

    def fit(self, round_idx: int, client_id: int, shard: Shard) -> None:
        start_P = self.ctx.model.params_P.clone()

        def proximal(w_P: Tensor) -> Tensor:
            return (w_P - start_P).square().sum() * (self.config.mu / 2)

        self.train_local(round_idx, client_id, shard, extra_loss=proximal)


ALGORITHM = Algorithm(
    "fedprox", FedProxConfig, FedAvgServer, FedProxClient, messages=message_classes, warm_up=compile_choice
)
