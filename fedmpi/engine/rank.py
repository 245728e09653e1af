"""One rank's loop: packets come in, go to whoever registered for their topic; waiting happens here."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from fedmpi.comm.base import Communicator, Envelope, Packet, wait_for
from fedmpi.engine.phases import PhaseTimer
from fedmpi.errors import ProtocolError


class Topic(IntEnum):
    """What a packet is about. Only DOWN and UP carry messages of the simulated system."""

    HELLO = 1  # worker to 0: what this rank is and has
    WELCOME = 2  # 0 to worker: its place, and its neighbours' bells
    DOWN = 3  # host to player: a message; step 0 starts the client's turn
    UP = 4  # player to host: a message
    START = 5  # host to player: the client's turn starts, and the client speaks first
    DONE = 6  # player to host: the turn is over, with what only the player knows
    HOST = 7  # 0 to host: hold this client's conversation
    RESULT = 8  # host to 0: a conversation's result and its ledger rows
    ROUND = 9  # 0 to hosts: a round begins, with the server half's state
    EVAL_MODEL = 10  # 0 to worker: the model to test
    EVAL = 11  # 0 to worker: test these batches
    EVAL_RESULT = 12  # worker to 0
    STATE_WANT = 13  # 0 to worker: send this client's state to another rank
    STATE = 14  # worker to worker: a client's state
    STOP = 15  # 0 to worker: the run is over
    BYE = 16  # worker to 0: last totals
    FAIL = 17  # worker to 0: this rank failed, in words
    DROP = 18  # host to player: the client is lost, or its message of no use; its turn is over
    QUIT = 19  # 0 to worker: the run does not start; arg is the exit status
    TAKEN = 20  # host to player: how many of the client's messages the server has taken, in step


def pack_floats(*numbers: float) -> np.ndarray:
    """Return float64 numbers as a body."""
    return np.array(numbers, np.float64).view(np.uint8)


def unpack_floats(body: np.ndarray) -> list[float]:
    """Read a body of float64 numbers."""
    floats: list[float] = body.view(np.float64).tolist()
    return floats


class Rank:
    """A communicator with a clock, phases, and handlers for what arrives.

    Parameters
    ----------
    comm : Communicator
    timeout_s : float
        Seconds without any packet after which waiting is an error.
    spin_s : float
        How long to ask before the first nap; worth it only where a core is to spare.
    """

    def __init__(self, comm: Communicator, timeout_s: float, spin_s: float = 0.0) -> None:
        self.comm = comm
        self.timer = PhaseTimer()
        self.timeout_s = timeout_s
        self.spin_s = spin_s
        self.handlers: dict[int, Callable[[Packet], None]] = {}
        self.idle_work: Callable[[], bool] | None = None
        """Does one piece of queued work and returns True, or returns False; called when nothing has arrived."""
        self._start_t = time.time()

    def start_clock(self, start_t: float) -> None:
        """Count `now` from a wall-clock time that all ranks share."""
        self._start_t = start_t

    def now(self) -> float:
        """Return seconds since the run's start, by this host's wall clock."""
        return time.time() - self._start_t

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        """Start a send, stamped with the time."""
        self.comm.send(dest, envelope._replace(sent_t=self.now()), body)

    def handle(self, packet: Packet) -> None:
        """Give a packet to the handler of its topic."""
        handler = self.handlers.get(packet.envelope.topic)
        if handler is None:
            raise ProtocolError(
                f"rank {self.comm.rank} got a packet of topic {packet.envelope.topic} from rank {packet.source}, which "
                "it does not expect"
            )
        handler(packet)

    def progress(self) -> None:
        """Handle what has arrived, without waiting; called from within long computations."""
        while (packet := self.comm.poll()) is not None:
            self.handle(packet)

    def wait_until(
        self,
        reached: Callable[[], bool],
        what: Callable[[], str],
        *,
        may_work: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Handle packets, and if `may_work` do queued work between them, until `reached`.

        Raises
        ------
        ProtocolError
            If nothing arrives for `timeout_s`, the rank's own by default; `what` says what was waited for.
        """
        while not reached():
            packet = self.comm.poll()
            if packet is None:
                if may_work and self.idle_work is not None and self.idle_work():
                    continue
                with self.timer.phase("wait"):
                    limit_s = self.timeout_s if timeout_s is None else timeout_s
                    packet = wait_for(self.comm.poll, self.comm, what=what, timeout_s=limit_s, spin_s=self.spin_s)
            self.handle(packet)

    def flush(self) -> None:
        """Wait until all that was sent has left its buffers."""
        if self.comm.num_unsent():
            with self.timer.phase("wait"):
                wait_for(
                    lambda: None if self._still_sending() else True,
                    self.comm,
                    what=lambda: "its sends to be received",
                    timeout_s=self.timeout_s,
                )

    def _still_sending(self) -> bool:
        # Others may be sending too, and wait for this rank to take what they send.
        self.progress()
        return self.comm.num_unsent() > 0
