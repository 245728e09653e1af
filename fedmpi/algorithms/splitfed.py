"""SplitFed: the network is cut in two, and activations and their gradients cross the cut at every batch.

Thapa, Arachchige, Camtepe, Sun: "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, Algorithm 1::

    round t:   send the device's part W^C_t to each client k of the cohort
    client k:  for each batch: A = f(x; W^C_k); send A and the labels; receive dA; W^C_k <- step with dA
    server:    for each batch of client k: step W^S_k with the loss of f(A; W^S_k); send dA
    server:    W^C_{t+1}, W^S_{t+1} = means over the cohort, weighted by samples

``version: 1`` (SplitFedV1, "vanilla" split federated learning in EcoFed's comparison) has a copy W^S_k of the server's
part for each client. ``version: 2`` (SplitFedV2) has one W^S, which trains on one client after the other, here in
ascending order of their numbers; only the devices' parts are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, Channel, ServerContext
from fedmpi.algorithms.split_client import SplitClient
from fedmpi.algorithms.split_messages import (
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    Gradients,
    SplitConfig,
    SplitResult,
    TurnLabels,
    as_stored,
    encode_activations,
    from_stored,
    labels_of,
    message_types,
    split_sizes,
    split_warnings,
)
from fedmpi.algorithms.split_server import Bench, SplitServer
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.models.initial import InitialModel
from fedmpi.train.optimizer import make_step
from fedmpi.wire.message import Message


class SplitFedConfig(SplitConfig):
    """Settings of SplitFed."""

    version: Literal[1, 2] = Field(1, description="1: a server's part for each client, averaged; 2: one for all")


class SplitFedServer(SplitServer):
    """Answers every batch with the gradient by its activations."""

    returns_gradients = True

    def __init__(self, config: SplitFedConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.is_sequential = config.version == 2

    def answer(self, bench: Bench, a_BCHW: Tensor, y_B: Tensor) -> Message:
        if self.ctx.dry_run:
            return Gradients(numbers=as_stored(torch.zeros_like(a_BCHW)))
        _, gradient = bench.train(a_BCHW, y_B, wants_gradient=True)
        assert gradient is not None
        return Gradients(numbers=as_stored(gradient))

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        super().aggregate(round_idx, client_id, result)
        if self.is_sequential:
            assert isinstance(result, SplitResult)
            server, state_S = self.cut.server, result.state.tensor()
            server.put(server.take(state_S), self.model.state_S)
            if result.int_buffers is not None:
                self.model.ints_I[server.ints] = result.int_buffers.tensor()[server.ints]

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        if not self.is_sequential:
            return super().end_round(round_idx)
        server = self.cut.server
        kept_S, kept_I = server.take(self.model.state_S).clone(), self.model.ints_I[server.ints].clone()
        super().end_round(round_idx)
        server.put(kept_S, self.model.state_S)
        self.model.ints_I[server.ints] = kept_I
        return {}


class SplitFedClient(SplitClient):
    """Sends each batch's activations and takes a step with the gradient that comes back."""

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        self.load_device(channel.recv(DeviceSeedDown, DeviceDown))
        batches = self.batches(round_idx, client_id, shard)
        channel.send(labels_of(batches.labels(), self.num_classes))
        device, step = self.device, make_step(self.device, self.ctx.train_config)
        for x_BCHW, _ in batches:
            device.grads_P.zero_()
            a_BCHW = device.module(x_BCHW)
            channel.send(encode_activations(a_BCHW, self.config))
            self.count_passes(forward=len(x_BCHW), backward=len(x_BCHW))
            gradient = from_stored(channel.recv(Gradients).numbers, tuple(a_BCHW.shape[1:]), device.device)
            if a_BCHW.requires_grad and not self.ctx.dry_run:  # a device part may have nothing to train
                a_BCHW.backward(gradient)
                step()
        channel.send(self.uplink())


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what SplitFed sends."""
    assert isinstance(config, SplitConfig)
    return DeviceSeedDown, DeviceDown, TurnLabels, message_types(config), Gradients, DeviceUp


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about settings."""
    assert isinstance(config, SplitFedConfig)
    warnings = split_warnings(config)
    if config.version == 2 and run.server.host != "rank0":
        warnings.append(f"algorithm.version=2 holds its conversations on rank 0, not server.host={run.server.host}")
    if config.version == 2 and run.time is not None:
        warnings.append(
            "algorithm.version=2 works on one client after the other: of the virtual times the sum alone is its round's"
        )
    return warnings


ALGORITHM = Algorithm(
    "splitfed",
    SplitFedConfig,
    SplitFedServer,
    SplitFedClient,
    model_sizes=split_sizes,
    messages=message_classes,
    check=check,
)
