"""VGG11 and ResNet9 as sequences of units, between which split learning divides a network.

A unit is one convolution, residual block or fully connected layer, with its normalization, its activation and the
pooling that follows; see `fedmpi.models.split`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models.registry import ModelConfig, register

_MIN_SIDE = 17
"""Four poolings leave 2 pixels of it: batch statistics of one sample need more than one pixel."""
_WIDTH_STEP = 8

_MakeNorm = Callable[[int], nn.Module]


class SplitNetConfig(ModelConfig):
    """Settings of the networks made to be split."""

    norm: Literal["batch_nostats", "batch", "group"] = Field(
        "batch_nostats",
        description="batch_nostats: by the batch's statistics in training and in tests, so that no statistics are kept "
        "or sent, and a sample's output depends on its batch; batch: running statistics in tests; group: no statistics "
        "of batches",
    )
    norm_groups: int = Field(
        2, ge=1, description="groups of each normalization; must divide all numbers of channels; only with norm=group"
    )
    width: float = Field(
        1.0,
        gt=0,
        le=8,
        description="factor of all channels and hidden units, which are rounded to multiples of 8; 1 as published",
    )

    def idle_settings(self) -> list[str]:
        """Return warnings about settings that somebody has set and that do nothing."""
        found = super().idle_settings()
        if self.norm != "group" and self._differs("norm_groups"):
            found.append(f"model.norm_groups does nothing with model.norm={self.norm}")
        return found


class Residual(nn.Module):
    """``main(x) + shortcut(x)``, without an activation after the sum."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the sum."""
        total_BCHW: Tensor = self.main(x_BCHW) + self.shortcut(x_BCHW)
        return total_BCHW


@register("vgg11", SplitNetConfig)
def vgg11(config: SplitNetConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """VGG11 of EcoFed (Wu et al. 2024): 34,440,970 parameters for CIFAR-10 at the defaults; made to be split.

    Eight 3x3 convolutions, four poolings and three fully connected layers, without dropout. Poolings round up, so that
    28 x 28 pixels end in 2 x 2 as 32 x 32 do.
    """
    _need_pixels(config.name, shape)
    scaled = _scale(config.width)
    norm = _norm(config, map(scaled, (64, 128, 256, 512)))
    net: OrderedDict[str, nn.Module] = OrderedDict()
    before = shape.channels
    layers = [(64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, False)]
    for number, (channels, pools) in enumerate(layers, 1):
        net[f"conv{number}"] = _convolution(before, scaled(channels), norm, pools)
        before = scaled(channels)
    pixels = -(-shape.height // 16) * -(-shape.width // 16)
    hidden = scaled(4096)
    net["fc1"] = _layers(flatten=nn.Flatten(), fc=nn.Linear(before * pixels, hidden), relu=nn.ReLU(inplace=True))
    net["fc2"] = _layers(fc=nn.Linear(hidden, hidden), relu=nn.ReLU(inplace=True))
    net["fc3"] = _layers(fc=nn.Linear(hidden, num_classes))
    return nn.Sequential(net)


@register("resnet9", SplitNetConfig)
def resnet9(config: SplitNetConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """ResNet9 of EcoFed (Wu et al. 2024): 9,395,722 parameters for CIFAR-10 at the defaults; made to be split.

    Two convolutions, three residual blocks without an activation after the sum, and one fully connected layer. What
    leaves a block may be negative.
    """
    _need_pixels(config.name, shape)
    c1, c2, c3, c4 = widths = [_scale(config.width)(channels) for channels in (64, 128, 256, 512)]
    norm = _norm(config, widths)

    def halving(channels_in: int, channels: int) -> Residual:
        main = nn.Sequential(
            _convolution(channels_in, channels, norm, pools=False), _convolution(channels, channels, norm, pools=True)
        )
        return Residual(main, nn.Conv2d(channels_in, channels, 1, stride=2))

    last = nn.Sequential(_convolution(c4, c4, norm, pools=False), _convolution(c4, c4, norm, pools=False))
    return _layers(
        conv1=_convolution(shape.channels, c1, norm, pools=True),
        conv2=_convolution(c1, c2, norm, pools=True),
        block1=halving(c2, c3),
        block2=halving(c3, c4),
        block3=_layers(block=Residual(last, nn.Identity()), pool=nn.AdaptiveAvgPool2d(1)),
        fc=_layers(flatten=nn.Flatten(), fc=nn.Linear(c4, num_classes)),
    )


def _layers(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _convolution(channels_in: int, channels: int, norm: _MakeNorm, pools: bool) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1)
    if not pools:
        return _layers(conv=conv, norm=norm(channels), relu=nn.ReLU(inplace=True))
    # Published with ReLU before the pooling: the same numbers and gradients, as ReLU never falls, for a quarter of it.
    pool = nn.MaxPool2d(2, ceil_mode=True)
    return _layers(conv=conv, norm=norm(channels), pool=pool, relu=nn.ReLU(inplace=True))


def _scale(width: float) -> Callable[[int], int]:
    return lambda units: max(_WIDTH_STEP, _WIDTH_STEP * round(units * width / _WIDTH_STEP))


def _norm(config: SplitNetConfig, widths: Iterable[int]) -> _MakeNorm:
    """Return what makes a normalization of so many channels."""
    if config.norm != "group":
        return lambda channels: nn.BatchNorm2d(channels, track_running_stats=config.norm == "batch")
    for channels in widths:
        if channels % config.norm_groups:
            raise ConfigError(
                f"model.norm_groups must divide all numbers of channels, got {config.norm_groups}, and one is "
                f"{channels} at model.width={config.width:g}"
            )
    return lambda channels: nn.GroupNorm(config.norm_groups, channels)


def _need_pixels(name: str, shape: ImageShape) -> None:
    if min(shape.height, shape.width) < _MIN_SIDE:
        raise ConfigError(
            f"model.name={name} halves images four times and takes {_MIN_SIDE} x {_MIN_SIDE} pixels or more, "
            f"got {shape.height} x {shape.width}"
        )
