"""The communicator of one process: copies as a transfer would, counts, keeps the order."""

from __future__ import annotations

import numpy as np

from fedmpi.comm.base import ENVELOPE_NBYTES, Envelope, Traffic
from fedmpi.comm.local import LocalCommunicator


def test_packets_arrive_in_the_order_of_their_sending() -> None:
    comm = LocalCommunicator()
    assert comm.poll() is None
    for i in range(5):
        comm.send(0, Envelope(3, client_id=i), np.full(10**5 * (i % 2) + i, i, np.uint8))
    for i in range(5):
        packet = comm.poll()
        assert packet is not None
        assert (packet.source, packet.envelope.client_id) == (0, i)
        assert packet.envelope.body_nbytes == packet.body.size == 10**5 * (i % 2) + i
        assert (packet.body == i).all()
    assert comm.poll() is None


def test_a_body_is_copied() -> None:
    comm = LocalCommunicator()
    body = np.arange(8, dtype=np.uint8)
    comm.send(0, Envelope(3), body)
    assert comm.num_unsent() == 0
    body[:] = 0xFF
    packet = comm.poll()
    assert packet is not None
    assert packet.body.tolist() == list(range(8))
    packet.body[:] = 1
    assert (body == 0xFF).all()


def test_what_waits_and_what_is_still_in_use_is_not_written_over() -> None:
    comm = LocalCommunicator()
    kept = []
    for i in range(20):
        comm.send(0, Envelope(3), np.full(5000, i, np.uint8))
        comm.send(0, Envelope(4), np.full(5000, 100 + i, np.uint8))
        packet = comm.poll()
        assert packet is not None
        kept.append(packet.body[7:9])
    assert [view.tolist() for view in kept] == [[100 * (i % 2) + i // 2] * 2 for i in range(20)]


def test_buffers_are_reused() -> None:
    comm = LocalCommunicator()
    for _ in range(50):
        comm.send(0, Envelope(3), np.zeros(10**5, np.uint8))
        comm.poll()
    assert comm.pool.allocated_nbytes < 2 * 10**5 + 2 * 4096


def test_an_envelope_alone_has_an_empty_body() -> None:
    comm = LocalCommunicator()
    comm.send(0, Envelope(15, round_idx=3, arg=-1, sent_t=0.25, encode_s=0.5))
    packet = comm.poll()
    assert packet is not None
    assert packet.envelope == Envelope(15, round_idx=3, arg=-1, sent_t=0.25, encode_s=0.5)
    assert (packet.body.size, packet.body.dtype) == (0, np.uint8)


def test_every_send_is_counted() -> None:
    comm = LocalCommunicator()
    comm.send(0, Envelope(3, counted=True), np.zeros(100, np.uint8))
    comm.send(0, Envelope(6, counted=False), np.zeros(30, np.uint8))
    comm.send(0, Envelope(15))
    assert comm.traffic == Traffic(message_nbytes=100, simulation_nbytes=30 + 3 * ENVELOPE_NBYTES)


def test_nobody_rings() -> None:
    comm = LocalCommunicator()
    assert (comm.rank, comm.size) == (0, 1)
    assert not comm.rings()
    assert not comm.nap(0)


def test_nobody_else_can_send() -> None:
    assert LocalCommunicator().alone is True
