"""Parts of a flat model: the same memory under layouts of their own, and training apart as training the whole."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import NamedSection, TrainConfig
from fedmpi.data.shapes import ImageShape
from fedmpi.flat import FlatModel, layout_of
from fedmpi.models.registry import build_model, resolve
from fedmpi.models.split import split
from fedmpi.parts import FlatPart, LayoutPart, layout_part
from fedmpi.train.optimizer import forget_at, make_step

SHAPE = ImageShape(20, 20, 2)


def build(name: str, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, width=0.125, **settings)), SHAPE, 5, init_seed=1)


def mixed(freeze: bool = False) -> nn.Module:
    """Return a net with names out of order, both kinds of buffers, children without numbers, and frozen ones or not."""
    torch.manual_seed(0)
    net = nn.Sequential(
        OrderedDict(
            z10=nn.Conv2d(2, 3, 3), z9=nn.BatchNorm2d(3), a=nn.ReLU(), m=nn.Conv2d(3, 4, 3, bias=False),
            b=nn.BatchNorm2d(4, affine=False), y=nn.Flatten(), c=nn.Linear(4 * 16 * 16, 5),
        )
    )  # fmt: skip
    if freeze:
        net.z10.requires_grad_(False)
        net.m.requires_grad_(False)
    return net


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("point", range(1, 7))
def test_the_layout_of_a_part_is_that_of_its_module(freeze: bool, point: int) -> None:
    module = mixed(freeze)
    layout = layout_of(module)
    device, server = split(module, point)
    parts = [layout_part(layout, names(part)) for part in (device, server)]
    if freeze and point == 1:
        assert parts[0].layout.num_params == 0  # all of it is a buffer
        assert parts[0].layout.num_state == layout_of(nn.Conv2d(2, 3, 3)).num_state
    else:
        assert parts[0].layout == layout_of(device)
    assert parts[1].layout == layout_of(server)
    for size in ("num_params", "num_state", "num_int_buffers"):
        assert sum(getattr(part.layout, size) for part in parts) == getattr(layout, size)
    assert parts[0].params == slice(0, parts[0].layout.num_params)
    assert parts[1].params == slice(parts[0].layout.num_params, layout.num_params)
    ints = list(range(layout.num_int_buffers))
    assert [number for part in parts for number in ints[part.ints]] == ints


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("point", range(1, 7))
def test_take_and_put(freeze: bool, point: int) -> None:
    """Each number of the model is one part's, and stands in the part's vector where the part's layout says."""
    module = mixed(freeze)
    flat = FlatModel(module)
    flat.state_S.copy_(torch.arange(flat.layout.num_state))
    flat.ints_I.copy_(torch.arange(flat.layout.num_int_buffers))
    put_S = torch.full_like(flat.state_S, -1.0)
    for children in split(module, point):
        part = FlatPart(flat, children)
        state_S = part.state_S
        assert state_S.shape == (part.layout.num_state,)
        tensors = children.state_dict()
        for entry in part.layout.entries:
            assert torch.equal(entry.view(part.ints_I if entry.role == "int_buffer" else state_S), tensors[entry.name])
        part.part.put(state_S, put_S)
    assert torch.equal(put_S, flat.state_S)


@pytest.mark.parametrize(("norm", "views"), [("batch_nostats", True), ("group", True), ("batch", False)])
def test_the_state_is_a_view_where_there_are_no_buffers(norm: str, views: bool) -> None:
    flat = FlatModel(build("vgg11", norm=norm))
    for children in split(flat.module, 2):
        part = FlatPart(flat, children)
        shares = part.state_S.untyped_storage().data_ptr() == flat.state_S.untyped_storage().data_ptr()
        assert shares is views
        assert part.state_S.shape == (part.layout.num_state,)


def test_a_part_that_is_the_whole() -> None:
    flat = FlatModel(mixed())
    part = layout_part(flat.layout, names(flat.module))
    everything = slice(0, flat.layout.num_state)
    assert part == LayoutPart(flat.layout, slice(0, flat.layout.num_params), (everything,), slice(0, 2))


def test_a_part_without_numbers() -> None:
    flat = FlatModel(mixed())
    part = FlatPart(flat, nn.Sequential(OrderedDict(a=flat.module.a)))
    assert part.state_S.shape == part.params_P.shape == part.ints_I.shape == (0,)
    part.load(torch.zeros(0))
    make_step(part, TrainConfig(momentum=0.9, weight_decay=0.1, clip_norm=1.0))()


