"""VGG11 and ResNet9: sizes as published, the forward pass written out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import initial_model
from fedmpi.models.registry import build_model, resolve

CIFAR = ImageShape(32, 32, 3)
MNIST = ImageShape(28, 28, 1)


def build(name: str, shape: ImageShape = CIFAR, num_classes: int = 10, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **settings)), shape, num_classes, init_seed=1)


def num_params(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "count", "in_front"),
    [
        ("vgg11", 10, 34_440_970, [1_920, 76_032, 371_712, 962_304, 2_143_488]),
        ("vgg11", 100, 34_809_700, [1_920, 76_032, 371_712, 962_304, 2_143_488]),
        ("resnet9", 10, 9_395_722, [1_920, 76_032, 995_328, 4_668_928, 9_390_592]),
        ("resnet9", 100, 9_441_892, [1_920, 76_032, 995_328, 4_668_928, 9_390_592]),
    ],
)
def test_parameters_as_published(name: str, num_classes: int, count: int, in_front: list[int]) -> None:
    module = build(name, num_classes=num_classes)
    assert num_params(module) == count
    sizes = torch.tensor([num_params(unit) for unit in module])
    assert sizes.cumsum(0)[:5].tolist() == in_front
    assert not list(module.buffers())


@pytest.mark.parametrize(("norm", "num_buffers"), [("batch_nostats", 0), ("batch", 2), ("group", 0)])
def test_normalizations(norm: str, num_buffers: int) -> None:
    """Each has a weight and a bias a channel; running statistics are two numbers more."""
    for name, num_channels in (("vgg11", 8 + 16 + 2 * 32 + 4 * 64), ("resnet9", 8 + 16 + 2 * 32 + 4 * 64)):
        config = resolve(NamedSection(name=name, norm=norm, width=0.125))
        layout = initial_model(config, CIFAR, 10, 1).layout
        assert layout.num_state - layout.num_params == num_buffers * num_channels
        assert layout.num_int_buffers == (8 if num_buffers else 0)


@pytest.mark.parametrize(
    ("width", "channels", "hidden"),
    [(0.001, [8, 8, 8, 8, 8, 8, 8, 8], 8), (0.3, [16, 40, 80, 80, 152, 152, 152, 152], 1232)],
)
def test_widths_are_multiples_of_8(width: float, channels: list[int], hidden: int) -> None:
    module = build("vgg11", width=width)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == channels
    assert [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)] == [hidden, hidden, 10]
    blocks = build("resnet9", width=width)
    assert sorted({layer.out_channels for layer in blocks.modules() if isinstance(layer, nn.Conv2d)}) == sorted(
        set(channels)
    )


def plain_forward(name: str, module: nn.Module, x: Tensor, groups: int) -> Tensor:
    """The network from the weights alone, taken in their order; ReLU before the pooling, as published."""
    weights = iter(module.parameters())

    def conv(h: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(h, next(weights), next(weights), stride, padding)

    def cbr(h: Tensor) -> Tensor:
        h = conv(h)
        batch, channels, height, width = h.shape
        if groups:
            dims: tuple[int, ...] = (2, 3, 4)
            grouped = h.reshape(batch, groups, channels // groups, height, width)
        else:
            dims = (0, 3, 4)
            grouped = h[:, :, None]
        mean, var = grouped.mean(dims, keepdim=True), grouped.var(dims, correction=0, keepdim=True)
        h = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(h.shape)
        return (h * next(weights)[:, None, None] + next(weights)[:, None, None]).clamp(min=0)

    def pool(h: Tensor) -> Tensor:
        return F.max_pool2d(h, 2, 2, ceil_mode=True)

    def linear(h: Tensor) -> Tensor:
        return h @ next(weights).t() + next(weights)

    x = pool(cbr(x))
    x = pool(cbr(x))
    if name == "vgg11":
        x = pool(cbr(cbr(x)))
        x = pool(cbr(cbr(x)))
        x = cbr(cbr(x)).flatten(1)
        return linear(linear(linear(x).clamp(min=0)).clamp(min=0))
    for _ in range(2):
        main = pool(cbr(cbr(x)))
        x = main + conv(x, 2, 0)
    x = x + cbr(cbr(x))
    return linear(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
@pytest.mark.parametrize("norm", ["batch_nostats", "batch", "group"])
@pytest.mark.parametrize("shape", [CIFAR, MNIST, ImageShape(17, 40, 2)])
def test_logits_and_gradients_are_those_of_the_network_as_published(name: str, norm: str, shape: ImageShape) -> None:
    module = build(name, shape, 7, norm=norm, width=0.125, norm_groups=4)
    flat = FlatModel(module)
    rng = torch.Generator().manual_seed(0)
    for param in module.parameters():
        if param.ndim == 1:
            param.data += 0.1 * torch.randn(param.shape, generator=rng)
    x = torch.randn(6, shape.height, shape.width, shape.channels, generator=rng).permute(0, 3, 1, 2)
    logits = module(x)
    assert logits.shape == (6, 7)
    expected = plain_forward(name, module, x, 4 if norm == "group" else 0)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    want = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    logits.square().sum().backward()
    # A bias before a batch normalization has no gradient but rounding: compare with the size of the whole.
    scale = float(flat.grads_P.abs().max())
    for param, grad in zip(module.parameters(), want, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
def test_what_the_batch_and_the_mode_change(name: str) -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    differs = {}
    for norm in ("batch_nostats", "batch", "group"):
        module = build(name, norm=norm, width=0.125)
        training = module(x)
        testing = module.eval()(x)
        alone = module(x[:1])  # the smallest batch that there can be
        differs[norm] = (
            not torch.allclose(training, testing, atol=1e-4), not torch.allclose(testing[:1], alone, atol=1e-4)
        )  # fmt: skip
    assert differs == {"batch_nostats": (False, True), "batch": (True, False), "group": (False, False)}


@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
@pytest.mark.parametrize("norm", ["batch_nostats", "batch", "group"])
def test_images_stay_channels_last(name: str, norm: str) -> None:
    module = FlatModel(build(name, norm=norm, width=0.125)).module
    h = torch.randn(3, 32, 32, 3).permute(0, 3, 1, 2)
    for unit in module:
        h = unit(h)
        assert h.ndim == 2 or h.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_are_torchs_and_follow_the_seed() -> None:
    config = resolve(NamedSection(name="resnet9", width=0.125))
    models = [initial_model(config, CIFAR, 10, seed) for seed in (1, 1, 2)]
    assert models[0].state_hash == models[1].state_hash != models[2].state_hash
    weight = build("vgg11", width=0.5).get_parameter("conv6.conv.weight")
    assert float(weight.detach().std()) == pytest.approx((3 * 9 * 256) ** -0.5, rel=0.02)


@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
def test_images_that_are_too_small(name: str) -> None:
    words = rf"model\.name={name} halves images four times and takes 17 x 17 pixels or more, got 16 x 32"
    with pytest.raises(ConfigError, match=words):
        build(name, ImageShape(16, 32, 3))
    assert build(name, ImageShape(17, 17, 1), width=0.125)(torch.zeros(1, 1, 17, 17)).shape == (1, 10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"norm": "group", "norm_groups": 3},
            r"model\.norm_groups must divide all numbers of channels, got 3, and one is 64 at model\.width=1$",
        ),
        (
            {"norm": "group", "norm_groups": 16, "width": 0.3},
            r"model\.norm_groups must divide all numbers of channels, got 16, and one is 40 at model\.width=0\.3$",
        ),
        ({"norm_groups": 0}, r"model\.norm_groups must be at least 1, got 0"),
        ({"norm": "layer"}, r"model\.norm must be 'batch_nostats', 'batch' or 'group', got 'layer'"),
        ({"width": 0}, r"model\.width must be above 0, got 0"),
        ({"width": 9}, r"model\.width must be at most 8, got 9"),
    ],
)
@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
def test_wrong_settings(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, **settings)
