"""All measurements of benchmarks/README.md, one after the other, in about twenty minutes: ``make bench``."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedmpi.launch import MPI_ENVIRONMENT, find_mpiexec
from fedmpi.ledger.reader import Ledger

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "jobs" / "configs" / "bench_cnn.yaml"
ENV = {**os.environ, **MPI_ENVIRONMENT, "OMP_NUM_THREADS": "1"}


def show(title: str, command: list[str]) -> None:
    print(f"== {title}: {' '.join(command)}", flush=True)
    subprocess.run(command, env=ENV, check=True)


def start_to_first_round() -> None:
    """Time from mpiexec to the line of the first round, which two quick clients make."""
    print("== start: mpiexec -n 3 to the end of a first round of two clients", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [find_mpiexec(), "-n", "3", sys.executable, "-m", "fedmpi", "run", str(REFERENCE), "rounds=1"]
        command += ["evaluate.every=0", "participation.clients_per_round=2", "-o", folder]
        start = time.perf_counter()
        with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("round "):
                    print(f"{time.perf_counter() - start:.2f} s (target under 8)", flush=True)


def accuracy() -> None:
    """Fifty rounds of FedAvg, and the plain loop's over the same batches."""
    print("== accuracy: 50 rounds of FedAvg on full Fashion-MNIST, and the same in the plain loop", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedmpi", "launch", "-n", "3", str(REFERENCE), "-o", folder]
        subprocess.run(command, env=ENV, check=True, capture_output=True)
        with Ledger(Path(folder) / "ledger.h5") as ledger:
            ours = [value for value in ledger.rounds["test_accuracy"].tolist() if not math.isnan(value)]
    bare = [sys.executable, str(HERE / "bare.py"), str(REFERENCE), "--federated", "--json"]
    plain = json.loads(subprocess.run(bare, env=ENV, check=True, capture_output=True, text=True).stdout)
    for name, values in (("fedmpi", ours), ("plain loop", plain["accuracy"])):
        print(f"{name:10}", " ".join(f"{value:.4f}" for value in values), flush=True)


def main() -> None:
    python = sys.executable
    show("messages", [find_mpiexec(), "-n", "2", python, str(HERE / "comm.py")])
    show("ledger", [python, str(HERE / "ledger.py")])
    show("sizes", [python, str(HERE / "wire.py")])
    for model in ("cifar10net", "mnistnet"):
        show("masked step", [python, str(HERE / "masked_step.py"), "--model", model])
    start_to_first_round()
    show("rounds", [python, str(HERE / "rounds.py"), "--repeats", "7"])
    accuracy()
    show("scale", [python, str(HERE / "scale.py")])


if __name__ == "__main__":
    main()
