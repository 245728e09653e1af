"""Initial weights from a file: each kind of file read, each way that one can be wrong told in words."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape, TextShape
from fedmpi.errors import ConfigError, DataError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import build_model, resolve
from fedmpi.models.weights import fill_from_file

SHAPE = ImageShape(16, 16, 1)


def initial(path: Path | None, seed: int = 1, name: str = "cnn") -> InitialModel:
    return initial_model(resolve(NamedSection(name=name, weights=path)), SHAPE, 10, seed)


def weights(seed: int = 7, name: str = "cnn") -> dict[str, Tensor]:
    return build_model(resolve(NamedSection(name=name)), SHAPE, 10, seed).state_dict()


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    return path


@pytest.mark.parametrize("file", ["w.pt", "w.bin", "w.safetensors"])
def test_the_initial_model_has_the_files_numbers(file: str, tmp_path: Path) -> None:
    want = initial(None, seed=7)
    path = save({name: tensor.contiguous() for name, tensor in weights(7).items()}, tmp_path / file)
    got = initial(path, seed=1)
    assert torch.equal(got.state_S, want.state_S)
    assert (got.state_hash, got.layout) == (want.state_hash, want.layout)
    assert (got.from_file, want.from_file, got.init_seed) == (True, False, 1)
    assert initial(None, seed=1).state_hash != got.state_hash


def test_a_checkpoint_that_holds_a_state_dict(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    assert initial(tmp_path / "w.pt").state_hash == initial(None, 7).state_hash


def test_building_from_a_seed_does_not_read_the_file(tmp_path: Path) -> None:
    config = resolve(NamedSection(name="cnn", weights=tmp_path / "absent.pt"))
    assert torch.equal(build_model(config, SHAPE, 10, 7).state_dict()["fc.0.bias"], weights(7)["fc.0.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_other_floats_become_float32(dtype: torch.dtype, file: str, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights().items()}
    got = initial(save(tensors, tmp_path / file))
    assert got.state_S.dtype == torch.float32
    for entry in got.layout.entries:
        assert torch.equal(entry.view(got.state_S), tensors[entry.name].float())


class Norm(nn.Module):
    """Parameters, floating and integer buffers, a buffer that is not saved, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def filled() -> Norm:
    torch.manual_seed(5)
    module = Norm()
    module.norm(torch.randn(8, 3))
    return module


def drop_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "a.weight"}


@pytest.mark.parametrize("change", [lambda tensors: tensors, drop_first])
def test_buffers_and_tied_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path) -> None:
    want, flat = filled(), FlatModel(Norm())
    memory = flat.module.a.weight.data_ptr()
    torch.save(change(want.state_dict()), tmp_path / "w.pt")
    fill_from_file(flat.module, tmp_path / "w.pt", "norm")
    for name, tensor in want.state_dict().items():
        assert torch.equal(flat.module.state_dict()[name], tensor)
    assert flat.ints_I.tolist() == [1]
    assert flat.module.a.weight.data_ptr() == flat.module.b.weight.data_ptr() == memory
    assert torch.equal(flat.state_S, FlatModel(want).state_S)


def test_what_safetensors_itself_saves_of_a_tied_model(tmp_path: Path) -> None:
    save_model(filled(), str(tmp_path / "w.safetensors"))
    flat = FlatModel(Norm())
    fill_from_file(flat.module, tmp_path / "w.safetensors", "norm")
    assert torch.equal(flat.state_S, FlatModel(filled()).state_S)


