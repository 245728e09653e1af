"""On a GPU too a run is the same bit for bit, however often it is run and on however many ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import digests, run_here, run_ranks, small_config, write_config
from torch.nn import functional as F

from fedmpi.comm.local import LocalCommunicator
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("launches"),
]

IMAGES = {
    "data": {
        "name": "synthetic",
        "synthetic": {"num_train": 480, "num_test": 200, "height": 32, "width": 32, "channels": 3},
    }
}
COMMON: dict[str, Any] = {
    **IMAGES,
    "rounds": 4,
    "placement": {"device": "cuda", "clients_per_gpu": 4},
    "server": {"initial_model": "full"},
}
MASKED: dict[str, Any] = {
    **COMMON,
    "model": {"name": "cifar10net"},  # its windows overlap
    "train": {"local_epochs": 2, "batch_size": 16, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3},
}
SPLIT: dict[str, Any] = {
    **COMMON,
    "model": {"name": "vgg11", "width": 0.125},
    "placement": {"device": "cuda", "server_device": "cuda", "clients_per_gpu": 4},
    "train": {"batch_size": 16, "lr": 0.01, "momentum": 0.9},
}
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {**MASKED, "algorithm": {"name": "fedavg"}},
    "fedprox": {**MASKED, "algorithm": {"name": "fedprox", "mu": 1.0}},
    "feddst": {**MASKED, "algorithm": {"name": "feddst", "alpha": 0.3, "interval": 1, "end_round": 4}},
    "released": {**MASKED, "algorithm": {"name": "feddst_released", "alpha": 0.3, "interval": 1, "end_round": 4}},
    "randommask": {**MASKED, "algorithm": {"name": "randommask"}},
    "grasp": {**MASKED, "algorithm": {"name": "grasp"}},
    "prunefl": {**MASKED, "algorithm": {"name": "prunefl", "reconfigure_every": 2, "initial_iterations": 100}},
    "resnet18": {**COMMON, "model": {"name": "resnet18", "stem": "imagenet", "width": 8, "norm_groups": 2}},
    "splitfed": {**SPLIT, "algorithm": {"name": "splitfed", "bits": 8}},
    "lgl": {**SPLIT, "algorithm": {"name": "lgl"}},
    "fedgkt": {**SPLIT, "algorithm": {"name": "fedgkt"}},
    "original": {**SPLIT, "algorithm": {"name": "fedgkt", "variant": "original", "server_epochs": 2}},
    "ecofed": {**SPLIT, "algorithm": {"name": "ecofed", "error_feedback": True}},
}


def alone(folder: Path, name: str) -> tuple[str, str]:
    """Run in this process; return the digests. The ledger is whole, and says that the GPU did it."""
    assert run_here(small_config(folder, **RUNS[name]), folder / "alone", LocalCommunicator()) == 0
    assert Check(folder / "alone" / "ledger.h5").problems == []
    with Ledger(folder / "alone" / "ledger.h5") as ledger:
        assert [row["device"] for row in ledger.placement] == ["cuda:0"]
    return digests(folder / "alone")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_again(tmp_path: Path, name: str) -> None:
    assert alone(tmp_path, name) == alone(tmp_path, name)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "feddst", "prunefl", "resnet18"])
def test_steps_by_graphs_make_the_run_that_launches_make(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = alone(tmp_path, name)
    monkeypatch.setattr("fedmpi.train.local.step_by_graph", lambda model, cfg, step, updates: step)
    assert alone(tmp_path, name) == found


@pytest.mark.parametrize(("name", "num_ranks"), [("prunefl", 2), ("feddst", 4), ("splitfed", 2), ("ecofed", 3)])
def test_a_run_is_the_same_on_ranks_that_share_the_gpu(tmp_path: Path, name: str, num_ranks: int) -> None:
    config = write_config(tmp_path, **RUNS[name])
    arguments = ["-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "ranks")]
    status, output = run_ranks(num_ranks, arguments, timeout=200, python=sys.executable)
    assert status == 0, output
    assert digests(tmp_path / "ranks") == alone(tmp_path, name)


def test_the_gradient_of_pooling_is_the_same_again() -> None:
    """Pixels under several windows sum their gradients in one order, as torch does it: nothing promises that."""
    x = torch.randn(32, 64, 30, 30, generator=torch.Generator().manual_seed(0)).relu().cuda()
    found = []
    for _ in range(20):
        leaf = x.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
        out = F.max_pool2d(leaf, 3, 1)
        (out * out.detach().sin()).sum().backward()
        found.append(leaf.grad)
    assert all(torch.equal(found[0], grad) for grad in found)
