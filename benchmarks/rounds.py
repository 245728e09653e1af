"""How fast is a round beside the training itself? fedmpi with a server and two workers against the bare loop.

    python benchmarks/rounds.py [cnn] [logreg] [--repeats 5] [--ranks 3]

Bare loop (benchmarks/bare.py, as many processes as there are workers) and fedmpi (`fedmpi launch`, every message real
and in the ledger) take turns. Evaluation is off
in both; the first two rounds are left out of both. The result is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bare import WARM_UP_ROUNDS

from fedmpi.ledger.reader import Ledger

CONFIGS = Path(__file__).parent.parent / "jobs" / "configs"
JOBS = {"cnn": ("bench_cnn.yaml", 22, 0.80), "logreg": ("bench_logreg.yaml", 202, 1.00)}


def run(command: list[str]) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=env, check=True, capture_output=True, text=True).stdout


def bare_s(config: Path, settings: list[str], processes: int) -> float:
    command = [str(Path(__file__).parent / "bare.py"), str(config), *settings, "--processes", str(processes), "--json"]
    return float(json.loads(run(command))["s_per_round"])


def fedmpi_s(config: Path, settings: list[str], ranks: int) -> tuple[float, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        out = run(["-m", "fedmpi", "launch", "-n", str(ranks), str(config), *settings, "-o", folder])
        with Ledger(Path(folder) / "ledger.h5") as ledger:
            seconds = ledger.rounds["wall_s"][WARM_UP_ROUNDS:]
    return float(seconds.mean()), [line for line in out.splitlines() if "peak memory" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=3)
    args = parser.parse_args()
    for job in args.jobs:
        file, rounds, target = JOBS[job]
        settings = [f"rounds={rounds}", "evaluate.every=0"]
        pairs: list[tuple[float, float]] = []
        memory: list[str] = []
        for _ in range(args.repeats):
            bare = bare_s(CONFIGS / file, settings, args.ranks - 1)
            ours, memory = fedmpi_s(CONFIGS / file, settings, args.ranks)
            pairs.append((bare, ours))
            print(
                f"{job}: bare {1e3 * bare:.1f} ms a round, fedmpi {1e3 * ours:.1f}, ratio {ours / bare:.3f}", flush=True
            )
        bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        result = f"medians {1e3 * bare:.1f} and {1e3 * ours:.1f} ms, ratio {ours / bare:.3f}"
        print(f"{job}: {result} (target at most {target:.2f}), {args.ranks} ranks; {memory[0].strip()}")


if __name__ == "__main__":
    main()
