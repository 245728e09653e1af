"""The only module that imports mpi4py: packets over point-to-point MPI."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import mpi4py
import numpy as np

from fedmpi.comm.base import ENVELOPE_NBYTES, Envelope, Packet, Traffic
from fedmpi.comm.doorbell import Doorbell
from fedmpi.comm.launcher import OTHER_LAUNCHER
from fedmpi.errors import PlacementError, ProtocolError
from fedmpi.wire.buffers import BufferPool

mpi4py.rc.threads = False  # one thread calls MPI; the library may leave out its locks
mpi4py.rc.initialize = False  # the launcher is looked at first: see _start
mpi4py.rc.finalize = True

from mpi4py import MPI  # noqa: E402


def library_version() -> str:
    """Return the first line of what the MPI library calls itself."""
    return " ".join(MPI.Get_library_version().split("\n")[0].strip("\0 ,").split())


def _start() -> None:
    """Initialize MPI, unless the launcher is one that this MPI library aborts under, in words of its own."""
    if MPI.Is_initialized():
        return
    library = library_version()
    if "OMPI_COMM_WORLD_SIZE" in os.environ and "MPICH" in library:
        raise PlacementError(
            f"the launcher started {os.environ['OMPI_COMM_WORLD_SIZE']} processes, but MPI here is {library} and the "
            f"launcher is Open MPI's. {OTHER_LAUNCHER}"
        )
    MPI.Init()


_start()

INLINE_NBYTES = 1 << 16
"""A body up to this size travels in one transfer with its envelope."""

_TAG_ENVELOPE = 1
_TAG_BODY = 2
_EMPTY = np.empty(0, np.uint8)
_OUTPUT_S = 0.2


class _Arriving:
    """A packet whose body is still on its way."""

    __slots__ = ("body", "envelope", "requests")

    def __init__(self, envelope: Envelope, body: np.ndarray, requests: list[Any]) -> None:
        self.envelope = envelope
        self.body = body
        self.requests = requests


class MpiCommunicator:
    """Communicator over MPI.

    A packet is one transfer (envelope and a small body), or an envelope followed by the body in pieces of at most
    `chunk_nbytes`. Envelopes are found by matched probe; bodies are received into kept buffers.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        MPI.COMM_WORLD by default.
    chunk_nbytes : int
        Largest single transfer; equal on all ranks.
    limit_nbytes : int
        Largest body that is accepted.
    """

    alone = False

    def __init__(self, comm: Any = None, *, chunk_nbytes: int = 2**31 - 1, limit_nbytes: int = 2**36) -> None:
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        self.pool = BufferPool()
        self.traffic = Traffic()
        self.bell = Doorbell()
        self._chunk_nbytes = chunk_nbytes
        self._limit_nbytes = limit_nbytes
        self._inbox = np.empty(ENVELOPE_NBYTES + INLINE_NBYTES, np.uint8)
        self._status = MPI.Status()
        self._unsent: list[tuple[Any, Any]] = []  # request, and what it must keep alive
        self._arriving: dict[int, deque[_Arriving]] = {}  # by source, in order of sending
        self._to_ring: set[int] = set()

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        nbytes = 0 if body is None else body.size
        self.traffic.count(envelope, nbytes)
        head = envelope._replace(body_nbytes=nbytes).pack()
        if nbytes <= min(INLINE_NBYTES, self._chunk_nbytes):
            if body is not None:
                head += body.tobytes()
            self._start(head, dest, _TAG_ENVELOPE)
        else:
            assert body is not None
            self._start(head, dest, _TAG_ENVELOPE)
            for start in range(0, nbytes, self._chunk_nbytes):
                self._start(body[start : start + self._chunk_nbytes], dest, _TAG_BODY)
        self._to_ring.add(dest)

    def _start(self, data: bytes | np.ndarray, dest: int, tag: int) -> None:
        self._unsent.append((self._comm.Isend([data, MPI.BYTE], dest, tag), data))

    def num_unsent(self) -> int:
        # Rung once for all that was sent since the last look: waking a rank costs it, and this one, more than a send.
        if self._to_ring:
            for dest in self._to_ring:
                self.bell.ring(dest)
            self._to_ring.clear()
        if self._unsent:
            self._unsent = [pair for pair in self._unsent if not pair[0].Test()]
        return len(self._unsent)

    def poll(self) -> Packet | None:
        self.num_unsent()
        message = self._comm.Improbe(MPI.ANY_SOURCE, _TAG_ENVELOPE, self._status)
        if message is not None:
            packet = self._receive(message)
            if packet is not None:
                return packet
        if self._arriving:
            for source, queue in self._arriving.items():
                # Only the oldest of a source may go: packets keep their order whatever their size.
                if all(request.Test() for request in queue[0].requests):
                    arrived = queue.popleft()
                    if not queue:
                        del self._arriving[source]
                    return Packet(source, arrived.envelope, arrived.body)
        return None

    def _receive(self, message: Any) -> Packet | None:
        """Receive a probed envelope; return its packet if it is complete and nothing older of its source is not."""
        source, nbytes = self._status.Get_source(), self._status.Get_count(MPI.BYTE)
        if not ENVELOPE_NBYTES <= nbytes <= self._inbox.size:
            raise ProtocolError(
                f"rank {self.rank} got a transfer of {nbytes} bytes from rank {source}, expected an envelope of "
                f"{ENVELOPE_NBYTES} to {self._inbox.size} bytes: do all ranks run the same fedmpi?"
            )
        message.Recv([self._inbox, nbytes, MPI.BYTE])
        envelope = Envelope.unpack(self._inbox[:ENVELOPE_NBYTES].tobytes())
        if envelope.body_nbytes > self._limit_nbytes:
            raise ProtocolError(
                f"rank {self.rank} was sent {envelope.body_nbytes} bytes by rank {source} (round {envelope.round_idx}, "
                f"client {envelope.client_id}), more than comm.limit_nbytes = {self._limit_nbytes}"
            )
        inline = nbytes - ENVELOPE_NBYTES
        requests: list[Any] = []
        if envelope.body_nbytes == inline:
            body = self._inbox[ENVELOPE_NBYTES:nbytes].copy() if inline else _EMPTY
        else:
            body = self.pool.lease(envelope.body_nbytes)
            for start in range(0, body.size, self._chunk_nbytes):
                piece = body[start : start + self._chunk_nbytes]
                requests.append(self._comm.Irecv([piece, MPI.BYTE], source, _TAG_BODY))
        queue = self._arriving.get(source)
        if queue is None and not requests:
            return Packet(source, envelope, body)
        if queue is None:
            queue = self._arriving[source] = deque()
        queue.append(_Arriving(envelope, body, requests))
        return None

    def nap(self, seconds: float) -> bool:
        return self.bell.nap(seconds)

    def rings(self) -> bool:
        return self.bell.num_others >= self.size - 1

    def close(self) -> None:
        self.bell.close()

    def abort(self, status: int) -> None:
        # Launchers drop what they have not yet read of a rank's output when they kill the job.
        end = time.monotonic() + _OUTPUT_S
        while time.monotonic() < end:
            self.nap(_OUTPUT_S / 10)
        self._comm.Abort(status)
