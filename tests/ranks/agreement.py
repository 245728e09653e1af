"""Runs on the ranks of a test, and runs in one process that they must equal bit for bit."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from support import digests, run_here, small_config

from fedmpi.comm.local import LocalCommunicator
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger


def meet() -> None:
    """Wait for all ranks of the test asleep: MPI waits awake, on cores that those waited for would need."""
    from mpi4py import MPI

    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(2e-3)


def run_on_all(folder: Path, name: str, config, comm_class=None, mpi=None, **options: Any) -> Path:
    """Run on all ranks of the test; return the output folder. Each run has a communicator of its own."""
    from mpi4py import MPI

    from fedmpi.comm.mpi import MpiCommunicator

    meet()
    duplicate = (mpi or MPI.COMM_WORLD).Dup()
    comm = (comm_class or MpiCommunicator)(
        duplicate, chunk_nbytes=config.comm.chunk_nbytes, limit_nbytes=config.comm.limit_nbytes, **options
    )
    assert run_here(config, folder / name, comm) == 0
    return folder / name


def run_alone(folder: Path, name: str, config) -> Path:
    """Run in this process alone, without MPI."""
    assert run_here(config, folder / name, LocalCommunicator()) == 0
    return folder / name


class Delaying:
    """Made into a communicator that dawdles, in sending and in noticing what has come."""

    def __new__(cls, *args: Any, **kwargs: Any):
        from fedmpi.comm.mpi import MpiCommunicator

        class DelayingCommunicator(MpiCommunicator):
            def send(self, dest, envelope, body=None):
                time.sleep(random.random() * 4e-3)
                super().send(dest, envelope, body)

            def poll(self):
                return super().poll() if random.random() < 0.5 else None

        return DelayingCommunicator(*args, **kwargs)


def masks_of(out: Path) -> list[float]:
    """Return the checksums of the mask after each round, nothing of a run without masks."""
    with Ledger(out / "ledger.h5") as ledger:
        return ledger.rounds["mask_checksum"].tolist() if "mask_checksum" in ledger.rounds else []


def check_agreement(
    folder: Path,
    cases: list[tuple[str, str, dict[str, Any], Any]],
    sections: dict[str, dict[str, Any]],
    only: set[str] | None = None,
) -> dict[str, int]:
    """Compare runs on the ranks of the test with runs in one process.

    `cases` are a name, that of the run in one process that it must equal, what is changed of a small run, and the class
    of communicator; `sections` say what is changed in one process; with `only`, the cases of those names alone are run.
    Returns the bytes of simulation traffic by case, on rank 0.
    """
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    folder_here = folder / f"config{rank}"
    folder_here.mkdir()
    if only is not None:
        assert only <= {case[0] for case in cases}
        cases = [case for case in cases if case[0] in only]
    if MPI.COMM_WORLD.size == 2:  # the one worker is its own peer
        cases = [case for case in cases if case[2].get("server", {}).get("host") != "peer"]
    names = list(dict.fromkeys(like for _, like, _, _ in cases))
    for name in names[rank :: MPI.COMM_WORLD.size]:
        run_alone(folder, f"{name} alone", small_config(folder_here, **sections[name]))
    meet()
    expected, masks = {}, {}
    if rank == 0:
        for name in names:
            out = folder / f"{name} alone"
            expected[name], masks[name] = digests(out), masks_of(out)
        assert len(set(expected.values())) == len(expected), "the cases must differ, or equality says nothing"
    simulation_nbytes: dict[str, int] = {}
    for name, like, changes, comm_class in cases:
        out = run_on_all(folder, name, small_config(folder_here, **changes), comm_class)
        if rank == 0:
            assert digests(out) == expected[like], name
            assert masks_of(out) == masks[like], name
            assert Check(out / "ledger.h5").problems == [], name
            with Ledger(out / "ledger.h5") as ledger:
                simulation_nbytes[name] = ledger.summary()["simulation_nbytes"]
    return simulation_nbytes
