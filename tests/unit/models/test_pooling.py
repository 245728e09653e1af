"""Pooling with ReLU by kernels: torch's bits, forward and backward, whatever the numbers and however they lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.models import pooling
from fedmpi.models.pooling import PoolReLU, pool_relu

SIZES = [(3, 3), (3, 9), (4, 3), (5, 6), (22, 22), (28, 28), (33, 29)]
NAN, INF = float("nan"), float("inf")


def torchs(x_BCHW: Tensor) -> Tensor:
    return F.relu(nn.MaxPool2d(3, 1)(x_BCHW))


def bits(x: Tensor) -> Tensor:
    """Return the bits of float32 numbers in the order of the indices, with one word for every NaN."""
    x = x.detach().contiguous()
    return torch.where(x.isnan(), torch.tensor(NAN), x).view(torch.int32)


def channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, low: int, high: int, seed: int = 0) -> Tensor:
    """Return whole numbers, whose sums are exact in any order."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def check(x_BCHW: Tensor, grad_BCHW: Tensor | None = None) -> None:
    """Compare what comes out, and what flows back, with torch's."""
    ours, theirs = x_BCHW.detach().requires_grad_(), x_BCHW.detach().requires_grad_()
    got, expected = pool_relu(ours), torchs(theirs)
    assert got.shape == expected.shape
    assert torch.equal(bits(got), bits(expected))
    grad_BCHW = randn(*got.shape, seed=9) if grad_BCHW is None else grad_BCHW
    got.backward(grad_BCHW)
    expected.backward(grad_BCHW)
    assert ours.grad is not None and theirs.grad is not None
    assert ours.grad.shape == x_BCHW.shape
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.equal(bits(ours.grad), bits(theirs.grad))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 6, 16])
@pytest.mark.parametrize("batch", [1, 4])
def test_random_numbers(batch: int, channels: int, size: tuple[int, int]) -> None:
    x = channels_last(randn(batch, channels, *size))
    check(x)
    whole_grad = whole(batch, channels, size[0] - 2, size[1] - 2, low=-9, high=10, seed=3)
    check(x, channels_last(whole_grad))


@pytest.mark.parametrize("size", SIZES)
def test_the_first_of_equal_maxima_takes_the_gradient(size: tuple[int, int]) -> None:
    for high in (2, 3, 5):
        check(channels_last(whole(3, 5, *size, low=-1, high=high)))
    check(torch.full((2, 3, *size), 2.5))


def test_where_a_gradient_goes() -> None:
    """Written out: two windows, one with a tie and one whose maximum is below zero."""
    x = torch.tensor([[1.0, 4, 4, -9], [4, 0, 0, -9], [0, 0, 0, -9]]).reshape(1, 1, 3, 4).requires_grad_()
    out = pool_relu(x)
    out.backward(torch.tensor([[[[5.0, 7]]]]))
    assert x.grad is not None
    assert out.flatten().tolist() == [4, 4]
    assert x.grad[0, 0].tolist() == [[0, 12, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    below = torch.full((1, 1, 3, 3), -1.0, requires_grad=True)
    out = pool_relu(below)
    out.backward(torch.ones(1, 1, 1, 1))
    assert below.grad is not None
    assert out.item() == 0
    assert below.grad.count_nonzero() == 0


def draw(values: list[float], *shape: int) -> Tensor:
    chosen = torch.randint(len(values), shape, generator=torch.Generator().manual_seed(5))
    return torch.tensor(values)[chosen]


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0],
        [0.0, -0.0, -1.0],
        [NAN, 1.0, 2.0, -1.0, 0.0, 3.0, 1.0, 1.0],
        [NAN, INF, -INF, -0.0],
        [-INF, -INF, -INF, -3.0],
        [NAN],
        [-INF],
        [1e-40, -1e-40, 2e-40, 0.0, -0.0],
        [3.4e38, -3.4e38, INF, 1e-38],
    ],
)
@pytest.mark.parametrize("channels", [1, 6])
def test_numbers_that_are_special(values: list[float], channels: int) -> None:
    check(draw(values, 3, channels, 11, 13))
    check(channels_last(draw(values, 3, channels, 11, 13)))


