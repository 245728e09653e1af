"""The image models: exact sizes, the forward pass against one written out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models.registry import build_model, resolve

MNIST, CIFAR = ImageShape(28, 28, 1), ImageShape(32, 32, 3)
PUBLISHED: list[tuple[str, ImageShape, int, int, dict[str, int]]] = [
    ("mnistnet", MNIST, 10, 261_840, {"conv1": 250, "conv2": 5_000, "fc.0": 256_000, "fc.1": 500}),
    ("cifar10net", CIFAR, 10, 782_006, {"conv1": 450, "conv2": 2_400, "fc.0": 768_000, "fc.1": 10_080, "fc.2": 840}),
    ("cifar100net", CIFAR, 100, 783_092, {"conv1": 450, "conv2": 2_400, "fc.0": 768_000, "fc.1": 12_000}),
    ("femnistnet", MNIST, 62, 6_603_710, {"conv1": 800, "conv2": 51_200, "fc.0": 6_422_528, "fc.1": 126_976}),
]
"""Name, shape, classes, all parameters, the weights of each layer."""

BIASES = {
    "mnistnet": [10, 20, 50, 10],
    "cifar10net": [6, 16, 120, 84, 10],
    "cifar100net": [6, 16, 120, 100],
    "femnistnet": [32, 64, 2_048, 62],
}


def build(name: str, shape: ImageShape, num_classes: int = 10, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **settings)), shape, num_classes, init_seed=1)


def num_params(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        # 1*16*25 + 16, 16*32*25 + 32, 512*128 + 128, 128*10 + 10
        ("cnn", MNIST, 416 + 12_832 + 65_664 + 1_290),
        # 3*16*25 + 16, the same, 32*5*5*128 + 128, the same
        ("cnn", CIFAR, 1_216 + 12_832 + 102_528 + 1_290),
        ("logreg", MNIST, 7_850),
        ("logreg", ImageShape(4, 5, 2), 410),
        ("mlp", MNIST, 784 * 256 + 256 + 2_570),
    ],
)
def test_parameter_counts(name: str, shape: ImageShape, count: int) -> None:
    assert num_params(build(name, shape)) == count


@pytest.mark.parametrize(("name", "shape", "num_classes", "count", "weights"), PUBLISHED)
def test_parameter_counts_as_published(
    name: str, shape: ImageShape, num_classes: int, count: int, weights: dict[str, int]
) -> None:
    module = build(name, shape, num_classes)
    assert num_params(module) == count
    expected = [size for pair in zip(weights.values(), BIASES[name], strict=True) for size in pair]
    names = [f"{layer}.{kind}" for layer in weights for kind in ("weight", "bias")]
    sizes = [(name, param.numel()) for name, param in module.named_parameters()]
    assert sizes == list(zip(names, expected, strict=True))


def test_hidden_layers_of_the_perceptron() -> None:
    module = build("mlp", ImageShape(2, 2, 1), 3, hidden=[5, 7])
    assert [tuple(layer.weight.shape) for layer in module if isinstance(layer, nn.Linear)] == [(5, 4), (7, 5), (3, 7)]
    assert num_params(module) == 25 + 42 + 24


def plain_forward(module: nn.Module, x: Tensor, pool: int, stride: int, padding: int = 0) -> Tensor:
    """Two convolutions, each with ReLU and pooling, then linear layers with ReLU between, from the weights alone."""
    w = dict(module.named_parameters())
    for conv in ("conv1", "conv2"):
        x = F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=padding)
        x = F.max_pool2d(torch.clamp(x, min=0), pool, stride)
    x = x.reshape(len(x), -1)
    last = max(int(name.split(".")[1]) for name in w if name.startswith("fc."))
    for layer in range(last + 1):
        x = x @ w[f"fc.{layer}.weight"].t() + w[f"fc.{layer}.bias"]
        if layer < last:
            x = torch.clamp(x, min=0)
    return x


@pytest.mark.parametrize(
    ("name", "shape", "pool", "stride", "padding"),
    [
        ("cnn", MNIST, 2, 2, 0),
        ("mnistnet", MNIST, 3, 1, 0),
        ("cifar10net", CIFAR, 3, 1, 0),
        ("cifar100net", CIFAR, 3, 1, 0),
        ("femnistnet", MNIST, 2, 2, 2),
    ],
)
@pytest.mark.parametrize("batch", [2, 3])
def test_logits_and_gradients_are_those_of_the_network_as_published(
    name: str, shape: ImageShape, pool: int, stride: int, padding: int, batch: int
) -> None:
    module = build(name, shape)
    x = torch.randn(batch, shape.channels, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    logits = module(x)
    assert logits.shape == (batch, 10)
    expected = plain_forward(module, x, pool, stride, padding)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert bool((logits < 0).any())  # neither a softmax nor a ReLU at the end
    parameters = list(module.parameters())
    grads = torch.autograd.grad(logits.square().sum(), parameters)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), parameters), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["logreg", "mlp", "cnn"])
def test_the_number_of_classes(name: str) -> None:
    assert build(name, MNIST, 7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("mnistnet", CIFAR, r"model.name=mnistnet takes images of \(28, 28, 1\).*got \(32, 32, 3\)"),
        ("cifar10net", MNIST, r"model.name=cifar10net takes images of \(32, 32, 3\).*got \(28, 28, 1\)"),
        ("cifar100net", MNIST, r"model.name=cifar100net takes images of \(32, 32, 3\).*got \(28, 28, 1\)"),
        ("femnistnet", CIFAR, r"model.name=femnistnet takes images of \(28, 28, 1\).*got \(32, 32, 3\)"),
        ("cnn", ImageShape(28, 15, 1), "images of 28 x 15 pixels are too small"),
        ("cnn", ImageShape(3, 3, 1), "images of 3 x 3 pixels are too small"),
    ],
)
def test_images_of_the_wrong_shape(name: str, shape: ImageShape, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, shape)


def test_the_smallest_images_that_fit() -> None:
    assert build("cnn", ImageShape(16, 16, 1))(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_an_unknown_model() -> None:
    with pytest.raises(
        ConfigError,
        match=r"model\.name must be one of char_gru, cifar100net, .*femnistnet, .*, got 'resnet'",
    ):
        resolve(NamedSection(name="resnet"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "cnn", "width": 3}, r"model\.width: unknown key \(value 3\)"),
        ({"name": "mlp", "hidden": []}, r"model\.hidden must .*at least 1 .*got \[\]"),
        ({"name": "mlp", "hidden": "many"}, r"model\.hidden must be a list, got 'many'"),
        ({"name": "mlp", "hidden": ["a"]}, r"model\.hidden\.0 must be a whole number, got 'a'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(NamedSection(**settings))


def test_hidden_layers_without_units() -> None:
    with pytest.raises(ConfigError, match=r"model.hidden must be positive, got \[4, 0\]"):
        build("mlp", MNIST, hidden=[4, 0])
