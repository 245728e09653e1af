"""What split learning sends: parts of a network, activations, their gradients, logits, labels.

A message's kind begins with the phase it belongs to: init, weights, activation, gradient, logits, labels, control.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmpi.algorithms.base import AlgorithmConfig
from fedmpi.compress.quantize import levels_for, quantize, quantize_by_largest
from fedmpi.config import RunConfig
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError, NonFiniteError, ProtocolError
from fedmpi.flat import Layout, layout_of
from fedmpi.models.operations import SplitOperations, count_split_operations
from fedmpi.models.spec import ModelSpec
from fedmpi.models.split import activation_shape, split
from fedmpi.parts import LayoutPart, layout_part
from fedmpi.wire.message import Message, Schema, dense, labels, message, quantized
from fedmpi.wire.values import Dense, Labels, Quantized

_MOST_LABELS = 2**31 - 1


class SplitConfig(AlgorithmConfig):
    """Settings that all of split learning has."""

    point: int = Field(2, ge=1, description="units of the network on the device; the others are the server's")
    bits: int | None = Field(None, ge=1, le=8, description="bits of a number of an activation; null sends float32")
    quantizer: Literal["exact", "released"] = Field(
        "exact",
        description="exact: levels from 0 for activations that are never negative, else as many on both sides of 0; "
        "released: always both sides, by a batch's largest number and not magnitude, as EcoFed's code has it: behind a "
        "ReLU one of the bits is never used, elsewhere negative numbers further from 0 than the largest are cut off",
    )

    @model_validator(mode="after")
    def _check_bits(self) -> Self:
        if self.quantizer == "released" and self.bits == 1:
            raise ValueError(
                "bits must be 2 or more with quantizer=released, whose one bit is a sign, the same for all activations "
                "behind a ReLU, got 1"
            )
        return self


@message("weights-seed", "down")
class DeviceSeedDown(Message):
    """The device's part of the initial network, as the seed to build it from and a hash to check it by."""

    init_seed: int
    state_hash: int

    def num_params(self, schema: Schema) -> int:
        return schema.size("device_state") + schema.size("device_ints") + schema.size("auxiliary")

    def num_kept(self, schema: Schema) -> int:
        return 0


@message("weights", "down")
class DeviceDown(Message):
    """The device's part of the network, and the auxiliary head of methods that have one."""

    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")
    auxiliary: Dense | None = dense("auxiliary")


@message("weights", "up")
class DeviceUp(Message):
    """What a client has made of them."""

    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")
    auxiliary: Dense | None = dense("auxiliary")


@message("labels", "up")
class TurnLabels(Message):
    """The labels of all batches of a turn, in the order in which their activations follow."""

    labels: Labels = labels("turn_labels", num_classes="classes", at_most=True)

    def paper_nbits(self, schema: Schema) -> float:
        """Count 64 bits a label, as the code of EcoFed and its baselines sends them."""
        return 64.0 * self.labels.numel


@message("activation-float", "up")
class Activations(Message):
    """What a batch sends across the cut, in the order in which it lies: (B, H, W, C) of images."""

    numbers: Dense = dense("activation", at_most=True)


@message("activation", "up")
class QuantizedActivations(Message):
    """What a batch sends across the cut, in few bits a number, (B, C, H, W)."""

    symbols: Quantized = quantized(("batch", "channels", "height", "width"), at_most=True)


@message("gradient", "down")
class Gradients(Message):
    """The gradient of a batch's mean loss by its activations, in their order."""

    numbers: Dense = dense("activation", at_most=True)


@message("logits", "up")
class LogitsUp(Message):
    """A batch's logits by the client's own head, (B, classes) in C order."""

    numbers: Dense = dense("logits", at_most=True)


@message("logits", "down")
class LogitsDown(Message):
    """A batch's logits by the server's part, (B, classes) in C order."""

    numbers: Dense = dense("logits", at_most=True)


@message("split-result", "up")
class SplitResult(Message):
    """What a conversation comes to on the server: a whole network. It never leaves the simulated server."""

    num_samples: int
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    state: Dense = dense("state")
    auxiliary: Dense | None = dense("auxiliary")


ACTIVATIONS = (Activations, QuantizedActivations)


class Cut:
    """Where a network is cut, and what crosses.

    Parameters
    ----------
    model : ModelSpec
    point : int

    Raises
    ------
    ConfigError
        If the network cannot be cut there, if what crosses is neither images nor one axis, if the server's part has no
        parameter, or if the data are not images.
    """

    def __init__(self, model: ModelSpec, point: int) -> None:
        if not isinstance(model.shape, ImageShape):
            raise ConfigError("split learning takes images, got text: choose another data.name or another algorithm")
        module = model.build()
        try:
            device, server = split(module, point, model.shape)
        except ConfigError as error:
            raise ConfigError(f"algorithm.point={point}: {error}") from error
        self._operations = {
            back: count_split_operations(module, point, model.shape, passes_back=back) for back in (False, True)
        }
        self.shape = activation_shape(module, point, model.shape)
        """Of what a sample sends, (C, H, W), or (F,) behind a fully connected layer."""
        self.layout: Layout = layout_of(module)
        names = [name for name, _ in device.named_children()], [name for name, _ in server.named_children()]
        self.device: LayoutPart = layout_part(self.layout, names[0])
        self.server: LayoutPart = layout_part(self.layout, names[1])
        if not self.server.layout.num_params:
            raise ConfigError(
                f"algorithm.point={point} leaves the server nothing to train: no unit from the cut on has a parameter"
            )
        if len(self.shape) == 2 or len(self.shape) > 3:
            raise ConfigError(
                f"algorithm.point={point} cuts where a sample sends numbers of shape {self.shape}: that must be "
                "(channels, height, width), or one axis behind a fully connected layer"
            )
        self.num_classes = model.num_classes

    def operations(self, *, passes_back: bool = True) -> SplitOperations:
        """Return the operations a sample of both parts; see `fedmpi.models.operations.count_split_operations`."""
        return self._operations[passes_back]

    @property
    def numel(self) -> int:
        """Numbers that a sample sends."""
        return math.prod(self.shape)


