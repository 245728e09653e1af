"""Sparse updates with an error memory, through real frames, against the same algorithm in plain arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import fedavg, fedavgm, fedprox
from fedmpi.algorithms.base import GlobalModel
from fedmpi.algorithms.sparse_updates import MEMORY, SparseMean, TopKUplink, UpdateUp, UplinkConfig
from fedmpi.configfile import validate
from fedmpi.errors import ConfigError, ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, Sparse


def flat_model(seed: int = 0) -> FlatModel:
    torch.manual_seed(seed)
    return FlatModel(nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))


def config(**settings: Any) -> UplinkConfig:
    return UplinkConfig(name="fedavg", compress="topk", **settings)


def through_the_wire(message: Message) -> UpdateUp:
    schema = flat_model().layout.schema()
    back, _ = decode(encode(message, schema, BufferPool()).buffer, (UpdateUp,), schema)
    assert isinstance(back, UpdateUp)
    return back


def uplink_of(settings: UplinkConfig, update_P: Tensor, state: dict[str, Tensor], samples: int = 4) -> UpdateUp:
    """Return the uplink of a model that has moved by `update_P`."""
    model = flat_model()
    start_P = model.params_P.clone()
    with torch.no_grad():
        model.params_P.add_(update_P)
    # What training left is start + update as float32 has it.
    return through_the_wire(TopKUplink(settings, model.layout).message(model, start_P, samples, state))


def scattered(up: UpdateUp) -> Tensor:
    dense_P = torch.zeros(up.update.size)
    dense_P[torch.from_numpy(up.update.indices)] = up.update.tensor_values()
    return dense_P


def moved(update_P: Tensor) -> Tensor:
    start_P = flat_model().params_P
    return (start_P + update_P).detach() - start_P.detach()


@pytest.mark.parametrize("density", [0.01, 0.1, 1.0])
def test_sent_and_kept_are_what_was_wanted_round_after_round(density: float) -> None:
    settings = config(density=density)
    layout = flat_model().layout
    state = TopKUplink(settings, layout).state(torch.device("cpu"))
    memory_P = torch.zeros(layout.num_params)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        update_P = 0.1 * torch.randn(layout.num_params, generator=generator)
        wanted_P = memory_P + moved(update_P)
        up = uplink_of(settings, update_P, state)
        sent_P = scattered(up)
        assert up.update.num_kept == max(1, round(density * layout.num_params))
        assert torch.equal(sent_P + state[MEMORY], wanted_P)
        assert torch.equal(state[MEMORY][up.update.indices], torch.zeros(up.update.num_kept))
        assert sent_P.abs()[up.update.indices].min() >= state[MEMORY].abs().max()
        memory_P = state[MEMORY].clone()


def test_without_memory_nothing_is_kept() -> None:
    settings = config(density=0.1, error_feedback=False)
    assert TopKUplink(settings, flat_model().layout).state(torch.device("cpu")) == {}
    update_P = torch.linspace(-1, 1, flat_model().layout.num_params)
    assert torch.equal(uplink_of(settings, update_P, {}).update.tensor_values().abs() > 0.8, torch.ones(18).bool())


def test_as_many_of_each_tensor() -> None:
    settings = config(density=0.25, scope="tensor", error_feedback=False)
    layout = flat_model().layout
    offsets = layout.schema().segments["params"]
    up = uplink_of(settings, torch.arange(layout.num_params) / 1000 + 1, {})
    counts = np.histogram(up.update.indices, offsets)[0]
    assert counts.tolist() == [max(1, round(0.25 * n)) for n in np.diff(offsets)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_diverged_is_sent_for_the_server_to_find(bad: float) -> None:
    settings = config(density=0.05)
    layout = flat_model().layout
    state = TopKUplink(settings, layout).state(torch.device("cpu"))
    update_P = torch.zeros(layout.num_params)
    update_P[17] = bad
    up = uplink_of(settings, update_P, state)
    assert up.nonfinite_field() == "update"
    assert 17 in up.update.indices


def test_the_mean_is_weighted_by_samples_and_divided_once() -> None:
    layout = flat_model().layout
    num_params, num_state = layout.num_params, layout.num_state
    mean = SparseMean(layout)
    weights, sent = [3, 5], []
    for weight in weights:
        values = torch.randn(4, generator=torch.Generator().manual_seed(weight))
        indices = torch.tensor([0, weight, 50, num_params - 1])
        update = Sparse.of(num_params, indices, values)
        buffers = Dense(np.full(num_state - num_params, weight, np.float32))
        ints = Dense(np.array([weight], np.int64))
        mean.add(UpdateUp(num_samples=weight, int_buffers=ints, buffers=buffers, update=update))
        sent.append(torch.zeros(num_params, dtype=torch.float64).index_put_((indices,), values.double()))
    model = GlobalModel(torch.ones(num_state), torch.zeros(1, dtype=torch.int64))
    mean.mean_into(model)
    want = torch.ones(num_params) + (3 * sent[0] + 5 * sent[1]) / 8
    assert torch.equal(model.state_S[:num_params], want.float())
    assert model.state_S[num_params:].unique().tolist() == [(3 * 3 + 5 * 5) / 8]
    assert model.ints_I.tolist() == [3]
    mean.reset()
    before = model.state_S.clone()
    mean.mean_into(model)
    assert torch.equal(model.state_S, before)


def test_an_update_without_samples_is_refused() -> None:
    layout = flat_model().layout
    nothing = Sparse.of(layout.num_params, torch.tensor([], dtype=torch.int64), torch.tensor([]))
    with pytest.raises(ProtocolError, match="must stand for at least 1 sample, got 0"):
        SparseMean(layout).add(UpdateUp(num_samples=0, int_buffers=None, buffers=None, update=nothing))


@pytest.mark.parametrize("algorithm", [fedavg.ALGORITHM, fedavgm.ALGORITHM, fedprox.ALGORITHM])
def test_settings(algorithm: Any) -> None:
    def settings(**given: Any) -> Any:
        return validate(algorithm.config, {"name": algorithm.name, **given}, "algorithm")

    filled = settings(compress="topk")
    assert (filled.density, filled.scope, filled.error_feedback) == (0.01, "model", True)
    plain = settings()
    assert (plain.compress, plain.density, plain.scope, plain.error_feedback) == ("none", None, None, None)
    assert UpdateUp in algorithm.messages(filled) and UpdateUp not in algorithm.messages(plain)
    for name, value in (("density", 0.5), ("scope", "tensor"), ("error_feedback", False)):
        with pytest.raises(ConfigError, match=f"{name} has no meaning with compress=none"):
            settings(**{name: value})
    with pytest.raises(ConfigError, match=r"algorithm\.density must be .*got 1\.5"):
        settings(compress="topk", density=1.5)
    with pytest.raises(ConfigError, match=r"algorithm\.compress must be 'none' or 'topk', got 'top'"):
        settings(compress="top")
