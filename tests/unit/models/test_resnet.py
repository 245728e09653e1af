"""ResNet-18: sizes by formula and by those published, the forward pass written out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models.initial import initial_model
from fedmpi.models.registry import build_model, resolve

CIFAR = ImageShape(32, 32, 3)


def build(shape: ImageShape = CIFAR, num_classes: int = 10, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name="resnet18", **settings)), shape, num_classes, init_seed=1)


def num_params(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def by_formula(width: int, channels: int, num_classes: int, stem: int) -> int:
    count = stem * stem * channels * width + 2 * width
    before = width
    for stage in range(4):
        after = width * 2**stage
        count += 9 * before * after + 3 * 9 * after * after + 4 * 2 * after
        if before != after:
            count += before * after + 2 * after
        before = after
    return count + before * num_classes + num_classes


@pytest.mark.parametrize(
    ("settings", "shape", "num_classes", "count"),
    [
        ({}, CIFAR, 10, 11_173_962),
        ({"stem": "imagenet"}, ImageShape(64, 64, 3), 1000, 11_689_512),  # torchvision's, with batch normalization
        ({"width": 8}, ImageShape(28, 28, 1), 62, by_formula(8, 1, 62, 3)),
        ({"width": 6, "norm_groups": 3, "stem": "imagenet"}, CIFAR, 5, by_formula(6, 3, 5, 7)),
    ],
)
def test_parameter_counts(settings: dict[str, Any], shape: ImageShape, num_classes: int, count: int) -> None:
    stem = 7 if settings.get("stem") == "imagenet" else 3
    assert count == by_formula(settings.get("width", 64), shape.channels, num_classes, stem)
    assert num_params(build(shape, num_classes, **settings)) == count


def plain_forward(module: nn.Module, x: Tensor, stem: str, groups: int) -> Tensor:
    """The network from the weights alone, taken in their order."""
    weights = iter(module.parameters())

    def conv_norm(h: Tensor, stride: int, padding: int) -> Tensor:
        h = F.conv2d(h, next(weights), None, stride, padding)
        n, c, height, width = h.shape
        grouped = h.reshape(n, groups, -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return grouped.reshape(n, c, height, width) * next(weights)[:, None, None] + next(weights)[:, None, None]

    h = conv_norm(x, 2, 3).clamp(min=0) if stem == "imagenet" else conv_norm(x, 1, 1).clamp(min=0)
    if stem == "imagenet":
        h = F.max_pool2d(h, 3, 2, 1)
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        inner = conv_norm(conv_norm(h, stride, 1).clamp(min=0), 1, 1)
        h = (inner + (conv_norm(h, 2, 0) if stride == 2 else h)).clamp(min=0)
    return h.mean((2, 3)) @ next(weights).t() + next(weights)


@pytest.mark.parametrize(("stem", "groups", "side"), [("cifar", 2, 32), ("cifar", 4, 12), ("imagenet", 2, 40)])
def test_forward(stem: str, groups: int, side: int) -> None:
    module = build(ImageShape(side, side, 3), 7, width=8, norm_groups=groups, stem=stem)
    rng = torch.Generator().manual_seed(0)
    for param in module.parameters():
        if param.ndim == 1:
            param.data += 0.2 * torch.randn(param.shape, generator=rng)
    x = torch.randn(3, 3, side, side, generator=rng)
    for mode in (True, False):
        module.train(mode)
        torch.testing.assert_close(module(x), plain_forward(module, x, stem, groups), rtol=1e-4, atol=1e-4)


def test_it_has_no_buffers_and_a_seed() -> None:
    config = resolve(NamedSection(name="resnet18", width=4))
    models = [initial_model(config, CIFAR, 10, seed) for seed in (1, 1, 2)]
    assert models[0].layout.num_state == models[0].layout.num_params
    assert models[0].layout.num_int_buffers == 0
    assert models[0].state_hash == models[1].state_hash != models[2].state_hash


def test_convolutions_are_drawn_as_he_et_al_do() -> None:
    weight = build(width=32).blocks[7].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm_groups": 3}, r"model\.norm_groups must divide model\.width = 64, got 3"),
        ({"norm_groups": 0}, r"model\.norm_groups must be at least 1, got 0"),
        ({"stem": "tiny"}, r"model\.stem must be 'cifar' or 'imagenet', got 'tiny'"),
        ({"width": 0}, r"model\.width must be at least 1, got 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**settings)
