"""``--dry-run``: what it promises is what the run sends, to the byte; and it trains, starts and writes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import ALGORITHMS, run_ranks, write_config

from fedmpi.ledger.reader import Ledger

pytestmark = pytest.mark.usefixtures("launches")
TALK = f"{ALGORITHMS / 'talk.py'}:TALK"
QUICKSTART = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.yaml"


def fedmpi(*arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def promised(output: str) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Return number and bytes of the messages of a round, by round, direction and kind."""
    rows = re.findall(r"^  (1|later)\s+(down|up)\s+(\S.*?)\s{2,}(\d+)\s+(\d+)\s+\d+\s+[\d.]+$", output, re.MULTILINE)
    return {(name, direction, kind): (int(count), int(nbytes)) for name, direction, kind, count, nbytes in rows}


def sent(path: Path) -> dict[tuple[str, str, str], tuple[int, int]]:
    with Ledger(path) as ledger:
        messages = ledger.messages
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    columns = (messages[name] for name in ("round_idx", "direction", "kind", "wire_nbytes"))
    for round_idx, direction, kind, nbytes in zip(*columns, strict=True):
        if round_idx < 2:
            key = ("later" if round_idx else "1", str(direction), str(kind))
            count, total = found.get(key, (0, 0))
            found[key] = count + 1, total + int(nbytes)
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["algorithm.name=fedavgm", "server.initial_model=full"],
        ["participation.dropout=0.4", "participation.sampling=by_size"],
        [f"algorithm.name={TALK}"],
        [f"algorithm.name={TALK}", "algorithm.client_first=true", "server.host=peer"],
        ["rounds=1"],
        ["partition.name=quantity", "partition.beta=0.3", "data.synthetic.num_train=3000"],
    ],
)
def test_promised_bytes_are_those_of_the_run(
    tmp_path: Path, overrides: list[str], here: Callable[..., tuple[int, str, str]]
) -> None:
    command = ["run", str(write_config(tmp_path)), *overrides, "-o", str(tmp_path / "out")]
    status, said, _ = here(*command, "--dry-run")
    assert status == 0
    assert not (tmp_path / "out").exists()
    assert here(*command)[0] == 0
    assert promised(said) == sent(tmp_path / "out" / "ledger.h5")


NET = """
from torch import nn

def Net(num_classes, shape, width=8):
    size = shape.height * shape.width * shape.channels
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes))
"""


@pytest.mark.parametrize("model", [[], ["model.width=400"]])
def test_of_a_kind_whose_size_depends_on_what_is_learnt_the_bound_holds(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], model: list[str]
) -> None:
    """Also where a section of known size, the buffers, is the largest while nothing is learnt."""
    (tmp_path / "net.py").write_text(NET)
    if model:
        model = [f"model.name={tmp_path / 'net.py'}:Net", *model]
    settings = ["algorithm.compress=topk", "algorithm.density=0.05", *model]
    command = ["run", str(write_config(tmp_path)), *settings, "-o", str(tmp_path / "out")]
    said = here(*command, "--dry-run")[1]
    bounds = re.findall(r"^  (1|later)\s+up\s+update\s+\d+\s+<= (\d+)", said, re.MULTILINE)
    totals = re.search(r"would send at most down_bytes=(\d+) up_bytes=(\d+)", said)
    assert here(*command)[0] == 0
    weighed = sent(tmp_path / "out" / "ledger.h5")
    assert [name for name, _ in bounds] == ["1", "later"]
    for name, bound in bounds:
        wire = weighed[name, "up", "update"][1]
        assert wire <= int(bound) <= 1.7 * wire
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert totals is not None and summary["up_nbytes"] <= int(totals[2]) and summary["down_nbytes"] == int(totals[1])
    # With codecs of known sizes the promise is exact again.
    fixed = [*command, "wire.sparse=uint32", "wire.values=raw", "--overwrite"]
    said = here(*fixed, "--dry-run")[1]
    assert here(*fixed)[0] == 0
    assert promised(said) == sent(tmp_path / "out" / "ledger.h5")