@pytest.fixture
def flushing() -> Iterator[None]:
    """As in a run: subnormal numbers count as zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushing")
def test_subnormal_numbers_where_they_are_flushed() -> None:
    check(channels_last(draw([1e-40, -1e-40, 2e-40, 0.0, -0.0], 4, 6, 14, 15)))
    check(channels_last(draw([1e-40, -1e-40, 2e-40, 0.0, -0.0, 2e-38], 4, 6, 14, 15)))


def test_gradients_with_nan_and_infinity_stay_where_they_belong() -> None:
    x = channels_last(randn(3, 6, 9, 10))
    check(x, draw([NAN, INF, 1.0, 2.0, -0.0, 0.0], 3, 6, 7, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,  # channels first
        lambda x: x.transpose(2, 3),
        lambda x: x[:, ::2],
        lambda x: x[::2, 1:, 1:-1, ::2],
        lambda x: x[:1].expand(5, -1, -1, -1),
        lambda x: channels_last(x)[:, 1:3],
        lambda x: channels_last(x)[:, :, 2:, 1:],
    ],
)
def test_numbers_that_lie_in_another_order(make: object) -> None:
    assert callable(make)
    x = make(randn(4, 6, 12, 11))
    check(x)
    grad = make(randn(4, 6, 14, 15))[: len(x), : x.shape[1], : x.shape[2] - 2, : x.shape[3] - 2]
    check(x, grad if grad.shape == torchs(x).shape else None)


def test_what_comes_out_lies_channels_last() -> None:
    assert pool_relu(randn(4, 6, 12, 11)).is_contiguous(memory_format=torch.channels_last)


def test_a_batch_without_images() -> None:
    assert pool_relu(torch.zeros(0, 6, 12, 11)).shape == (0, 6, 10, 9)


def test_the_gradient_against_differences() -> None:
    """Distinct numbers away from zero: a small step changes no choice."""
    order = torch.randperm(2 * 2 * 5 * 6, generator=torch.Generator().manual_seed(2)).float()
    x = ((order - 60.5) / 8).reshape(2, 2, 5, 6).requires_grad_()
    weights = whole(2, 2, 3, 4, low=-3, high=4)
    (pool_relu(x) * weights).sum().backward()
    assert x.grad is not None
    step = 1 / 64
    for at in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        moved = x.detach().clone()
        moved[tuple(at)] += step
        difference = ((pool_relu(moved) - pool_relu(x.detach())) * weights).sum() / step
        assert x.grad[tuple(at)] == difference


def test_twice_in_one_graph_and_twice_backward() -> None:
    def run(pool: object) -> list[Tensor]:
        assert callable(pool)
        x = channels_last(randn(4, 3, 13, 12)).requires_grad_()
        weight = randn(3, 3, 1, 1, seed=4).requires_grad_()
        once = pool(x)
        twice = pool(F.conv2d(once, weight)) + pool(once)
        loss = twice.square().sum() + once.sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert x.grad is not None and weight.grad is not None
        return [loss.detach(), x.grad, weight.grad]

    torch.testing.assert_close(run(pool_relu), run(torchs), rtol=1e-6, atol=1e-6)


def test_the_same_bits_each_time() -> None:
    def run() -> tuple[Tensor, Tensor]:
        x = channels_last(randn(8, 16, 22, 22)).requires_grad_()
        out = pool_relu(x)
        out.backward(randn(*out.shape, seed=1))
        assert x.grad is not None
        return out.detach(), x.grad

    first = run()
    for _ in range(5):
        again = run()
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_without_gradients() -> None:
    module = PoolReLU(3, 1)
    x = channels_last(randn(4, 6, 12, 11)).requires_grad_()
    with torch.no_grad():
        out = module.eval()(x)
    assert not out.requires_grad
    assert torch.equal(bits(out), bits(torchs(x)))
    assert not module(x.detach()).requires_grad


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    calls: list[torch.Size] = []
    kernels = pool_relu
    monkeypatch.setattr(pooling, "pool_relu", lambda x: (calls.append(x.shape), kernels(x))[1])
    return calls


def test_the_module_takes_the_kernels_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    x = randn(3, 2, 8, 9)
    assert torch.equal(PoolReLU(3, 1)(x), torchs(x))
    assert calls == [x.shape]


@pytest.mark.parametrize(
    ("size", "stride", "x"),
    [
        (2, 2, randn(4, 2, 8, 9)),
        (3, 2, randn(4, 2, 8, 9)),
        (2, 1, randn(4, 2, 8, 9)),
        (3, 1, randn(4, 2, 8, 9).double()),
        (3, 1, randn(2, 2, 8, 9)),  # few images
        (3, 1, randn(4, 8, 9)),  # one image without a batch
    ],
)
def test_the_module_leaves_the_rest_to_torch(
    size: int, stride: int, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch)
    assert torch.equal(PoolReLU(size, stride)(x), F.relu(F.max_pool2d(x, size, stride)))
    assert calls == []


def test_images_smaller_than_a_window() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        PoolReLU(3, 1)(torch.zeros(4, 1, 2, 5))


def test_the_module_has_no_tensors() -> None:
    assert PoolReLU(3, 1).state_dict() == {}


def test_compiled_in_the_warm_up_alone() -> None:
    """Neither preparing a run nor another model loads numba, and after the warm-up no training compiles anything."""
    code = """if True:
        import sys
        import torch
        from fedmpi.config import RunConfig
        from fedmpi.engine.setup import prepare, resolve
        from fedmpi.models.registry import ModelConfig, build_model, warm_up
        setup = prepare(resolve(RunConfig(rounds=1, model={"name": "mnistnet"})))
        prepare(resolve(RunConfig(rounds=1, model={"name": "cnn"}))).warm_up()
        warm_up(ModelConfig(name="net.py:Net"))
        print("numba" in sys.modules)
        setup.warm_up()
        from fedmpi.models.pooling_kernels import pool_relu, pool_relu_backward
        print(len(pool_relu.signatures), len(pool_relu_backward.signatures))
        module = build_model(setup.model_config, setup.dataset.shape, 10, 0)
        for batch in (1, 2, 3, 8):
            module(torch.randn(batch, 28, 28, 1).permute(0, 3, 1, 2)).sum().backward()
            module(torch.randn(batch, 1, 28, 28)).sum().backward()
        with torch.no_grad():
            module(torch.zeros(4, 1, 28, 28))
        print(len(pool_relu.signatures), len(pool_relu_backward.signatures))
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env, check=True
    )
    assert done.stdout.split() == ["False", *["1"] * 4]
