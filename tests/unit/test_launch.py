"""``fedmpi launch``: which mpiexec it takes, and what it says when the launcher reports a death."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpi import launch as module
from fedmpi.errors import PlacementError
from fedmpi.launch import find_mpiexec, launch
from fedmpi.ledger.writer import LedgerWriter

MPICH = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 7659 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
MPICH_EXIT = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 7659 RUNNING AT vm
=   EXIT CODE: 5
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""
OPEN_MPI = """\
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 1234 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
OPEN_MPI_ABORT = """\
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
  Proc: [[1234,1],1]
  Errorcode: 5
--------------------------------------------------------------------------
"""


def killed(text: str) -> tuple[str, str, str] | None:
    """Return process, host and signal as the module's patterns find them."""
    matches = [match for pattern in module._KILLED if (match := pattern.search(text))]
    assert len(matches) <= 1
    return (matches[0]["pid"], matches[0]["host"], matches[0]["signal"]) if matches else None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (MPICH, ("7659", "vm", "9")),
        (MPICH.replace("Killed (signal 9)", "Segmentation fault (signal 11)"), ("7659", "vm", "11")),
        (MPICH.replace(" AT vm", " AT node-17.cluster.local"), ("7659", "node-17.cluster.local", "9")),
        (OPEN_MPI, ("1234", "vm", "9")),
        (OPEN_MPI.replace("signal 9 (Killed)", "signal 11 (Segmentation fault)"), ("1234", "vm", "11")),
        ("round 1/3  clients 5\n" * 50 + OPEN_MPI + "\n", ("1234", "vm", "9")),
        (MPICH_EXIT, None),
        (OPEN_MPI_ABORT, None),
        ("round 1/3\nfedmpi: done rounds=3\n", None),
        ("", None),
    ],
)
def test_death_notices(text: str, found: tuple[str, str, str] | None) -> None:
    assert killed(text) == found


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the one beside this python; nothing on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return folder


def write_mpiexec(folder: Path, text: str = "") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "mpiexec"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_mpiexec_beside_this_python_comes_first(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_mpiexec(tmp_path / "other")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert find_mpiexec() == other
    own = write_mpiexec(scripts)
    assert find_mpiexec() == own


@pytest.mark.usefixtures("scripts")
def test_no_mpiexec_is_said_in_words() -> None:
    with pytest.raises(PlacementError, match=r"no mpiexec beside this python nor on PATH; pip install") as caught:
        find_mpiexec()
    assert caught.value.exit_status == 4


@pytest.fixture
def _signals() -> Iterator[None]:
    """`launch` is the last thing that its process does, and leaves its signal handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def end_with(scripts: Path, tmp_path: Path, text: str, status: int) -> None:
    """Put a launcher in place that ends like this."""
    (tmp_path / "notice.txt").write_text(text)
    cat = f"while IFS= read -r line; do printf '%s\\n' \"$line\"; done < {tmp_path / 'notice.txt'}"
    write_mpiexec(scripts, f'printf "%s " "$@" $OMPI_ALLOW_RUN_AS_ROOT\n{cat} >&2\nexit {status}')


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("text", "pid", "rank"), [(MPICH, 7659, 2), (OPEN_MPI, 1234, 1)])
def test_a_killed_rank_is_named_with_what_is_left(
    scripts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, pid: int, rank: int
) -> None:
    writer = LedgerWriter(tmp_path / "ledger.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.set_placement([{"rank": 0, "pid": 17}, {"rank": rank, "pid": pid}])
    writer.finish("running", {})
    end_with(scripts, tmp_path, text, 9)
    assert launch(3, ["run", "a.yaml"], tmp_path) == 128 + 9
    captured = capfd.readouterr()
    assert captured.out == f"-n 3 {sys.executable} -m fedmpi run a.yaml 1 "
    *passed_on, said = captured.err.splitlines()
    assert passed_on == text.splitlines()
    assert said == (
        "fedmpi: error: a rank was killed by signal 9 (SIGKILL), and the job with it; the launcher "
        f"names process {pid} on vm, rank {rank}; {tmp_path / 'ledger.h5'} holds 0 messages of 0 complete rounds"
    )


@pytest.mark.usefixtures("_signals")
def test_a_killed_rank_of_a_run_without_a_ledger(
    scripts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end_with(scripts, tmp_path, MPICH, 9)
    assert launch(3, ["run"], tmp_path / "none") == 137
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("fedmpi: error: a rank was killed by signal 9 (SIGKILL)")
    assert said.endswith("; no ledger was written yet")


@pytest.mark.usefixtures("_signals")
def test_a_killed_rank_of_a_run_whose_ledger_is_damaged(
    scripts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.h5").write_text("no HDF5")
    end_with(scripts, tmp_path, MPICH, 9)
    assert launch(3, ["run"], tmp_path) == 137
    assert "no readable ledger is left: " in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("text", "status"), [("fine\n", 0), (MPICH_EXIT, 5), (OPEN_MPI_ABORT, 75)])
def test_otherwise_the_status_is_the_jobs(
    scripts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, status: int
) -> None:
    end_with(scripts, tmp_path, text, status)
    assert launch(2, ["run"], tmp_path) == status
    assert capfd.readouterr().err == text


def test_the_tests_own_mpiexec_is_one_that_can_run() -> None:
    assert os.access(find_mpiexec(), os.X_OK)
