"""Envelopes to bytes and back, traffic by what it is, and the one function that waits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmpi.comm import base
from fedmpi.comm.base import ENVELOPE_NBYTES, Envelope, Traffic, wait_for
from fedmpi.comm.local import LocalCommunicator
from fedmpi.errors import ProtocolError

INT32 = st.integers(-(2**31), 2**31 - 1)
envelopes = st.builds(
    Envelope,
    topic=st.integers(0, 255),
    counted=st.booleans(),
    round_idx=INT32,
    client_id=INT32,
    step=INT32,
    arg=st.integers(-(2**63), 2**63 - 1),
    sent_t=st.floats(allow_nan=False),
    encode_s=st.floats(allow_nan=False, width=32),
    bound_nbits=st.floats(allow_nan=False),
    body_nbytes=st.integers(0, 2**64 - 1),
)


@given(envelope=envelopes)
@example(Envelope(255, True, 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**63 - 1, 1.7e308, math.inf, 0.5, 2**64 - 1))
@example(Envelope(0, False, -(2**31), -(2**31), -(2**31), -(2**63), -5e-324, -0.0, 0.0, 0))
def test_an_envelope_comes_back(envelope: Envelope) -> None:
    data = envelope.pack()
    assert len(data) == ENVELOPE_NBYTES
    assert Envelope.unpack(data) == envelope


def test_the_size_of_an_envelope_is_part_of_the_simulation_traffic() -> None:
    assert ENVELOPE_NBYTES == 50  # every packet carries it: a change is a change of the measured totals


def test_traffic_is_counted_by_what_it_is() -> None:
    traffic = Traffic()
    traffic.count(Envelope(3, True), 1000)
    traffic.count(Envelope(3, True), 7)
    traffic.count(Envelope(7, False), 50)
    traffic.count(Envelope(15, False), 0)
    assert traffic == Traffic(message_nbytes=1007, simulation_nbytes=4 * ENVELOPE_NBYTES + 50)


class Clocked(LocalCommunicator):
    """A communicator whose naps move a clock and are written down; the bell rings at the naps of `rung`."""

    rank = 4
    alone = False

    def __init__(self, *, bell: bool, rung: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.now = 100.0
        self.naps: list[float] = []
        self._bell = bell
        self._rung = rung

    def nap(self, seconds: float) -> bool:
        self.naps.append(seconds)
        rung = len(self.naps) - 1 in self._rung
        self.now += 1e-6 if rung else seconds
        return rung

    def rings(self) -> bool:
        return self._bell


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clocked]:
    def make(*, bell: bool = False, rung: frozenset[int] = frozenset()) -> Clocked:
        comm = Clocked(bell=bell, rung=rung)
        monkeypatch.setattr(base, "perf_counter", lambda: comm.now)
        return comm

    return make


class Asked:
    """Has something at the `nth` time it is asked."""

    def __init__(self, nth: float) -> None:
        self.nth = nth
        self.count = 0

    def __call__(self) -> str | None:
        self.count += 1
        return "here" if self.count >= self.nth else None


def waits(ready: Callable[[], str | None], comm: Clocked, timeout_s: float = 60.0, spin_s: float = 0.0) -> str:
    return wait_for(ready, comm, what=lambda: "a reply of client 7", timeout_s=timeout_s, spin_s=spin_s)


def test_what_is_there_is_returned_at_once(clocked: Callable[..., Clocked]) -> None:
    comm, ready = clocked(), Asked(1)
    assert waits(ready, comm) == "here"
    assert (ready.count, comm.naps) == (1, [])


def test_what_is_false_but_there_is_returned(clocked: Callable[..., Clocked]) -> None:
    assert wait_for(lambda: 0, clocked(), what=str, timeout_s=1.0) == 0


def test_each_look_asks_twice(clocked: Callable[..., Clocked]) -> None:
    comm, ready = clocked(), Asked(2)
    waits(ready, comm)
    assert comm.naps == []
    comm, ready = clocked(), Asked(4)
    waits(ready, comm)
    assert (ready.count, len(comm.naps)) == (4, 1)


def test_naps_double_up_to_a_millisecond(clocked: Callable[..., Clocked]) -> None:
    comm = clocked()
    waits(Asked(2 * 9 + 1), comm)
    assert comm.naps == pytest.approx([20e-6, 40e-6, 80e-6, 160e-6, 320e-6, 640e-6, 1e-3, 1e-3, 1e-3])


def test_naps_stretch_to_5_ms_after_2_s(clocked: Callable[..., Clocked]) -> None:
    comm = clocked()
    with pytest.raises(ProtocolError):
        waits(Asked(math.inf), comm, timeout_s=4.0)
    starts = [sum(comm.naps[:i]) for i in range(len(comm.naps))]
    assert max(nap for start, nap in zip(starts, comm.naps, strict=True) if start < 1.99) == 1e-3
    assert {nap for start, nap in zip(starts, comm.naps, strict=True) if start > 2.02} == {5e-3}


def test_with_a_bell_naps_are_long_from_the_start(clocked: Callable[..., Clocked]) -> None:
    comm = clocked(bell=True)
    waits(Asked(2 * 4 + 1), comm)
    assert comm.naps == [5e-3] * 4


def test_after_a_ring_naps_are_short_since_it_can_outrun_the_data(clocked: Callable[..., Clocked]) -> None:
    comm = clocked(bell=True, rung=frozenset({1, 5}))
    waits(Asked(2 * 8 + 1), comm)
    assert comm.naps == pytest.approx([5e-3, 5e-3, 20e-6, 40e-6, 80e-6, 160e-6, 20e-6, 40e-6])


def test_it_times_out_in_words(clocked: Callable[..., Clocked]) -> None:
    comm = clocked(bell=True)
    words = r"^rank 4 waited 2.5 s for a reply of client 7 \(comm.timeout_s\)$"
    with pytest.raises(ProtocolError, match=words) as caught:
        waits(Asked(math.inf), comm, timeout_s=2.5)
    assert caught.value.exit_status == 5
    assert 2.5 < comm.now - 100 < 2.52


def test_what_comes_at_the_last_moment_is_not_a_time_out(clocked: Callable[..., Clocked]) -> None:
    comm = clocked(bell=True)
    assert waits(lambda: "here" if comm.now > 102.5 else None, comm, timeout_s=2.5) == "here"


def test_it_asks_for_a_while_before_the_first_nap(clocked: Callable[..., Clocked]) -> None:
    comm = clocked()
    count = 0

    def ready() -> str | None:
        nonlocal count
        count += 1
        comm.now += 10e-6  # asking takes time too
        return "here" if comm.naps else None

    waits(ready, comm, spin_s=200e-6)
    assert 20 <= count <= 23
    assert comm.naps == [20e-6]


def test_alone_what_has_not_come_will_not(clocked: Callable[..., Clocked]) -> None:
    comm = clocked()
    comm.alone = True
    assert waits(Asked(2), comm) == "here"  # what is there is taken
    ready = Asked(math.inf)
    words = r"^rank 4 would wait for ever for a reply of client 7: nothing is under way$"
    with pytest.raises(ProtocolError, match=words) as caught:
        waits(ready, comm, spin_s=1.0)
    assert caught.value.exit_status == 5
    assert (ready.count, comm.naps, comm.now) == (2, [], 100.0)
