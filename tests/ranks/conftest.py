"""What tests on several ranks share: a folder that all of them see."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from agreement import meet


@pytest.fixture
def shared_folder():
    """A folder that all ranks of the test see; rank 0 makes and removes it."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    meet()
    folder = comm.bcast(tempfile.mkdtemp(prefix="fedmpi-test.") if comm.rank == 0 else None)
    yield Path(folder)
    meet()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
