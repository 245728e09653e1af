"""The initial model is a function of its seed and of nothing else."""

from __future__ import annotations

import pytest
import torch
import xxhash
from torch import nn

from fedmpi.config import NamedSection
from fedmpi.errors import ConfigError
from fedmpi.models import registry
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import ImageShape, ModelConfig, build_model, resolve

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


def test_the_hash_covers_both_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    class BatchNorm(nn.BatchNorm1d):
        count = 0

        def __init__(self) -> None:
            super().__init__(2)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.fill_(self.count)

    monkeypatch.setitem(registry._MODELS, "bn", (ModelConfig, lambda config, shape, num_classes: BatchNorm()))
    first = initial("bn", 0)
    assert first.ints_I.tolist() == [0]
    digest = xxhash.xxh3_64_intdigest(first.state_S.numpy().tobytes() + first.ints_I.numpy().tobytes())
    assert first.state_hash == digest & 0x7FFFFFFF
    monkeypatch.setattr(BatchNorm, "count", 1)
    assert initial("bn", 0).state_hash != first.state_hash
