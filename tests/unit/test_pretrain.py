"""Pre-training against a plain torch loop, what its file says, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from fedmpi.config import PretrainConfig
from fedmpi.configfile import load_pretrain_config
from fedmpi.data.datasets import load_dataset
from fedmpi.data.shard import Shard, device_data
from fedmpi.data.source import data_hash
from fedmpi.models.pretrained import describe
from fedmpi.models.registry import build_model, resolve
from fedmpi.pretrain import lr_of, pretrain
from fedmpi.rng import ANY, stream, stream_seed

Here = Callable[..., tuple[int, str, str]]
SMALL: dict[str, Any] = {
    "seed": 5,
    "data": {
        "name": "synthetic",
        "synthetic": {"num_train": 300, "num_test": 90, "num_classes": 6, "height": 8, "width": 8},
        "classes": [3, 4, 5],
    },
    "model": {"name": "mlp", "hidden": [12]},
    "pretrain": {"epochs": 4, "batch_size": 32, "lr": 0.05, "test_every": 2},
}


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "pre.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **sections}))
    return path


def test_the_learning_rate_drops_after_a_half_and_four_fifths() -> None:
    rates = [lr_of(PretrainConfig(), epoch_idx) for epoch_idx in range(100)]
    assert rates[49:51] == pytest.approx([0.01, 0.001])
    assert rates[79:81] == pytest.approx([0.001, 0.0001])
    assert (set(rates[:50]), len(set(rates))) == ({0.01}, 3)
    assert [lr_of(PretrainConfig(epochs=5), i) for i in range(5)] == pytest.approx([0.01] * 3 + [1e-3, 1e-4])
    assert {lr_of(PretrainConfig(lr_drops=()), i) for i in (0, 99)} == {0.01}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_equals_a_plain_loop_of_torch(tmp_path: Path, keep: str) -> None:
    path = write_config(tmp_path, pretrain={**SMALL["pretrain"], "keep": keep, "lr": 0.6 if keep == "best" else 0.05})
    config = load_pretrain_config(path)
    assert pretrain(config, tmp_path / "w.safetensors") == 0
    cfg = config.pretrain
    dataset = load_dataset(config.data, config.seed)
    module = build_model(
        resolve(config.model), dataset.shape, 3, stream_seed(5, ANY, ANY, "initial model") & 0x7FFFFFFF
    )
    sgd = torch.optim.SGD(module.parameters(), lr=cfg.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 4])
    shard = Shard(device_data(dataset, "train", torch.device("cpu")), np.arange(len(dataset.train_labels)))
    found = []
    for epoch_idx in range(cfg.epochs):
        rng, right = stream(5, epoch_idx, ANY, "pretrain"), 0
        rng.integers(2**63)  # seeds torch
        for x, y in shard.batches(cfg.batch_size, 1, rng):
            sgd.zero_grad()
            logits = module(x)
            right += int((logits.argmax(1) == y).sum())
            F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
            sgd.step()
        schedule.step()
        found.append((right, -epoch_idx, {name: tensor.clone() for name, tensor in module.state_dict().items()}))
    right, minus_idx, tensors = found[-1] if keep == "last" else max(found, key=lambda item: item[:2])
    assert keep == "last" or minus_idx > 1 - cfg.epochs  # an earlier one than the last
    info = describe(tmp_path / "w.safetensors")
    assert int(info.metadata["epoch"]) == 1 - minus_idx
    assert float(info.metadata["train_accuracy"]) == pytest.approx(right / len(dataset.train_labels))
    for name, tensor in load_file(tmp_path / "w.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        module.load_state_dict(load_file(tmp_path / "w.safetensors"))
        x, y = device_data(dataset, "test", torch.device("cpu")).slice(0, len(dataset.test_labels))
        accuracy = float((module(x).argmax(1) == y).float().mean())
    assert float(info.metadata["test_accuracy"]) == pytest.approx(accuracy)


def test_what_is_printed_and_what_the_file_says(tmp_path: Path, here: Here) -> None:
    out = tmp_path / "sub" / "w.safetensors"
    convert = {"height": 10, "width": 9, "channels": 3}
    path = write_config(tmp_path, data={**SMALL["data"], "convert": convert})
    status, printed, error = here("pretrain", path, "pretrain.epochs=3", "-o", out, "pretrain.test_every=2")
    assert (status, error) == (0, "")
    lines = printed.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert ["test_acc" in line for line in epochs] == [False, True, False]
    assert "lr 0.005  train_loss " in epochs[2]
    info = describe(out)
    said = info.metadata
    last = f"fedmpi: pretrained {out} epoch={said['epoch']}/3 train_acc={float(said['train_accuracy']):.4f} test_acc="
    assert lines[-1].startswith(last)
    assert lines[-1].endswith(f"tensors={info.hash[:16]} data={info.data_hash[:16]}")
    dataset = load_dataset(load_pretrain_config(path).data, 5)
    assert info.data_hash == data_hash(dataset)
    assert info.source == "synthetic, classes 3 4 5, height 10 width 9 channels 3"
    assert f"  {info.source}: 150 training and 45 test samples, 3 classes" in lines
    assert json.loads(said["model"]) == {"hidden": [12], "name": "mlp"}
    assert json.loads(said["data"])["classes"] == [3, 4, 5]
    assert json.loads(said["data"])["convert"] == convert
    assert (said["num_classes"], said["shape"], said["epochs"], said["seed"]) == ("3", "10x9x3", "3", "5")
    assert (said["num_train"], json.loads(said["mean"])) == ("150", [0.5, 0.5, 0.5])
    assert str(tmp_path) not in json.dumps(dict(said))


def test_from_weights_of_a_file(tmp_path: Path, here: Here) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    path = write_config(tmp_path)
    assert here("pretrain", path, "-o", first)[0] == 0
    assert here("pretrain", path, f"model.weights={first}", "-o", second)[0] == 0
    assert describe(first).metadata["initial_weights"] == "none"
    assert describe(second).metadata["initial_weights"] == describe(first).hash
    assert float(describe(second).metadata["train_accuracy"]) > float(describe(first).metadata["train_accuracy"])


def test_a_dry_run_writes_nothing(tmp_path: Path, here: Here) -> None:
    status, printed, _ = here("pretrain", write_config(tmp_path), "-o", tmp_path / "w.safetensors", "--dry-run")
    assert status == 0
    assert printed.endswith("fedmpi: dry run ok, nothing trained or written; 4 epochs of 5 steps\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["pre.yaml"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-o", "w.pt"], 2, "must end in .safetensors, got w.pt"),
        (["-o", "w.safetensors", "pretrain.lr=0"], 2, "pretrain.lr must be above 0, got 0"),
        (["-o", "w.safetensors", "data.classes=[0, 6]"], 2, "which are 0 to 5, got 6"),
        (["-o", "w.safetensors", "model.name=char_gru"], 2, "model.name=char_gru takes text"),
        (["-o", "w.safetensors", "model.weights=none.pt"], 3, "there is no file none.pt"),
        (["-o", "w.safetensors", "data.name=mnist", "data.root=nowhere"], 3, "data set mnist not found"),
        (["-o", "w.safetensors", "placement.device=cuda"], 4, "sees no GPU"),
        (["-o", "pre.yaml/w.safetensors"], 6, "is a file"),
        (["-o", "there.safetensors"], 6, "exists already; choose another file with -o, or --overwrite it"),
        (["-o", "folder.safetensors", "--overwrite"], 6, "is a folder"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    write_config(tmp_path)
    Path("there.safetensors").write_text("as it was")
    Path("folder.safetensors").mkdir()
    found, printed, error = here("pretrain", "pre.yaml", *arguments)
    assert (found, words in error) == (status, True), error
    assert (printed, error.startswith("fedmpi: error: ")) == ("", True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.safetensors", "pre.yaml", "there.safetensors"]
    assert Path("there.safetensors").read_text() == "as it was"


def test_a_loss_that_is_no_number(tmp_path: Path, here: Here) -> None:
    out = tmp_path / "w.safetensors"
    status, _, error = here("pretrain", write_config(tmp_path), "pretrain.lr=1e30", "-o", out)
    assert (status, out.exists()) == (5, False)
    assert "epoch 1 ended with NaN or infinity" in error
    assert "take a smaller pretrain.lr, got 1e+30" in error


def test_ctrl_c_leaves_no_file(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "w.safetensors"
    out.write_text("an earlier one")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmpi.pretrain.train_local", interrupted)
    status, printed, error = here("pretrain", write_config(tmp_path), "-o", out, "--overwrite")
    assert (status, error) == (130, "fedmpi: error: interrupted\n")
    assert "pretrained" not in printed.splitlines()[-1]
    assert out.read_text() == "an earlier one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pre.yaml", "w.safetensors"]


def test_one_process_only(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    status, _, error = here("pretrain", write_config(tmp_path), "-o", tmp_path / "w.safetensors")
    assert (status, "is one process, got 2 ranks" in error) == (4, True)
