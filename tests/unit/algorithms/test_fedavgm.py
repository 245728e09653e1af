"""FedAvgM's server step against the paper's formula on vectors worked by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmpi.algorithms.averaging import ModelUp
from fedmpi.algorithms.base import ServerContext
from fedmpi.algorithms.fedavg import ALGORITHM as FEDAVG
from fedmpi.algorithms.fedavg import FedAvgServer
from fedmpi.algorithms.fedavgm import ALGORITHM, FedAvgMServer
from fedmpi.config import NamedSection
from fedmpi.configfile import validate
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.wire.values import Dense


class Tiny(nn.Module):
    """Two parameters and one floating buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("mean", torch.tensor([8.0]))


def context() -> ServerContext:
    flat = FlatModel(Tiny())
    return ServerContext(0, flat.layout, InitialModel(0, flat.layout, flat.state_S, flat.ints_I, 0), True)


def server(**settings: float) -> FedAvgMServer:
    half = ALGORITHM.server(validate(ALGORITHM.config, {"name": "fedavgm", **settings}), context())
    assert isinstance(half, FedAvgMServer)
    return half


def step(half: FedAvgServer, round_idx: int, *ups: tuple[int, list[float]]) -> list[float]:
    half.begin_round(round_idx, range(len(ups)))
    for client_id, (num_samples, state) in enumerate(ups):
        up = ModelUp(num_samples=num_samples, int_buffers=None, state=Dense(np.array(state, np.float32)))
        half.aggregate(round_idx, client_id, up)
    half.end_round(round_idx)
    numbers: list[float] = half.global_model().state_S.tolist()
    return numbers


def test_two_rounds_by_hand() -> None:
    half = server(server_momentum=0.5, server_lr=2.0)
    # w = (1, -2); mean (0, -1); dw = (1, -1); v = (1, -1); w = (1, -2) - 2 (1, -1). The buffer takes the mean.
    assert step(half, 0, (1, [0.0, -1.0, 4.0])) == [-1.0, 0.0, 4.0]
    # mean of weight 1 and 3: (1, 3, 2); dw = (-2, -3); v = (0.5, -0.5) + dw = (-1.5, -3.5); w = (-1, 0) + 2 (1.5, 3.5).
    assert step(half, 1, (1, [4.0, 0.0, 5.0]), (3, [0.0, 4.0, 1.0])) == [2.0, 7.0, 2.0]


vectors = st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3)


@given(
    models=st.lists(vectors, min_size=1, max_size=5),
    beta=st.sampled_from([0.0, 0.5, 0.9]),
    eta=st.sampled_from([0.3, 1.0]),
)
def test_the_papers_formula(models: list[list[float]], beta: float, eta: float) -> None:
    half = server(server_momentum=beta, server_lr=eta)
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    for round_idx, model in enumerate(models):
        v = beta * v + (w - np.array(model[:2]))
        w = w - eta * v
        np.testing.assert_allclose(step(half, round_idx, (3, model)), [*w, model[2]], rtol=1e-5, atol=2e-5)


@given(models=st.lists(vectors, min_size=1, max_size=4))
def test_without_momentum_it_is_fedavg(models: list[list[float]]) -> None:
    half = server(server_momentum=0.0)
    fedavg: Any = FEDAVG.server(FEDAVG.config(name="fedavg"), context())
    for round_idx, model in enumerate(models):
        got = step(half, round_idx, (2, model), (5, model[::-1]))
        np.testing.assert_allclose(got, step(fedavg, round_idx, (2, model), (5, model[::-1])), rtol=1e-6, atol=1e-6)


def test_a_round_without_replies_moves_nothing() -> None:
    half = server(server_momentum=0.5)
    moved = step(half, 0, (1, [0.0, 0.0, 0.0]))
    kept = copy.deepcopy(half.state_dict())
    assert step(half, 1) == moved
    assert torch.equal(half.state_dict()["velocity"], kept["velocity"])


def test_the_velocity_is_part_of_the_state() -> None:
    half = server(server_momentum=0.5)
    step(half, 0, (1, [0.0, 0.0, 0.0]))
    kept = copy.deepcopy(half.state_dict())
    want = step(half, 1, (1, [3.0, 3.0, 3.0]))
    other = server(server_momentum=0.5)
    other.load_state_dict(kept)
    assert step(other, 1, (1, [3.0, 3.0, 3.0])) == want
    fresh = server(server_momentum=0.5)
    fresh.load_state_dict({**kept, "velocity": torch.zeros(2)})
    assert step(fresh, 1, (1, [3.0, 3.0, 3.0])) != want


@pytest.mark.parametrize(("key", "value"), [("server_momentum", 1.0), ("server_momentum", -0.1), ("server_lr", 0.0)])
def test_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^algorithm\.{key} must be (above|at least|below) [01], got {value}$"):
        validate(ALGORITHM.config, NamedSection(name="fedavgm", **{key: value}).model_dump(), "algorithm")
