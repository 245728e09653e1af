"""A replayed step has the bits of a launched one, and what cannot be replayed is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import NamedSection, TrainConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel, leave_out_cudnn
from fedmpi.models.registry import build_model, resolve
from fedmpi.rng import stream
from fedmpi.train import cuda_graph, local
from fedmpi.train.cuda_graph import MOST_GRAPHS, Step, is_pure, step_by_graph
from fedmpi.train.local import LocalStats, train_local

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = ImageShape(32, 32, 3)
CONFIG = TrainConfig(local_epochs=8, batch_size=32, lr=0.01, momentum=0.9, weight_decay=1e-3)


@pytest.fixture(autouse=True)
def _as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a GPU compute deterministically: otherwise two launches of one step differ."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def shard(num: int = 40, device: str = "cuda") -> Shard:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (num, *SHAPE), np.uint8), rng.integers(0, 10, num)
    dataset = Dataset("noise", images, labels, images, labels, 10, (0.5,) * 3, (0.3,) * 3)
    return Shard(DeviceImages(images, labels, dataset, torch.device(device)), np.arange(num))


def named(name: str, **settings: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **settings)), SHAPE, 10, init_seed=1)


def small(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *layers, nn.Flatten(), nn.Linear(8 * 15 * 15, 10))


def num_graphs(model: FlatModel) -> int:
    return sum(graphs.num_graphs for graphs in cuda_graph._KEPT.get(model, {}).values())


def train(
    module: nn.Module, cfg: TrainConfig, turns: int = 3, **hooks: Any
) -> tuple[list[Tensor], list[LocalStats], int]:
    """Train a model, turn after turn; return its numbers and the optimizer's, what each turn was, and the graphs."""
    model = FlatModel(module, torch.device("cuda"))
    data = shard()
    stats = [train_local(model, data, cfg, rng=stream(0, turn, 0, "batches"), **hooks) for turn in range(turns)]
    return [model.state_S, model.ints_I, model.momentum_P], stats, num_graphs(model)


def as_it_is(model: FlatModel, cfg: TrainConfig, step: Step, *, updates: bool) -> Step:
    return step


def launched(module: nn.Module, cfg: TrainConfig, **hooks: Any) -> tuple[list[Tensor], list[LocalStats], int]:
    with patch.object(local, "step_by_graph", as_it_is):
        return train(module, cfg, **hooks)


def assert_same(build: Callable[[], nn.Module], cfg: TrainConfig, wanted: int, **hooks: Any) -> None:
    numbers, stats, found = train(build(), cfg, **hooks)
    expected, expected_stats, none = launched(build(), cfg, **hooks)
    assert (found, none) == (wanted, 0)
    assert stats == expected_stats
    assert all(torch.equal(a, b) for a, b in zip(numbers, expected, strict=True))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cifar10net": lambda: named("cifar10net"),
    "mlp": lambda: named("mlp"),
    "vgg11": lambda: named("vgg11", width=0.25),
    "resnet9": lambda: named("resnet9", width=0.25),
    "resnet18": lambda: named("resnet18", width=8, norm_groups=2),
    "batch norm": lambda: small(nn.BatchNorm2d(8), nn.ReLU()),
    "dropout": lambda: small(nn.ReLU(), nn.Dropout(0.3)),
}


@needs_gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_step_has_the_bits_of_a_launched_one(name: str) -> None:
    assert_same(MODELS[name], CONFIG, 2)  # batches of 32 and of 8


@needs_gpu
@pytest.mark.parametrize(
    ("settings", "num_graphs"),
    [
        ({"momentum": 0.0}, 2),
        ({"nesterov": True, "clip_norm": 0.5}, 2),
        ({"batch_size": 10}, 1),
        ({"optimizer": "adam"}, 0),
        ({"local_epochs": 1}, 0),  # three turns of one step each size: none has come often enough
    ],
)
def test_every_optimizer(settings: dict[str, Any], num_graphs: int) -> None:
    assert_same(MODELS["cifar10net"], CONFIG.model_copy(update=settings), num_graphs)


@needs_gpu
def test_with_hooks_the_backward_pass_is_replayed_and_the_update_launched() -> None:
    target = torch.linspace(-0.1, 0.1, FlatModel(named("cifar10net")).layout.num_params).cuda()
    keeps = (target > 0).to(torch.float32)
    seen: dict[int, list[Tensor]] = {}

    def hooks(run: int) -> dict[str, Any]:
        return {
            "extra_loss": lambda w_P: (w_P - target).square().sum(),
            "after_backward": lambda model: seen.setdefault(run, []).append(model.grads_P.clone()),
            "after_step": lambda model: model.params_P.mul_(keeps),
        }

    numbers, stats, found = train(named("cifar10net"), CONFIG, **hooks(0))
    expected, expected_stats, _ = launched(named("cifar10net"), CONFIG, **hooks(1))
    assert (found, stats) == (2, expected_stats)
    assert all(torch.equal(a, b) for a, b in zip(numbers + seen[0], expected + seen[1], strict=True))


