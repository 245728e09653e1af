"""The step that takes large gradients as backward leaves them, against the one from the vector of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import TrainConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel
from fedmpi.parts import FlatPart
from fedmpi.rng import stream
from fedmpi.train import direct, local
from fedmpi.train.direct import make_direct_step
from fedmpi.train.local import train_local
from fedmpi.train.optimizer import fused_keeps_bits, make_step

CFG = TrainConfig(lr=0.05, momentum=0.9, weight_decay=1e-3, batch_size=8, local_epochs=6)


class Net(nn.Module):
    """Odd sizes, a large convolution, a layer used twice, and one that some batches leave out."""

    def __init__(self, seldom: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 7, 3)
        self.wide = nn.Conv2d(7, 11, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.twice = nn.Linear(9, 9)
        self.hidden = nn.Linear(11 * 6 * 6, 9)
        self.seldom = nn.Linear(9, 9) if seldom else None
        self.last = nn.Linear(9, 4)
        self.num_batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches += 1
        x = self.norm(F.relu(self.wide(F.relu(self.first(x))))).flatten(1)
        x = F.relu(self.twice(F.relu(self.twice(self.hidden(x)))))
        if self.seldom is not None and self.num_batches % 3 == 0:
            x = self.seldom(x)
        return self.last(x)


def shard(num: int = 60) -> Shard:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (num, 8, 8, 1), np.uint8), rng.integers(0, 4, num)
    dataset = Dataset("x", images, labels, images, labels, 4, (0.5,), (0.3,))
    return Shard(DeviceImages(images, labels, dataset, torch.device("cpu")), np.arange(num))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what is large here for large, and leave out machines where the fused kernel is not used."""
    if not fused_keeps_bits("cpu", CFG.lr, CFG.momentum, CFG.weight_decay):
        pytest.skip("the fused kernel rounds otherwise here, and is not used")
    monkeypatch.setattr(direct, "LARGE", 60)


def model(seldom: bool = False) -> FlatModel:
    torch.manual_seed(0)
    return FlatModel(Net(seldom))


def bits(flat: FlatModel) -> bytes:
    return flat.state_S.numpy().tobytes() + flat.momentum_P.numpy().tobytes()


def used(monkeypatch: pytest.MonkeyPatch, *, allow: bool) -> list[int]:
    """Count the direct steps that `train_local` takes, or let it take none."""
    calls: list[int] = []

    def make(flat: FlatModel, cfg: TrainConfig) -> Any:
        step = make_direct_step(flat, cfg) if allow else None

        def counted(loss: Tensor) -> None:
            assert step is not None
            calls.append(1)
            step(loss)

        return None if step is None else counted

    monkeypatch.setattr(local, "make_direct_step", make)
    return calls


@pytest.mark.parametrize("seldom", [False, True])
@pytest.mark.parametrize("large", [1, 60, 500])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_the_same_bits(monkeypatch: pytest.MonkeyPatch, decay: float, large: int, seldom: bool) -> None:
    """With a mask, whose zeros have either sign, and a hook that uses the vector of gradients after an epoch."""
    monkeypatch.setattr(direct, "LARGE", large)
    cfg = CFG.model_copy(update={"weight_decay": decay})
    ends = []
    for allow in (True, False):
        flat, batches = model(seldom), []
        mask_P = (torch.rand(flat.layout.num_params, generator=torch.Generator().manual_seed(1)) < 0.3).float()
        calls = used(monkeypatch, allow=allow)

        def keep(flat: FlatModel, mask_P: Tensor = mask_P) -> None:
            flat.params_P.mul_(mask_P)

        def look(epoch_idx: int, x: Tensor, y: Tensor, flat: FlatModel = flat, seen: list[bytes] = batches) -> None:
            flat.grads_P.zero_()
            F.cross_entropy(flat.module(x), y).backward()
            seen.append(flat.grads_P.numpy().tobytes())

        for client_id in range(2):
            train_local(flat, shard(), cfg, rng=stream(1, 0, client_id, "batches"), after_step=keep, after_epoch=look)
        assert len(calls) == (2 * 6 * 8 if allow else 0)
        assert len(set(batches)) == 12
        ends.append((bits(flat), batches))
    assert ends[0] == ends[1]


def test_zeros_of_either_sign() -> None:
    """A gradient of -0 at a parameter of -0, where a vector of gradients would have 0."""
    ends = []
    for is_direct in (True, False):
        flat = FlatModel(nn.Linear(10, 10, bias=False))
        flat.params_P.zero_()
        flat.params_P[::2] = -0.0
        step, by_vector = make_direct_step(flat, CFG), make_step(flat, CFG)
        assert step is not None
        for number in range(5):
            factor = torch.full((10, 10), -0.0)
            factor[number] = -1e-38 if number % 2 else 1e-42
            weight = flat.module.get_parameter("weight")
            loss = (weight * factor).sum()
            if is_direct:
                step(loss)
            else:
                flat.grads_P.zero_()
                loss.backward()
                by_vector()
        ends.append(bits(flat))
    assert ends[0] == ends[1]


def test_gradients_are_the_vectors_views_afterwards() -> None:
    flat = model()
    train_local(flat, shard(), CFG, rng=stream(1, 0, 0, "batches"))
    for entry in flat.layout.entries:
        if entry.role == "param":
            grad = flat.module.get_parameter(entry.name).grad
            assert grad is not None
            assert grad.data_ptr() == entry.view(flat.grads_P).data_ptr()


@pytest.mark.parametrize(
    "change", [{"optimizer": "adam"}, {"momentum": 0.0}, {"momentum": 0.5}, {"clip_norm": 1.0}], ids=str
)
def test_where_it_is_not_taken(change: dict[str, Any]) -> None:
    assert make_direct_step(model(), CFG) is not None
    assert make_direct_step(model(), CFG.model_copy(update=change)) is None


def test_not_for_small_models_or_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LARGE", 10_000)
    assert make_direct_step(model(), CFG) is None
    monkeypatch.setattr(direct, "LARGE", 60)
    calls = used(monkeypatch, allow=True)
    hooks: list[dict[str, Any]] = [
        {"extra_loss": lambda w_P: w_P.square().sum()},
        {"after_backward": lambda flat: None},
    ]
    for hook in hooks:
        train_local(model(), shard(), CFG, rng=stream(1, 0, 0, "batches"), **hook)
    assert calls == []
    train_local(model(), shard(), CFG, rng=stream(1, 0, 0, "batches"))
    assert len(calls) == 48


def test_a_part_and_the_gradient_by_its_inputs() -> None:
    """As the server of split learning trains: the other part is left alone."""
    ends = []
    for is_direct in (True, False):
        torch.manual_seed(0)
        flat = FlatModel(nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 20), nn.BatchNorm1d(20), nn.Linear(20, 3)))
        assert isinstance(flat.module, nn.Sequential)
        part = FlatPart(flat, flat.module[1:])
        step, by_vector = make_direct_step(part, CFG), make_step(part, CFG)
        assert step is not None
        gradients = []
        for number in range(4):
            x_BC = torch.randn(8, 20, generator=torch.Generator().manual_seed(number)).requires_grad_()
            loss = F.cross_entropy(part.module(x_BC), torch.arange(8) % 3)
            if is_direct:
                step(loss)
            else:
                part.grads_P.zero_()
                loss.backward()
                by_vector()
            assert x_BC.grad is not None
            gradients.append(x_BC.grad.numpy().tobytes())
        ends.append((bits(flat), gradients))
    assert ends[0] == ends[1]
