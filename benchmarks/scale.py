"""What many rounds and many clients cost: memory over rounds, 100 against 10,000 clients, a pool of 100,000.

    python benchmarks/scale.py [memory] [clients] [pool] [--repeats 3] [--rounds 200]

memory: resident memory of the server and of each worker after round 5 and after the last, read from /proc as the lines
of the rounds are printed. clients: 20 clients of 6 images a round, out of 100 and out of 10,000, in turn; time a round
and peak memory. pool: from the command to the end of the first round of 100 clients out of 100,000.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmpi.ledger.reader import Ledger

CONFIGS = Path(__file__).parent.parent / "jobs" / "configs"
CLIENTS = ["partition.name=shards", "partition.shards_per_client=1", "partition.samples_per_shard=6"]
CLIENTS += ["data.name=fashion_mnist", "train.batch_size=6", "participation.clients_per_round=20", "rounds=202"]
CLIENTS += ["evaluate.every=0"]
POOL = [
    "data.name=synthetic",
    "data.synthetic={num_train: 200000, height: 14, width: 14}",
    "partition.num_clients=100000",
    "rounds=1",
]
POOL += ["participation.clients_per_round=100", "evaluate.every=0", "partition.name=iid"]


def lines_of(arguments: Sequence[str], ranks: int) -> Iterator[str]:
    """Run `fedmpi launch` and yield its lines as they come; an exit status other than 0 is an error."""
    command = [sys.executable, "-u", "-m", "fedmpi", "launch", "-n", str(ranks), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")


def resident_mb(pid: int) -> tuple[float, float]:
    """Return all that a process has resident, and that part of it which is its own and not pages of files."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6, int(fields["RssAnon"].split()[0]) * 1024 / 1e6


def memory_over_rounds(
    arguments: Sequence[str], ranks: int, marks: Sequence[int]
) -> dict[int, list[tuple[float, float]]]:
    """Run a configuration; return the resident memory in MB of each rank once the rounds of `marks` are over."""
    pids: list[int] = []
    found: dict[int, list[tuple[float, float]]] = {}
    for line in lines_of(arguments, ranks):
        row = re.match(r"  \d+ +(?:server|worker|both) +\S+ +\d+ +(\d+) ", line)
        if row:
            pids.append(int(row[1]))
        number = re.match(r"round +(\d+)/", line)
        if number:
            # A line is seen a little after its round: the marks that have been passed are read now.
            found |= {
                mark: [resident_mb(pid) for pid in pids]
                for mark in marks
                if mark not in found and int(number[1]) >= mark
            }
    return found


def memory(rounds: int) -> None:
    marks = (5, 20, 50, rounds)
    for name in ("bench_logreg.yaml", "bench_cnn.yaml"):
        with tempfile.TemporaryDirectory() as folder:
            arguments = [
                str(CONFIGS / name),
                f"rounds={rounds + 5}",
                "data.name=fashion_mnist_mini",
                "evaluate.every=5",
            ]
            found = memory_over_rounds([*arguments, "partition.beta=10", "-o", folder], 3, marks)
        print(f"{name}: MB resident (of these, not pages of files) after round {', '.join(map(str, marks))}")
        for rank in range(3):
            values = [found[mark][rank] for mark in marks]
            change = values[-1][0] / values[0][0] - 1
            print(f"  rank {rank}: " + ", ".join(f"{a:.1f} ({b:.1f})" for a, b in values) + f"; {change:+.2%}")


def clients(repeats: int) -> None:
    """Take turns; the result is the ratio of the medians."""
    config = str(CONFIGS / "bench_logreg.yaml")
    seconds: dict[int, list[float]] = {100: [], 10_000: []}
    peaks: dict[int, list[str]] = {100: [], 10_000: []}
    for _ in range(repeats):
        for count, values in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                for line in lines_of([config, *CLIENTS, f"partition.num_clients={count}", "-o", folder], 3):
                    if "peak memory" in line:
                        peaks[count].append(line.split(":")[1].strip())
                with Ledger(Path(folder) / "ledger.h5") as ledger:
                    values.append(float(ledger.rounds["wall_s"][2:].mean()))
    for count, values in seconds.items():
        print(f"{count} clients: {1e3 * statistics.median(values):.2f} ms a round; peak MB by rank {peaks[count][-1]}")
    few, many = (statistics.median(values) for values in seconds.values())
    print(f"ratio {many / few:.2f} (pairs {', '.join(f'{b / a:.2f}' for a, b in zip(*seconds.values(), strict=True))})")


def pool() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for line in lines_of([str(CONFIGS / "bench_logreg.yaml"), *POOL, "-o", folder], 3):
            if line.startswith("round "):
                print(f"100 of 100,000 clients: {time.perf_counter() - start:.1f} s to the end of {line.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["memory", "clients", "pool"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    for part in args.parts:
        if part == "memory":
            memory(args.rounds)
        elif part == "clients":
            clients(args.repeats)
        else:
            pool()


if __name__ == "__main__":
    main()
