"""Networks cut between their units: what each part has, what crosses the cut, and what cannot be cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.models.registry import build_model, resolve
from fedmpi.models.split import activation_shape, activation_shapes, split, units

CIFAR = ImageShape(32, 32, 3)


def build(name: str, shape: ImageShape = CIFAR, num_classes: int = 10, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **settings)), shape, num_classes, init_seed=1)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "vgg11",
            [(64, 16, 16), (128, 8, 8), (256, 8, 8), (256, 4, 4), (512, 4, 4), *[(512, 2, 2)] * 3, (4096,), (4096,)],
        ),
        ("resnet9", [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]),
    ],
)
def test_what_crosses_the_cut_as_published(name: str, shapes: list[tuple[int, ...]]) -> None:
    module = build(name)
    assert activation_shapes(module, CIFAR) == shapes
    assert activation_shape(module, 2, CIFAR) == (128, 8, 8)
    numels = [int(torch.Size(shape).numel()) for shape in shapes[:5]]
    published = {"vgg11": [16_384, 8_192, 16_384, 4_096, 8_192], "resnet9": [16_384, 8_192, 4_096, 2_048, 512]}
    assert numels == published[name]
    device, _ = split(module, 2)
    assert sum(param.numel() for param in device.parameters()) == 76_032


@pytest.mark.parametrize("name", ["vgg11", "resnet9"])
@pytest.mark.parametrize("norm", ["batch_nostats", "batch", "group"])
@pytest.mark.parametrize("shape", [CIFAR, ImageShape(28, 28, 1)])
def test_the_parts_are_the_whole_bit_for_bit(name: str, norm: str, shape: ImageShape) -> None:
    module = build(name, shape, norm=norm, width=0.125).eval()
    x = torch.randn(5, shape.channels, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    whole = module(x)
    shapes = activation_shapes(module, shape)
    assert len(shapes) == len(units(module)) - 1
    for point, sizes in enumerate(shapes, 1):
        device, server = split(module, point)
        assert (len(device), len(server)) == (point, len(units(module)) - point)
        activation = device(x)
        assert tuple(activation.shape) == (5, *sizes)
        assert torch.equal(server(activation.detach().requires_grad_()), whole)
        if name == "vgg11" or point < 3:
            assert float(activation.detach().min()) >= 0
        else:  # a sum of which nothing cut off what is negative
            assert float(activation.detach().min()) < 0


def test_the_parts_share_the_modules_tensors_names_and_mode() -> None:
    module = build("resnet9", norm="batch", width=0.125).eval()
    device, server = split(module, 3)
    assert not device.training and not server.training
    tensors = {**device.state_dict(keep_vars=True), **server.state_dict(keep_vars=True)}
    assert {name: id(tensor) for name, tensor in tensors.items()} == {
        name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()
    }


class Own(nn.Sequential):
    """A user's network whose class takes other arguments than nn.Sequential."""

    def __init__(self, hidden: int) -> None:
        act = nn.ReLU()  # stands twice
        super().__init__(nn.Flatten(), nn.Linear(12, hidden), act, nn.Linear(hidden, 5), act, nn.Linear(5, 4))


def test_a_network_of_ones_own() -> None:
    shape = ImageShape(2, 2, 3)
    module = Own(7)
    assert activation_shapes(module, shape) == [(12,), (7,), (7,), (5,), (5,)]
    x = torch.randn(3, 3, 2, 2)
    for point in range(1, 6):
        device, server = split(module, point)
        assert [name for name, _ in device.named_parameters()] == [
            name for name, _ in module.named_parameters() if int(name[0]) < point
        ]
        assert torch.equal(server(device(x)), module(x))


@pytest.mark.parametrize("point", [0, -1, 6, 7, 2.0, 1.5, "2", "block1.main", True, None])
def test_points_that_there_are_not(point: Any) -> None:
    module = build("resnet9", width=0.125)
    words = (
        rf"must be a whole number from 1 to 5, got {point!r}: so many of its units are the device's, and none is split"
    )
    with pytest.raises(ConfigError, match=words) as without:
        split(module, point)
    assert str(without.value).endswith("split inside")
    with pytest.raises(ConfigError, match=words) as error:
        split(module, point, CIFAR)
    listed = "1: 8x16x16, 2: 16x8x8, 3: 32x4x4, 4: 64x2x2, 5: 64x1x1"
    assert str(error.value).endswith(f"inside. What a sample sends at each: {listed}")
    with pytest.raises(ConfigError, match="What a sample sends"):
        activation_shape(module, point, CIFAR)


class Overridden(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("make", [lambda: build("cnn"), lambda: build("resnet18", width=4), Overridden])
def test_models_that_are_no_sequence(make: Callable[[], nn.Module]) -> None:
    module = make()
    words = rf"vgg11 or resnet9, or a model of your own that is an nn\.Sequential.* a {type(module).__name__}$"
    for attempt in (units, lambda net: split(net, 1), lambda net: activation_shapes(net, CIFAR)):
        with pytest.raises(ConfigError, match=words):
            attempt(module)


def test_a_model_of_one_unit() -> None:
    with pytest.raises(ConfigError, match="two units or more to be split, this one has 1"):
        split(nn.Sequential(nn.Linear(2, 2)), 1)


def test_tensors_on_both_sides() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    module[2].weight = module[0].weight
    with pytest.raises(ConfigError, match=r"after unit 2: 0\.weight before it and 2\.weight behind it are one tensor"):
        split(module, 2)
    split(module, 3)


def test_an_activation_that_would_be_overwritten() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)), nn.Linear(3, 2))
    with pytest.raises(
        ConfigError, match=r"after unit 1: the ReLU behind it overwrites the activation; give it inplace"
    ):
        split(module, 1)
    split(module, 2)
