"""FedAvg: clients train the model they are sent, the server takes the mean weighted by samples.

McMahan, Moore, Ramage, Hampson, Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1::

    server, round t:  send w_t to each client k of the cohort S_t
    client k:         w_k = E epochs of SGD on its n_k samples, from w_t
    server:           w_{t+1} = sum_k n_k w_k / sum_k n_k            (over the cohort)

Floating buffers (batch-norm statistics) are averaged like parameters, integer ones come from the lowest client_id. With
``compress: topk`` clients send the largest numbers of their updates, see `fedmpi.algorithms.sparse_updates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedmpi.algorithms.averaging import (
    ModelDown,
    ModelUp,
    SeedDown,
    WeightedMean,
    dense_ints,
    initial_downlink,
    load_downlink,
    model_uplink,
)
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    ClientContext,
    ExchangeClient,
    ExchangeServer,
    GlobalModel,
    MessageTypes,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.sparse_updates import SparseMean, TopKUplink, UpdateUp, UplinkConfig, sends_topk
from fedmpi.compress.topk import warm_up
from fedmpi.data.shard import Shard
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense


class FedAvgServer(ExchangeServer):
    """Keeps the global model, in memory that is sent as it lies."""

    up_types: MessageTypes = ModelUp

    def __init__(self, config: AlgorithmConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self._vector = Dense.framed(ctx.layout.num_state)
        self.model = GlobalModel(self._vector.tensor(), ctx.initial.ints_I.clone())
        self.model.state_S.copy_(ctx.initial.state_S)
        self.mean = WeightedMean(ctx.layout)
        if sends_topk(config):
            self.up_types, self.mean = UpdateUp, SparseMean(ctx.layout)
        self._down: Message

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        self.mean.reset()
        if round_idx == 0 and self.ctx.send_seed:
            self._down = initial_downlink(self.ctx.initial)
        else:
            self._down = ModelDown(state=self._vector, int_buffers=dense_ints(self.model.ints_I))

    def downlink(self, round_idx: int, client_id: int) -> Message:
        return self._down

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        self.mean.add(result)

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        self.mean.mean_into(self.model)
        return {}

    def global_model(self) -> GlobalModel:
        return self.model

    def state_dict(self) -> StateDict:
        return self.model.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.model.load_state_dict(state)


class FedAvgClient(ExchangeClient):
    """Trains the model it is sent and sends it back."""

    down_types = (SeedDown, ModelDown)

    def __init__(self, config: AlgorithmConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self._topk = TopKUplink(config, ctx.model.layout) if sends_topk(config) else None

    def declare_state(self) -> dict[str, Tensor]:
        return self._topk.state(self.ctx.model.device) if self._topk is not None else {}

    def train(self, round_idx: int, client_id: int, down: Message, shard: Shard) -> Message:
        assert isinstance(down, (SeedDown, ModelDown))
        load_downlink(self.ctx, down)
        if self._topk is None:
            self.fit(round_idx, client_id, shard)
            return model_uplink(self.ctx.model, shard.num_samples)
        start_P = self.ctx.model.params_P.clone()
        self.fit(round_idx, client_id, shard)
        return self._topk.message(self.ctx.model, start_P, shard.num_samples, self.client_state)

    def fit(self, round_idx: int, client_id: int, shard: Shard) -> None:
        """Train the model that is loaded; FedAvg's kin change this."""
        self.train_local(round_idx, client_id, shard)


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what FedAvg and its kin send."""
    return SeedDown, ModelDown, UpdateUp if sends_topk(config) else ModelUp


def compile_choice(config: AlgorithmConfig) -> None:
    """Compile what chooses the numbers to send, on a CPU."""
    if sends_topk(config):
        warm_up()


ALGORITHM = Algorithm(
    "fedavg", UplinkConfig, FedAvgServer, FedAvgClient, messages=message_classes, warm_up=compile_choice
)
