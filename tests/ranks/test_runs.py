"""Runs on several ranks: the same model and the same messages, bit for bit, however they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Delaying, check_agreement, meet, run_alone, run_on_all
from support import ALGORITHMS, digests, small_config
from torch import nn

from fedmpi.ledger.reader import Ledger
from fedmpi.models.registry import register


def batch_norm_net(config, shape, num_classes):
    """A network with floating and integer buffers, whose forward pass draws random numbers."""
    width = shape.height * shape.width * shape.channels
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, num_classes)
    )


TALK = f"{ALGORITHMS / 'talk.py'}:TALK"
MEMORY = f"{ALGORITHMS / 'memory.py'}:MEMORY"
KINDS = f"{ALGORITHMS / 'kinds.py'}:KINDS"
HASTY = f"{ALGORITHMS / 'hasty.py'}:HASTY"
COUNTING = f"{ALGORITHMS / 'counting.py'}:COUNTING"

FEDDST: dict[str, Any] = {
    "algorithm": {"name": "feddst", "density": 0.3, "alpha": 0.3, "interval": 1, "end_round": 100},
    "rounds": 4,
    "train": {"batch_size": 20, "lr": 0.05, "local_epochs": 2},
}


FEW = {
    "delayed",
    "talk with a peer, delayed",
    "memory moved",
    "every kind of value, with the player",
    "masks moved",
    "masks, clients lost, with a peer",
    "masks as released",
    "a mask that stays",
    "reconfigured",
    "scored",
}
"""Cases that five ranks are tried with every time; three ranks are tried with all."""


@pytest.mark.ranks(3, timeout=270)
def test_three_ranks_agree_with_one_process(shared_folder):
    check_all(shared_folder)


@pytest.mark.ranks(5, timeout=180)
def test_five_ranks_agree_with_one_process(shared_folder):
    check_all(shared_folder, only=FEW)


@pytest.mark.slow
@pytest.mark.ranks(2, timeout=270)
def test_two_ranks_agree_in_all_cases(shared_folder):
    check_all(shared_folder)


@pytest.mark.slow
@pytest.mark.ranks(5, timeout=240)
def test_five_ranks_agree_in_all_cases(shared_folder):
    check_all(shared_folder)


def check_all(folder: Path, only: set[str] | None = None) -> None:
    """Compare runs on the ranks of the test with runs in one process: all, or the cases of these names."""
    from mpi4py import MPI

    # Here, in the ranks of the test alone: the outer pytest's registry stays as users have it.
    register("buffers and dropout of the tests")(batch_norm_net)
    fedavgm = {"algorithm": {"name": "fedavgm"}}
    talk = {"algorithm": {"name": TALK}}
    first = {"algorithm": {"name": TALK, "client_first": True}}
    large = {"model": {"name": "mlp", "hidden": [600]}}  # 370 kB a message: beyond what travels inline
    buffers = {"model": {"name": "buffers and dropout of the tests"}}
    memory = {"algorithm": {"name": MEMORY}, "rounds": 5}
    lost = {"participation": {"clients_per_round": 8, "dropout": 0.4, "sampling": "by_size", "availability": 0.9}}
    lost_memory, lost_talk = {**memory, **lost}, {**talk, **lost}
    hasty = {"algorithm": {"name": HASTY}, "rounds": 4, "participation": {"clients_per_round": 12}}
    refused = {**hasty, "server": {"nonfinite": "drop"}}
    kinds = {**buffers, "algorithm": {"name": KINDS}}
    topk = {**buffers, "algorithm": {"name": "fedavg", "compress": "topk", "density": 0.05}, "rounds": 4}
    apart = {"placement": {"state_dir": str(folder / "state{rank}")}}
    feddst = {**buffers, **FEDDST}
    lost_feddst = {**feddst, **lost}
    released = {**feddst, "algorithm": {**FEDDST["algorithm"], "name": "feddst_released"}}
    static = {**feddst, "algorithm": {"name": "randommask", "density": 0.3}}
    magnitude = {**feddst, "algorithm": {"name": "magnitude", "density": 0.3}}
    fedprox = {"algorithm": {"name": "fedprox", "mu": 1.0}}
    initial = {"initial_iterations": 30, "initial_interval": 5}
    prunefl = {**feddst, "algorithm": {"name": "prunefl", "reconfigure_every": 2, "constant_s": 0.01, **initial}}
    grasp = {**feddst, "algorithm": {"name": "grasp", "density": 0.3, "score_clients": 2}}
    cases: list[tuple[str, str, dict[str, Any], Any]] = [
        ("plain", "plain", {}, None),
        ("delayed", "plain", {}, Delaying),
        ("chunked", "plain", {"comm": {"chunk_nbytes": 1000}}, None),
        ("ordered", "plain", {"server": {"hold_nbytes": 0}}, None),
        ("full", "full", {"server": {"initial_model": "full"}}, None),
        ("no bell", "fedavgm", {**fedavgm, "comm": {"doorbell": False}}, None),
        ("talk on rank 0", "talk", talk, None),
        ("talk with the player", "talk", {**talk, "server": {"host": "player"}}, None),
        ("talk with a peer, delayed", "talk", {**talk, "server": {"host": "peer"}}, Delaying),
        ("fedavg with a peer", "plain", {"server": {"host": "peer"}}, None),
        ("client first", "first", first, None),
        ("client first, with a peer", "first", {**first, "server": {"host": "peer"}}, None),
        ("large, delayed", "large", large, Delaying),
        ("large, in pieces, delayed", "large", {**large, "comm": {"chunk_nbytes": 100_000}}, Delaying),
        ("large, with a peer", "large", {**large, "server": {"host": "peer"}}, Delaying),
        ("buffers and dropout", "buffers", buffers, Delaying),
        ("buffers and dropout, with the player", "buffers", {**buffers, "server": {"host": "player"}}, None),
        ("memory", "memory", memory, None),
        ("memory moved", "memory", {**memory, **apart}, Delaying),
        ("clients lost", "lost", lost_memory, Delaying),
        ("clients lost, with the player", "lost", {**lost_memory, "server": {"host": "player"}}, None),
        ("clients lost in talk, with a peer", "lost talk", {**lost_talk, "server": {"host": "peer"}}, Delaying),
        ("every kind of value", "kinds", kinds, Delaying),
        ("every kind of value, with the player", "kinds", {**kinds, "server": {"host": "player"}}, None),
        ("every kind of value, with a peer", "kinds", {**kinds, "server": {"host": "peer"}}, Delaying),
        ("largest numbers", "topk", topk, Delaying),
        ("largest numbers, with a peer", "topk", {**topk, "server": {"host": "peer"}}, None),
        ("refused", "refused", refused, Delaying),
        ("refused, with the player", "refused", {**refused, "server": {"nonfinite": "drop", "host": "player"}}, None),
        ("refused, with a peer", "refused", {**refused, "server": {"nonfinite": "drop", "host": "peer"}}, Delaying),
        ("masks moved", "feddst", {**feddst, **apart}, Delaying),
        ("masks, with a peer", "feddst", {**feddst, "server": {"host": "peer"}}, Delaying),
        ("masks, clients lost", "feddst lost", {**lost_feddst, **apart}, Delaying),
        ("masks, clients lost, with a peer", "feddst lost", {**lost_feddst, "server": {"host": "peer"}}, Delaying),
        ("masks as released", "feddst_released", {**released, **apart}, Delaying),
        ("a mask that stays", "randommask", {**static, **apart}, Delaying),
        ("the largest of the model", "magnitude", {**magnitude, "server": {"host": "player"}}, Delaying),
        ("held back", "fedprox", fedprox, Delaying),
        ("reconfigured", "prunefl", {**prunefl, "server": {"host": "peer"}}, Delaying),
        ("scored", "grasp", {**grasp, "server": {"host": "player"}}, Delaying),
    ]
    sections = {
        "plain": {},
        "full": {"server": {"initial_model": "full"}},
        "fedavgm": fedavgm,
        "talk": talk,
        "first": first,
        "large": large,
        "buffers": buffers,
        "memory": memory,
        "lost": lost_memory,
        "lost talk": lost_talk,
        "kinds": kinds,
        "topk": topk,
        "refused": refused,
        "feddst": feddst,
        "feddst lost": lost_feddst,
        "feddst_released": released,
        "randommask": static,
        "magnitude": magnitude,
        "fedprox": fedprox,
        "prunefl": prunefl,
        "grasp": grasp,
    }
    simulation_nbytes = check_agreement(folder, cases, sections, only)
    if only is not None:
        return
    if MPI.COMM_WORLD.rank == 0 and MPI.COMM_WORLD.size > 2:  # with one worker there is nowhere to move to
        assert simulation_nbytes["memory moved"] > simulation_nbytes["memory"]
    folder_here = folder / f"config{MPI.COMM_WORLD.rank}"
    out = run_on_all(folder, "no evaluation", small_config(folder_here, evaluate={"every": 0}))
    if MPI.COMM_WORLD.rank == 0:
        assert digests(out) == digests(folder / "plain alone")


def times_of(out: Path) -> dict[str, list[float]]:
    """Return the columns of virtual time and of operations, and the turns in ascending order."""
    with Ledger(out / "ledger.h5") as ledger:
        found = {name: values.tolist() for name, values in ledger.rounds.items() if name.startswith("virtual_")}
        found |= {name: ledger.rounds[name].tolist() for name in ("device_ops", "server_ops", "aggregate_ops")}
        turns = ledger.turns
    order = np.lexsort([turns["client_id"], turns["round_idx"]])
    return {**found, **{f"turns/{name}": values[order].tolist() for name, values in turns.items()}}


@pytest.mark.ranks(3, timeout=90)
def test_virtual_time_does_not_depend_on_the_ranks(shared_folder):
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    time = {"link": "lte_20m_5m", "device": "phone", "server": 1e9, "link_spread": 0.5, "device_spread": 0.5}
    lost = {"clients_per_round": 8, "dropout": 0.3}
    for algorithm in (COUNTING, TALK):
        changes = {"time": time, "algorithm": {"name": algorithm}, "participation": lost}
        if rank == 0:
            wanted = times_of(run_alone(shared_folder, "alone", small_config(folder_here, **changes)))
            assert len(wanted["turns/client_id"]) == 24
            assert np.isfinite(list(wanted["virtual_overlap_mean_s"])).all()
            assert min(wanted["device_ops"]) > 0
            assert (min(wanted["server_ops"]) > 0) == (algorithm == COUNTING)
        for host, comm_class in (("rank0", Delaying), ("player", None), ("peer", Delaying)):
            config = small_config(folder_here, **changes, server={"host": host})
            out = run_on_all(shared_folder, host, config, comm_class)
            if rank == 0:
                assert times_of(out) == wanted, host


@pytest.mark.ranks(3, timeout=60)
def test_a_mask_that_moves_with_its_client_is_no_message(shared_folder, monkeypatch):
    from mpi4py import MPI

    from fedmpi.engine.server import Server

    rank = MPI.COMM_WORLD.rank
    # Every client is planned for the worker that does not have its state.
    at_home = Server._workers_at_home
    monkeypatch.setattr(Server, "_workers_at_home", lambda self, client: {1, 2} - set(at_home(self, client)))
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    states = {"together": "state", "apart": "state{rank}"}
    summaries = {}
    for name, state in states.items():
        placement = {"state_dir": str(shared_folder / state)}
        model = {"name": "mlp", "hidden": [600]}  # 11 kB a mask
        changes = {**FEDDST, "model": model, "evaluate": {"every": 0}, "placement": placement}
        out = run_on_all(shared_folder, name, small_config(folder_here, **changes))
        if rank == 0:
            with Ledger(out / "ledger.h5") as ledger:
                summaries[name] = ledger.summary()
    if rank == 0:
        for same in ("down_nbytes", "up_nbytes", "ledger_digest", "model_digest"):
            assert summaries["apart"][same] == summaries["together"][same]
        assert summaries["apart"]["simulation_nbytes"] > summaries["together"]["simulation_nbytes"] + 11_000


@pytest.mark.ranks(3, timeout=60, env={"FI_PROVIDER": "tcp", "UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"})
def test_over_tcp_only(shared_folder):
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    config = small_config(folder_here, "model.hidden=[600]", "rounds=2")  # 370 kB a message: no eager send
    out = run_on_all(shared_folder, "tcp", config)
    if rank == 0:
        assert digests(out) == digests(run_alone(shared_folder, "alone", config))


class CountingComm:
    """Stands before an MPI communicator and counts what is sent through it."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.nbytes = 0

    def Dup(self) -> CountingComm:
        self.comm = self.comm.Dup()
        return self

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.comm, name)
        if name.lower().startswith(("get_", "improbe", "irecv", "abort")):
            return found

        def counted(data: Any, *args: Any, **kwargs: Any) -> Any:
            assert name == "Isend", f"{name} moves bytes that nobody counts"
            buffer = data[0] if isinstance(data, list) else data
            self.nbytes += memoryview(buffer).nbytes
            return found(data, *args, **kwargs)

        return counted


