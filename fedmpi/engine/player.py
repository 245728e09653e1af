"""The worker's side: plays clients one after the other, and tests models in between."""

from __future__ import annotations

import functools
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fedmpi.algorithms.base import ClientContext
from fedmpi.comm.base import Envelope, Packet
from fedmpi.data.shard import Shard, device_data
from fedmpi.engine.clientstate import ClientStateStore
from fedmpi.engine.evaluation import count_apart
from fedmpi.engine.rank import Rank, Topic, pack_floats
from fedmpi.engine.reply import TurnReport
from fedmpi.engine.setup import Setup
from fedmpi.engine.statefile import unpack_state
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.rng import stream_seed
from fedmpi.train.evaluate import evaluate_batch
from fedmpi.train.local import seed_torch
from fedmpi.wire import frame as framing
from fedmpi.wire.bound import bound_nbits
from fedmpi.wire.message import Message


@dataclass
class _Turn:
    """One client's turn in one round."""

    round_idx: int
    client_id: int
    host: int
    state_version: int
    inbox: deque[tuple[Packet, float]] = field(default_factory=deque)
    downs: list[tuple[float, float]] = field(default_factory=list)
    num_ups: int = 0
    num_taken: int = 0
    dropped: bool = False


class _TurnDroppedError(Exception):
    """Ends the client's code where it waits for a message: the server has given this conversation up.

    Nowhere else: how far the client got, and what it sent, must not depend on when it learnt that.
    """


class _TurnChannel:
    """The client's end of its conversation: a `Channel`."""

    def __init__(self, player: Player, turn: _Turn) -> None:
        self._player = player
        self._turn = turn

    def recv(self, *expected: type[Message]) -> Any:
        turn, rank = self._turn, self._player.rank
        left = rank.timer.switch("other")
        kinds = "/".join(cls.kind for cls in expected)
        rank.wait_until(
            lambda: bool(turn.inbox) or turn.dropped,
            lambda: f"{kinds} for client {turn.client_id} from rank {turn.host} (round {turn.round_idx})",
        )
        if not turn.inbox:
            raise _TurnDroppedError
        message = self.decode_next(expected)
        rank.timer.switch(left)
        return message

    def decode_next(self, expected: tuple[type[Message], ...]) -> Message:
        """Decode the oldest message that waits."""
        turn, rank = self._turn, self._player.rank
        packet, recv_t = turn.inbox.popleft()
        rank.timer.switch("decode")
        start = perf_counter()
        try:
            message, _ = framing.decode(packet.body, expected, self._player.schema)
        except ProtocolError as error:
            raise ProtocolError(f"client {turn.client_id}, round {turn.round_idx}: {error}") from error
        turn.downs.append((perf_counter() - start, recv_t))
        return message

    def drain(self) -> None:
        """Take in what a dropped client has received and not read: it was sent, so it has a row.

        It is not decoded: only the client's own code knows what its messages are coded against.
        """
        while self._turn.inbox:
            _, recv_t = self._turn.inbox.popleft()
            self._turn.downs.append((0.0, recv_t))

    def send(self, message: Message) -> None:
        turn, rank = self._turn, self._player.rank
        self._wait_for_room()
        left = rank.timer.switch("encode")
        start = perf_counter()
        frame = framing.encode(message, self._player.schema, rank.comm.pool)
        encode_s = perf_counter() - start
        rank.timer.switch("log")
        envelope = Envelope(
            Topic.UP,
            not message.is_simulation,
            turn.round_idx,
            turn.client_id,
            turn.num_ups,
            encode_s=encode_s,
            bound_nbits=bound_nbits(message, self._player.schema),
        )
        turn.num_ups += 1
        rank.send(turn.host, envelope, frame.buffer)
        rank.timer.switch(left)

    def _wait_for_room(self) -> None:
        """Wait while too many messages of this client wait for the server.

        A client that the server has given up is not held back: what it sends must not depend on when it learns that.
        """
        turn, rank = self._turn, self._player.rank
        most = self._player.setup.config.server.max_in_flight
        if turn.num_ups - turn.num_taken < most or turn.dropped:
            return
        left = rank.timer.switch("other")
        rank.wait_until(
            lambda: turn.num_ups - turn.num_taken < most or turn.dropped,
            lambda: f"rank {turn.host} to take a message of client {turn.client_id} (round {turn.round_idx})",
        )
        rank.timer.switch(left)


