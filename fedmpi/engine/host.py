"""The server's side of conversations, on whichever rank hosts them: several in progress at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from weakref import WeakKeyDictionary

import torch

from fedmpi.algorithms.base import Conversation, MessageTypes, ServerHalf, Work
from fedmpi.comm.base import Envelope, Packet
from fedmpi.engine.rank import Rank, Topic
from fedmpi.engine.reply import Arrived, Reply, TurnReport, check_finite, decode_up
from fedmpi.engine.rows import Figures
from fedmpi.errors import NonFiniteError, ProtocolError
from fedmpi.ledger.schema import MessageRow
from fedmpi.train.local import LocalStats
from fedmpi.wire import frame as framing
from fedmpi.wire.bound import bound_nbits
from fedmpi.wire.frame import Frame
from fedmpi.wire.message import Message, Schema


@dataclass
class _Hosted:
    round_idx: int
    client_id: int
    player: int
    generator: Conversation
    downs: list[tuple[Figures, float, float]] = field(default_factory=list)  # figures, encode_s, send_t
    inbox: deque[Arrived] = field(default_factory=deque)
    rows: list[MessageRow] = field(default_factory=list)
    num_ups: int = 0
    expected: tuple[type[Message], ...] = ()
    message: Message | None = None
    ended: bool = False
    running: bool = False
    num_taken: int = 0
    num_told: int = 0
    stats: list[LocalStats] = field(default_factory=list)
    fault: str = ""
    report: TurnReport | None = None
    ops: float = 0.0


class Host:
    """Holds conversations with `algorithm` and gives each to `on_reply` when it has ended on both sides.

    Parameters
    ----------
    rank : Rank
        Gets handlers for UP and DONE.
    algorithm : ServerHalf
    schema : Schema
    on_reply : callable
    drops_out : callable, optional
        ``f(round_idx, client_id)``: whether the client is lost once it has what the server says first.
    drop_nonfinite : bool
        Leave out a client that sends NaN or infinity, instead of raising NonFiniteError.
    max_in_flight : int
        Messages of one client that may wait here. Its player holds back the next until it is told that one was taken,
        so a client that computes faster than the server fills no memory.
    work : Work, optional
        What `algorithm` counts its operations in.
    """

    def __init__(
        self,
        rank: Rank,
        algorithm: ServerHalf,
        schema: Schema,
        on_reply: Callable[[Reply], None],
        *,
        drops_out: Callable[[int, int], bool] = lambda round_idx, client_id: False,
        drop_nonfinite: bool = False,
        max_in_flight: int = 8,
        work: Work | None = None,
    ) -> None:
        self._rank = rank
        self._algorithm = algorithm
        self._schema = schema
        self._on_reply = on_reply
        self._drops_out = drops_out
        self._drop_nonfinite = drop_nonfinite
        # Told in batches: the usual conversation, of one message up, is told nothing at all.
        self._tell_every = max(1, max_in_flight // 2)
        self._work = Work() if work is None else work
        self._hosted: dict[int, _Hosted] = {}
        # An object that the algorithm returns for many clients of a round is encoded once.
        self._frames: WeakKeyDictionary[Message, tuple[Frame, Figures]] = WeakKeyDictionary()
        rank.handlers[Topic.UP] = self._on_up
        rank.handlers[Topic.DONE] = self._on_done

    def begin_round(self) -> None:
        """Forget what was encoded: the values of a message that is used again may have changed."""
        self._frames.clear()

    def start(self, round_idx: int, client_id: int, player: int, state_version: int) -> None:
        """Begin the conversation with a client that `player` plays from its state of round `state_version`."""
        generator = self._algorithm.converse(round_idx, client_id)
        hosted = self._hosted[client_id] = _Hosted(round_idx, client_id, player, generator)
        self._advance(hosted, None, state_version)
        if self._drops_out(round_idx, client_id):
            self._drop(hosted, "dropout")

    def arrived_rows(self) -> Iterator[MessageRow]:
        """Return the rows of the messages up that conversations in progress have taken in."""
        for hosted in self._hosted.values():
            yield from hosted.rows

    def waiting_for(self) -> str:
        """Say what is still expected, for a time-out's message."""
        return ", ".join(
            f"client {h.client_id} on rank {h.player} (round {h.round_idx}, "
            f"{'end of turn' if h.ended and (h.message or h.inbox) else '/'.join(c.kind for c in h.expected)})"
            for h in self._hosted.values()
        )

    def _on_up(self, packet: Packet) -> None:
        hosted = self._find(packet)
        envelope = packet.envelope
        arrived = Arrived(
            packet.body, hosted.num_ups, envelope.sent_t, self._rank.now(), envelope.encode_s, envelope.bound_nbits
        )
        if envelope.step != hosted.num_ups:
            raise ProtocolError(f"client {hosted.client_id}: expected message {hosted.num_ups}, got {envelope.step}")
        hosted.num_ups += 1
        hosted.inbox.append(arrived)
        if hosted.ended and not hosted.fault and len(hosted.inbox) > (hosted.message is None):
            # Said here and not at the end of the turn, which a client that is held back would never reach.
            raise ProtocolError(_too_many(hosted))
        if hosted.fault:
            self._decode(hosted)  # it was sent, so it has a row
        elif not hosted.ended and not hosted.running:
            message = self._decode(hosted)
            if message is not None:
                self._advance(hosted, message, -1)
        self._finish_if_over(hosted)

    def _on_done(self, packet: Packet) -> None:
        hosted = self._find(packet)
        hosted.report = TurnReport.from_body(packet.body)
        # Packets keep their order: what the client has not sent before the end of its turn will not come.
        if not hosted.fault and (not hosted.ended or (hosted.message is None and not hosted.inbox)):
            wanted = "/".join(c.kind for c in hosted.expected)
            raise ProtocolError(
                f"client {hosted.client_id} on rank {hosted.player} ended its turn of round {hosted.round_idx}, "
                f"while the server expects {wanted}"
            )
        self._finish_if_over(hosted)

    def _find(self, packet: Packet) -> _Hosted:
        envelope = packet.envelope
        hosted = self._hosted.get(envelope.client_id)
        if hosted is None or hosted.round_idx != envelope.round_idx or hosted.player != packet.source:
            raise ProtocolError(
                f"rank {packet.source} sent a message of client {envelope.client_id}, round {envelope.round_idx}, with "
                "which no conversation is under way"
            )
        return hosted

    def _decode(self, hosted: _Hosted) -> Message | None:
        """Decode the oldest message that waits; return None if the conversation does not go on with it."""
        key = (hosted.round_idx, hosted.client_id, hosted.player)
        arrived = hosted.inbox.popleft()
        expected = hosted.expected
        if hosted.fault:
            found = framing.message_class_of(arrived.body)
            expected = (found,) if found else ()
        message, row = decode_up(self._rank, arrived, expected, self._schema, key)
        if not message.is_simulation:
            hosted.rows.append(row)
        hosted.num_taken += 1
        if hosted.fault:
            return None
        if hosted.num_taken - hosted.num_told >= self._tell_every and hosted.report is None:
            hosted.num_told = hosted.num_taken
            taken = Envelope(Topic.TAKEN, False, hosted.round_idx, hosted.client_id, hosted.num_taken)
            self._rank.send(hosted.player, taken)
        try:
            check_finite(message, key)
        except NonFiniteError:
            if not self._drop_nonfinite:
                raise
            self._drop(hosted, "nonfinite")
            return None
        return message

    def _check_result(self, hosted: _Hosted, result: Message) -> None:
        """Find what has diverged on the server's side, which no message of the client's shows."""
        field = result.nonfinite_field()
        if field is None:
            return
        if not self._drop_nonfinite:
            raise NonFiniteError(
                f"client {hosted.client_id} on rank {hosted.player}, round {hosted.round_idx}: what the server trained "
                f"for it holds NaN or infinity in {field}. A smaller train.lr or train.clip_norm may help; "
                "server.nonfinite=drop leaves such clients out"
            )
        self._drop(hosted, "nonfinite")

    def _drop(self, hosted: _Hosted, fault: str) -> None:
        """End a conversation without a result; its player is told, and what has been sent keeps its rows."""
        hosted.generator.close()
        hosted.fault = fault
        hosted.ended = True
        hosted.message = None
        self._rank.send(hosted.player, Envelope(Topic.DROP, False, hosted.round_idx, hosted.client_id))

    def _advance(self, hosted: _Hosted, received: Message | None, state_version: int) -> None:
        """Run the generator until it waits for a message that is not there, or ends."""
        started = bool(hosted.downs) or received is not None
        while True:
            left = self._rank.timer.switch("aggregate")
            # This may run between two steps of a client's training on the same rank: neither may draw the other's
            # random numbers, nor may a message that comes meanwhile enter the generator a second time.
            random_state = torch.get_rng_state()
            others_ops, self._work.ops = self._work.ops, hosted.ops
            hosted.running = True
            stats = self._algorithm.ctx.stats
            try:
                action = hosted.generator.send(received)
            except StopIteration as stop:
                hosted.ended = True
                if isinstance(stop.value, Message):
                    hosted.message = stop.value
                else:
                    hosted.expected = _as_tuple(stop.value)
            finally:
                hosted.running = False
                hosted.stats += stats
                stats.clear()
                hosted.ops, self._work.ops = self._work.ops, others_ops
                torch.set_rng_state(random_state)
                self._rank.timer.switch(left)
            received = None
            if not started and (hosted.ended or not isinstance(action, Message)):
                start = Envelope(Topic.START, False, hosted.round_idx, hosted.client_id, 0, state_version)
                self._rank.send(hosted.player, start)
            if hosted.ended:
                if hosted.message is not None:
                    self._check_result(hosted, hosted.message)
                return
            if isinstance(action, Message):
                self._send(hosted, action, state_version)
                started = True
                continue
            started = True
            hosted.expected = _as_tuple(action)
            if not hosted.inbox:
                return
            received = self._decode(hosted)
            if received is None:
                return

    def _send(self, hosted: _Hosted, message: Message, state_version: int) -> None:
        known, encode_s = self._frames.get(message), 0.0
        if known is None:
            left = self._rank.timer.switch("encode")
            start = perf_counter()
            frame = framing.encode(message, self._schema, self._rank.comm.pool, in_place=True)
            encode_s = perf_counter() - start
            self._rank.timer.switch(left)
            known = self._frames[message] = (
                frame,
                Figures(message, frame, self._schema, bound_nbits(message, self._schema)),
            )
        frame, figures = known
        step = len(hosted.downs)
        hosted.downs.append((figures, encode_s, self._rank.now()))
        envelope = Envelope(Topic.DOWN, True, hosted.round_idx, hosted.client_id, step, state_version)
        self._rank.send(hosted.player, envelope, frame.buffer)

    def _finish_if_over(self, hosted: _Hosted) -> None:
        if not hosted.ended or hosted.report is None:
            return
        waiting = None
        if hosted.message is None and not hosted.fault:
            waiting = hosted.inbox.popleft()
            found = framing.message_class_of(waiting.body)
            if found not in hosted.expected:
                # Decoding says what is wrong; nothing but an error can come of it.
                key = (hosted.round_idx, hosted.client_id, hosted.player)
                decode_up(self._rank, waiting, hosted.expected, self._schema, key)
        if hosted.inbox:
            raise ProtocolError(_too_many(hosted))
        if len(hosted.report.downs) != len(hosted.downs):
            raise ProtocolError(
                f"client {hosted.client_id} ended its turn after {len(hosted.report.downs)} of {len(hosted.downs)} "
                "messages"
            )
        del self._hosted[hosted.client_id]
        for step, ((figures, encode_s, send_t), (decode_s, recv_t)) in enumerate(
            zip(hosted.downs, hosted.report.downs, strict=True)
        ):
            row_key = (hosted.round_idx, step, hosted.client_id, hosted.player)
            hosted.rows.append(figures.row(row_key, encode_s, decode_s, send_t, recv_t))
        self._on_reply(
            Reply(
                hosted.round_idx,
                hosted.client_id,
                hosted.player,
                hosted.rows,
                hosted.report.with_training(hosted.stats),
                hosted.message,
                waiting,
                hosted.fault,
                hosted.ops,
            )
        )


def _too_many(hosted: _Hosted) -> str:
    return (
        f"client {hosted.client_id} sent {len(hosted.inbox) - (hosted.message is None)} messages more than the server "
        "takes"
    )


def _as_tuple(types: MessageTypes) -> tuple[type[Message], ...]:
    return types if isinstance(types, tuple) else (types,)
