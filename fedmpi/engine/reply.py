"""What a conversation leaves: its rows, what its player reports, and its result, encoded until its turn has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from fedmpi.engine.phases import PHASES
from fedmpi.engine.rank import Rank, unpack_floats
from fedmpi.engine.rows import Figures
from fedmpi.errors import NonFiniteError, ProtocolError
from fedmpi.ledger.schema import MessageRow
from fedmpi.train.local import LocalStats
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import Dense

FAULTS = ("", "dropout", "nonfinite")
"""Why a conversation has no result: it has one; the client was lost; it sent NaN or infinity."""


@dataclass(frozen=True)
class TurnReport:
    """What only the player of a client knows, sent when its turn is over.

    Parameters
    ----------
    loss : float
        Mean training loss, NaN if the client trained nothing.
    num_steps, num_samples : int
    kept_state : bool
        Whether the client's state was written.
    phase_totals : list of float
        The rank's seconds by phase since its start.
    downs : list of (float, float)
        Seconds of decoding and time of arrival of each message down.
    device_ops : float
        Operations that the client has counted.
    """

    loss: float
    num_steps: int
    num_samples: int
    kept_state: bool
    phase_totals: list[float]
    downs: list[tuple[float, float]]
    device_ops: float = 0.0

    def with_training(self, stats: Sequence[LocalStats]) -> TurnReport:
        """Return the report with what was trained for the client on the server's side counted in."""
        if not stats:
            return self
        parts = [LocalStats(self.num_steps, self.num_samples, self.loss if self.num_samples else 0.0), *stats]
        num_samples = sum(part.num_samples for part in parts)
        loss = sum(part.loss * part.num_samples for part in parts) / num_samples if num_samples else self.loss
        num_steps = sum(part.num_steps for part in parts)
        return replace(self, loss=loss, num_steps=num_steps, num_samples=num_samples)

    def floats(self) -> list[float]:
        """Return the report as plain numbers."""
        downs = (number for down in self.downs for number in down)
        counts = (self.num_steps, self.num_samples, self.kept_state, self.device_ops)
        return [self.loss, *counts, *self.phase_totals, *downs]

    @classmethod
    def from_body(cls, body: np.ndarray) -> TurnReport:
        """Read a report from a packet's body."""
        loss, num_steps, num_samples, kept_state, device_ops, *rest = unpack_floats(body)
        downs = rest[len(PHASES) :]
        return cls(
            loss,
            int(num_steps),
            int(num_samples),
            bool(kept_state),
            rest[: len(PHASES)],
            list(zip(downs[::2], downs[1::2], strict=True)),
            device_ops,
        )


@dataclass(frozen=True)
class Arrived:
    """A message up that waits encoded: its bytes, and what its row needs."""

    body: np.ndarray
    step: int
    send_t: float
    recv_t: float
    encode_s: float
    bound_nbits: float


@dataclass
class Reply:
    """A finished conversation.

    Parameters
    ----------
    round_idx, client_id, player : int
    rows : list of MessageRow
        Of all its messages but one that waits encoded.
    report : TurnReport
    message : Message or None
        The result, or
    waiting : Arrived or None
        the bytes of it, to be decoded when its turn has come.
    fault : str
        One of `FAULTS`: why there is no result, if there is none.
    server_ops : float
        Operations that the server has counted in this conversation.
    """

    round_idx: int
    client_id: int
    player: int
    rows: list[MessageRow]
    report: TurnReport
    message: Message | None
    waiting: Arrived | None
    fault: str = ""
    server_ops: float = 0.0

    @property
    def held_nbytes(self) -> int:
        """Memory that the reply holds while it waits."""
        if self.waiting is not None:
            return int(self.waiting.body.size)
        values = self.message.values() if self.message is not None else ()
        return sum(value.array.nbytes if isinstance(value, Dense) else 8 * value.numel for value in values)

    def result(self, rank: Rank, schema: Schema) -> Message:
        """Return the result, decoded now if it waited encoded; its row is then among `rows`.

        Raises
        ------
        NonFiniteError
            If it holds NaN or infinity; its row is among `rows` all the same.
        """
        if self.message is None:
            assert self.waiting is not None
            message_class = framing.message_class_of(self.waiting.body)
            expected = (message_class,) if message_class else ()
            key = (self.round_idx, self.client_id, self.player)
            self.message, row = decode_up(rank, self.waiting, expected, schema, key)
            if not self.message.is_simulation:
                self.rows.append(row)
            check_finite(self.message, key)
        return self.message


def check_finite(message: Message, key: tuple[int, int, int]) -> None:
    """Raise NonFiniteError if a client's message holds NaN or infinity; `key` is (round_idx, client_id, player)."""
    field = message.nonfinite_field()
    if field is not None:
        round_idx, client_id, player = key
        raise NonFiniteError(
            f"client {client_id} on rank {player}, round {round_idx}: its message {message.kind!r} holds NaN or "
            f"infinity in {field}. If its training diverged, a smaller train.lr or train.clip_norm may help; "
            "server.nonfinite=drop leaves such replies out"
        )


def decode_up(
    rank: Rank,
    arrived: Arrived,
    expected: tuple[type[Message], ...],
    schema: Schema,
    key: tuple[int, int, int],
) -> tuple[Message, MessageRow]:
    """Decode a message up and make its row; `key` is (round_idx, client_id, rank of the player)."""
    round_idx, client_id, player = key
    left = rank.timer.switch("decode")
    start = perf_counter()
    try:
        message, frame = framing.decode(arrived.body, expected, schema)
    except ProtocolError as error:
        raise ProtocolError(f"client {client_id} on rank {player}, round {round_idx}: {error}") from error
    decode_s = perf_counter() - start
    rank.timer.switch(left)
    row = Figures(message, frame, schema, arrived.bound_nbits).row(
        (round_idx, arrived.step, client_id, player), arrived.encode_s, decode_s, arrived.send_t, arrived.recv_t
    )
    return message, row