class Player:
    """Plays the clients that a rank is given, with one model and one client half.

    Parameters
    ----------
    rank : Rank
        Gets handlers for DOWN, START, DROP, EVAL_MODEL, EVAL, STATE_WANT and STATE, and `play_next` as its queued work.
    setup : Setup
    device : torch.device
    store : ClientStateStore
    """

    def __init__(self, rank: Rank, setup: Setup, device: torch.device, store: ClientStateStore) -> None:
        self.rank = rank
        self.setup = setup
        self.schema = setup.schema.of_one_half()  # in a run on one rank, what the server holds is not the clients'
        self._store = store
        self._model = FlatModel(setup.model.build(setup.initial.init_seed), device)
        augment = setup.config.data.augment == "crop_flip"
        self._train_data = device_data(setup.dataset, "train", device, augment)
        self._test_data = device_data(setup.dataset, "test", device)
        context = ClientContext(
            setup.config.seed,
            self._model,
            setup.config.train,
            setup.build_initial,
            self._progress,
            dry_run=setup.dry_run,
            known=self.schema.known,
            num_rounds=setup.num_rounds,
            weight_uses=functools.cache(setup.weight_uses),
            spec=setup.model,
            max_samples=int(setup.partition.sizes.max()),
            counts_ops=setup.config.time is not None,
        )
        self._context = context
        self._client = setup.algorithm.client(setup.algorithm_config, context)
        self._initial_state = self._client.declare_state()
        self._client.client_state = {name: tensor.clone() for name, tensor in self._initial_state.items()}
        self._queue: deque[_Turn | Packet] = deque()
        self._turns: dict[int, _Turn] = {}
        self._eval_model: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._loaded_eval_round: int | None = None
        rank.handlers.update(
            {
                Topic.DOWN: self._on_down,
                Topic.START: self._on_start,
                Topic.DROP: self._on_drop,
                Topic.TAKEN: self._on_taken,
                Topic.EVAL_MODEL: self._on_eval_model,
                Topic.EVAL: self._queue.append,
                Topic.STATE_WANT: self._on_state_want,
                Topic.STATE: self._on_state,
            }
        )
        rank.idle_work = self.play_next

    def play_next(self) -> bool:
        """Do the oldest piece of queued work; return False if there is none."""
        if not self._queue:
            return False
        work = self._queue.popleft()
        # A turn waits for messages inside: what arrives meanwhile must not start another.
        self.rank.idle_work = None
        try:
            if isinstance(work, _Turn):
                self._play(work)
            else:
                self._evaluate(work)
        finally:
            self.rank.idle_work = self.play_next
        return True

    def _progress(self) -> None:
        left = self.rank.timer.switch("other")
        self.rank.progress()
        self.rank.timer.switch(left)

    def _play(self, turn: _Turn) -> None:
        client_id, round_idx = turn.client_id, turn.round_idx
        self._loaded_eval_round = None
        self._load_state(turn)
        partition = self.setup.partition
        shard = Shard(self._train_data, partition.client(client_id))
        self._context.stats.clear()
        self._context.work.ops = 0.0
        # A turn starts from the same state wherever it is played: nothing of another client or a test is left.
        self._model.module.train()
        self._model.grads_P.zero_()
        seed_torch(self._model.device, stream_seed(self.setup.config.seed, round_idx, client_id, "torch"))
        channel = _TurnChannel(self, turn)
        with self.rank.timer.phase("train"):
            if self.setup.participation.drops_out(round_idx, client_id):
                # What it would do is never seen, so it is not done; it has received what the server says first.
                self.rank.wait_until(lambda: turn.dropped, lambda: f"the end of client {client_id}'s turn")
            else:
                with suppress(_TurnDroppedError):
                    self._client.run(round_idx, client_id, shard, channel)
            if turn.dropped:
                channel.drain()
        if turn.inbox:
            raise ProtocolError(f"client {client_id} ended its turn with {len(turn.inbox)} messages unread")
        if self._initial_state and not turn.dropped:
            self._store.save(client_id, round_idx, self._client.client_state, started_from=turn.state_version)
        del self._turns[client_id]
        stats = self._context.stats
        num_samples = sum(s.num_samples for s in stats)
        loss = sum(s.loss * s.num_samples for s in stats) / num_samples if num_samples else float("nan")
        num_steps = sum(s.num_steps for s in stats)
        kept_state = bool(self._initial_state) and not turn.dropped
        device_ops = self._context.work.ops
        report = TurnReport(loss, num_steps, num_samples, kept_state, self.rank.timer.totals(), turn.downs, device_ops)
        self.rank.send(turn.host, Envelope(Topic.DONE, False, round_idx, client_id), pack_floats(*report.floats()))

    def _load_state(self, turn: _Turn) -> None:
        if not self._initial_state:
            return
        state: dict[str, torch.Tensor | int | float | str] = dict(self._initial_state)
        if turn.state_version >= 0:
            self.rank.wait_until(
                lambda: self._store.has(turn.client_id, turn.state_version),
                lambda: f"the state of client {turn.client_id} after round {turn.state_version}",
            )
            state = self._store.load(turn.client_id, turn.state_version)
        for name, kept in self._client.client_state.items():
            source = state[name]
            assert isinstance(source, torch.Tensor)
            kept.copy_(source)

    def _evaluate(self, packet: Packet) -> None:
        round_idx, first, count = packet.envelope.round_idx, packet.envelope.arg, packet.envelope.step
        with self.rank.timer.phase("evaluate"):
            if self._loaded_eval_round != round_idx:
                assert self._eval_model is not None and self._eval_model[0] == round_idx
                self._model.load(self._eval_model[1], self._eval_model[2])
                self._loaded_eval_round = round_idx
            size = self.setup.config.evaluate.batch_size
            num_test = len(self.setup.dataset.test_labels)
            num_correct = np.zeros(count_apart(self.setup.dataset), np.int64)
            losses: list[float] = []
            for batch in range(first, first + count):
                start, stop = batch * size, min((batch + 1) * size, num_test)
                batch_correct, loss = evaluate_batch(self._model, self._test_data, start, stop, num_correct.size)
                num_correct += batch_correct
                losses.append(loss)
                self._progress()
        envelope = Envelope(Topic.EVAL_RESULT, False, round_idx, arg=first, step=count)
        self.rank.send(0, envelope, pack_floats(*num_correct.tolist(), *losses))

    def _on_down(self, packet: Packet) -> None:
        envelope = packet.envelope
        if envelope.step == 0 and envelope.client_id not in self._turns:
            self._on_start(packet)
        turn = self._turns.get(envelope.client_id)
        if turn is None or turn.round_idx != envelope.round_idx or turn.host != packet.source:
            raise ProtocolError(
                f"rank {self.rank.comm.rank} got a message of client {envelope.client_id}, round {envelope.round_idx}, "
                f"from rank {packet.source}, but does not play it"
            )
        turn.inbox.append((packet, self.rank.now()))

    def _on_start(self, packet: Packet) -> None:
        envelope = packet.envelope
        turn = _Turn(envelope.round_idx, envelope.client_id, packet.source, envelope.arg)
        self._turns[envelope.client_id] = turn
        self._queue.append(turn)

    def _on_drop(self, packet: Packet) -> None:
        # The turn may be over: then the client has not noticed.
        turn = self._turns.get(packet.envelope.client_id)
        if turn is not None and turn.round_idx == packet.envelope.round_idx:
            turn.dropped = True

    def _on_taken(self, packet: Packet) -> None:
        # The turn may be over: the client had sent all it had to.
        turn = self._turns.get(packet.envelope.client_id)
        if turn is not None and turn.round_idx == packet.envelope.round_idx:
            turn.num_taken = packet.envelope.step

    def _on_eval_model(self, packet: Packet) -> None:
        state = unpack_state(packet.body, f"the model to test from rank {packet.source}")
        state_S, ints_I = state["state"], state["int_buffers"]
        assert isinstance(state_S, torch.Tensor) and isinstance(ints_I, torch.Tensor)
        self._eval_model = (packet.envelope.round_idx, state_S, ints_I)
        self._loaded_eval_round = None

    def _on_state_want(self, packet: Packet) -> None:
        client_id, round_idx = packet.envelope.client_id, packet.envelope.round_idx
        body = self._store.read(client_id, round_idx)
        self.rank.send(packet.envelope.arg, Envelope(Topic.STATE, False, round_idx, client_id), body)

    def _on_state(self, packet: Packet) -> None:
        self._store.write(packet.envelope.client_id, packet.envelope.round_idx, packet.body)
