"""An algorithm for tests: seven messages a client, and a copy of a vector on the server that the talk changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown, load_downlink
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Channel,
    ClientHalf,
    Conversation,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.fedavg import FedAvgServer
from fedmpi.data.shard import Shard
from fedmpi.wire.message import Message, dense, message
from fedmpi.wire.values import Dense


@message("talk question", "up")
class Question(Message):
    number: int
    part: Dense = dense("talk", at_most=True)


@message("talk answer", "down")
class Answer(Message):
    part: Dense = dense("talk", at_most=True)


@message("talk end", "up")
class End(Message):
    num_samples: int
    state: Dense = dense("state")


@message("talk result", "up")
class Result(Message):
    num_samples: int
    side: Dense = dense("talk")
    state: Dense = dense("state")


class TalkConfig(AlgorithmConfig):
    length: int = Field(64, ge=4, description="numbers in the server's own vector")
    client_first: bool = Field(False, description="the client begins, from the run's initial model")


class TalkServer(FedAvgServer):
    """Keeps a vector of its own; a conversation works on a copy, which comes back in its result."""

    def __init__(self, config: TalkConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self.side = torch.zeros(config.length)
        self._side_sum = torch.zeros(config.length, dtype=torch.float64)

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        side = self.side.clone()
        if not self.config.client_first:
            yield self.downlink(round_idx, client_id)
        for number in range(3):
            question = yield Question
            assert isinstance(question, Question) and question.number == number
            part = question.part.tensor()
            side[: part.numel()] = (side[: part.numel()] * 1.7 + part).sin()
            if number < 2:
                yield Answer(part=Dense.of(side[: part.numel()]))
        end = yield (End, Question)
        assert isinstance(end, End)
        return Result(num_samples=end.num_samples, side=Dense.of(side), state=end.state)

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, Result)
        self.mean.add(ModelUp(num_samples=result.num_samples, state=result.state, int_buffers=None))
        self._side_sum.add_(result.side.tensor(), alpha=result.num_samples)

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        self.side.copy_(self._side_sum / self.mean.total_samples)
        self._side_sum.zero_()
        super().end_round(round_idx)
        self.model.state_S[: self.side.numel()].add_(self.side, alpha=0.1)
        return {"side_norm": float(self.side.norm())}

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "side": self.side}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        side = state["side"]
        assert isinstance(side, Tensor)
        self.side.copy_(side)


class TalkClient(ClientHalf):
    def __init__(self, config: TalkConfig, ctx) -> None:
        super().__init__(config, ctx)
        self.config = config
        self._initial_S = ctx.model.state_S.clone()

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        model = self.ctx.model
        if self.config.client_first:
            model.load(self._initial_S)
        else:
            load_downlink(self.ctx, channel.recv(SeedDown, ModelDown))
        for number in range(3):
            self.train_local(round_idx, client_id, shard)
            head = model.params_P[: self.config.length - client_id % 4]  # other lengths for other clients
            channel.send(Question(number=number, part=Dense.of(head)))
            if number < 2:
                answer = channel.recv(Answer)
                head.add_(answer.part.tensor(), alpha=0.01)
        channel.send(End(num_samples=shard.num_samples, state=Dense.of(model.state_S)))


TALK = Algorithm("talk", TalkConfig, TalkServer, TalkClient, sizes=lambda config, layout: {"talk": config.length})