def test_tied_weights_that_differ(tmp_path: Path) -> None:
    torch.save({**filled().state_dict(), "b.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(
        ConfigError, match=r"w\.pt: a\.weight and b\.weight differ, but model\.name=norm has one tensor"
    ):
        fill_from_file(Norm(), tmp_path / "w.pt", "norm")


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_(**changed: Any) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda tensors: {**tensors, **{key.replace("__", "."): value for key, value in changed.items()}}


BIAS = torch.zeros(10)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (without("conv2.bias"), ConfigError, r"w\.pt does not fit model\.name=cnn; missing: conv2\.bias$"),
        (with_(extra=BIAS), ConfigError, r"w\.pt does not fit model\.name=cnn; unexpected: extra$"),
        (with_(fc__1__bias=BIAS[:7]), ConfigError, r"another shape: fc\.1\.bias \(7,\) \(the model's is \(10,\)\)$"),
        (with_(fc__1__bias=BIAS[None]), ConfigError, r"another shape: fc\.1\.bias \(1, 10\)"),
        (
            renamed,
            ConfigError,
            r"missing: conv1\.weight, .* and 3 more; unexpected: module\.conv1\.weight.* and 3 more\. All names in the "
            r"file begin with 'module\.', as DataParallel has them: save `model\.module\.state_dict\(\)`$",
        ),
        (with_(fc__1__bias=BIAS.long()), DataError, r"w\.pt: fc\.1\.bias must be one of float32, .*, got torch\.int64"),
        (with_(fc__1__bias=BIAS.bool()), DataError, r"fc\.1\.bias must be one of float32, .*, got torch\.bool"),
        (with_(fc__1__bias=BIAS * float("nan")), DataError, r"w\.pt: fc\.1\.bias has NaN, infinity"),
        (with_(fc__1__bias=BIAS - float("inf")), DataError, r"w\.pt: fc\.1\.bias has NaN, infinity"),
        (with_(fc__1__bias=BIAS.double() + 1e300), DataError, r"w\.pt: fc\.1\.bias has .* numbers beyond float32"),
        (with_(fc__1__bias=3), DataError, r"w\.pt: 'fc\.1\.bias' must be a tensor, got int"),
        (with_(fc__1__bias=BIAS.to_sparse()), DataError, r"'fc\.1\.bias' must be a dense tensor"),
        (with_(fc__1__bias=BIAS.to("meta")), DataError, r"'fc\.1\.bias' must be a dense tensor"),
        (lambda tensors: list(tensors.values()), DataError, r"w\.pt must hold tensors by name .*, got list"),
    ],
)
def test_files_that_do_not_fit(change: Callable[[Any], Any], kind: type[Exception], words: str, tmp_path: Path) -> None:
    torch.save(change(weights()), tmp_path / "w.pt")
    with pytest.raises(kind, match=words):
        initial(tmp_path / "w.pt")


def test_an_integer_buffer_must_be_one_in_the_file(tmp_path: Path) -> None:
    torch.save({**filled().state_dict(), "norm.num_batches_tracked": torch.tensor(1.0)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"num_batches_tracked must be int64, got torch\.float32"):
        fill_from_file(Norm(), tmp_path / "w.pt", "norm")


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_no_code_of_a_file_is_run(how: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    how({**weights(), "evil": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w\.pt cannot be read as weights: .*no code in it is run") as caught:
        initial(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pt", weights_only=False) if how is torch.save else pickle.loads(
        (tmp_path / "w.pt").read_bytes()
    )
    assert (tmp_path / "ran").exists()  # the file would have


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(
        DataError, match=r"cannot be read as weights: UnpicklingError: Unsupported global: GLOBAL torch\.nn.*Linear"
    ):
        initial(tmp_path / "w.pt")


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:3], lambda b: b"", lambda b: b"words " * 9]
)
def test_damaged_files(file: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = save({name: tensor.contiguous() for name, tensor in weights().items()}, tmp_path / file)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} cannot be read as weights: (\w+: .+|it is .+)\."):
        initial(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        *((start + b"x" * 99, "a file that torch.save did not write") for start in (b"e", b"{}", b"P")),
    ],
)
def test_what_torch_did_not_write_is_told_by_its_first_bytes(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(DataError, match=rf"w\.pt cannot be read as weights: it is {what}\. It must be a torch\.save"):
        initial(tmp_path / "w.pt")


def test_a_checkpoint_says_where_its_weights_are(tmp_path: Path) -> None:
    torch.save({"model": weights(), "epoch": 3, "config": {"a": 1}}, tmp_path / "w.pt")
    with pytest.raises(DataError) as caught:
        initial(tmp_path / "w.pt")
    said, _, way_out = str(caught.value).partition(": save that alone, by ")
    assert said.endswith("is a checkpoint with a state_dict under 'model'")
    exec(way_out.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))), {"torch": torch})
    assert initial(tmp_path / "weights.pt").from_file


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))} is a folder: give the file of weights in it"):
        initial(tmp_path)


@pytest.mark.parametrize("file", ["absent.pt", "absent.safetensors"])
def test_files_that_are_not_there(file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"model\.weights: there is no file {re.escape(str(tmp_path / file))}"):
        initial(tmp_path / file)


def test_weights_of_the_character_gru(tmp_path: Path) -> None:
    config = resolve(NamedSection(name="char_gru", embedding=3, hidden=4))
    want = build_model(config, TextShape(5), 7, 3).state_dict()
    torch.save(want, tmp_path / "w.pt")
    config = resolve(NamedSection(name="char_gru", embedding=3, hidden=4, weights=str(tmp_path / "w.pt")))
    got = initial_model(config, TextShape(5), 7, 0)
    for entry in got.layout.entries:
        assert torch.equal(entry.view(got.state_S), want[entry.name])
