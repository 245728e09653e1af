"""Many rounds and many clients: memory stays where it is, and clients that keep nothing cost nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("launches"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def memory_at(config: Path, out: Path, marks: tuple[int, ...], *overrides: str) -> list[list[int]]:
    """Run on three ranks; return each rank's resident memory in kB once the rounds of `marks` are over."""
    command = [sys.executable, "-u", "-m", "fedmpi", "launch", "-n", "3", str(config), *overrides, "-o", str(out)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pids: list[int] = []
    found: list[list[int]] = []
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row = re.match(r"  \d+ +(?:server|worker) +\S+ +\d+ +(\d+) ", line)
            if row:
                pids.append(int(row[1]))
            number = re.match(r"round +(\d+)/", line)
            if number and len(found) < len(marks) and int(number[1]) >= marks[len(found)]:
                found.append([resident_kb(pid) for pid in pids])
    assert process.returncode == 0
    return found


def test_memory_is_flat_from_round_to_round(tmp_path: Path) -> None:
    """From round 30, when the largest client has been seen and the heap has its shape, to round 130."""
    config = write_config(tmp_path, rounds=140, evaluate={"every": 5, "batch_size": 50}, ledger={"flush_s": 0.05})
    first, last = memory_at(config, tmp_path / "out", (30, 130))
    assert len(first) == 3
    for before, after in zip(first, last, strict=True):
        assert after < 1.01 * before


def test_ten_thousand_clients_take_the_memory_of_a_hundred(tmp_path: Path) -> None:
    data = {"name": "synthetic", "synthetic": {"num_train": 10_000, "num_test": 50, "height": 12, "width": 12}}
    config = write_config(tmp_path, rounds=30, data=data, evaluate={"every": 0})
    few, many = (
        memory_at(
            config,
            tmp_path / str(num_clients),
            (25,),
            "partition={name: shards, shards_per_client: 1, samples_per_shard: 1}",
            f"partition.num_clients={num_clients}",
        )[0]
        for num_clients in (100, 10_000)
    )
    for one, other in zip(few, many, strict=True):
        assert other < 1.02 * one + 2_000  # the partition's table: 10,000 clients x 10 classes
