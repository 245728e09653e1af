"""Pre-training on some classes and federated training on the others, by the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

    done = fedmpi("run", "run.yaml", "model.weights=pre.safetensors", "-o", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "fashion_mnist_mini: 3000 training and 500 test samples, 5 classes" in done.stdout
    with Ledger(folder / "run" / "ledger.h5") as ledger:
        losses = ledger.rounds["train_loss"]
    assert losses[1] < losses[0]


def test_a_setting_that_does_nothing_is_pointed_out(folder: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    command = ["pretrain", folder / "pre.yaml", "-o", folder / "w.safetensors", "--dry-run"]
    words = "warning: model.pretrained_units does nothing without model.pretrained"
    assert [words in here(*command, *more)[1] for more in ([], ["model.pretrained_units=1"])] == [False, True]


def test_grey_images_for_a_network_of_colour_images(folder: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    convert = ["data.convert={height: 32, width: 32, channels: 3}", "model.name=cifar10net"]
    three, weights = "data.classes=[0, 1, 2]", folder / "w.safetensors"
    status, _, error = here("pretrain", folder / "pre.yaml", *convert, three, "pretrain.epochs=1", "-o", weights)
    assert (status, error) == (0, "")
    run = ["run", folder / "run.yaml", *convert, f"model.weights={weights}", "-o", folder / "run", "--dry-run"]
    status, printed, error = here(*run, three)
    assert (status, error) == (0, "")
    assert "fedmpi: dry run ok" in printed
    status, _, error = here(*run)  # of five classes
    assert (status, "of another shape" in error) == (2, True)


def test_ctrl_c_ends_it_and_leaves_no_file(folder: Path) -> None:
    command = [sys.executable, "-m", "fedmpi", "pretrain", "pre.yaml", "pretrain.epochs=10000", "-o", "w.safetensors"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs, and what they start, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
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
