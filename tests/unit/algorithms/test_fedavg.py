"""FedAvg's two halves, with real frames between them, against Algorithm 1 written as a plain loop."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.algorithms.base import ClientContext, ServerContext
from fedmpi.algorithms.fedavg import ALGORITHM, FedAvgClient, FedAvgServer
from fedmpi.config import TrainConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.rng import stream
from fedmpi.train.local import train_local
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.message import Message

TRAIN = TrainConfig(lr=0.1, batch_size=8)
PARTS = {0: np.arange(0, 10), 2: np.arange(10, 40), 5: np.arange(40, 45)}


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def initial(seed: int = 0) -> InitialModel:
    flat = FlatModel(module(seed))
    return InitialModel(seed, flat.layout, flat.state_S, flat.ints_I, 123)


def images() -> DeviceImages:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (45, 4, 4, 1), np.uint8), rng.integers(0, 3, 45)
    return DeviceImages(
        pixels, labels, Dataset("x", pixels, labels, pixels, labels, 3, (0.5,), (0.3,)), torch.device("cpu")
    )


DATA = images()


def server(*, send_seed: bool = True) -> FedAvgServer:
    first = initial()
    half = ALGORITHM.server(ALGORITHM.config(name="fedavg"), ServerContext(7, first.layout, first, send_seed))
    assert isinstance(half, FedAvgServer)
    return half


def client() -> FedAvgClient:
    ctx = ClientContext(7, FlatModel(module(99)), TRAIN, initial, lambda: None)
    half = ALGORITHM.client(ALGORITHM.config(name="fedavg"), ctx)
    assert isinstance(half, FedAvgClient)
    return half


class FrameChannel:
    """A conversation of one message each way, carried in frames."""

    def __init__(self, down: Message) -> None:
        self.schema = initial().layout.schema()
        self.pool = BufferPool()
        self.down = encode(down, self.schema, self.pool).buffer
        self.up: Any = None

    def recv(self, *expected: type[Message]) -> Any:
        return decode(self.down, expected, self.schema)[0]

    def send(self, message: Message) -> None:
        self.up = encode(message, self.schema, self.pool).buffer.copy()


def play_round(half: FedAvgServer, player: FedAvgClient, round_idx: int, order: list[int]) -> None:
    """Play a round's clients in any order; aggregate in ascending client_id."""
    half.begin_round(round_idx, sorted(order))
    ups = {}
    for client_id in order:
        conversation = half.converse(round_idx, client_id)
        channel = FrameChannel(next(conversation))  # type: ignore[arg-type]
        player.run(round_idx, client_id, Shard(DATA, PARTS[client_id]), channel)
        with pytest.raises(StopIteration) as end:
            next(conversation)
        assert end.value.value is ModelUp
        ups[client_id] = channel.up
    for client_id in sorted(ups):
        half.aggregate(round_idx, client_id, decode(ups[client_id], (ModelUp,), initial().layout.schema())[0])
    assert half.end_round(round_idx) == {}


def reference(num_rounds: int) -> tuple[Tensor, list[int]]:
    """Algorithm 1 on the same client work: w <- sum_k n_k w_k / sum_k n_k, in float64."""
    state = initial().state_S.double()
    ints = initial().ints_I
    for round_idx in range(num_rounds):
        total = torch.zeros_like(state)
        new_ints = None
        for client_id, part in PARTS.items():
            flat = FlatModel(module())
            flat.load(state.float(), ints)
            train_local(flat, Shard(DATA, part), TRAIN, rng=stream(7, round_idx, client_id, "batches"))
            total += len(part) * flat.state_S.double()
            new_ints = flat.ints_I if new_ints is None else new_ints
        state = (total / sum(len(part) for part in PARTS.values())).float().double()
        assert new_ints is not None
        ints = new_ints
    return state.float(), ints.tolist()


def test_two_rounds_equal_algorithm_1() -> None:
    half, player = server(), client()
    for round_idx in range(2):
        play_round(half, player, round_idx, [0, 2, 5])
    want, want_ints = reference(2)
    assert torch.equal(half.global_model().state_S, want)
    assert half.global_model().ints_I.tolist() == want_ints == [4]  # client 0: ten samples, two batches a round
    assert not torch.equal(want, initial().state_S)


def test_of_one_client_the_model_is_its_own() -> None:
    half, player = server(), client()
    play_round(half, player, 0, [2])
    flat = FlatModel(module())
    flat.load(initial().state_S, initial().ints_I)
    train_local(flat, Shard(DATA, PARTS[2]), TRAIN, rng=stream(7, 0, 2, "batches"))
    assert torch.equal(half.global_model().state_S, flat.state_S)


def test_the_order_of_play_does_not_matter() -> None:
    results = []
    for order in ([0, 2, 5], [5, 2, 0], [2, 0, 5]):
        half, player = server(), client()
        for round_idx in range(2):
            play_round(half, player, round_idx, order)
        results.append(half.global_model().state_S.numpy().tobytes())
    assert results[0] == results[1] == results[2]


def test_a_seed_or_the_full_model_in_the_first_round_end_alike() -> None:
    results = []
    for send_seed in (True, False):
        half = server(send_seed=send_seed)
        half.begin_round(0, [0])
        assert type(half.downlink(0, 0)) is (SeedDown if send_seed else ModelDown)
        play_round(half, client(), 0, [0, 2])
        results.append(half.global_model().state_S.numpy().tobytes())
        half.begin_round(1, [0])
        assert type(half.downlink(1, 0)) is ModelDown
    assert results[0] == results[1]


def test_the_downlink_is_one_object_in_the_models_own_memory() -> None:
    half = server(send_seed=False)
    half.begin_round(0, [0, 1])
    down = half.downlink(0, 0)
    assert half.downlink(0, 1) is down
    assert isinstance(down, ModelDown)
    assert np.shares_memory(down.state.array, half.global_model().state_S.numpy())
    pool = BufferPool()
    frame = encode(down, initial().layout.schema(), pool, in_place=True)
    assert np.shares_memory(frame.buffer, half.global_model().state_S.numpy())
    assert pool.allocated_nbytes == 0


def test_an_uplink_says_how_many_samples() -> None:
    half, player = server(), client()
    half.begin_round(0, [2])
    up = player.train(0, 2, half.downlink(0, 2), Shard(DATA, PARTS[2]))
    assert isinstance(up, ModelUp)
    assert up.num_samples == 30
    assert [stats.num_samples for stats in player.ctx.stats] == [30]


def test_a_server_continues_from_its_state() -> None:
    half, player = server(), client()
    play_round(half, player, 0, [0, 2])
    kept = copy.deepcopy(half.state_dict())
    play_round(half, player, 1, [2, 5])
    other = server()
    other.load_state_dict(kept)
    play_round(other, client(), 1, [2, 5])
    assert other.global_model().state_S.numpy().tobytes() == half.global_model().state_S.numpy().tobytes()
    assert torch.equal(other.global_model().ints_I, half.global_model().ints_I)


def test_the_initial_model_is_not_changed() -> None:
    half = server()
    before = half.ctx.initial.state_S.clone()
    play_round(half, client(), 0, [0])
    assert torch.equal(half.ctx.initial.state_S, before)