@functools.lru_cache(maxsize=8)
def cut_of(model: ModelSpec, point: int) -> Cut:
    """Return where a network is cut; kept, as large networks take long to build. See `Cut`."""
    return Cut(model, point)


def split_sizes(config: AlgorithmConfig, model: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that split learning's messages name."""
    assert isinstance(config, SplitConfig)
    cut = cut_of(model, config.point)
    batch = run.train.batch_size
    channels, height, width = (*cut.shape, 1, 1)[:3]
    return {
        "device_state": cut.device.layout.num_state,
        "device_ints": cut.device.layout.num_int_buffers,
        "activation": batch * cut.numel,
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "classes": cut.num_classes,
        "logits": batch * cut.num_classes,
        "turn_labels": _MOST_LABELS,
        "auxiliary": 0,
    }


def as_stored(batch: Tensor) -> Dense:
    """Return a batch of activations or gradients as the numbers lie: no copy where images are channels last."""
    if batch.ndim == 4:
        batch = batch.permute(0, 2, 3, 1)
    return Dense.of(batch.reshape(-1))


def from_stored(value: Dense, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the batch that `as_stored` made a value of; `shape` is a sample's.

    Raises
    ------
    ProtocolError
        If its numbers are no whole number of samples.
    """
    if value.numel % math.prod(shape):
        raise ProtocolError(f"a batch of {value.numel} numbers came, where a sample has {math.prod(shape)}")
    # A copy, at an address that torch chooses: kernels may round otherwise where numbers are not aligned to vectors.
    numbers = value.tensor().to(device, copy=True)
    if len(shape) == 3:
        channels, height, width = shape
        return numbers.view(-1, height, width, channels).permute(0, 3, 1, 2)
    return numbers.view(-1, *shape)


def encode_activations(batch: Tensor, config: SplitConfig) -> Message:
    """Return a batch as the message that the configuration asks for.

    What holds NaN or infinity cannot be rounded and goes as it is, for the server to find; ``server.nonfinite`` says
    what becomes of it.
    """
    batch = batch.detach()
    if config.bits is None:
        return Activations(numbers=as_stored(batch))
    images = batch if batch.ndim == 4 else batch[:, :, None, None]
    try:
        if config.quantizer == "released":
            rounded = quantize_by_largest(images, config.bits)
        else:
            rounded = quantize(images, config.bits, levels_for(images))
    except NonFiniteError:
        return Activations(numbers=as_stored(batch))
    return QuantizedActivations(symbols=rounded.value())


def decode_activations(message: Message, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the batch that a message carries, (B, C, H, W) with channels last in memory, or (B, F).

    Raises
    ------
    ProtocolError
        If it is no batch of samples of this shape.
    """
    if isinstance(message, Activations):
        return from_stored(message.numbers, shape, device)
    assert isinstance(message, QuantizedActivations)
    wanted, found = (*shape, 1, 1)[:3], message.symbols.symbols.shape
    if found[1:] != wanted:
        raise ProtocolError(f"activations of shape {found} came, where a sample's are {wanted}")
    batch = message.symbols.dequantize().to(device)
    if len(shape) == 1:
        return batch.view(-1, *shape)
    return batch.contiguous(memory_format=torch.channels_last)


def logits_of(value: Dense, num_samples: int, num_classes: int) -> Tensor:
    """Return the logits that a message carries, (num_samples, num_classes); raises ProtocolError for another number."""
    if value.numel != num_samples * num_classes:
        raise ProtocolError(
            f"{value.numel} logits came, where {num_samples} samples of {num_classes} classes have "
            f"{num_samples * num_classes}"
        )
    return value.tensor().view(num_samples, num_classes)


def labels_of(labels_N: Tensor, num_classes: int) -> TurnLabels:
    """Return the message that carries a turn's labels."""
    return TurnLabels(labels=Labels(labels_N.cpu().numpy().astype(np.int64, copy=False), num_classes))


def message_types(config: SplitConfig) -> type[Message]:
    """Return the class of the messages that carry activations."""
    return Activations if config.bits is None else QuantizedActivations


def split_warnings(config: SplitConfig) -> list[str]:
    """Return warnings about settings that do nothing."""
    if config.bits is None and config.quantizer != "exact":
        return ["algorithm.quantizer does nothing with algorithm.bits=null"]
    return []
