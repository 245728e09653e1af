"""Files of pre-trained weights: written, described, read for a part of a model, and every way they can be wrong."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedmpi.errors import ConfigError, DataError, FedmpiError, OutputError
from fedmpi.flat import FlatModel
from fedmpi.models.pretrained import UNKNOWN, describe, fill_part, load_tensors, write_file

METADATA = {"source": "synthetic, classes 1 2", "data_hash": "d" * 64, "seed": "3"}
PART = ["0.weight", "1.weight", "1.running_mean", "1.num_batches_tracked"]


def net(seed: int, num_classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, num_classes))
    module(torch.randn(5, 1, 4, 4))  # statistics of its own
    return module


def write(path: Path, seed: int = 1, num_classes: int = 7) -> Path:
    write_file(path, FlatModel(net(seed, num_classes)).module.state_dict(), METADATA)
    return path


def state(seed: int = 1, **changed: Any) -> dict[str, Tensor]:
    return {**net(seed).state_dict(), **{name.replace("_", ".", 1): value for name, value in changed.items()}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    tensors = net(1, 7).state_dict()
    tensors_hash = write_file(path, tensors, METADATA)
    info = describe(path)
    assert (info.source, info.hash, info.data_hash) == (METADATA["source"], tensors_hash, METADATA["data_hash"])
    assert info.metadata == {
        **METADATA, "format": "fedmpi.pretrained", "format_version": "1", "tensors_hash": tensors_hash
    }  # fmt: skip
    read = load_tensors(path, PART)
    assert list(read) == PART
    assert all(torch.equal(read[name], tensors[name]) for name in PART)
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    many = {f"key {i}": str(i) for i in range(50)} | METADATA
    for name in ("a", "b"):
        write_file(tmp_path / f"{name}.safetensors", net(1).state_dict(), many)
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert raw == (tmp_path / "b.safetensors").read_bytes()
    (header_nbytes,) = struct.unpack_from("<Q", raw)
    keys = list(json.loads(raw[8 : 8 + header_nbytes])["__metadata__"])
    assert keys == sorted(keys)
    assert header_nbytes % 8 == 0


def test_a_part_of_a_model_is_filled_in_place(tmp_path: Path) -> None:
    """The file's classifier has other classes, and neither it nor the model's own is touched."""
    source = net(1, 7)
    flat = FlatModel(net(2, 4))
    before = {name: tensor.clone() for name, tensor in flat.module.state_dict().items()}
    fill_part(flat.module, write(tmp_path / "w.safetensors"), PART)
    for name, tensor in flat.module.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name] if name in PART else before[name]), name
    weight = next(entry for entry in flat.layout.entries if entry.name == "0.weight")
    assert torch.equal(weight.view(flat.state_S), source.state_dict()["0.weight"])


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_a_file_of_others_is_of_unknown_source(file: str, tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in net(1).state_dict().items()}
    if file.endswith("pt"):
        torch.save({"state_dict": {**tensors, "0.weight": tensors["0.weight"].to(memory_format=torch.channels_last)}},
                   tmp_path / file)  # fmt: skip
    else:
        save_file(tensors, tmp_path / file, metadata={"format": "pt"})
    info = describe(tmp_path / file)
    assert (info.source, info.data_hash, info.metadata) == (UNKNOWN, UNKNOWN, {})
    write_file(tmp_path / "own.safetensors", tensors, METADATA)
    assert info.hash == describe(tmp_path / "own.safetensors").hash
    tensors["3.bias"][0] += 1
    assert write_file(tmp_path / "own.safetensors", tensors, METADATA) != info.hash
    assert torch.equal(load_tensors(tmp_path / file, ["0.weight"])["0.weight"], tensors["0.weight"])


def test_floats_of_other_widths_become_float32(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([0.5], dtype=torch.bfloat16), "b": torch.tensor(1.5, dtype=torch.float64)},
               tmp_path / "w.pt")  # fmt: skip
    read = load_tensors(tmp_path / "w.pt", ["b", "a"])
    assert {name: (tensor.dtype, tensor.item()) for name, tensor in read.items()} == {
        "b": (torch.float32, 1.5), "a": (torch.float32, 0.5)
    }  # fmt: skip


def test_a_dtype_that_no_model_has(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1, dtype=torch.int8), "b": torch.tensor(2**40)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"a must be one of float32, .*, bfloat16, int64, got torch\.int8"):
        load_tensors(tmp_path / "w.pt", ["b", "a"])
    assert load_tensors(tmp_path / "w.pt", ["b"])["b"].item() == 2**40


def edit(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the metadata of a file and leave its tensors."""
    raw = path.read_bytes()
    (header_nbytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + header_nbytes])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + header_nbytes :])


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "there is no file"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: path.write_bytes(b""), "cannot be read as weights"),
        (lambda path: path.write_text("epochs: 3\n" * 50), "cannot be read as weights"),
        (cut, "cannot be read as weights"),
        (flip, "is damaged or was changed: its tensors have hash"),
        (lambda path: edit(path, lambda m: m.pop("source")), "its metadata lack source"),
        (lambda path: edit(path, lambda m: m.update(format_version="2")), "has format version 2, this fedmpi reads 1"),
    ],
)
def test_damaged_files(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors")
    damage(path)
    for read in (
        lambda: describe(path, key="algorithm.device"),
        lambda: load_tensors(path, PART, key="algorithm.device"),
    ):
        with pytest.raises(DataError, match=f"^algorithm.device: .*{re.escape(words)}"):
            read()


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ([1, 2], DataError, "must hold tensors by name"),
        ({"0.weight": [1.0]}, DataError, "'0.weight' must be a tensor, got list"),
        ({"model": {"0.weight": torch.ones(1)}}, DataError, "is a checkpoint with a state_dict under 'model'"),
        (state(**{"0_weight": torch.full((3, 1, 3, 3), float("nan"))}), DataError, "0.weight has NaN"),
        (state(**{"1_running_mean": torch.full((3,), 1e300, dtype=torch.float64)}), DataError, "beyond float32"),
        *(
            (
                state(**{"1_weight": torch.ones(3, dtype=dtype)}),
                DataError,
                f"w.pt: 1.weight must be one of float32, float64, float16, bfloat16, got {dtype}",
            )
            for dtype in (torch.int8, torch.int64, torch.bool)
        ),
        (
            state(**{"1_num_batches_tracked": torch.tensor(1.5)}),
            DataError,
            "w.pt: 1.num_batches_tracked must be int64, got torch.float32",
        ),
        (
            state(**{"1_num_batches_tracked": torch.tensor(1, dtype=torch.int32)}),
            DataError,
            "w.pt: 1.num_batches_tracked must be int64, got torch.int32",
        ),
        ({"other": torch.ones(1)}, ConfigError, "missing: 0.weight, 1.weight, 1.running_mean, 1.num_batches_tracked"),
        ({}, ConfigError, "the file holds nothing"),
        (
            state(**{"0_weight": torch.ones(3, 2, 3, 3)}),
            ConfigError,
            "of another shape: 0.weight (3, 2, 3, 3) (the model's is (3, 1, 3, 3))",
        ),
        ({f"module.{name}": tensor for name, tensor in state().items()}, ConfigError, "as DataParallel has them"),
    ],
)
def test_files_that_do_not_fit(content: object, error: type[FedmpiError], words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    module = net(2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(error, match=re.escape(words)):
        fill_part(module, tmp_path / "w.pt", PART)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_what_is_wrong_elsewhere_in_the_file_does_no_harm(tmp_path: Path) -> None:
    torch.save(state(**{"3_bias": torch.full((9,), float("nan"))}), tmp_path / "w.pt")
    fill_part(net(2), tmp_path / "w.pt", PART)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "w.safetensors")
    before = path.read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    stand_ins: list[tuple[Callable[[int], None], type[BaseException]]]
    stand_ins = [(interrupted, KeyboardInterrupt), (full, OutputError)]
    for stand_in, error in stand_ins:
        monkeypatch.setattr("os.fsync", stand_in)
        with pytest.raises(error):
            write(path, seed=2)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
