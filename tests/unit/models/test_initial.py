"""The initial model is a function of its seed and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor, nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape, InputShape, TextShape
from fedmpi.errors import ConfigError
from fedmpi.models import registry
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import ModelConfig, build_model, resolve

SHAPE = ImageShape(16, 16, 1)


def initial(name: str, seed: int) -> InitialModel:
    return initial_model(resolve(NamedSection(name=name)), SHAPE, 10, seed)


@pytest.mark.parametrize("name", ["logreg", "mlp", "cnn"])
def test_same_seed_same_bytes(name: str) -> None:
    a = initial(name, 5)
    torch.rand(7)  # other uses of torch's generator do not matter
    b = initial(name, 5)
    assert a.state_S.numpy().tobytes() == b.state_S.numpy().tobytes()
    assert a.layout == b.layout
    assert (a.init_seed, a.state_hash) == (b.init_seed, b.state_hash)


def test_another_seed_another_model() -> None:
    models = [initial("cnn", seed) for seed in range(4)]
    assert len({model.state_hash for model in models}) == 4
    assert not torch.equal(models[0].state_S, models[1].state_S)


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**63 - 1])
def test_torchs_global_state_is_left_as_it_was(seed: int) -> None:
    torch.manual_seed(42)
    torch.rand(3)
    before = torch.get_rng_state()
    initial("cnn", seed)
    build_model(resolve(NamedSection(name="cnn")), SHAPE, 10, seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchs_global_state_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="too small"):
        initial_model(resolve(NamedSection(name="cnn")), ImageShape(4, 4, 1), 10, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_are_those_of_torch_seeded_so() -> None:
    torch.manual_seed(9)
    want = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    got = initial("logreg", 9)
    assert torch.equal(got.state_S, torch.cat([want[1].weight.flatten(), want[1].bias]).detach())
    assert not got.state_S.requires_grad


class Counted(nn.Module):
    """A model with an integer buffer, which a test can set."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.BatchNorm1d(10))
        self.net[2].num_batches_tracked.fill_(self.count)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_the_hash_covers_both_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = registry.Registered(ModelConfig, lambda config, shape, num_classes: Counted(), ImageShape)
    monkeypatch.setitem(registry._MODELS, "counted", model)
    first = initial("counted", 0)
    assert first.ints_I.tolist() == [0]
    digest = xxhash.xxh3_64_intdigest(first.state_S.numpy().tobytes() + first.ints_I.numpy().tobytes())
    assert first.state_hash == digest & 0x7FFFFFFF
    monkeypatch.setattr(Counted, "count", 1)
    second = initial("counted", 0)
    assert torch.equal(second.state_S, first.state_S)
    assert second.state_hash != first.state_hash


def test_a_seed_stands_for_it() -> None:
    assert initial("logreg", 3).from_file is False


class Fixed(nn.Module):
    """A linear layer in front of whatever a test wants returned."""

    def __init__(self, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 10)
        self.last = forward

    def forward(self, x: Tensor) -> Any:
        return self.last(self.layer(x.flatten(1)))


def misfit(forward: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch, shape: InputShape = SHAPE) -> None:
    build = lambda config, shape, num_classes: Fixed(forward)  # noqa: E731
    monkeypatch.setitem(registry._MODELS, "fixed", registry.Registered(ModelConfig, build, type(shape)))
    initial_model(ModelConfig(name="fixed"), shape, 10, 0)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda y: y[:, :9], r"model\.name=fixed must return logits .* = \(2, 10\) float32 .*, got \(2, 9\) float32"),
        (lambda y: y[:, :, None], r"= \(2, 10\) float32 .*, got \(2, 10, 1\)"),
        (lambda y: y.double(), r"= \(2, 10\) float32 .*, got \(2, 10\) float64"),
        (lambda y: (y, None), r"= \(2, 10\) float32 .*, got a tuple"),
        (
            lambda y: y.reshape(3, 7),
            r"model\.name=fixed: it failed on a batch of \(2, 1, 16, 16\) float32: RuntimeError",
        ),
        (lambda y: 1 / 0, r"model\.name=fixed: it failed .*: ZeroDivisionError: division by zero"),
    ],
)
def test_models_that_do_not_fit(forward: Callable[[Tensor], Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    misfit(lambda y: y, monkeypatch)
    with pytest.raises(ConfigError, match=words):
        misfit(forward, monkeypatch)


def test_logits_of_text_have_a_place_for_each_character(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(nn.Module):
        def __init__(self, swap: bool) -> None:
            super().__init__()
            self.table, self.swap = nn.Embedding(10, 10), swap

        def forward(self, x: Tensor) -> Tensor:
            assert (x.shape, x.dtype) == ((2, 7), torch.int64)
            return self.table(x).transpose(1, 2) if self.swap else self.table(x)

    for swap in (True, False):
        build = lambda config, shape, num_classes, swap=swap: Text(swap)  # noqa: E731
        monkeypatch.setitem(registry._MODELS, "t", registry.Registered(ModelConfig, build, TextShape))
        if swap:
            assert initial_model(ModelConfig(name="t"), TextShape(7), 10, 0).layout.num_params == 100
        else:
            with pytest.raises(ConfigError, match=r"= \(2, 10, 7\) float32 .*, got \(2, 7, 10\) float32"):
                initial_model(ModelConfig(name="t"), TextShape(7), 10, 0)


def test_the_check_runs_the_model_once_as_a_test_would(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            seen.append((self.training, torch.is_grad_enabled(), x.shape, x.is_contiguous()))
            assert x.is_contiguous(memory_format=torch.channels_last)
            return self.layer(x.mean((2, 3)))

    build = lambda config, shape, num_classes: Watched()  # noqa: E731
    monkeypatch.setitem(registry._MODELS, "w", registry.Registered(ModelConfig, build, ImageShape))
    before = torch.get_rng_state()
    initial_model(ModelConfig(name="w"), ImageShape(5, 6, 3), 4, 0)
    assert seen == [(False, False, (2, 3, 5, 6), False)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_models_that_start_with_what_is_no_number(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: ModelConfig, shape: ImageShape, num_classes: int) -> nn.Module:
        module = Fixed(lambda y: y)
        module.layer.bias.data[3] = bad
        return module

    monkeypatch.setitem(registry._MODELS, "bad", registry.Registered(ModelConfig, build, ImageShape))
    with pytest.raises(ConfigError, match=r"model\.name=bad: layer\.bias starts with NaN or infinity"):
        initial_model(ModelConfig(name="bad"), SHAPE, 10, 0)


def test_a_model_without_parameters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._MODELS, "bare", registry.Registered(ModelConfig, lambda *_: nn.Flatten(), ImageShape))
    with pytest.raises(ConfigError, match=r"^model\.name=bare: the model has no parameter that is trained$"):
        initial_model(ModelConfig(name="bare"), SHAPE, 10, 0)
