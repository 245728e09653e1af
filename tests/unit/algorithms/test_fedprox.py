"""FedProx: the proximal term's gradient, and that without it FedProx is FedAvg to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.algorithms import fedavg, fedprox
from fedmpi.algorithms.averaging import ModelDown, ModelUp
from fedmpi.algorithms.base import Algorithm, ClientContext
from fedmpi.config import TrainConfig
from fedmpi.configfile import validate
from fedmpi.data.datasets import Dataset
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.wire.values import Dense

TRAIN = TrainConfig(lr=0.2, momentum=0.9, batch_size=8, local_epochs=3)


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


class Recorder(Shard):
    """A shard that also keeps a copy of every batch it gives."""

    def batches(self, batch_size: int, num_epochs: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        self.seen: list[tuple[Tensor, Tensor]] = []
        for x, y in super().batches(batch_size, num_epochs, rng):
            self.seen.append((x.clone(), y.clone()))
            yield x, y


def shard() -> Recorder:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 4, 4, 1), np.uint8), rng.integers(0, 3, 20)
    dataset = Dataset("x", pixels, labels, pixels, labels, 3, (0.5,), (0.3,))
    return Recorder(DeviceImages(pixels, labels, dataset, torch.device("cpu")), np.arange(20))


def unused(seed: int) -> Any:
    raise AssertionError("no seed is sent here")


def client(algorithm: Algorithm, **settings: float) -> Any:
    ctx = ClientContext(7, FlatModel(module(99)), TRAIN, unused, lambda: None)
    return algorithm.client(validate(algorithm.config, {"name": algorithm.name, **settings}), ctx)


def down() -> ModelDown:
    return ModelDown(int_buffers=None, state=Dense.of(FlatModel(module()).state_S))


def trained(half: Any, data: Shard) -> np.ndarray:
    up = half.train(0, 4, down(), data)
    assert isinstance(up, ModelUp)
    assert up.num_samples == 20
    return up.state.array.copy()


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_equals_a_plain_loop_with_the_term_in_the_loss(mu: float) -> None:
    data = shard()
    got = trained(client(fedprox.ALGORITHM, mu=mu), data)

    plain, start = module(), [param.detach().clone() for param in module().parameters()]
    sgd = torch.optim.SGD(plain.parameters(), lr=TRAIN.lr, momentum=TRAIN.momentum)
    for x, y in data.seen:
        sgd.zero_grad()
        distance: Any = sum((w - w0).square().sum() for w, w0 in zip(plain.parameters(), start, strict=True))
        (F.cross_entropy(plain(x), y) + mu / 2 * distance).backward()
        sgd.step()
    np.testing.assert_allclose(got, FlatModel(plain).state_S.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(got - trained(client(fedavg.ALGORITHM), shard())).max() > 1e-3


def test_the_terms_gradient_is_mu_times_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    half = client(fedprox.ALGORITHM, mu=0.25)
    start_P = torch.from_numpy(down().state.array)
    terms: list[Callable[[Tensor], Tensor]] = []
    original = half.train_local

    def train_local(*args: Any, extra_loss: Callable[[Tensor], Tensor]) -> Any:
        terms.append(extra_loss)
        return original(*args, extra_loss=extra_loss)

    monkeypatch.setattr(half, "train_local", train_local)
    trained(half, shard())
    w_P = (start_P + torch.linspace(-1, 1, len(start_P))).requires_grad_()
    loss = terms[0](w_P)
    loss.backward()
    torch.testing.assert_close(w_P.grad, 0.25 * torch.linspace(-1, 1, len(start_P)), rtol=1e-5, atol=1e-6)
    square = float(torch.linspace(-1, 1, len(start_P)).square().sum())
    assert float(loss.detach()) == pytest.approx(0.25 / 2 * square, rel=1e-5)
    # Held to the model it was sent, though it has been trained since.
    at_start = start_P.clone().requires_grad_()
    terms[0](at_start).backward()
    assert at_start.grad is not None
    assert not at_start.grad.any()


def test_mu_0_is_fedavg_bit_for_bit() -> None:
    fedprox_S = trained(client(fedprox.ALGORITHM, mu=0), shard())
    assert fedprox_S.tobytes() == trained(client(fedavg.ALGORITHM), shard()).tobytes()


def test_a_large_mu_holds_the_client_to_the_global_model() -> None:
    start = down().state.array
    far, near = (np.linalg.norm(trained(client(fedprox.ALGORITHM, mu=mu), shard()) - start) for mu in (0.0, 2.0))
    assert 0 < near < 0.7 * far


def test_the_servers_side_is_fedavgs() -> None:
    assert fedprox.ALGORITHM.server is fedavg.ALGORITHM.server


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mu": -0.1}, r"algorithm\.mu must be at least 0, got -0\.1"),
        ({"mu": "much"}, r"algorithm\.mu must be a number, got 'much'"),
        (
            {"nu": 1},
            r"algorithm\.nu: unknown key \(value 1\); "
            r"the keys of algorithm are compress, density, scope, error_feedback, mu",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        validate(fedprox.ALGORITHM.config, {"name": "fedprox", **settings}, "algorithm")
