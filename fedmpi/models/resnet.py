"""ResNet-18 with group normalization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models.registry import ModelConfig, register


class ResNetConfig(ModelConfig):
    """Settings of the residual network."""

    stem: Literal["cifar", "imagenet"] = Field(
        "cifar",
        description="cifar: 3x3 convolution, no pooling; imagenet: 7x7 of stride 2, then 3x3 pooling of stride 2",
    )
    norm_groups: int = Field(2, ge=1, description="groups of each normalization; must divide model.width")
    width: int = Field(64, ge=1, description="channels of the first stage; the others have 2, 4 and 8 times as many")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each normalized, around which the input goes; projected by 1x1 where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(norm_groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_groups, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.GroupNorm(norm_groups, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, height / stride, width / stride)."""
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        h = self.norm2(self.conv2(h))
        return F.relu(h + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """Stem, four stages of two residual blocks, mean over the pixels, one fully connected layer."""

    def __init__(self, config: ResNetConfig, channels: int, num_classes: int) -> None:
        super().__init__()
        width, groups = config.width, config.norm_groups
        if config.stem == "cifar":
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.pool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.norm1 = nn.GroupNorm(groups, width)
        blocks, before = [], width
        for stage in range(4):
            for block in range(2):
                blocks.append(ResidualBlock(before, width << stage, 2 if stage and not block else 1, groups))
                before = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        h = self.pool(F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True))
        logits: Tensor = self.fc(self.blocks(h).mean((2, 3)))
        return logits


@register("resnet18", ResNetConfig)
def resnet18(config: ResNetConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """ResNet-18 with group instead of batch normalization: 11,173,962 parameters for CIFAR-10 at the defaults.

    Batch statistics of unlike clients do not mix (Hsieh et al. 2020); two groups are those of Reddi et al. 2021.
    Weights of convolutions are drawn as He et al. 2015 do.
    """
    if config.width % config.norm_groups:
        raise ConfigError(f"model.norm_groups must divide model.width = {config.width}, got {config.norm_groups}")
    return ResNet18(config, shape.channels, num_classes)
