"""An algorithm for tests: FedAvg whose server counts operations, in two steps of each conversation and beside them."""

from __future__ import annotations

from collections.abc import Sequence

from fedmpi.algorithms.averaging import ModelUp
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, Conversation
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer
from fedmpi.wire.message import Message

BEFORE, EACH, ADDING = 1e6, 1e4, 100.0
"""Operations of a round, of a client's number and of an aggregation."""


class CountingServer(FedAvgServer):
    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        super().begin_round(round_idx, cohort)
        self.ctx.count_ops(BEFORE)

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        self.ctx.count_ops(1)
        yield self.downlink(round_idx, client_id)
        up = yield ModelUp
        self.ctx.count_ops(EACH * client_id)
        assert up is not None
        return up

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        super().aggregate(round_idx, client_id, result)
        self.ctx.count_ops(ADDING)


COUNTING = Algorithm("counting", AlgorithmConfig, CountingServer, FedAvgClient)