@pytest.mark.ranks(3, timeout=90)
def test_every_byte_that_mpi_carried_is_in_the_ledger(shared_folder):
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    for host in ("rank0", "player", "peer"):
        for algorithm in ({"name": "fedavg"}, {"name": TALK}, {"name": MEMORY}, FEDDST["algorithm"]):
            counting = CountingComm(MPI.COMM_WORLD)
            config = small_config(folder_here, algorithm=algorithm, server={"host": host})
            out = run_on_all(shared_folder, "counted", config, mpi=counting)
            carried = MPI.COMM_WORLD.allreduce(counting.nbytes)
            if rank == 0:
                with Ledger(out / "ledger.h5") as ledger:
                    summary = ledger.summary()
                assert summary["wire_nbytes"] + summary["simulation_nbytes"] == carried, (host, algorithm)
            meet()


@pytest.mark.ranks(3, timeout=60)
def test_buffers_are_reused_after_the_first_rounds(shared_folder):
    from mpi4py import MPI

    from fedmpi.comm.mpi import MpiCommunicator

    pools = []

    class Watched(MpiCommunicator):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            pools.append(self.pool)

    rank = MPI.COMM_WORLD.rank
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    sizes = {}
    for rounds in (4, 40):
        config = small_config(folder_here, f"rounds={rounds}", "model.hidden=[600]", "train.batch_size=200")
        run_on_all(shared_folder, f"{rounds} rounds", config, Watched)
        sizes[rounds] = pools[-1].allocated_nbytes
    # A reply more or less may be held when arrivals cross: two of them, not one a round.
    assert sizes[40] <= sizes[4] + 2 * 400_000


@pytest.mark.mpi
def test_collective_run_under_somebody_elses_mpirun(shared_folder):
    """Run by ``mpirun -n 4 python -m pytest --with-mpi``."""
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    folder_here = shared_folder / f"config{rank}"
    folder_here.mkdir()
    config = small_config(folder_here)
    out = run_on_all(shared_folder, "with-mpi", config)
    if rank == 0:
        assert digests(out) == digests(run_alone(shared_folder, "alone", config))
