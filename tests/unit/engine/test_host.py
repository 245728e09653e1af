"""The server's side of conversations: a host with a scripted server half, and a player that sends what it is told."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.algorithms.base import AlgorithmConfig, Conversation, GlobalModel, ServerHalf, StateDict, Work
from fedmpi.comm.base import Envelope, Packet
from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine.host import Host, Reply, TurnReport
from fedmpi.engine.phases import PHASES
from fedmpi.engine.rank import Rank, Topic, pack_floats
from fedmpi.errors import ProtocolError
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message, Schema, dense, message
from fedmpi.wire.values import Dense


@message("host task", "down")
class Task(Message):
    number: int
    vector: Dense = dense("n")


@message("host answer", "up")
class Answer(Message):
    number: int
    vector: Dense = dense("n")


@message("host other", "up")
class Other(Message):
    number: int


SCHEMA = Schema({"n": 8}, 77)
Script = Callable[[int, int], Conversation]


class Scripted(ServerHalf):
    """Its conversations are those of a script."""

    def __init__(self, script: Script) -> None:
        super().__init__(AlgorithmConfig(name="scripted"), SimpleNamespace(stats=[]))  # type: ignore[arg-type]
        self._script = script

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        return self._script(round_idx, client_id)

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        raise AssertionError("a host does not aggregate")

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        raise AssertionError("a host does not end rounds")

    def global_model(self) -> GlobalModel:
        raise AssertionError("a host does not ask for the model")

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        pass


def task(number: int = 0, fill: float = 1.0) -> Task:
    return Task(number=number, vector=Dense(np.full(8, fill, np.float32)))


def answer(number: int = 0, fill: float = 2.0) -> Answer:
    return Answer(number=number, vector=Dense(np.full(8, fill, np.float32)))


def exchange(round_idx: int, client_id: int) -> Conversation:
    """Hold the usual conversation."""
    yield task(client_id)
    return Answer


class Alone(LocalCommunicator):
    """Loses what is sent to ranks that are not there."""

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        if dest == 0:
            super().send(dest, envelope, body)


class Play:
    """A host in one process, what it has replied, and the client's end in the hands of a test."""

    def __init__(self, script: Script = exchange, work: Work | None = None) -> None:
        self.rank = Rank(Alone(), 1.0)
        self.replies: list[Reply] = []
        self.got: list[Packet] = []
        self.rank.handlers[Topic.DOWN] = self.rank.handlers[Topic.START] = self.got.append
        self.host = Host(self.rank, Scripted(script), SCHEMA, self.replies.append, work=work)

    def start(self, client_id: int = 5, *, round_idx: int = 2, player: int = 0, state_version: int = -1) -> None:
        self.host.start(round_idx, client_id, player, state_version)
        self.rank.progress()

    def up(self, sent: Message, step: int = 0, *, client_id: int = 5, round_idx: int = 2) -> None:
        frame = framing.encode(sent, SCHEMA, self.rank.comm.pool)
        envelope = Envelope(Topic.UP, True, round_idx, client_id, step, encode_s=0.25)
        self.rank.send(0, envelope, frame.buffer)
        self.rank.progress()

    def done(self, num_downs: int = 1, *, client_id: int = 5) -> None:
        report = TurnReport(0.5, 3, 30, True, [1.0] * len(PHASES), [(0.125, 9.0 + i) for i in range(num_downs)])
        self.rank.send(0, Envelope(Topic.DONE, False, 2, client_id), pack_floats(*report.floats()))
        self.rank.progress()

    def down(self, position: int = -1) -> Task:
        """Return a message that the client got."""
        decoded, _ = framing.decode(self.got[position].body, (Task,), SCHEMA)
        assert isinstance(decoded, Task)
        return decoded


