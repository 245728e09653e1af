"""The Communicator protocol, the envelope beside every buffer, and the one function that waits."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from fedmpi.errors import ProtocolError
from fedmpi.wire.buffers import BufferPool

_ENVELOPE = struct.Struct("<BBiiiqdfdQ")
ENVELOPE_NBYTES = _ENVELOPE.size


class Envelope(NamedTuple):
    """What the simulation needs to route a buffer; travels beside it and is simulation traffic.

    Parameters
    ----------
    topic : int
        What the packet is about; the engine's numbers.
    counted : bool
        The body is a message of the simulated system, not of the simulation.
    round_idx, client_id, step : int
    arg : int
        One number more, by topic.
    sent_t : float
        Seconds since the run's start.
    encode_s : float
        Seconds that encoding the body took.
    bound_nbits : float
        Shannon bound of the body, which its sender knows best: what it was coded against does not always arrive.
    body_nbytes : int
        Set by the communicator.
    """

    topic: int
    counted: bool = False
    round_idx: int = -1
    client_id: int = -1
    step: int = 0
    arg: int = 0
    sent_t: float = 0.0
    encode_s: float = 0.0
    bound_nbits: float = 0.0
    body_nbytes: int = 0

    def pack(self) -> bytes:
        """Return the envelope's `ENVELOPE_NBYTES` bytes."""
        return _ENVELOPE.pack(
            self.topic, self.counted, self.round_idx, self.client_id, self.step, self.arg, self.sent_t, self.encode_s,
            self.bound_nbits, self.body_nbytes,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """Read an envelope of exactly `ENVELOPE_NBYTES` bytes."""
        topic, counted, *rest = _ENVELOPE.unpack(data)
        return cls(topic, bool(counted), *rest)


class Packet(NamedTuple):
    """What a rank receives: where from, the envelope, and the body as (body_nbytes,) uint8."""

    source: int
    envelope: Envelope
    body: np.ndarray


@dataclass
class Traffic:
    """Bytes that a rank has handed to its communicator, by what they are."""

    message_nbytes: int = 0
    simulation_nbytes: int = 0

    def count(self, envelope: Envelope, body_nbytes: int) -> None:
        """Add one send: the envelope is always simulation, the body what the envelope says."""
        self.simulation_nbytes += ENVELOPE_NBYTES
        if envelope.counted:
            self.message_nbytes += body_nbytes
        else:
            self.simulation_nbytes += body_nbytes


class Communicator(Protocol):
    """Moves packets between ranks; packets of one pair of ranks arrive in the order of their sending."""

    rank: int
    size: int
    alone: bool
    """Whether nobody else can send: then waiting for what has not come is in vain."""
    pool: BufferPool
    traffic: Traffic

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        """Start a send and return; `body` (uint8) must not change until `num_unsent` has fallen to 0."""

    def poll(self) -> Packet | None:
        """Return a packet that has arrived, or None; drives everything in flight."""

    def num_unsent(self) -> int:
        """Drive the sends in flight and return how many are not complete."""

    def nap(self, seconds: float) -> bool:
        """Let the core go for at most `seconds`; return True, early, if a rank says that it has sent something."""

    def rings(self) -> bool:
        """Return whether every rank that sends packets ends this rank's naps."""

    def close(self) -> None:
        """Give back sockets; no packet may be under way."""

    def abort(self, status: int) -> None:
        """End the whole job at once with this exit status."""


T = TypeVar("T")

FIRST_NAP_S = 20e-6
LAST_NAP_S = 1e-3
LONG_WAIT_S = 2.0
LONG_NAP_S = 5e-3


def wait_for(
    ready: Callable[[], T | None],
    comm: Communicator,
    *,
    what: Callable[[], str],
    timeout_s: float,
    spin_s: float = 0.0,
) -> T:
    """Wait until `ready` returns something, without holding the core.

    Every wait that can be long goes through here: a blocking MPI call would burn a whole core. Each look asks twice,
    since MPI's first look only drives the progress that the second one sees. Naps double from 20 us to 1 ms, and
    stretch to 5 ms after 2 s. Where a doorbell ends them they are long from the start, and short after it has rung: it
    can outrun the data.

    Parameters
    ----------
    ready : callable
        Returns None while there is nothing.
    comm : Communicator
        Its `nap` is used.
    what : callable
        Says who waits for what, if it comes to that.
    timeout_s : float
    spin_s : float
        Time to keep asking before the first nap.

    Raises
    ------
    ProtocolError
        After `timeout_s`.
    """
    start = perf_counter()
    nap_s = LONG_NAP_S if comm.rings() else FIRST_NAP_S
    while True:
        found = ready()
        if found is None:
            found = ready()
        if found is not None:
            return found
        if comm.alone:
            raise ProtocolError(f"rank {comm.rank} would wait for ever for {what()}: nothing is under way")
        waited = perf_counter() - start
        if waited > timeout_s:
            raise ProtocolError(f"rank {comm.rank} waited {timeout_s:g} s for {what()} (comm.timeout_s)")
        if waited < spin_s:
            continue
        if comm.nap(nap_s):
            nap_s = FIRST_NAP_S
        elif nap_s < LONG_NAP_S:
            nap_s = min(2 * nap_s, LONG_NAP_S if waited > LONG_WAIT_S else LAST_NAP_S)
