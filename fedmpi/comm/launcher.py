"""What the launcher's environment says, before MPI is touched; and the communicator that follows from it."""

from __future__ import annotations

import os
import time

from fedmpi.comm.base import Communicator
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import CommConfig
from fedmpi.errors import PlacementError

_SIZE_AND_RANK = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)


OTHER_LAUNCHER = (
    "Use `fedmpi launch`, the mpiexec beside this python, or srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)"
)


def launched_as() -> tuple[int, int] | None:
    """Return (size, rank) as the launcher's environment has it, None for a process that no launcher started."""
    pairs = list(_SIZE_AND_RANK)
    if "SLURM_STEP_ID" in os.environ:  # srun; a batch script has SLURM_NTASKS too, but is no task
        pairs.append(("SLURM_NTASKS", "SLURM_PROCID"))
    for size, rank in pairs:
        if os.environ.get(size, "").isdigit() and os.environ.get(rank, "").isdigit():
            return int(os.environ[size]), int(os.environ[rank])
    return None


def speaks(wait_s: float = 5.0) -> bool:
    """Say whether this process prints an error that all launched ones meet alike, after which all end: rank 0 does.

    Open MPI's launcher, and srun where so configured, kill the rest of a job with the first process that fails. So
    the other ranks give rank 0 `wait_s` seconds to say it. Open MPI's have then not been killed: rank 0 met no error,
    and they speak themselves.
    """
    launched = launched_as()
    if launched is None or launched[1] == 0:
        return True
    openmpi = "OMPI_COMM_WORLD_SIZE" in os.environ
    if openmpi or "SLURM_STEP_ID" in os.environ:
        time.sleep(wait_s)
    return openmpi


def connect(config: CommConfig) -> Communicator:
    """Return the communicator of this process: MPI under a launcher, in-process without one.

    Raises
    ------
    PlacementError
        If the launcher and MPI disagree on the number of ranks: several copies of the job would run side by side.
    """
    launched = launched_as()
    if launched is None:
        return LocalCommunicator()
    from fedmpi.comm import mpi  # only here: one process needs no MPI

    comm = mpi.MpiCommunicator(chunk_nbytes=config.chunk_nbytes, limit_nbytes=config.limit_nbytes)
    if launched[0] != comm.size:
        raise PlacementError(
            f"the launcher started {launched[0]} processes, but MPI ({mpi.library_version()}) sees {comm.size}: the "
            f"launcher belongs to another MPI. {OTHER_LAUNCHER}"
        )
    return comm
