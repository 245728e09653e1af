"""Halves whose first rounds are of another sort: fewer clients, and answers that are no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from masked import DATA, PARTS, Turn, World, _Channel

from fedmpi.data.shard import Shard
from fedmpi.wire.frame import Frame, decode, encode


class StagedWorld(World):
    """A world that plays the clients that the algorithm chooses, and takes the message that its server waits for."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.client.ctx.weight_uses = self.server.ctx.weight_uses

    def turn(self, round_idx: int, client_id: int) -> Turn:
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
        return super().play(round_idx, self.server.choose(round_idx, cohort), lost)
