"""Models of the user's own: called by their signature, written down in full, every mistake a ConfigError in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmpi.config import NamedSection
from fedmpi.configfile import describe
from fedmpi.data.shapes import ImageShape, TextShape
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import ModelConfig, build_model, resolve

SHAPE = ImageShape(4, 5, 2)
OWN = """
from __future__ import annotations
import functools
import torch
from torch import nn

class Net(nn.Module):
    def __init__(
        self, num_classes: int, width: int = 8, slope: float = 1, act=nn.ReLU, hidden=(3, 4), tags: list[str] = []
    ):
        super().__init__()
        self.got = dict(num_classes=num_classes, width=width, slope=slope, act=act, hidden=hidden, tags=tags)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(40, width), nn.ReLU(), nn.Linear(width, num_classes))
    def forward(self, x):
        return self.net(x)

def make(shape, num_classes, depth: int, **rest):
    assert not rest
    module = nn.Sequential(nn.Flatten(), nn.Linear(shape.height * shape.width * shape.channels, num_classes))
    module.depth = depth
    return module

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 10))

def swallows(**anything):
    assert anything == {}
    return fixed()

def named(name="a", weights=None, _hidden=3, copy=1, x: int = None, wrong: int = "word", inf=float("inf")):
    module = fixed()
    module.got = (name, weights, _hidden, copy, x, wrong, inf)
    return module

def needs_weights(weights): ...
def positional(width, /): ...
def raises(width=2):
    return nn.Linear(width, 'many')
def dies(): raise ValueError("not today")
def no_module(): return 3
def small(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(40, num_classes - 1))
class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(40, 10)
    def forward(self, x):
        flat = x.view(2, -1)
        return self.layer(flat)
class NoModule:
    pass
built = nn.Linear(40, 10)
number = 3
part = functools.partial(make, depth=2)
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file of models in the folder that the test runs in; no module of it is left behind."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("fedmpi_user_", "package_of_test")):
            del sys.modules[name]


def config_of(attribute: str, **settings: Any) -> ModelConfig:
    return resolve(NamedSection(name=f"own.py:{attribute}", **settings))


def build(attribute: str, **settings: Any) -> Any:
    return build_model(config_of(attribute, **settings), SHAPE, 10, 1)


def initial(attribute: str, seed: int = 1, **settings: Any) -> InitialModel:
    return initial_model(config_of(attribute, **settings), SHAPE, 10, seed)


def test_a_class() -> None:
    module = build("Net", width=32)
    got = dict(module.got)
    assert got.pop("act") is torch.nn.ReLU
    assert got == {"num_classes": 10, "width": 32, "slope": 1.0, "hidden": (3, 4), "tags": []}
    assert FlatModel(module).layout.num_params == 41 * 32 + 33 * 10
    assert build("Net", hidden=[5], tags=["a"]).got["hidden"] == [5]


def test_a_function_that_takes_the_shape() -> None:
    assert build("make", depth=3).depth == 3
    assert initial("make", depth=3).layout.num_params == 410
    assert build("part").depth == 2


@pytest.mark.parametrize("attribute", ["fixed", "swallows"])
def test_what_the_signature_does_not_name_is_not_given(attribute: str) -> None:
    assert initial(attribute).layout.num_params == 410


def test_parameters_that_cannot_be_set_keep_their_defaults() -> None:
    assert build("named", x=4).got == ("a", None, 3, 1, 4, "word", float("inf"))
    for key in ("_hidden", "copy"):
        with pytest.raises(ConfigError, match=rf"model\.{key}: unknown key"):
            config_of("named", **{key: 4})


def test_the_seed_decides_the_weights() -> None:
    first, again, other = initial("Net", 1), initial("Net", 1), initial("Net", 2)
    assert first.state_hash == again.state_hash != other.state_hash
    assert first.from_file is False


