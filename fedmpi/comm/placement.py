"""Which rank sits where, and what it gets: devices, cores, threads. Ranks tell, rank 0 decides."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from fedmpi import __version__
from fedmpi.config import PlacementConfig
from fedmpi.errors import PlacementError

_CPU = ("cpu", platform.machine(), "")


@dataclass(frozen=True)
class RankFacts:
    """What a rank says of itself.

    Parameters
    ----------
    rank, pid : int
    host : str
    cores : list of int
        Cores that the process may run on.
    gpus : list of (str, str)
        Name and UUID of each GPU that it sees; none for a rank that only serves.
    bell : str
        Address of its doorbell.
    config_id : str
        Hash of the configuration it has read.
    versions : str
        Of fedmpi, torch and Python.
    visible : str
        Its CUDA_VISIBLE_DEVICES.
    problem : str
        Why this rank cannot take part, "" if it can; with the exit status of that.
    problem_status : int
    """

    rank: int
    pid: int
    host: str
    cores: list[int]
    gpus: list[tuple[str, str]]
    bell: str
    config_id: str
    versions: str
    visible: str = "not set"
    problem: str = ""
    problem_status: int = 0


@dataclass(frozen=True)
class Place:
    """A row of the placement table.

    Parameters
    ----------
    rank : int
    role : str
        server, worker, or both for a single rank.
    host : str
    local_rank : int
        Among the ranks of its host.
    device : str
        torch's name of the device.
    device_name, device_uuid : str
        Of the GPU; the machine's kind and "" on a CPU.
    cores : str
        Such as ``0-3``.
    threads : int
        torch threads.
    num_local : int
        Ranks on its host.
    num_cores : int
        Cores that the ranks of its host may use together.
    pid : int
    """

    rank: int
    role: str
    host: str
    local_rank: int
    device: str
    device_name: str
    device_uuid: str
    cores: str
    threads: int
    num_local: int
    num_cores: int
    pid: int

    @property
    def core_to_spare(self) -> bool:
        """Whether every rank of the host can have a core to itself."""
        return self.num_local <= self.num_cores


def gather_facts(rank: int, bell: str, config_id: str, *, is_worker: bool) -> RankFacts:
    """Return the facts of this process; the GPUs are looked at only by a worker, or a server that is to have one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = []
    for i in range(torch.cuda.device_count() if is_worker else 0):
        properties = torch.cuda.get_device_properties(i)
        gpus.append((properties.name, str(getattr(properties, "uuid", f"#{i}"))))
    versions = f"fedmpi {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set") or "empty"
    return RankFacts(rank, os.getpid(), socket.gethostname(), cores, gpus, bell, config_id, versions, visible)


def check_num_ranks(num_ranks: int, config: PlacementConfig) -> None:
    """Raise PlacementError if the run asks for more ranks than there are."""
    if num_ranks < config.min_ranks:
        raise PlacementError(
            f"placement.min_ranks={config.min_ranks}, but there {'is' if num_ranks == 1 else 'are'} {num_ranks}; start "
            f"it with `fedmpi launch -n {config.min_ranks}`, mpirun or srun, or set placement.min_ranks lower"
        )


