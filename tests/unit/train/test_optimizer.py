"""Steps on the flat vectors against torch's optimizers on the same gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedmpi.config import TrainConfig
from fedmpi.flat import FlatModel
from fedmpi.train.optimizer import adam_step, make_step, sgd_step


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, (5, 4), bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(60, 4))


def give_gradients(module: nn.Module, flat: FlatModel, num_steps: int) -> Iterator[None]:
    """Give both the same random gradients, step after step; each parameter has its own scale."""
    rng = torch.Generator().manual_seed(3)
    for _ in range(num_steps):
        for exponent, entry in enumerate(e for e in flat.layout.entries if e.role == "param"):
            grad = torch.randn(entry.shape, generator=rng) / 8 * 10.0**-exponent
            module.get_parameter(entry.name).grad = grad.clone()
            entry.view(flat.grads_P).copy_(grad)
        yield


def clip(module: nn.Module, clip_norm: float | None) -> None:
    if clip_norm is not None:
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        assert (float(norm) > clip_norm) == (clip_norm == 0.5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_sgd_steps_equal_those_of_torch(
    momentum: float, nesterov: bool, weight_decay: float, clip_norm: float | None
) -> None:
    module = conv_net()
    flat = FlatModel(copy.deepcopy(module))
    cfg = TrainConfig(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, clip_norm=clip_norm)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    start_P = flat.params_P.clone()
    for _ in give_gradients(module, flat, 3):
        clip(module, clip_norm)
        sgd.step()
        sgd_step(flat.params_P, flat.grads_P, flat.momentum_P if momentum else None, cfg)
    for name, param in module.named_parameters():
        torch.testing.assert_close(flat.module.get_parameter(name), param, rtol=2e-7, atol=1e-7)
    assert float((flat.params_P - start_P).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-3), (0.0, 0.99, 1e-8), (0.9, 0.0, 0.1)]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_adam_steps_equal_those_of_torch(
    beta1: float, beta2: float, eps: float, weight_decay: float, clip_norm: float | None
) -> None:
    module = conv_net()
    flat = FlatModel(copy.deepcopy(module))
    cfg = TrainConfig(optimizer="adam", lr=0.01, momentum=beta1, adam_beta2=beta2, adam_eps=eps,
                      weight_decay=weight_decay, clip_norm=clip_norm)  # fmt: skip
    adam = torch.optim.Adam(module.parameters(), lr=0.01, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    step = make_step(flat, cfg)
    start_P = flat.params_P.clone()
    for number, _ in enumerate(give_gradients(module, flat, 200)):
        clip(module, clip_norm)
        adam.step()
        step()
        if number in (0, 1, 199):  # the corrections of the bias are largest in the first steps
            for name, param in module.named_parameters():
                torch.testing.assert_close(flat.module.get_parameter(name), param, rtol=1e-5, atol=2e-6)
    assert float((flat.params_P - start_P).abs().max()) > 1e-2


def test_nesterov_by_hand() -> None:
    cfg = TrainConfig(lr=0.1, momentum=0.5, nesterov=True)
    w, m = torch.tensor([1.0]), torch.tensor([4.0])
    sgd_step(w, torch.tensor([3.0]), m, cfg)
    # m = 0.5 * 4 + 3 = 5; w = 1 - 0.1 * (3 + 0.5 * 5)
    assert m.item() == 5.0
    assert w.item() == pytest.approx(0.45)


def test_sgd_goes_on_with_its_momentum() -> None:
    def play(*learning_rates: float, split: bool) -> bytes:
        flat = FlatModel(conv_net())
        for number, lr in enumerate(learning_rates):
            if split or number == 0:
                step = make_step(flat, TrainConfig(lr=lr, nesterov=True), fresh=number == 0)
            flat.grads_P.fill_(0.1 + number)
            step()
        return flat.params_P.numpy().tobytes()

    assert play(0.1, 0.1, 0.1, split=True) == play(0.1, 0.1, 0.1, split=False)
    assert play(0.1, 0.1, 0.01, split=True) != play(0.1, 0.1, 0.1, split=False)


def test_adam_by_hand() -> None:
    cfg = TrainConfig(optimizer="adam", lr=0.1, momentum=0.5, adam_beta2=0.75, adam_eps=0.25, weight_decay=0.5)
    w, m, v = torch.tensor([2.0]), torch.zeros(1), torch.zeros(1)
    adam_step(w, torch.tensor([1.0]), m, v, 1, cfg)
    # g = 1 + 0.5 * 2 = 2; m = 1, v = 1; corrected 2 and 4; 2 / (2 + 0.25)
    assert (m.item(), v.item()) == (1.0, 1.0)
    assert w.item() == pytest.approx(2.0 - 0.1 * 2 / 2.25, rel=1e-6)


class Allocations(TorchDispatchMode):
    """Notes the memory of everything that an operation returns and was not there before."""

    def __init__(self, known: set[int], least: int) -> None:
        super().__init__()
        self.known, self.least, self.fresh = known, least, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() >= self.least:
                self.fresh += [] if tensor.untyped_storage().data_ptr() in self.known else [str(func)]
        return out


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_takes_no_memory_of_the_models_size(optimizer: str) -> None:
    flat = FlatModel(conv_net())
    step = make_step(flat, TrainConfig(optimizer=optimizer, weight_decay=0.1, clip_norm=0.1))
    kept = (flat.state_S, flat.grads_P, flat.momentum_P, flat.second_moment_P)
    with Allocations({tensor.untyped_storage().data_ptr() for tensor in kept}, flat.layout.num_params) as seen:
        flat.grads_P.fill_(1.0)
        step()
        assert seen.fresh == []
        flat.params_P + 1  # what a step that allocates would be caught by
        assert len(seen.fresh) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_state_starts_at_zero(optimizer: str) -> None:
    def play(flat: FlatModel, start_S: Tensor) -> bytes:
        flat.load(start_S, flat.ints_I.clone())
        step: Callable[[], None] = make_step(flat, TrainConfig(optimizer=optimizer, lr=0.01))
        for number in range(3):
            flat.grads_P.fill_(0.1 + number)
            step()
        return flat.params_P.numpy().tobytes()

    flat = FlatModel(conv_net())
    start_S = flat.state_S.clone()
    first = play(flat, start_S)
    assert play(flat, start_S) == first


def test_sgd_without_momentum_keeps_no_vector() -> None:
    flat = FlatModel(conv_net())
    make_step(flat, TrainConfig(momentum=0.0))()
    assert "momentum_P" not in vars(flat)
    make_step(flat, TrainConfig(momentum=0.9))()
    assert "second_moment_P" not in vars(flat)