def test_the_resolved_configuration_names_the_settings_and_reads_back() -> None:
    config = config_of("Net", width=32)
    assert config.model_dump() == {
        "name": "own.py:Net", "weights": None, "pretrained": None, "pretrained_units": 2,
        "width": 32, "slope": 1.0, "hidden": (3, 4), "tags": []
    }  # fmt: skip
    text = describe(config)
    assert "width: 32  # default: 8\n" in text
    assert "slope: 1.0\n" in text
    again = resolve(NamedSection(**yaml.safe_load(text)))
    assert describe(again) == text.replace("hidden: [3, 4]\n", "hidden: [3, 4]  # default: (3, 4)\n")
    assert describe(resolve(config)) == text
    assert "depth: 3  # set\n" in describe(config_of("make", depth=3))
    assert "act: x  # set\n" in describe(config_of("Net", act="x"))  # what is given is written down
    assert build_model(resolve(config), SHAPE, 10, 1).got["width"] == 32


@pytest.mark.parametrize(
    ("attribute", "settings", "words"),
    [
        ("Net", {"widht": 3}, r"model\.widht: unknown key \(value 3\)"),
        ("Net", {"num_classes": 3}, r"model\.num_classes: unknown key"),
        ("Net", {"width": "wide"}, r"model\.width must be a whole number, got 'wide'"),
        ("Net", {"width": True}, r"model\.width must be a.* number, got true"),
        ("swallows", {"width": 3}, r"model\.width: unknown key"),
        ("make", {}, r"model\.depth: required, and not given"),
        ("needs_weights", {}, r"name=own\.py:needs_weights: parameter 'weights' has no default, and its name is taken"),
        ("positional", {}, r"parameter 'width' has no default, and it cannot be given by keyword"),
        ("number", {}, r"model\.name=own\.py:number must name an nn\.Module class or a function .*, got int"),
        ("NoModule", {}, r"must name an nn\.Module class or a function .*, got the class NoModule"),
        ("built", {}, r"model\.name=own\.py:built is a module that is already built"),
        ("absent", {}, r"model\.name=own\.py:absent: own\.py has no 'absent'"),
    ],
)
def test_mistakes_that_the_signature_shows(attribute: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(attribute, **settings)


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(OWN.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (
            "raises",
            rf"building it failed: TypeError: .* \(own\.py, line {line_of('many')}\)",
        ),
        ("dies", r"model\.name=own\.py:dies: building it failed: ValueError: not today \(own\.py, line"),
        ("no_module", r"model\.name=own\.py:no_module must make an nn\.Module, got int"),
        ("small", r"must return logits \(batch, classes\) = \(2, 10\) float32 .*, got \(2, 9\) float32"),
        ("Breaks", rf"failed on a batch of \(2, 2, 4, 5\) .*line {line_of('x.view')}\)"),
    ],
)
def test_mistakes_that_building_shows(attribute: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        initial(attribute)


def test_an_image_model_that_gets_text() -> None:
    with pytest.raises(ConfigError, match=r"failed on a batch of \(2, 40\) int64: RuntimeError"):
        initial_model(config_of("fixed"), TextShape(40), 10, 0)


def test_a_module_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_test").mkdir()
    (tmp_path / "package_of_test" / "nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = resolve(NamedSection(name="package_of_test.nets:Net", width=3))
    assert initial_model(config, SHAPE, 10, 0).layout.num_params == 41 * 3 + 4 * 10
    with pytest.raises(ConfigError, match=r"ValueError: not today \(nets\.py, line \d+\)"):
        build_model(resolve(NamedSection(name="package_of_test.nets:dies")), SHAPE, 10, 0)


def test_weights_from_a_file(tmp_path: Path) -> None:
    module = build("fixed")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = initial("fixed", seed=9, weights=str(tmp_path / "w.pt"))
    assert loaded.from_file is True
    assert torch.equal(loaded.state_S, FlatModel(module).state_S)


def test_a_callable_without_a_signature() -> None:
    with pytest.raises(ConfigError, match=r"model\.name=builtins:range must name an nn\.Module class"):
        resolve(NamedSection(name="builtins:range"))
    with pytest.raises(ConfigError, match=r"model\.name=builtins:max: its signature cannot be read"):
        resolve(NamedSection(name="builtins:max"))