def place_ranks(facts: Sequence[RankFacts], config: PlacementConfig) -> tuple[list[Place], list[str]]:
    """Decide the place of every rank.

    Returns
    -------
    places : list of Place
        By rank.
    warnings : list of str
        What the user should know.

    Raises
    ------
    PlacementError
        If a GPU is asked for and not there, or would be shared by more workers than asked for, or ranks differ in
        configuration or versions.
    """
    for other in facts[1:]:
        if other.config_id != facts[0].config_id:
            raise PlacementError(f"rank {other.rank} on {other.host} has read another configuration than rank 0")
        if other.versions != facts[0].versions:
            raise PlacementError(f"rank {other.rank} on {other.host} runs {other.versions}, rank 0 {facts[0].versions}")
    places: list[Place] = []
    warnings: list[str] = []
    for host in dict.fromkeys(fact.host for fact in facts):
        local = [fact for fact in facts if fact.host == host]
        cores = {core for fact in local for core in fact.cores}
        workers = [fact for fact in local if fact.rank > 0 or len(facts) == 1]
        # With one GPU bound to each task all are cuda:0, and only the UUIDs tell them apart.
        users = {uuid: 0 for fact in workers for _, uuid in fact.gpus}
        for local_rank, fact in enumerate(local):
            is_worker = fact in workers
            if is_worker:
                if len(facts) == 1:
                    _check_server_device(fact, config)  # it computes where the clients do, so that must be a GPU's rank
                device, name, uuid = _device(fact, users, config)
            else:
                device, name, uuid = _server_device(fact, len(workers), config)
            threads = max(1, len(cores) // len(local)) if config.threads == "auto" else config.threads
            role = "both" if len(facts) == 1 else "worker" if fact.rank else "server"
            own_cores = _ranges(fact.cores)
            places.append(
                Place(
                    fact.rank,
                    role,
                    host,
                    local_rank,
                    device,
                    name,
                    uuid,
                    own_cores,
                    threads,
                    len(local),
                    len(cores),
                    fact.pid,
                )
            )
        threads = places[-1].threads
        if len(workers) * threads > len(cores) and places[-1].device == "cpu":
            warnings.append(f"{host}: {len(workers)} workers x {threads} threads share {len(cores)} cores")
        _check_shared(host, users, config.clients_per_gpu)
        shared = [count for count in users.values() if count > 1]
        if shared:
            warnings.append(
                f"{host}: up to {max(shared)} workers share a GPU, as placement.clients_per_gpu allows; without MPS "
                "they take turns"
            )
    if config.threads == "auto":
        warnings.append(
            f"placement.threads=auto took {places[0].threads}: sums are split by threads, so results differ from those "
            "with another number"
        )
    return sorted(places, key=lambda place: place.rank), warnings


def _device(fact: RankFacts, users: dict[str, int], config: PlacementConfig) -> tuple[str, str, str]:
    """Return device, name and UUID for a worker; `users` counts the workers of each GPU of the host, by UUID."""
    if config.device == "cpu" or (config.device == "auto" and not fact.gpus):
        return _CPU
    if not fact.gpus:
        raise PlacementError(
            f"placement.device=cuda, but rank {fact.rank} on {fact.host} sees no GPU (CUDA_VISIBLE_DEVICES: "
            f"{fact.visible}); placement.device=cpu runs without"
        )
    # A launcher that binds one GPU to each task leaves one visible; one that does not leaves all of them to share out.
    gpu = min(range(len(fact.gpus)), key=lambda i: (users[fact.gpus[i][1]], i))
    name, uuid = fact.gpus[gpu]
    users[uuid] += 1
    return f"cuda:{gpu}", name, uuid


def _server_device(fact: RankFacts, num_local_workers: int, config: PlacementConfig) -> tuple[str, str, str]:
    """Return device, name and UUID for a server beside workers, which counts in no limit on sharing."""
    if config.server_device == "cpu":
        return _CPU
    _check_server_device(fact, config)
    # Workers are dealt the GPUs in turn, from the first: the next one has fewest of them.
    gpu = num_local_workers % len(fact.gpus)
    return (f"cuda:{gpu}", *fact.gpus[gpu])


def _check_server_device(fact: RankFacts, config: PlacementConfig) -> None:
    if config.server_device == "cuda" and not fact.gpus:
        raise PlacementError(
            f"placement.server_device=cuda, but rank {fact.rank} on {fact.host} sees no GPU (CUDA_VISIBLE_DEVICES: "
            f"{fact.visible}); placement.server_device=cpu runs without"
        )


def _check_shared(host: str, users: dict[str, int], clients_per_gpu: int) -> None:
    most = max(users.values(), default=0)
    if most > clients_per_gpu:
        num_workers, num_gpus = sum(users.values()), len(users)
        raise PlacementError(
            f"{host}: {num_workers} workers for {num_gpus} GPU{'s' if num_gpus > 1 else ''} "
            f"(placement.clients_per_gpu={clients_per_gpu}). Start fewer ranks, let them share with "
            f"placement.clients_per_gpu={most}, or keep off the GPUs with placement.device=cpu"
        )


def _ranges(cores: Sequence[int]) -> str:
    """Write [0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and parts[-1][-1] == core - 1:
            parts[-1] = [parts[-1][0], core]
        else:
            parts.append([core])
    return ",".join("-".join(map(str, part)) for part in parts)


def place_row(place: Place) -> dict[str, str | int]:
    """Return a place as a row of plain values."""
    row: dict[str, str | int] = asdict(place)
    return row
