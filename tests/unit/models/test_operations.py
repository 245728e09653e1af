"""Operations counted by hand, and modules left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape, InputShape, TextShape
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.operations import Operations, Uses, count_operations, count_split_operations, weight_uses
from fedmpi.models.registry import build_model, resolve

CIFAR = ImageShape(32, 32, 3)


def build(name: str, shape: InputShape, num_classes: int = 10, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **settings)), shape, num_classes, init_seed=1)


@pytest.mark.parametrize("flat", [False, True])
def test_cifar10net(flat: bool) -> None:
    """Images of 32 x 32: 28 after a convolution, 26 after pooling, 22 after the next."""
    module = build("cifar10net", CIFAR)
    if flat:
        module = FlatModel(module).module
    assert weight_uses(module, CIFAR) == {
        "conv1.weight": Uses(28 * 28, False),
        "conv2.weight": Uses(22 * 22, True),
        "fc.0.weight": Uses(1, True),
        "fc.1.weight": Uses(1, True),
        "fc.2.weight": Uses(1, True),
    }


def test_logistic_regression() -> None:
    shape = ImageShape(4, 5, 2)
    module = build("logreg", shape, 3)
    assert weight_uses(module, shape) == {"1.weight": Uses(1, False)}
    # 40 x 3 multiplications and additions, and for the backward pass the gradient by the weights alone
    assert count_operations([120], [Uses(1, False)], [120]) == Operations(240, 240, 240, 240)


def test_a_resnet() -> None:
    module = build("resnet18", CIFAR, width=8)
    uses = weight_uses(module, CIFAR)
    sides = {name: int(use.times**0.5) for name, use in uses.items()}
    assert len(uses) == 21  # the stem, 4 x 4 convolutions, 3 projections, the fully connected layer
    assert sides["conv1.weight"] == sides["blocks.0.conv1.weight"] == 32
    assert sides["blocks.2.conv1.weight"] == sides["blocks.2.shortcut.0.weight"] == sides["blocks.3.conv2.weight"] == 16
    assert sides["blocks.7.conv2.weight"] == 4
    assert uses["fc.weight"] == Uses(1, True)
    numels = [module.get_parameter(name).numel() for name in uses]
    operations = count_operations(numels, list(uses.values()), numels)
    assert operations.backward == 2 * operations.forward - 2 * 32 * 32 * 3 * 8 * 9


def test_the_text_model() -> None:
    shape = TextShape(20)
    uses = weight_uses(build("char_gru", shape, 7, embedding=4, hidden=6), shape)
    assert uses == {"fc.weight": Uses(20, True)}  # neither embedding nor GRU, which the gradient goes on to
    assert count_operations([42], list(uses.values()), [21]) == Operations(840, 1680, 1680, 3360)


def test_no_gradient_goes_back_to_what_is_not_trained() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    module[1].requires_grad_(False)
    assert weight_uses(module, ImageShape(2, 2, 1)) == {"1.weight": Uses(1, False), "2.weight": Uses(1, False)}


class Odd(nn.Module):
    """Layers of each kind: one used twice, one never, two that share a weight, two in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(2, 4, 3, groups=2)
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(3, 3)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.volume = nn.Conv3d(1, 2, 2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCT = self.line(x_BCHW.flatten(2))
        h = self.norm(self.twice(self.twice(h_BCT)))
        h = self.second(self.first(h))
        return self.volume(h.view(1, 1, 4, 2, 3)).flatten(1)


def test_kinds_and_repeated_uses_of_layers() -> None:
    uses = weight_uses(Odd(), ImageShape(4, 2, 2))
    assert uses == {
        "line.weight": Uses(6, False),
        "twice.weight": Uses(2 * 4, True),  # applied to 4 vectors, twice
        "never.weight": Uses(0, False),
        "first.weight": Uses(2 * 4, True),
        "volume.weight": Uses(3 * 1 * 2, True),
    }
    assert list(uses) == ["line.weight", "twice.weight", "never.weight", "first.weight", "volume.weight"]


class Counting(nn.Module):
    """Batch norm, dropout, and a buffer that every forward pass writes to."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.BatchNorm2d(2).eval()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fails = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.calls += 1
        h = self.frozen(self.norm(self.conv(x_BCHW))) + torch.rand(1)
        if self.fails:
            raise RuntimeError("on purpose")
        return h.flatten(1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_is_left_as_it_was(fails: bool) -> None:
    module = Counting()
    module.fails = fails
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            weight_uses(module, ImageShape(8, 6, 1))
    else:
        assert weight_uses(module, ImageShape(8, 6, 1)) == {"conv.weight": Uses(4 * 3, False)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == tensors
    assert [part.training for part in module.modules()] == [True, True, True, False]
    assert not module.conv._forward_hooks
    assert all(param.grad is None for param in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_module_without_weights() -> None:
    assert weight_uses(nn.Flatten(), ImageShape(2, 2, 1)) == {}


def test_operations_by_hand() -> None:
    numels, kept = [450, 2400, 768_000], [100, 0, 5]
    uses = [Uses(784, False), Uses(484, True), Uses(1, True)]
    first, second, third = 2 * 784 * 100, 0, 2 * 5
    dense = [2 * 784 * 450, 2 * 484 * 2400, 2 * 768_000]
    operations = count_operations(numels, uses, kept)
    assert operations.forward == first + second + third
    assert operations.backward == first + 2 * second + 2 * third
    assert operations.dense_forward == sum(dense)
    assert operations.dense_backward == dense[0] + 2 * dense[1] + 2 * dense[2]


def test_another_layer_first_and_none() -> None:
    ends, goes_on = Uses(1, False), Uses(1, True)
    assert count_operations([3, 5], [goes_on, ends], [1, 2]) == (6, 8, 16, 22)
    assert count_operations([3, 5], [goes_on, goes_on], [1, 2]) == (6, 12, 16, 32)
    assert count_operations([], [], []) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("numels", "uses", "kept", "words"),
    [
        ([3], [1], [4], "layer 0 must keep from 0 to 3 numbers, got 4"),
        ([3, 3], [1, 1], [3, -1], "layer 1 must keep from 0 to 3 numbers, got -1"),
        ([3], [1, 2], [3], "as many, got 1, 2 and 1"),
    ],
)
def test_wrong_counts(numels: list[int], uses: list[int], kept: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        count_operations(numels, [Uses(times, True) for times in uses], kept)


@pytest.mark.parametrize(
    ("name", "whole", "device", "share"),
    [("vgg11", 177_971_200, 20_643_840, 0.116), ("resnet9", 153_818_112, 20_643_840, 0.134)],
)
def test_both_parts_of_a_network_as_published(name: str, whole: int, device: int, share: float) -> None:
    """20.64 of 177.97 and of 153.82 million multiplications and additions, forward, before point 2."""
    module = build(name, CIFAR)
    parts = count_split_operations(module, 2, CIFAR)
    assert parts.device.forward == 2 * device
    assert parts.device.forward + parts.server.forward == 2 * whole
    assert parts.device.forward / (2 * whole) == pytest.approx(share, abs=5e-4)
    first = 2 * 32 * 32 * 27 * 64  # no gradient by the images
    assert parts.device.backward == 2 * parts.device.forward - first
    assert parts.server.backward == 2 * parts.server.forward
    behind = 2 * 8 * 8 * 128 * 256 * 9  # what takes the activation: a convolution, and in resnet9 a shortcut
    behind += 2 * 4 * 4 * 128 * 256 if name == "resnet9" else 0
    alone = count_split_operations(module, 2, CIFAR, passes_back=False)
    assert alone.device == parts.device
    assert alone.server == parts.server._replace(
        backward=parts.server.backward - behind, dense_backward=parts.server.backward - behind
    )


def test_parts_at_every_point_add_up() -> None:
    module = build("vgg11", CIFAR, width=0.125)
    module.eval()[0].train()
    whole = {count_split_operations(module, point, CIFAR) for point in range(1, 11)}
    assert len({split.device.forward for split in whole}) == 10
    assert len({(s.device.forward + s.server.forward, s.device.backward + s.server.backward) for s in whole}) == 1
    assert [unit.training for unit in module] == [True, *[False] * 10]


def test_a_point_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"from 1 to 10, got 11.*1: 8x16x16, 2: 16x8x8"):
        count_split_operations(build("vgg11", CIFAR, width=0.125), 11, CIFAR)
