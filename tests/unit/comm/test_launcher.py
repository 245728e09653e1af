"""What the environments of launchers say."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

import fedmpi.comm
from fedmpi.comm.launcher import connect, launched_as, speaks
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import CommConfig
from fedmpi.errors import PlacementError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what this pytest's own launcher has set."""
    for prefix in ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_"):
        for name in ("SIZE", "RANK"):
            monkeypatch.delenv(prefix + name, raising=False)
    for name in ("SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("prefix", ["OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_"])
def test_a_launcher_says_size_and_rank(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    set_all(monkeypatch, **{prefix + "SIZE": "12", prefix + "RANK": "7"})
    assert launched_as() == (12, 7)


@pytest.mark.parametrize("prefix", ["OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_"])
@pytest.mark.parametrize("half", [{"SIZE": "2"}, {"RANK": "0"}, {"SIZE": "2", "RANK": ""}, {"SIZE": "x", "RANK": "0"}])
def test_half_a_launcher_is_none(monkeypatch: pytest.MonkeyPatch, prefix: str, half: dict[str, str]) -> None:
    set_all(monkeypatch, **{prefix + name: value for name, value in half.items()})
    assert launched_as() is None


def test_nobody() -> None:
    assert launched_as() is None


def test_a_slurm_step_is_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_STEP_ID="0", SLURM_NTASKS="16", SLURM_PROCID="3")
    assert launched_as() == (16, 3)


def test_a_slurm_batch_script_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_NTASKS="16", SLURM_PROCID="0", SLURM_JOB_ID="99")
    assert launched_as() is None


def test_mpirun_within_a_slurm_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_STEP_ID="0", SLURM_NTASKS="1", SLURM_PROCID="0", PMI_SIZE="4", PMI_RANK="2")
    assert launched_as() == (4, 2)


@pytest.mark.parametrize(
    ("environment", "waits", "says"),
    [
        ({}, False, True),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, False, True),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, False, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, False, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True, True),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False, True),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, True, False),
    ],
)
def test_where_one_failure_kills_the_job_rank_0_has_the_first_word(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], waits: bool, says: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    set_all(monkeypatch, **environment)
    assert speaks(3.0) is says
    assert slept == ([3.0] if waits else [])


def test_without_a_launcher_one_process_and_no_mpi() -> None:
    assert isinstance(connect(CommConfig()), LocalCommunicator)
    code = (
        "import sys; from fedmpi.comm.launcher import connect; from fedmpi.config import CommConfig\n"
        "print(type(connect(CommConfig())).__name__, 'mpi4py' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split() == ["LocalCommunicator", "False"]


def mpi_of(size: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an MPI of so many ranks in the place of the real one; return its communicator."""
    comm = SimpleNamespace(rank=0, size=size)
    fake = SimpleNamespace(MpiCommunicator=lambda **_: comm, library_version=lambda: "MPI of a test")
    monkeypatch.setattr(fedmpi.comm, "mpi", fake, raising=False)
    return comm


@pytest.mark.parametrize(("launched", "size"), [(4, 1), (1, 4), (4, 2), (2, 4)])
def test_a_launcher_of_another_mpi(monkeypatch: pytest.MonkeyPatch, launched: int, size: int) -> None:
    mpi_of(size, monkeypatch)
    set_all(monkeypatch, PMI_SIZE=str(launched), PMI_RANK="0")
    words = rf"started {launched} processes, but MPI \(MPI of a test\) sees {size}:"
    with pytest.raises(PlacementError, match=words) as caught:
        connect(CommConfig())
    assert caught.value.exit_status == 4


@pytest.mark.parametrize("size", [1, 3])
def test_a_launcher_and_its_mpi(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    comm = mpi_of(size, monkeypatch)
    set_all(monkeypatch, PMI_SIZE=str(size), PMI_RANK="0")
    assert connect(CommConfig()) is comm
