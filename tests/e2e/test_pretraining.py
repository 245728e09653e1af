"""Pre-training on some classes and federated training on the others, by the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from fedmpi.ledger.reader import Ledger

pytestmark = pytest.mark.usefixtures("launches")
PRETRAIN = {
    "seed": 1,
    "data": {"name": "fashion_mnist_mini", "classes": [5, 6, 7, 8, 9], "augment": "crop_flip"},
    "model": {"name": "cnn"},
    "pretrain": {"epochs": 2, "batch_size": 64},
}
RUN = {
    "seed": 1,
    "rounds": 2,
    "data": {"name": "fashion_mnist_mini", "classes": [0, 1, 2, 3, 4]},
    "partition": {"name": "dirichlet", "num_clients": 20, "beta": 1.0},
    "model": {"name": "cnn"},
    "participation": {"clients_per_round": 4},
    "evaluate": {"every": 1},
}


def fedmpi(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pre.yaml").write_text(yaml.safe_dump(PRETRAIN))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def test_pretraining_and_a_run_on_other_classes(folder: Path) -> None:
    for name in ("pre", "again"):
        done = fedmpi("pretrain", "pre.yaml", "-o", f"{name}.safetensors", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"fedmpi: pretrained {name}.safetensors epoch=2/2 train_acc=0.")
    assert (folder / "pre.safetensors").read_bytes() == (folder / "again.safetensors").read_bytes()
    with safe_open(folder / "pre.safetensors", framework="np") as file:
        said = file.metadata()
    assert (said["source"], said["num_train"]) == ("fashion_mnist_mini, classes 5 6 7 8 9", "3000")
    assert json.loads(said["data"])["classes"] == [5, 6, 7, 8, 9]

    losses = {}
    for name, weights in (("with", ["model.weights=pre.safetensors"]), ("without", [])):
        done = fedmpi("run", "run.yaml", *weights, "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "fashion_mnist_mini: 3000 training and 500 test samples, 5 classes" in done.stdout
        with Ledger(folder / name / "ledger.h5") as ledger:
            losses[name] = ledger.rounds["train_loss"]
    assert losses["with"][0] != losses["without"][0]
    assert max(values[1] / values[0] for values in losses.values()) < 1
    again = fedmpi("pretrain", "pre.yaml", "-o", "pre.safetensors", cwd=folder)
    assert (again.returncode, "exists already" in again.stderr) == (6, True)


def test_grey_images_for_a_network_of_colour_images(folder: Path) -> None:
    convert = ["data.convert={height: 32, width: 32, channels: 3}", "model.name=cifar10net", "data.classes=[0, 1, 2]"]
    arguments = [*convert, "pretrain.epochs=1", "pretrain.batch_size=256", "-o", "w.safetensors"]
    done = fedmpi("pretrain", "pre.yaml", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    done = fedmpi("run", "run.yaml", *convert, "model.weights=w.safetensors", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    other = fedmpi("run", "run.yaml", *convert[:2], "model.weights=w.safetensors", "--dry-run", cwd=folder)
    assert other.returncode == 2
    assert "of another shape" in other.stderr


def test_ctrl_c_ends_it_and_leaves_no_file(folder: Path) -> None:
    command = [sys.executable, "-m", "fedmpi", "pretrain", "pre.yaml", "pretrain.epochs=10000", "-o", "w.safetensors"]
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        end = time.monotonic() + 60
        while not process.stdout.readline().startswith("epoch ") and time.monotonic() < end:
            pass
        os.kill(process.pid, signal.SIGINT)
        printed, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, "fedmpi: error: interrupted\n")
    assert "fedmpi: pretrained" not in printed
    assert sorted(entry.name for entry in folder.iterdir()) == ["pre.yaml", "run.yaml"]
