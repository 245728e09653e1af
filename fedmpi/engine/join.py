"""How ranks come together: workers say what they are, rank 0 says where they belong."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fedmpi.comm.base import Communicator, Envelope, Packet
from fedmpi.comm.placement import Place, RankFacts, gather_facts, place_ranks
from fedmpi.config import CommConfig, RunConfig
from fedmpi.configfile import describe
from fedmpi.engine.rank import Rank, Topic
from fedmpi.errors import FedmpiError

_SPIN_S = 200e-6


class NoRunError(FedmpiError):
    """The run cannot start: on rank 0 because of what another rank says, on a worker because rank 0 says so."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Membership:
    """What a rank knows once all have met.

    Parameters
    ----------
    places : list of Place
        By rank.
    warnings : list of str
    token : str
        The run's own name, for temporary folders.
    """

    places: list[Place]
    warnings: list[str]
    token: str


def join(
    comm: Communicator,
    config: RunConfig | None,
    *,
    on_fail: Callable[[Packet], None] | None = None,
    problem: FedmpiError | None = None,
    warm_up: Callable[[], None] = lambda: None,
) -> tuple[Rank, Membership]:
    """Meet the other ranks; return this rank's loop, its clock started, and the placement.

    On rank 0 `on_fail` is given the last words of a rank that fails, from now on. A worker that has met a `problem` in
    its preparations tells rank 0; it may then have no `config`. `warm_up` compiles what the run needs: rank 0 does so
    before it welcomes the others, who then find it in the cache.

    Raises
    ------
    PlacementError
        On rank 0, if the ranks do not fit together.
    NoRunError
        On rank 0, if a worker has a problem. On a worker, if the run does not start; rank 0 says why.
    """
    comm_config = config.comm if config is not None else CommConfig()
    rank = Rank(comm, comm_config.timeout_s)
    if on_fail is not None:
        rank.handlers[Topic.FAIL] = on_fail
    bell = getattr(comm, "bell", None)
    config_id = hashlib.sha256(describe(config).encode()).hexdigest()[:16] if config is not None else ""
    is_worker = comm.rank > 0 or comm.size == 1
    needs_gpu = is_worker or (config is not None and config.placement.server_device == "cuda")
    own = gather_facts(comm.rank, bell.address if bell else "", config_id, is_worker=needs_gpu)
    if problem is not None:
        own = replace(own, problem=str(problem), problem_status=problem.exit_status)
    if comm.rank == 0:
        assert config is not None
        facts = _hear_all(rank, own)
        for fact in facts:
            if fact.problem:
                raise NoRunError(f"rank {fact.rank} on {fact.host}: {fact.problem}", fact.problem_status)
        places, warnings = place_ranks(facts, config.placement)
        with rank.timer.phase("compile"):
            warm_up()
        welcome: dict[str, Any] = {
            "places": [asdict(place) for place in places],
            "warnings": warnings,
            "token": secrets.token_hex(8),
            "start_t": time.time(),
            "bells": [[fact.host, fact.bell] for fact in facts],
        }
        for worker in range(1, comm.size):
            rank.send(worker, Envelope(Topic.WELCOME), _json_body(welcome))
    else:
        rank.send(0, Envelope(Topic.HELLO), _json_body(asdict(own)))
        answers: list[dict[str, Any]] = []
        rank.handlers[Topic.QUIT] = _on_quit
        rank.handlers[Topic.WELCOME] = lambda packet: answers.append(_read_json(packet))
        # However long the others take to prepare: if rank 0 goes, MPI ends this rank.
        rank.wait_until(lambda: bool(answers), lambda: "rank 0 to welcome it", timeout_s=math.inf)
        welcome = answers[0]
        with rank.timer.phase("compile"):
            warm_up()
    rank.start_clock(welcome["start_t"])
    if bell is not None and comm_config.doorbell:
        bells = {
            r: address for r, (host, address) in enumerate(welcome["bells"]) if host == own.host and r != comm.rank
        }
        bell.connect(bells)
    places = [Place(**place) for place in welcome["places"]]
    if comm.size > 1 and places[comm.rank].core_to_spare:
        rank.spin_s = _SPIN_S
    return rank, Membership(places, welcome["warnings"], welcome["token"])


def _hear_all(rank: Rank, own: RankFacts) -> list[RankFacts]:
    heard = {0: own}

    def on_hello(packet: Packet) -> None:
        heard[packet.source] = RankFacts(**_read_json(packet))

    rank.handlers[Topic.HELLO] = on_hello
    size = rank.comm.size
    rank.wait_until(
        lambda: len(heard) == size, lambda: f"ranks {sorted(set(range(size)) - set(heard))} to report for the run"
    )
    return [heard[r] for r in range(size)]


def _on_quit(packet: Packet) -> None:
    raise NoRunError("rank 0 says that the run does not start", packet.envelope.arg)


def _json_body(content: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def _read_json(packet: Packet) -> Any:
    return json.loads(packet.body.tobytes())
