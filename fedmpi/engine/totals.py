"""What a run amounts to, once every rank has said what it has sent, where its time went and what memory it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fedmpi.comm.base import ENVELOPE_NBYTES, Envelope
from fedmpi.engine.phases import PHASES
from fedmpi.engine.rank import Rank, Topic, pack_floats, unpack_floats

_BYE_NBYTES = 8 * (3 + len(PHASES))


@dataclass(frozen=True)
class RankTotals:
    """One rank's part.

    Parameters
    ----------
    message_nbytes, simulation_nbytes : int
        What it handed to its communicator, as messages of the simulated system and beside them.
    peak_nbytes : int
        The most memory that it had resident.
    phase_s : dict of str to float
        Seconds by phase.
    """

    message_nbytes: int
    simulation_nbytes: int
    peak_nbytes: int
    phase_s: dict[str, float]

    @classmethod
    def of(cls, rank: Rank, *, still_to_send_nbytes: int = 0) -> RankTotals:
        """Return this process's totals; simulation traffic that is still to be sent is added."""
        traffic = rank.comm.traffic
        phases = dict(zip(PHASES, rank.timer.totals(), strict=True))
        return cls(
            traffic.message_nbytes, traffic.simulation_nbytes + still_to_send_nbytes, peak_memory_nbytes(), phases
        )


@dataclass(frozen=True)
class RunTotals:
    """What a run amounts to.

    Parameters
    ----------
    ranks : list of RankTotals
        By rank.
    wall_s : float
    model_digest : str
    stopped : bool
        Whether it ended early because it was asked to.
    """

    ranks: list[RankTotals]
    wall_s: float
    model_digest: str
    stopped: bool

    def attributes(self) -> dict[str, str | int | float]:
        """Return what the ledger keeps as attributes."""
        return {
            "message_nbytes": sum(rank.message_nbytes for rank in self.ranks),
            "simulation_nbytes": sum(rank.simulation_nbytes for rank in self.ranks),
            "wall_s": self.wall_s,
            "num_ranks": len(self.ranks),
            "model_digest": self.model_digest,
        }


def peak_memory_nbytes() -> int:
    """Return the most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def send_bye(rank: Rank) -> None:
    """Send this rank's totals to rank 0; they include this last packet."""
    own = RankTotals.of(rank, still_to_send_nbytes=ENVELOPE_NBYTES + _BYE_NBYTES)
    numbers = (own.message_nbytes, own.simulation_nbytes, own.peak_nbytes, *own.phase_s.values())
    rank.send(0, Envelope(Topic.BYE), pack_floats(*numbers))
    rank.flush()


def dismiss_workers(rank: Rank, workers: Sequence[int]) -> list[RankTotals]:
    """Stop the workers; return the totals of all ranks, rank 0 first."""
    byes: dict[int, RankTotals] = {}

    def on_bye(source: int, numbers: list[float]) -> None:
        phases = dict(zip(PHASES, numbers[3:], strict=True))
        byes[source] = RankTotals(int(numbers[0]), int(numbers[1]), int(numbers[2]), phases)

    rank.handlers[Topic.BYE] = lambda packet: on_bye(packet.source, unpack_floats(packet.body))
    for worker in workers:
        rank.send(worker, Envelope(Topic.STOP))
    rank.wait_until(lambda: len(byes) == len(workers), lambda: "the workers' last totals")
    rank.flush()
    return [RankTotals.of(rank), *(byes[worker] for worker in workers)]
