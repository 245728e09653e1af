"""The two halves of an algorithm with a mask, with real frames between them and each client's state kept apart."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi.algorithms.base import Algorithm, ClientContext, ServerContext
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_client import SparseClient
from fedmpi.algorithms.sparse_messages import SparseModelDown, SparseModelUp
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.config import TrainConfig, WireConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel, Layout
from fedmpi.models.initial import InitialModel
from fedmpi.models.operations import weight_uses
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import Frame, decode, encode
from fedmpi.wire.known import Known
from fedmpi.wire.message import Message

TRAIN = TrainConfig(lr=0.1, momentum=0.9, batch_size=8, local_epochs=2)
PARTS = {client: np.arange(start, start + size) for client, (start, size) in enumerate([(0, 10), (10, 30), (40, 5)])}
PARTS |= {3: np.arange(20, 44), 4: np.arange(5, 19)}


def module(seed: int = 0) -> nn.Module:
    """Return a network of 16 + 360 + 30 weights in three layers, 37 other parameters, and buffers of both kinds."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(36, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)
    )


def initial(seed: int = 0) -> InitialModel:
    flat = FlatModel(module(seed))
    return InitialModel(seed, flat.layout, flat.state_S, flat.ints_I, 123)


def layout() -> Layout:
    return initial().layout


def images() -> DeviceImages:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (45, 4, 4, 1), np.uint8), rng.integers(0, 3, 45)
    return DeviceImages(
        pixels, labels, Dataset("x", pixels, labels, pixels, labels, 3, (0.5,), (0.3,)), torch.device("cpu")
    )


DATA = images()


def algorithm(name: str) -> Algorithm:
    found = importlib.import_module(f"fedmpi.algorithms.{name}").ALGORITHM
    assert isinstance(found, Algorithm)
    return found


class Turn(NamedTuple):
    """One client's part in a round: the messages as they were received, and the frames that carried them."""

    client_id: int
    downs: list[Message]
    up: SparseModelUp
    down_frames: list[Frame]
    up_frame: Frame

    @property
    def model_down(self) -> SparseModelDown | None:
        """The last message down, unless a seed was all."""
        return self.downs[-1] if isinstance(self.downs[-1], SparseModelDown) else None


class World:
    """A server, one rank that plays all clients, and what each client keeps."""

    def __init__(
        self,
        name: str = "feddst",
        *,
        rounds: int = 10,
        train: TrainConfig = TRAIN,
        send_seed: bool = True,
        wire: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.algorithm = algorithm(name)
        self.config = self.algorithm.config(name=name, **settings)
        self.rounds, self.send_seed, self.wire = rounds, send_seed, WireConfig(**(wire or {}))
        self.first = initial()
        self.warnings: list[str] = []
        self.server, self.server_schema = self.new_server()
        known = Known()
        self.client_schema = self.schema(known)
        self.model = FlatModel(module(99))
        ctx = ClientContext(7, self.model, train, initial, lambda: None, known=known, num_rounds=rounds)
        client = self.algorithm.client(self.config, ctx)
        assert isinstance(client, SparseClient)
        self.client = client
        self.states: dict[int, dict[str, Tensor]] = {}
        self.pool = BufferPool()
        self.space = MaskSpace(self.first.layout)

    def schema(self, known: Known) -> Any:
        return replace(self.algorithm.schema(self.config, self.first.layout), known=known, wire=self.wire)

    def new_server(self) -> tuple[SparseServer, Any]:
        known = Known()
        shape = ImageShape(4, 4, 1)
        ctx = ServerContext(
            7,
            self.first.layout,
            self.first,
            self.send_seed,
            known,
            self.rounds,
            lambda: weight_uses(module(), shape),
            self.warnings.append,
        )
        server = self.algorithm.server(self.config, ctx)
        assert isinstance(server, SparseServer)
        return server, self.schema(known)

    def turn(self, round_idx: int, client_id: int) -> Turn:
        """Hold the conversation with one client."""
        conversation = self.server.converse(round_idx, client_id)
        frames: list[Frame] = []
        try:
            while True:
                frame = encode(next(conversation), self.server_schema, self.pool)  # type: ignore[arg-type]
                frames.append(replace(frame, buffer=frame.buffer.copy()))
        except StopIteration as end:
            wanted = end.value
        channel = _Channel(self, frames)
        fresh = {name: tensor.clone() for name, tensor in self.client.declare_state().items()}
        self.client.client_state = self.states.get(client_id, fresh)
        self.client.run(round_idx, client_id, Shard(DATA, PARTS[client_id]), channel)
        self.states[client_id] = self.client.client_state
        assert channel.frame is not None and not channel.queue
        up: Any = decode(channel.frame.buffer, (wanted,), self.server_schema)[0]
        return Turn(client_id, channel.received, up, frames, channel.frame)

    def play(self, round_idx: int, cohort: Sequence[int], lost: Sequence[int] = ()) -> list[Turn]:
        """Play a round; the replies of `lost` clients and what they keep of it come to nothing."""
        self.server.begin_round(round_idx, sorted(cohort))
        turns = []
        for client_id in cohort:
            before = {name: tensor.clone() for name, tensor in self.states.get(client_id, {}).items()}
            turn = self.turn(round_idx, client_id)
            if client_id in lost:
                self.states.pop(client_id)
                self.states |= {client_id: before} if before else {}
            else:
                turns.append(turn)
        for turn in sorted(turns, key=lambda turn: turn.client_id):
            self.server.aggregate(round_idx, turn.client_id, turn.up)
        self.scalars = dict(self.server.end_round(round_idx))
        return turns

    @property
    def params_P(self) -> Tensor:
        """The server's parameters."""
        return self.server.model.state_S[: self.space.num_params]

    @property
    def mask_P(self) -> Tensor:
        """The server's mask."""
        return torch.from_numpy(self.server.mask.array)


class _Channel:
    def __init__(self, world: World, frames: list[Frame]) -> None:
        self.world, self.queue = world, list(frames)
        self.received: list[Message] = []
        self.frame: Frame | None = None

    def recv(self, *expected: type[Message]) -> Any:
        frame = self.queue.pop(0)
        self.received.append(decode(frame.buffer, expected, self.world.client_schema)[0])
        return self.received[-1]

    def send(self, message: Message) -> None:
        frame = encode(message, self.world.client_schema, self.world.pool)
        self.frame = replace(frame, buffer=frame.buffer.copy())


def vector_of(turn: Turn) -> Tensor:
    """Return the weights that a client sent at their places, zeros elsewhere, (P,) float32."""
    out_P = torch.zeros(turn.up.weights.mask.array.size)
    out_P[torch.from_numpy(turn.up.weights.mask.indices)] = turn.up.weights.tensor_values()
    return out_P


def mask_of(turn: Turn) -> Tensor:
    """Return the mask of the weights that a client sent, (P,) bool."""
    return torch.from_numpy(turn.up.weights.mask.array)
