"""LGL: split learning with a locally generated loss, so that no gradient travels.

Han, Bhatti, Lee, Moon: "Accelerating Federated Learning with Split Learning on Locally Generated Losses", ICML 2021
Workshop on Federated Learning::

    round t:   send the device's part W^C_t and the auxiliary head phi_t to each client k of the cohort
    client k:  for each batch: A = f(x; W^C_k); send A and the labels;
               step W^C_k and phi_k with the loss of phi_k(A)
    server:    for each batch of client k: step its copy W^S_k with the loss of f(A; W^S_k)
    server:    W^C, phi, W^S of round t+1 = means over the cohort, weighted by samples

A client goes on to its next batch without an answer, as long as no more than ``server.max_in_flight`` of its messages
wait for the server.
"""

from __future__ import annotations

from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import AuxiliaryClient, AuxiliaryServer, auxiliary_sizes
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, Channel
from fedmpi.algorithms.split_messages import (
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    SplitConfig,
    TurnLabels,
    encode_activations,
    labels_of,
    message_types,
    split_warnings,
)
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.models.initial import InitialModel
from fedmpi.train.optimizer import make_step
from fedmpi.wire.message import Message


class LglClient(AuxiliaryClient):
    """Trains the device's part by the auxiliary head's loss."""

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        self.load_device(channel.recv(DeviceSeedDown, DeviceDown))
        batches = self.batches(round_idx, client_id, shard)
        channel.send(labels_of(batches.labels(), self.num_classes))
        parts = self.device, self.head
        steps = [make_step(part, self.ctx.train_config) for part in parts]
        for x_BCHW, y_B in batches:
            a_BCHW = self.device.module(x_BCHW)
            channel.send(encode_activations(a_BCHW, self.config))
            self.count_passes(forward=len(x_BCHW), backward=len(x_BCHW))
            if self.ctx.dry_run:
                continue
            for part in parts:
                part.grads_P.zero_()
            F.cross_entropy(self.head.module(a_BCHW), y_B).backward()  # type: ignore[no-untyped-call]
            for step in steps:
                step()
            self.ctx.progress()
        channel.send(self.uplink())


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what LGL sends."""
    assert isinstance(config, SplitConfig)
    return DeviceSeedDown, DeviceDown, TurnLabels, message_types(config), DeviceUp


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about settings."""
    assert isinstance(config, SplitConfig)
    return split_warnings(config)


ALGORITHM = Algorithm(
    "lgl", SplitConfig, AuxiliaryServer, LglClient, model_sizes=auxiliary_sizes, messages=message_classes, check=check
)