def test_of_the_quickstart_on_three_ranks_nothing_is_started(tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    dry = fedmpi("launch", "-n", "3", str(QUICKSTART), "rounds=2", *out, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"^  2 +worker ", dry.stdout, re.MULTILINE)
    last = dry.stdout.splitlines()[-1]
    assert last.startswith("fedmpi: dry run ok")
    done = fedmpi("launch", "-n", "3", str(QUICKSTART), "rounds=2", *out)
    assert done.returncode == 0, done.stderr
    assert promised(dry.stdout) == sent(tmp_path / "out" / "ledger.h5")
    totals = re.search(r"down_bytes=(\d+) up_bytes=(\d+)", last)
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert totals is not None
    assert [int(total) for total in totals.groups()] == [summary["down_nbytes"], summary["up_nbytes"]]


def test_the_whole_runs_bytes_know_who_takes_part(tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    settings = ["rounds=12", "participation.dropout=0.4", "participation.availability=0.5"]
    command = ["run", str(write_config(tmp_path)), *settings, "-o", str(tmp_path / "out")]
    totals = re.search(r"down_bytes=(\d+) up_bytes=(\d+)", here(*command, "--dry-run")[1])
    assert totals is not None
    assert here(*command)[0] == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        summary = ledger.summary()
    for promise, name in zip(totals.groups(), ("down_nbytes", "up_nbytes"), strict=True):
        assert int(promise) == pytest.approx(summary[name], rel=1e-3)


def test_under_a_launcher_one_rank_speaks(tmp_path: Path) -> None:
    arguments = ["-m", "fedmpi", "run", str(write_config(tmp_path)), "--dry-run", "-o", str(tmp_path / "out")]
    outcome = run_ranks(3, arguments)
    assert outcome.status == 0
    assert outcome.output.count("fedmpi: dry run ok") == 1
    assert re.search(r"^  2 +worker ", outcome.output, re.MULTILINE)


@pytest.mark.slow
def test_the_memory_estimate_is_of_the_right_size(tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    config = str(write_config(tmp_path, model={"name": "mlp", "hidden": [4096, 2048]}, rounds=2))  # 9 M parameters
    dry = fedmpi("run", config, *out, "--dry-run")
    estimate = re.search(r"^  both +1 .* (\d+)$", dry.stdout, re.MULTILINE)
    done = fedmpi("run", config, *out)
    peak = re.search(r"peak memory by rank \(MB\): (\d+)", done.stdout)
    assert estimate is not None
    assert peak is not None
    assert 0.6 < int(estimate[1]) / int(peak[1]) < 1.3


def test_it_computes_with_the_threads_of_the_run(tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    """More threads than a run has make a dry run of a large network slower than the run."""
    torch.set_num_threads(3)
    assert here("run", write_config(tmp_path), "-o", tmp_path / "out", "--dry-run")[0] == 0
    assert torch.get_num_threads() == 1


def test_more_memory_than_there_is_is_pointed_out(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", str(write_config(tmp_path)), "-o", str(tmp_path / "out"), "--dry-run"]
    assert "warning" not in here(*command)[1]
    monkeypatch.setattr("fedmpi.dryrun.memory_of_this_machine", lambda: 100_000_000)
    assert re.search(r"warning: about \d{3} MB in all, this machine has 100\n", here(*command)[1])


@pytest.mark.parametrize(
    ("overrides", "status", "words"),
    [
        (["train.lr=0"], 2, "train.lr must be above 0"),
        (["data.name=mnist", "data.root=/nonexistent"], 3, "data set mnist not found"),
        (["placement.min_ranks=4"], 4, "placement.min_ranks=4, but there is 1"),
        (["model.name=mnistnet"], 2, "model.name=mnistnet takes images of"),
        (["participation.clients_per_round=13"], 2, "participation.clients_per_round must be at most"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], overrides: list[str], status: int, words: str
) -> None:
    found, said, errors = here("run", write_config(tmp_path), *overrides, "-o", tmp_path / "out", "--dry-run")
    assert (found, words in errors, said) == (status, True, ""), errors


def test_a_folder_that_holds_a_run_is_refused_and_kept(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    command = ["run", str(write_config(tmp_path, rounds=1)), "-o", str(tmp_path / "out")]
    assert here(*command)[0] == 0
    before = (tmp_path / "out" / "ledger.h5").read_bytes()
    assert here(*command, "--dry-run")[0] == 6
    assert here(*command, "--dry-run", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "ledger.h5").read_bytes() == before