@needs_gpu
def test_the_hook_after_a_step_alone_leaves_the_step_whole() -> None:
    keeps = (torch.arange(FlatModel(named("cifar10net")).layout.num_params) % 2).to(torch.float32).cuda()
    assert_same(MODELS["cifar10net"], CONFIG, 2, after_step=lambda model: model.params_P.mul_(keeps))


@needs_gpu
def test_other_settings_get_graphs_of_their_own() -> None:
    results = []
    for by_graph in (True, False):
        model, data = FlatModel(named("cifar10net"), torch.device("cuda")), shard()
        for turn, lr in enumerate((0.1, 0.1, 0.01, 0.01)):
            cfg = CONFIG.model_copy(update={"lr": lr})
            with patch.object(local, "step_by_graph", step_by_graph if by_graph else as_it_is):
                train_local(model, data, cfg, rng=stream(0, turn, 0, "batches"), fresh=turn % 2 == 0)
        results.append(model.state_S)
    assert torch.equal(*results)


@needs_gpu
def test_what_waits_for_the_gpu_is_launched() -> None:
    assert_same(lambda: small(nn.BatchNorm2d(8, momentum=None)), CONFIG, 0)
    assert_same(MODELS["cifar10net"], CONFIG, 2)  # the attempt left the GPU in order


@needs_gpu
def test_where_a_bit_differs_steps_are_launched() -> None:
    model, calls = FlatModel(named("mlp"), torch.device("cuda")), 0

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        model.params_P.add_(float(calls))
        return model.params_P[0].clone()

    take = step_by_graph(model, CONFIG, step, updates=True)
    x, y = torch.zeros(4, 3), torch.zeros(4)
    for _ in range(6):
        take(x.cuda(), y.cuda())
    assert num_graphs(model) == 0
    assert calls == 8  # one of them recorded, one to compare with


@needs_gpu
def test_only_so_many_sizes_are_recorded() -> None:
    model = FlatModel(named("mlp"), torch.device("cuda"))

    def step(x: Tensor, y: Tensor) -> Tensor:
        model.params_P.add_(x.sum())
        return y.sum()

    take = step_by_graph(model, CONFIG, step, updates=True)
    for size in range(1, MOST_GRAPHS + 3):
        for _ in range(6):
            assert float(take(torch.zeros(size, device="cuda"), torch.ones(size, device="cuda"))) == size
    assert num_graphs(model) == MOST_GRAPHS


class Replayed:
    """In place of a graph where there is no GPU: it does what was recorded, and nothing of what is asked for later."""

    pool = None

    def __init__(self, model: FlatModel, step: Step, x: Tensor, y: Tensor, pool: Any) -> None:
        self.replay = step


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("turns", ["pphhpphh", "hhpphhpp", "phphphph"])
def test_steps_with_hooks_and_without_do_not_take_each_others_graphs(device: str, turns: str) -> None:
    """As PruneFL's, which looks at gradients in some rounds alone."""
    cfg = CONFIG.model_copy(update={"local_epochs": 4})

    def play(step_by: Callable[..., Step]) -> tuple[list[Tensor], list[Tensor], list[LocalStats]]:
        model, data, seen, stats = FlatModel(named("mlp"), torch.device(device)), shard(device=device), [], []
        with patch.object(local, "step_by_graph", step_by), patch.object(local, "make_direct_step", lambda *_: None):
            for turn, kind in enumerate(turns):
                look = (lambda model: seen.append(model.grads_P.clone())) if kind == "h" else None
                rng = stream(0, turn, 0, "batches")
                stats.append(train_local(model, data, cfg, rng=rng, after_backward=look))
        if step_by is step_by_graph:
            assert {kind: graphs.num_graphs for kind, graphs in cuda_graph._KEPT[model].items()} == {True: 2, False: 2}
        return [model.state_S, model.momentum_P], seen, stats

    expected = play(as_it_is)
    if device == "cpu":
        with patch.object(cuda_graph, "has_graphs", lambda _: True), patch.object(cuda_graph, "_record", Replayed):
            found = play(step_by_graph)
    else:
        found = play(step_by_graph)
    assert found[2] == expected[2]
    assert len(found[1]) == len(expected[1]) == 4 * 8
    assert all(torch.equal(a, b) for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True))


def test_on_a_cpu_steps_are_as_they_were() -> None:
    def step(x: Tensor, y: Tensor) -> Tensor:
        return x

    taken: Step = step_by_graph(FlatModel(named("mlp")), CONFIG, step, updates=True)
    assert taken is step


def test_code_from_elsewhere_may_do_other_things_from_call_to_call() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert all(is_pure(build()) for build in MODELS.values())
    assert not is_pure(nn.Sequential(nn.Linear(2, 2), Fickle()))
    assert not is_pure(nn.Sequential(Fickle()))
    hooked = named("mlp")
    hooked[1].register_forward_hook(lambda *_: None)
    assert not is_pure(hooked)
    own = named("mlp")
    own[1].forward = own[1].forward
    assert not is_pure(own)
    norm = nn.BatchNorm2d(3)
    leave_out_cudnn(norm)
    assert is_pure(norm)
