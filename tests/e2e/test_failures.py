"""Jobs that go wrong, through the commands a user types: words, status, and what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import ALGORITHMS, run_here, run_ranks, small_config, write_config

from fedmpi.comm.local import LocalCommunicator
from fedmpi.errors import ProtocolError
from fedmpi.ledger.reader import Ledger

TROUBLE = f"{ALGORITHMS / 'trouble.py'}:TROUBLE"
pytestmark = pytest.mark.usefixtures("launches")


def trouble(folder: Path, **settings) -> Path:
    return write_config(
        folder, algorithm={"name": TROUBLE, **settings}, ledger={"flush_s": 0.01}, evaluate={"every": 2}
    )


def fedmpi(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("where", ["client", pytest.param("server", marks=pytest.mark.slow)])
def test_a_rank_that_raises_ends_the_job_with_its_words(tmp_path, where):
    config = trouble(tmp_path, where=where)
    start = time.monotonic()
    outcome = run_ranks(3, ["-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out")], timeout=40)
    assert time.monotonic() - start < 30
    assert outcome.status == 1
    assert re.search(("rank 0" if where == "server" else "rank [12]") + r" on \S+: ValueError", outcome.output)
    assert "ValueError: a planned failure" in outcome.output
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert "a planned failure" in ledger.status
        assert ledger.summary()["rounds"] == 1
        assert (ledger.messages["round_idx"] == 0).sum() == 10


def test_in_one_process_a_failure_is_an_exit_status(tmp_path):
    done = fedmpi("run", str(trouble(tmp_path)), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "fedmpi: error: ValueError: a planned failure" in done.stderr


def test_a_wait_that_is_too_long_says_who_waits_for_what(tmp_path):
    config = trouble(tmp_path, what="sleep")
    outcome = run_ranks(
        2, ["-m", "fedmpi", "run", str(config), "comm.timeout_s=1.5", "-o", str(tmp_path / "out")], timeout=40
    )
    assert outcome.status == 5
    assert "rank 0 waited 1.5 s for client " in outcome.output
    assert "on rank 1 (round 1, model)" in outcome.output


def test_a_client_that_says_nothing_breaks_the_protocol(tmp_path):
    done = fedmpi("run", str(trouble(tmp_path, what="silent")), "-o", str(tmp_path / "out"), "comm.timeout_s=2")
    assert done.returncode == 5
    assert "ended its turn of round 1, while the server expects model" in done.stderr


def test_a_message_above_the_limit_is_refused(tmp_path):
    config = write_config(tmp_path, model={"name": "mlp", "hidden": [64]})
    outcome = run_ranks(
        2, ["-m", "fedmpi", "run", str(config), "comm.limit_nbytes=8000", "-o", str(tmp_path / "out")], timeout=40
    )
    assert outcome.status == 5
    assert "more than comm.limit_nbytes = 8000" in outcome.output


def test_a_killed_rank_under_launch(tmp_path):
    config = trouble(tmp_path, what="kill", round_idx=2)
    done = fedmpi("launch", "-n", "3", str(config), "-o", str(tmp_path / "out"))
    assert done.returncode == 128 + signal.SIGKILL
    assert "a rank was killed by signal 9 (SIGKILL)" in done.stderr
    assert re.search(r"the launcher names process \d+ on \S+, rank [012];", done.stderr)
    assert re.search(r"holds \d+ messages of [012] complete rounds", done.stderr)
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status == "running"


def test_a_flipped_byte_is_found_in_one_process_too(tmp_path, capfd):
    class Corrupting(LocalCommunicator):
        def send(self, dest, envelope, body=None):
            if envelope.counted and envelope.round_idx == 1:
                body = np.array(body)
                body[body.size // 2] ^= 1
            super().send(dest, envelope, body)

    status = run_here(small_config(tmp_path), tmp_path / "out", Corrupting())
    assert status == ProtocolError.exit_status
    assert "frame checksum: at byte 20 expected" in capfd.readouterr().err


def test_another_mpis_launcher_is_noticed(tmp_path):
    """The environment of Open MPI's launcher around an MPI that knows nothing of it."""
    config = write_config(tmp_path)
    env = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "the launcher started 3 processes, but MPI" in done.stderr
    assert "fedmpi launch" in done.stderr


def test_asked_to_stop_it_finishes_the_round(tmp_path):
    config = write_config(tmp_path, rounds=100000, evaluate={"every": 0})
    command = [sys.executable, "-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round "):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.communicate(timeout=30)[0]
    assert process.returncode == 75
    assert "fedmpi: stopped rounds=" in rest
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status == "stopped"
