"""A rank's loop: packets go to their handlers, waiting handles them and does queued work."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.comm.base import Envelope, Packet
from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine.rank import Rank, Topic, pack_floats, unpack_floats
from fedmpi.errors import ProtocolError


class Quiet(LocalCommunicator):
    """One of several ranks, as far as it knows; the others are silent."""

    alone = False


def make(topics: Sequence[Topic] = (), timeout_s: float = 5.0) -> tuple[Rank, list[Packet]]:
    """Return a rank of one process, and the packets of some topics that it has handled."""
    rank, handled = Rank(Quiet(), timeout_s), []
    for topic in topics:
        rank.handlers[topic] = handled.append
    return rank, handled


def test_a_packet_goes_to_the_handler_of_its_topic() -> None:
    rank, ups = make([Topic.UP])
    downs: list[Packet] = []
    rank.handlers[Topic.DOWN] = downs.append
    rank.send(0, Envelope(Topic.UP, True, 1, 2, 3, 4, encode_s=0.5), np.array([9, 8], np.uint8))
    rank.send(0, Envelope(Topic.DOWN, True, 5))
    assert (ups, downs) == ([], [])
    rank.progress()
    assert [p.envelope.round_idx for p in ups] == [1]
    assert [p.envelope.round_idx for p in downs] == [5]
    assert ups[0].envelope._replace(sent_t=0.0) == Envelope(Topic.UP, True, 1, 2, 3, 4, 0.0, 0.5, body_nbytes=2)
    assert ups[0].body.tolist() == [9, 8]


def test_an_unknown_topic_is_an_error_in_words() -> None:
    rank, handled = make([Topic.UP])
    rank.send(0, Envelope(Topic.EVAL))
    with pytest.raises(ProtocolError, match=r"^rank 0 got a packet of topic 11 from rank 0, which it does not expect$"):
        rank.progress()
    rank.send(0, Envelope(200))
    with pytest.raises(ProtocolError, match="topic 200"):
        rank.wait_until(lambda: bool(handled), str)


def test_every_topic_has_a_number_of_its_own_that_fits_its_byte() -> None:
    assert len({int(topic) for topic in Topic}) == len(list(Topic)) == len(Topic.__members__)
    assert all(0 < topic < 256 for topic in Topic)


def test_a_send_is_stamped_with_the_runs_time() -> None:
    rank, handled = make([Topic.UP])
    rank.start_clock(time.time() - 1000)
    before = rank.now()
    rank.send(0, Envelope(Topic.UP))
    rank.progress()
    assert 1000 <= before <= handled[0].envelope.sent_t <= rank.now() < 1060


def test_wait_until_stops_at_what_it_waits_for() -> None:
    rank, handled = make([Topic.UP])
    for i in range(4):
        rank.send(0, Envelope(Topic.UP, arg=i))
    rank.wait_until(lambda: len(handled) == 2, str)
    assert [p.envelope.arg for p in handled] == [0, 1]
    rank.wait_until(lambda: True, str)
    assert len(handled) == 2
    rank.progress()
    assert [p.envelope.arg for p in handled] == [0, 1, 2, 3]


def test_a_handler_may_send_what_is_handled_next() -> None:
    rank, handled = make()

    def again(packet: Packet) -> None:
        handled.append(packet)
        if packet.envelope.arg < 3:
            rank.send(0, Envelope(Topic.UP, arg=packet.envelope.arg + 1))

    rank.handlers[Topic.UP] = again
    rank.send(0, Envelope(Topic.UP))
    rank.wait_until(lambda: len(handled) == 4, str)


def test_wait_until_does_queued_work_when_nothing_has_arrived() -> None:
    rank, handled = make([Topic.UP])
    done: list[int] = []

    def work() -> bool:
        if len(done) == 3:
            return False
        done.append(len(handled))  # how much had been handled by then
        rank.send(0, Envelope(Topic.UP))
        return True

    rank.idle_work = work
    rank.send(0, Envelope(Topic.UP))
    rank.wait_until(lambda: len(handled) == 4, str, may_work=True)
    assert done == [1, 2, 3]  # packets first, then a piece of work, and again


def test_work_is_left_alone_where_it_must_not_be_done() -> None:
    rank, _ = make(timeout_s=0.02)
    done: list[int] = []
    rank.idle_work = lambda: bool(done.append(1)) or True
    with pytest.raises(ProtocolError):
        rank.wait_until(lambda: bool(done), str)
    rank.progress()
    assert done == []


def test_a_silence_that_is_too_long_is_an_error_in_words() -> None:
    rank, _ = make(timeout_s=0.03)
    rank.idle_work = lambda: False
    with pytest.raises(ProtocolError, match=r"^rank 0 waited 0\.03 s for client 5's reply \(comm\.timeout_s\)$"):
        rank.wait_until(lambda: False, lambda: "client 5's reply", may_work=True)
    assert 0.03 < rank.timer.seconds["wait"] < 2  # and it was waiting all the time


def test_a_wait_may_have_a_limit_of_its_own() -> None:
    rank, _ = make(timeout_s=60.0)
    with pytest.raises(ProtocolError, match=r"waited 0\.02 s"):
        rank.wait_until(lambda: False, str, timeout_s=0.02)


def test_alone_it_fails_at_once_when_no_work_is_left() -> None:
    rank, left = Rank(LocalCommunicator(), 60.0), [1, 2]
    rank.idle_work = lambda: bool(left and left.pop())
    start = time.monotonic()
    with pytest.raises(ProtocolError, match=r"^rank 0 would wait for ever for a reply: nothing is under way$"):
        rank.wait_until(lambda: False, lambda: "a reply", may_work=True)
    assert left == []
    assert time.monotonic() - start < 10


class Slow(Quiet):
    """Its first three looks find a send that has not left."""

    left = 3

    def num_unsent(self) -> int:
        self.left -= 1
        return int(self.left >= 0)


def test_flush_takes_what_arrives_until_all_has_left() -> None:
    rank, handled = Rank(Slow(), 5.0), []
    rank.handlers[Topic.UP] = handled.append
    rank.send(0, Envelope(Topic.UP))
    rank.flush()
    assert rank.comm.num_unsent() == 0
    assert len(handled) == 1


def test_a_send_that_never_leaves_is_an_error_in_words() -> None:
    comm = Slow()
    comm.left = 10**9
    with pytest.raises(ProtocolError, match=r"rank 0 waited 0\.02 s for its sends to be received"):
        Rank(comm, 0.02).flush()


@given(numbers=st.lists(st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)))
def test_floats_come_back(numbers: list[float]) -> None:
    body = pack_floats(*numbers)
    assert (body.dtype, body.size) == (np.uint8, 8 * len(numbers))
    assert unpack_floats(body) == numbers