def refused(words: str, act: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        act(*args, **kwargs)
    assert caught.value.exit_status == 5


def test_one_down_one_up_waits_encoded_until_it_is_asked_for() -> None:
    play = Play()
    play.start(state_version=1)
    (packet,) = play.got
    assert packet.envelope._replace(sent_t=0, body_nbytes=0) == Envelope(Topic.DOWN, True, 2, 5, 0, 1)
    assert play.down().number == 5
    play.up(answer(11, 3.0))
    assert play.replies == []  # its turn is not over
    play.done()
    (reply,) = play.replies
    assert (reply.round_idx, reply.client_id, reply.player, reply.message) == (2, 5, 0, None)
    assert reply.report == TurnReport(0.5, 3, 30, True, [1.0] * len(PHASES), [(0.125, 9.0)])
    (down,) = reply.rows
    assert (down.direction, down.step, down.kind, down.decode_s, down.recv_t) == ("down", 0, "host task", 0.125, 9.0)
    assert down.wire_nbytes == packet.body.size
    assert reply.waiting is not None
    assert reply.held_nbytes == reply.waiting.body.size
    result = reply.result(play.rank, SCHEMA)
    assert isinstance(result, Answer)
    assert (result.number, result.vector.array.tolist()) == (11, [3.0] * 8)
    assert reply.result(play.rank, SCHEMA) is result
    down, up = reply.rows
    assert (up.round_idx, up.step, up.client_id, up.rank) == (2, 0, 5, 0)
    assert (up.direction, up.kind, up.encode_s) == ("up", "host answer", 0.25)
    assert up.wire_nbytes == reply.waiting.body.size


def long_talk(round_idx: int, client_id: int) -> Conversation:
    yield task(1)
    yield task(2)
    first = yield Answer
    assert isinstance(first, Answer)
    yield task(first.number + 100)
    second = yield (Other, Answer)
    assert isinstance(second, Answer | Other)
    return Answer(number=second.number, vector=first.vector)


@pytest.mark.parametrize("last", [answer(21), Other(number=21)])
def test_a_long_talk_whose_result_is_made_on_the_server(last: Message) -> None:
    play = Play(long_talk)
    play.start()
    assert [play.down(i).number for i in range(len(play.got))] == [1, 2]
    play.up(answer(20, 4.0))
    assert play.down().number == 120
    play.up(last, 1)
    play.done(3)
    (reply,) = play.replies
    assert reply.waiting is None
    result = reply.result(play.rank, SCHEMA)
    assert isinstance(result, Answer)
    assert (result.number, result.vector.array.tolist()) == (21, [4.0] * 8)
    assert sorted((row.direction, row.step) for row in reply.rows) == [
        ("down", 0), ("down", 1), ("down", 2), ("up", 0), ("up", 1),
    ]  # fmt: skip
    assert [row.recv_t for row in reply.rows if row.direction == "down"] == [9.0, 10.0, 11.0]


def test_messages_that_come_before_they_are_asked_for_wait() -> None:
    """The client's second message is sent while the server still has to answer the first."""

    def script(round_idx: int, client_id: int) -> Conversation:
        one = yield Answer
        two = yield Answer
        assert isinstance(one, Answer) and isinstance(two, Answer)
        yield task(10 * one.number + two.number)
        return Answer

    play = Play(script)
    play.start()
    for step in range(3):
        play.up(answer(step + 1), step)
    assert play.down().number == 12
    play.done()
    result = play.replies[0].result(play.rank, SCHEMA)
    assert isinstance(result, Answer)
    assert result.number == 3


def test_a_client_that_speaks_first_is_told_to_start() -> None:
    def script(round_idx: int, client_id: int) -> Conversation:
        yield Answer
        yield task()
        return Answer

    play = Play(script)
    play.start(state_version=1)
    (packet,) = play.got
    assert packet.envelope._replace(sent_t=0) == Envelope(Topic.START, False, 2, 5, 0, 1)
    play.up(answer())
    assert [p.envelope.topic for p in play.got] == [Topic.START, Topic.DOWN]


def test_a_conversation_that_the_server_only_listens_to() -> None:
    def script(round_idx: int, client_id: int) -> Conversation:
        return Answer
        yield

    play = Play(script)
    play.start()
    assert [p.envelope.topic for p in play.got] == [Topic.START]
    play.up(answer(4))
    play.done(0)
    result = play.replies[0].result(play.rank, SCHEMA)
    assert isinstance(result, Answer)
    assert result.number == 4


def test_several_conversations_do_not_mix() -> None:
    play = Play(long_talk)
    for client in (5, 6, 7):
        play.start(client)
    for client in (7, 5, 6):
        play.up(answer(client), client_id=client)
        assert (play.got[-1].envelope.client_id, play.down().number) == (client, 100 + client)
    for client in (6, 7, 5):
        play.up(answer(10 * client), 1, client_id=client)
        play.done(3, client_id=client)
    assert [reply.client_id for reply in play.replies] == [6, 7, 5]
    numbers = [reply.result(play.rank, SCHEMA).number for reply in play.replies]  # type: ignore[attr-defined]
    assert numbers == [60, 70, 50]


def test_one_message_for_many_clients_is_encoded_once() -> None:
    shared = task(1, fill=1.0)

    def script(round_idx: int, client_id: int) -> Conversation:
        yield shared
        return Answer

    play = Play(script)
    play.start(5)
    shared.vector.array[:] = 2.0  # an encoding after this would carry it
    play.start(6)
    play.start(7)
    assert len({packet.body.tobytes() for packet in play.got}) == 1
    for client in (5, 6, 7):
        play.up(answer(), client_id=client)
        play.done(client_id=client)
    encode_s = [reply.rows[0].encode_s for reply in play.replies]
    assert encode_s[0] > 0
    assert encode_s[1:] == [0, 0]  # and its time is in the ledger once


def test_equal_messages_are_not_one() -> None:
    play = Play()
    play.start(5)
    play.start(6)
    assert [play.down(i).number for i in (0, 1)] == [5, 6]


def test_a_message_that_the_algorithm_lets_go_is_not_kept() -> None:
    made: list[weakref.ref[Task]] = []

    def script(round_idx: int, client_id: int) -> Conversation:
        sent = task(1)
        made.append(weakref.ref(sent))
        yield sent
        del sent
        return Answer

    play = Play(script)
    play.start()
    play.up(answer())
    play.done()
    gc.collect()
    assert made[0]() is None


@pytest.mark.parametrize(
    "where", [{"client_id": 6}, {"round_idx": 1}, {"round_idx": 3}], ids=["client", "old round", "next round"]
)
def test_a_message_of_no_conversation(where: dict[str, int]) -> None:
    play = Play()
    play.start()
    client, round_idx = where.get("client_id", 5), where.get("round_idx", 2)
    words = f"^rank 0 sent a message of client {client}, round {round_idx}, with which no conversation is under way$"
    refused(words, play.up, answer(), **where)


def test_a_message_of_another_players_client() -> None:
    play = Play()
    play.start(player=3)
    assert play.got == []
    refused("^rank 0 sent a message of client 5, round 2, with which no", play.up, answer())


def test_a_message_after_the_conversation() -> None:
    play = Play()
    play.start()
    play.up(answer())
    play.done()
    refused("no conversation is under way", play.up, answer(), 1)
    refused("no conversation is under way", play.done)


@pytest.mark.parametrize("step", [1, -1, 7])
def test_a_step_out_of_order(step: int) -> None:
    play = Play()
    play.start()
    refused(f"^client 5: expected message 0, got {step}$", play.up, answer(), step)


def test_a_step_twice() -> None:
    play = Play(long_talk)
    play.start()
    play.up(answer())
    refused("^client 5: expected message 1, got 0$", play.up, answer(), 0)


def test_a_client_that_leaves_messages_unread() -> None:
    def script(round_idx: int, client_id: int) -> Conversation:
        yield task(1)
        yield task(2)
        return Answer

    play = Play(script)
    play.start()
    play.up(answer())
    refused("^client 5 ended its turn after 1 of 2 messages$", play.done, 1)


def test_a_client_that_is_ready_is_served_while_another_is_not() -> None:
    def talk(round_idx: int, client_id: int) -> Conversation:
        yield task(0)
        for number in range(1, 4):
            yield Answer
            yield task(number)
        return Answer

    play = Play(talk)
    play.start()
    play.start(client_id=6)
    for step in range(3):  # client 5 says nothing meanwhile
        play.up(answer(), step, client_id=6)
        assert (play.got[-1].envelope.client_id, play.down().number) == (6, step + 1)
    play.up(answer())
    assert (play.got[-1].envelope.client_id, play.down().number) == (5, 1)


def test_how_many_messages_were_taken_is_told_in_time() -> None:
    def stream(round_idx: int, client_id: int) -> Conversation:
        yield task()
        for _ in range(7):
            yield Answer
        return Answer

    play = Play(stream)
    told: list[int] = []
    play.rank.handlers[Topic.TAKEN] = lambda packet: told.append(packet.envelope.step)
    play.start()
    for step in range(7):
        play.up(answer(), step)
    assert told == [4]  # half of the eight that may wait
    assert Play(exchange).rank.handlers.get(Topic.TAKEN) is None


def test_a_client_that_says_too_much() -> None:
    play = Play()
    play.start()
    play.up(answer())
    refused("^client 5 sent 1 messages more than the server takes$", play.up, answer(), 1)


def test_a_client_that_says_too_little() -> None:
    play = Play()
    play.start()
    words = "^client 5 on rank 0 ended its turn of round 2, while the server expects host answer$"
    refused(words, play.done)


def test_a_client_that_ends_in_the_middle() -> None:
    play = Play(long_talk)
    play.start()
    play.up(answer())
    refused("ended its turn of round 2, while the server expects host other/host answer$", play.done, 3)


def test_the_wrong_kind_in_the_middle() -> None:
    play = Play(long_talk)
    play.start()
    words = "^client 5 on rank 0, round 2: message kind: at byte 4 expected up 'host answer', got up 'host other'$"
    refused(words, play.up, Other(number=1))


def test_the_wrong_kind_at_the_end() -> None:
    play = Play()
    play.start()
    play.up(Other(number=1))
    words = "^client 5 on rank 0, round 2: message kind: at byte 4 expected up 'host answer', got up 'host other'$"
    refused(words, play.done)


def test_a_message_in_the_wrong_direction() -> None:
    play = Play(long_talk)
    play.start()
    refused("expected up 'host answer', got down 'host task'", play.up, task())


def test_bytes_that_are_no_message() -> None:
    play = Play(long_talk)
    play.start()
    play.rank.send(0, Envelope(Topic.UP, True, 2, 5), np.zeros(99, np.uint8))
    refused("^client 5 on rank 0, round 2: frame magic: ", play.rank.progress)


@pytest.mark.parametrize("num_bytes", [0, 3, 99])
def test_bytes_that_are_no_message_at_the_end(num_bytes: int) -> None:
    play = Play()
    play.start()
    play.rank.send(0, Envelope(Topic.UP, True, 2, 5), np.zeros(num_bytes, np.uint8))
    play.rank.progress()
    refused("^client 5 on rank 0, round 2: frame", play.done)


def test_what_is_waited_for_is_said() -> None:
    play = Play(long_talk)
    assert play.host.waiting_for() == ""
    play.start(5)
    play.start(6)
    play.up(answer(), client_id=6)
    assert play.host.waiting_for() == (
        "client 5 on rank 0 (round 2, host answer), client 6 on rank 0 (round 2, host other/host answer)"
    )
    play.up(answer(), 1, client_id=6)
    assert play.host.waiting_for().endswith("client 6 on rank 0 (round 2, end of turn)")


def test_the_time_of_the_algorithm_is_aggregation() -> None:
    def script(round_idx: int, client_id: int) -> Conversation:
        before = play.rank.timer.seconds["aggregate"]
        play.rank.timer.totals()
        assert play.rank.timer.seconds["aggregate"] > before
        yield task()
        return Answer

    play = Play(script)
    play.start()
    assert play.rank.timer.switch("other") == "other"


@pytest.mark.parametrize("downs", [[], [(0.5, 1.5)], [(0.0, 1.0), (2.0, 3.0)]])
def test_a_report_comes_back(downs: Sequence[tuple[float, float]]) -> None:
    report = TurnReport(1.25, 7, 70, False, [float(i) for i in range(len(PHASES))], list(downs))
    assert TurnReport.from_body(pack_floats(*report.floats())) == report


def counted_encodes(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    encoded: list[Message] = []
    encode = framing.encode

    def counting(sent: Message, *args: Any, **kwargs: Any) -> framing.Frame:
        encoded.append(sent)
        return encode(sent, *args, **kwargs)

    monkeypatch.setattr(framing, "encode", counting)
    return encoded


@pytest.mark.parametrize("make", [lambda: Dense(np.zeros(8, np.float32)), lambda: Dense.framed(8)])
def test_a_message_that_is_used_again_in_another_round_is_encoded_anew(
    make: Callable[[], Dense], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = make()
    kept = Task(number=3, vector=vector)

    def script(round_idx: int, client_id: int) -> Conversation:
        yield kept
        return Answer

    play = Play(script)
    encoded = counted_encodes(monkeypatch)
    for round_idx in (2, 3):
        play.host.begin_round()
        vector.array[:] = round_idx
        for client_id in (5, 6):
            play.start(client_id, round_idx=round_idx)
    assert encoded == [kept, kept]  # once a round
    assert [play.down(i).vector.array.tolist() for i in range(4)] == [[2.0] * 8] * 2 + [[3.0] * 8] * 2


def test_nothing_keeps_the_frame_when_a_round_begins() -> None:
    kept = Task(number=3, vector=Dense.framed(8))

    def script(round_idx: int, client_id: int) -> Conversation:
        yield kept
        return Answer

    play = Play(script)
    play.start()
    room = kept.vector.room
    assert not np.shares_memory(framing.encode(kept, SCHEMA, play.rank.comm.pool, in_place=True).buffer, room)
    play.host.begin_round()
    # The conversation is still under way, with the message's figures.
    assert np.shares_memory(framing.encode(kept, SCHEMA, play.rank.comm.pool, in_place=True).buffer, room)


def test_server_code_leaves_the_random_numbers_of_training_alone() -> None:
    drawn: list[float] = []

    def script(round_idx: int, client_id: int) -> Conversation:
        drawn.append(torch.rand(3).sum().item())
        yield task()
        torch.manual_seed(99)
        yield Answer
        drawn.append(torch.rand(3).sum().item())
        return Answer

    play = Play(script)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    play.start()
    assert torch.equal(torch.get_rng_state(), before)
    play.up(answer())
    assert torch.equal(torch.get_rng_state(), before)
    assert len(drawn) == 2


def test_random_numbers_are_left_alone_by_server_code_that_fails() -> None:
    def script(round_idx: int, client_id: int) -> Conversation:
        torch.rand(1)
        raise ValueError("a planned failure")
        yield

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="a planned failure"):
        Play(script).start()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_message_that_comes_while_the_generator_runs_waits() -> None:
    numbers: list[int] = []

    def script(round_idx: int, client_id: int) -> Conversation:
        yield task()
        first = yield Answer
        assert isinstance(first, Answer)
        numbers.append(first.number)
        play.up(answer(2), 1)  # it arrives here, in the middle of the server's code
        assert numbers == [1]
        second = yield Answer
        assert isinstance(second, Answer)
        numbers.append(second.number)
        return Other

    play = Play(script)
    play.start()
    play.up(answer(1))
    assert numbers == [1, 2]
    play.up(Other(number=3), 2)
    play.done()
    (reply,) = play.replies
    result = reply.result(play.rank, SCHEMA)
    assert isinstance(result, Other)
    assert result.number == 3


def test_operations_are_of_the_conversation_in_which_they_were_counted() -> None:
    work = Work(1000.0)  # what was counted beside conversations stays there

    def script(round_idx: int, client_id: int) -> Conversation:
        work.ops += client_id
        yield task(client_id)
        yield Answer
        work.ops += 10 * client_id
        yield task(client_id)
        return Answer

    play = Play(script, work)
    play.start(5)
    play.start(7)
    for client_id in (7, 5):
        play.up(answer(), client_id=client_id)
    for client_id in (5, 7):
        play.up(answer(), 1, client_id=client_id)
        play.done(2, client_id=client_id)
    assert [(reply.client_id, reply.server_ops) for reply in play.replies] == [(5, 55.0), (7, 77.0)]
    assert work.ops == 1000.0
