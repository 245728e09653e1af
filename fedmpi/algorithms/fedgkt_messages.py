"""What FedGKT sends, its settings, and the loss by which one half teaches the other; see `fedgkt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import auxiliary_sizes
from fedmpi.algorithms.base import (
    AlgorithmConfig,
)
from fedmpi.algorithms.split_messages import (
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    LogitsDown,
    LogitsUp,
    SplitConfig,
    TurnLabels,
    message_types,
)
from fedmpi.config import RunConfig
from fedmpi.models.spec import ModelSpec
from fedmpi.wire.message import Message, counts, dense, message
from fedmpi.wire.values import Counts, Dense

_MOST, _MOST_FRAMES = 2**40, 2**20


class FedGktConfig(SplitConfig):
    """Settings of FedGKT."""

    variant: Literal["original", "averaged"] = Field(
        "averaged", description="original: clients keep their own networks; averaged: as EcoFed's comparison has it"
    )
    alpha: float = Field(1.0, ge=0, description="weight of the distillation on the client, of the labels on the server")
    temperature: float = Field(3.0, gt=0, description="T of the distillation")
    server_epochs: int = Field(1, ge=1, description="epochs of the server a round; only with variant=original")


@message("logits-all", "down")
class TurnLogits(Message):
    """The server's logits of what this client sent last, (samples, classes), in the order in which it sent them."""

    numbers: Dense = dense("most", at_most=True)


@message("control-begin", "down")
class Begin(Message):
    """The client is to go on with the network that it has."""

    has_logits: int


@message("evaluation-weights", "up")
class TestedDevice(Message):
    """A client's own device part, for the simulation's test of the model alone."""

    is_simulation = True

    num_samples: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")


@message("fedgkt-result", "up")
class FedGktResult(Message):
    """What a conversation comes to on the server in the original: all that a client sent."""

    num_samples: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")
    frames: Dense = dense("most", dtype="uint8", at_most=True)
    lengths: Counts = counts("num_frames", at_most=True)


def distillation(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Return KL_T(student, teacher), the mean over the batch, a scalar; 0 where the logits agree."""
    student = F.log_softmax(student_BK / temperature, 1)
    teacher = F.log_softmax(teacher_BK / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def fedgkt_sizes(config: AlgorithmConfig, spec: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that FedGKT's messages name."""
    return {**auxiliary_sizes(config, spec, run), "most": _MOST, "num_frames": _MOST_FRAMES}


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what FedGKT sends."""
    assert isinstance(config, FedGktConfig)
    common: tuple[type[Message], ...] = (DeviceSeedDown, DeviceDown, TurnLabels, message_types(config), LogitsUp)
    if config.variant == "original":
        return (*common, Begin, TurnLogits, TestedDevice)
    return (*common, LogitsDown, DeviceUp)
