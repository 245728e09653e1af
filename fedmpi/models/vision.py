"""Small image classifiers. All take (batch, channels, height, width) float32 and return logits (batch, classes)."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models import pooling
from fedmpi.models.pooling import PoolReLU
from fedmpi.models.registry import ModelConfig, register


@register("logreg")
def logistic_regression(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """Multinomial logistic regression on the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape.height * shape.width * shape.channels, num_classes))


class MlpConfig(ModelConfig):
    """Settings of the multilayer perceptron."""

    hidden: tuple[int, ...] = Field((256,), min_length=1, description="units of the hidden layers")


@register("mlp", MlpConfig)
def mlp(config: MlpConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """Fully connected layers with ReLU between."""
    if min(config.hidden) < 1:
        raise ConfigError(f"model.hidden must be positive, got {list(config.hidden)}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = shape.height * shape.width * shape.channels
    for units in config.hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


class ConvNet(nn.Module):
    """Two 5x5 convolutions, each followed by pooling and ReLU, then fully connected layers with ReLU between.

    Parameters
    ----------
    channels : tuple of int
        In, after the first convolution, after the second.
    pool, pool_stride : int
        Side and stride of the maximum pooling.
    shape : ImageShape
        Decides the width of the first fully connected layer.
    hidden : tuple of int
        Units of the fully connected layers before the last.
    num_classes : int
    padding : int
        Zeros around the images, at each convolution.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        pool: int,
        pool_stride: int,
        shape: ImageShape,
        hidden: tuple[int, ...],
        num_classes: int,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels[0], channels[1], 5, padding=padding)
        self.conv2 = nn.Conv2d(channels[1], channels[2], 5, padding=padding)
        self.pool = PoolReLU(pool, pool_stride)

        def side(size: int) -> int:
            for _ in range(2):
                size = (size + 2 * padding - 4 - pool) // pool_stride + 1
            return size

        height, width = side(shape.height), side(shape.width)
        if height < 1 or width < 1:
            raise ConfigError(f"model: images of {shape.height} x {shape.width} pixels are too small for this network")
        units = (channels[2] * height * width, *hidden, num_classes)
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(units))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        h = self.pool(self.conv1(x_BCHW))
        h = self.pool(self.conv2(h)).flatten(1)
        for layer in self.fc[:-1]:
            h = F.relu(layer(h))
        logits: Tensor = self.fc[-1](h)
        return logits


@register("cnn")
def small_cnn(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """Small CNN: conv 16, conv 32, 2x2 pooling, fully connected 128."""
    return ConvNet((shape.channels, 16, 32), 2, 2, shape, (128,), num_classes)


def _need(name: str, shape: ImageShape, wanted: ImageShape) -> None:
    if shape != wanted:
        raise ConfigError(
            f"model.name={name} takes images of {tuple(wanted)} (height, width, channels), got {tuple(shape)}"
        )


@register("mnistnet", warm_up=pooling.warm_up)
def mnistnet(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """MNISTNet of FedDST (Bibikar et al. 2022): 261,840 parameters with 10 classes; 3x3 pooling of stride 1."""
    _need(config.name, shape, ImageShape(28, 28, 1))
    return ConvNet((1, 10, 20), 3, 1, shape, (50,), num_classes)


@register("cifar10net", warm_up=pooling.warm_up)
def cifar10net(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """CIFAR10Net of FedDST (Bibikar et al. 2022): 782,006 parameters with 10 classes; 3x3 pooling of stride 1."""
    _need(config.name, shape, ImageShape(32, 32, 3))
    return ConvNet((3, 6, 16), 3, 1, shape, (120, 84), num_classes)


@register("cifar100net", warm_up=pooling.warm_up)
def cifar100net(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """CIFAR100Net of FedDST (Bibikar et al. 2022): 783,092 parameters with 100 classes; 3x3 pooling of stride 1."""
    _need(config.name, shape, ImageShape(32, 32, 3))
    return ConvNet((3, 6, 16), 3, 1, shape, (120,), num_classes)


@register("femnistnet")
def femnistnet(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
    """Network of LEAF for FEMNIST (Caldas et al. 2018): 6,603,710 parameters with 62 classes; 2x2 pooling."""
    _need(config.name, shape, ImageShape(28, 28, 1))
    # LEAF has ReLU before the pooling: the same numbers and the same gradients, as ReLU never falls.
    return ConvNet((1, 32, 64), 2, 2, shape, (2048,), num_classes, padding=2)
