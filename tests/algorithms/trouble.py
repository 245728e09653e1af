"""An algorithm for tests: fails, dies or dawdles in a given round, on a client or on the server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Literal

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer
from fedmpi.data.shard import Shard


class TroubleConfig(AlgorithmConfig):
    where: Literal["client", "server"] = "client"
    what: Literal["raise", "kill", "sleep", "silent"] = "raise"
    round_idx: int = 1


class TroubleServer(FedAvgServer):
    def __init__(self, config: TroubleConfig, ctx) -> None:
        super().__init__(config, ctx)
        self.config = config

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        if self.config.where == "server" and round_idx == self.config.round_idx:
            raise ValueError("a planned failure")
        return super().end_round(round_idx)


class TroubleClient(FedAvgClient):
    def __init__(self, config: TroubleConfig, ctx) -> None:
        super().__init__(config, ctx)
        self.config = config

    def run(self, round_idx: int, client_id: int, shard: Shard, channel) -> None:
        if self.config.where == "client" and round_idx == self.config.round_idx:
            match self.config.what:
                case "raise":
                    raise ValueError("a planned failure")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "sleep":
                    time.sleep(30)
                case "silent":
                    channel.recv(*self.down_types)
                    return
        super().run(round_idx, client_id, shard, channel)


TROUBLE = Algorithm("trouble", TroubleConfig, TroubleServer, TroubleClient)
