"""The auxiliary head: one fully connected layer behind the cut, by which a device trains without the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedmpi.algorithms.base import AlgorithmConfig, ClientContext, ServerContext, StateDict
from fedmpi.algorithms.split_client import SplitClient
from fedmpi.algorithms.split_messages import (
    Cut,
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    SplitConfig,
    SplitResult,
    cut_of,
    split_sizes,
)
from fedmpi.algorithms.split_server import SplitServer
from fedmpi.config import RunConfig
from fedmpi.flat import FlatModel
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import ANY, stream_seed
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense


def auxiliary_head(cut: Cut, init_seed: int, device: torch.device | None = None) -> FlatModel:
    """Return the head, (classes, numbers of an activation) weights and (classes,) biases, built from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(init_seed, ANY, ANY, "auxiliary head") & 0x7FFFFFFF)
        return FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(cut.numel, cut.num_classes)), device)


def auxiliary_sizes(config: AlgorithmConfig, spec: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that messages of methods with an auxiliary head name."""
    assert isinstance(config, SplitConfig)
    cut = cut_of(spec, config.point)
    return {**split_sizes(config, spec, run), "auxiliary": (cut.numel + 1) * cut.num_classes}


class AuxiliaryServer(SplitServer):
    """Sends the head with the device's part, and averages both."""

    def __init__(self, config: SplitConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.auxiliary_A = auxiliary_head(self.cut, ctx.initial.init_seed).params_P.clone()
        self._sum_A = torch.zeros_like(self.auxiliary_A, dtype=torch.float64)

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        self._sum_A.zero_()
        super().begin_round(round_idx, cohort)

    def first_message(self, round_idx: int) -> Message:
        first = super().first_message(round_idx)
        if isinstance(first, DeviceDown):
            auxiliary = Dense.of(self.auxiliary_A)
            return DeviceDown(int_buffers=first.int_buffers, state=first.state, auxiliary=auxiliary)
        return first

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        super().aggregate(round_idx, client_id, result)
        assert isinstance(result, SplitResult) and result.auxiliary is not None
        self._sum_A.add_(result.auxiliary.tensor(), alpha=result.num_samples)

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        if self.mean.total_samples:
            self.auxiliary_A.copy_(self._sum_A / self.mean.total_samples)
        return super().end_round(round_idx)

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "auxiliary": self.auxiliary_A}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        auxiliary = state["auxiliary"]
        assert isinstance(auxiliary, Tensor)
        self.auxiliary_A.copy_(auxiliary)


class AuxiliaryClient(SplitClient):
    """Has the head beside the device's part of the network."""

    def __init__(self, config: SplitConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.head = auxiliary_head(self.cut, 0, ctx.model.device)

    def load_device(self, down: DeviceSeedDown | DeviceDown) -> None:
        super().load_device(down)
        if isinstance(down, DeviceDown):
            assert down.auxiliary is not None
            self.head.load(down.auxiliary.tensor())
        else:
            self.head.load(auxiliary_head(self.cut, down.init_seed).state_S)

    def uplink(self, auxiliary_A: Tensor | None = None) -> DeviceUp:
        return super().uplink(self.head.params_P)
