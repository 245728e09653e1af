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
from fedmpi.train import optimizer
from fedmpi.train.optimizer import adam_step, fused_keeps_bits, fused_sgd_step, make_step, sgd_step


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


def bits(*tensors: Tensor) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tensors]


def keeping(cfg: TrainConfig) -> bool:
    return fused_keeps_bits("cpu", cfg.lr, cfg.momentum, cfg.weight_decay)


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("size", [1, 7, 15, 16, 17, 31, 63, 65, 1000, 4099, 70_001])
@pytest.mark.parametrize(
    "cfg",
    [
        TrainConfig(lr=0.01, momentum=0.9, weight_decay=1e-3),
        TrainConfig(lr=0.1, momentum=0.3),
        TrainConfig(lr=0.05, momentum=0.99, weight_decay=0.1, clip_norm=0.5),
    ],
    ids=["decay", "plain", "clip"],
)
def test_the_fused_step_has_the_bits_of_the_others(cfg: TrainConfig, size: int, offset: int) -> None:
    """Of any size and place in memory; zeros of either sign, the smallest numbers and infinity too."""
    if not keeping(cfg):
        pytest.skip("the fused kernel rounds otherwise here, and is not used")
    random = torch.Generator().manual_seed(size)

    def vector() -> Tensor:
        return torch.zeros(size + offset)[offset:]

    ours, fused, start = ([vector() for _ in range(3)] for _ in range(3))
    start[0].copy_(torch.randn(size, generator=random))
    start[0][::3] = -0.0
    for mine in (ours, fused):
        mine[0].copy_(start[0])
    for step in range(50):
        grads = torch.randn(size, generator=random) * 10.0 ** (step % 7 - 3)
        grads[step % 5 :: 5] = -0.0
        grads[step % 7 :: 7] *= 1e-39
        if step == 49 and cfg.clip_norm is None:
            grads[::11] = float("inf")
        ours[1].copy_(grads)
        fused[1].copy_(grads)
        sgd_step(ours[0], ours[1], ours[2], cfg)
        fused_sgd_step(fused[0], fused[1], fused[2], cfg)
        assert bits(ours[0], ours[2]) == bits(fused[0], fused[2])


def test_training_has_the_same_bits_without_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module, cfg = conv_net(), TrainConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
    calls: list[int] = []
    kernel = torch._fused_sgd_

    def play() -> list[bytes]:
        flat = FlatModel(copy.deepcopy(module))
        step = make_step(flat, cfg)
        calls.clear()
        for _ in give_gradients(copy.deepcopy(module), flat, 20):
            step()
        return bits(flat.params_P, flat.momentum_P)

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        kernel(*args, **kwargs)

    monkeypatch.setattr(torch, "_fused_sgd_", counted)
    with_kernel = play()
    assert len(calls) == (20 if keeping(cfg) else 0)
    monkeypatch.setattr(optimizer, "fused_keeps_bits", lambda *_: False)
    assert play() == with_kernel
    assert calls == []


@pytest.mark.parametrize("change", ["rounds", "refuses", "is gone"])
def test_a_fused_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    kernel = torch._fused_sgd_

    def other(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        if change == "refuses":
            raise RuntimeError("no such kernel for this device")
        kernel(params, *args, **kwargs)
        params[0][100].mul_(1 + 2**-23)

    fused_keeps_bits.cache_clear()
    if change == "is gone":
        monkeypatch.delattr(torch, "_fused_sgd_")
    else:
        monkeypatch.setattr(torch, "_fused_sgd_", other)
    before = torch.random.get_rng_state()
    assert not fused_keeps_bits("cpu", 0.1, 0.9, 0.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    fused_keeps_bits.cache_clear()
    assert not fused_keeps_bits("cuda", 0.1, 0.9, 0.0)


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