def test_loading_a_part_changes_the_part_alone() -> None:
    flat = FlatModel(mixed())
    device, server = (FlatPart(flat, children) for children in split(flat.module, 3))
    before_S, before_I = server.state_S.clone(), server.ints_I.clone()
    device.load(torch.full((device.layout.num_state,), 7.0), torch.tensor([7]))
    assert bool((device.state_S == 7).all())
    assert device.ints_I.tolist() == [7] == [int(flat.module.z9.num_batches_tracked)]
    assert bool((flat.module.z9.running_var == 7).all())
    assert torch.equal(server.state_S, before_S)
    assert torch.equal(server.ints_I, before_I)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_changes_the_part_alone(optimizer: str) -> None:
    cfg = TrainConfig(optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    flat = FlatModel(mixed())
    device, server = (FlatPart(flat, children) for children in split(flat.module, 2))
    flat.momentum_P.fill_(3.0)
    flat.second_moment_P.fill_(3.0)
    before_S = server.state_S.clone()
    (server.leaf_P.sum() + device.leaf_P.sum()).backward()
    assert torch.equal(flat.grads_P, torch.ones_like(flat.grads_P))
    step = make_step(device, cfg)
    before_P = device.params_P.clone()
    step()
    forget_at(device, cfg, torch.arange(device.layout.num_params) < 5)
    assert bool((device.params_P != before_P).all())
    assert torch.equal(server.state_S, before_S)
    for vector_P in (server.momentum_P, server.second_moment_P):
        assert bool((vector_P == 3).all())
    assert bool((server.grads_P == 1).all())
    assert bool((flat.momentum_P[:5] == 0).all())
    assert bool((flat.momentum_P[5 : device.layout.num_params] != 0).all())
    assert device.momentum_P is device.momentum_P
    assert (device.device, device.grads_P.data_ptr()) == (flat.device, flat.grads_P.data_ptr())


def batches(num: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 20, 20, 2, generator=rng).permute(0, 3, 1, 2), torch.randint(0, 5, (4,), generator=rng))
        for _ in range(num)
    ]


def train_split(flat: FlatModel, point: int, cfg: TrainConfig) -> None:
    """Train both parts, of which each knows the other by the activation and its gradient alone."""
    device, server = (FlatPart(flat, children) for children in split(flat.module, point))
    steps = make_step(device, cfg), make_step(server, cfg)
    for x, y in batches(4):
        device.grads_P.zero_()
        server.grads_P.zero_()
        activation = device.module(x)
        received = activation.detach().requires_grad_()
        F.cross_entropy(server.module(received), y).backward()
        steps[1]()
        activation.backward(received.grad)
        steps[0]()


def train_whole(flat: FlatModel, cfg: TrainConfig) -> None:
    step = make_step(flat, cfg)
    for x, y in batches(4):
        flat.grads_P.zero_()
        F.cross_entropy(flat.module(x), y).backward()
        step()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("name", "settings", "point"),
    [
        *(("vgg11", {"norm": norm}, point) for norm in ("batch_nostats", "batch", "group") for point in (2, 8)),
        *(("resnet9", {"norm": norm}, point) for norm in ("batch_nostats", "batch", "group") for point in (2, 5)),
        ("mixed", {}, 2),
        ("mixed", {}, 6),
        ("frozen", {}, 2),
    ],
)
def test_training_apart_is_training_the_whole_bit_for_bit(
    name: str, settings: dict[str, Any], point: int, optimizer: str
) -> None:
    module = mixed(name == "frozen") if name in ("mixed", "frozen") else build(name, **settings)
    whole, apart = FlatModel(copy.deepcopy(module)), FlatModel(module)
    initial_S = whole.state_S.clone()
    cfg = TrainConfig(optimizer=optimizer, lr=0.01, momentum=0.9, weight_decay=0.01)
    train_whole(whole, cfg)
    train_split(apart, point, cfg)
    assert not torch.equal(whole.state_S, initial_S)
    assert torch.equal(apart.state_S, whole.state_S)
    assert torch.equal(apart.ints_I, whole.ints_I)
    assert torch.equal(apart.momentum_P, whole.momentum_P)


def test_children_that_do_not_follow_each_other() -> None:
    with pytest.raises(ValueError, match="must be children that follow each other, got z10, c"):
        layout_part(layout_of(mixed()), ["z10", "c"])


def test_another_models_children() -> None:
    flat, other = FlatModel(mixed()), mixed()
    renamed = nn.Sequential(OrderedDict(first=flat.module.z10))
    for children in (split(other, 2)[0], renamed):
        with pytest.raises(ValueError, match="parameters of a part must be the model's, under the same names"):
            FlatPart(flat, children)
