"""Algorithms by name, by file and by entry point; every way it can go wrong is the user's ConfigError."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.fedavg import ALGORITHM as FEDAVG
from fedmpi.algorithms.registry import BUILT_IN, find, resolve
from fedmpi.config import NamedSection
from fedmpi.errors import ConfigError
from fedmpi.wire.message import KINDS

OWN = """
from pydantic import Field
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer
from fedmpi.wire.message import Message, dense, message
from fedmpi.wire.values import Dense

class MineConfig(AlgorithmConfig):
    strength: float = Field(0.5, gt=0)

@message("t-mine", "up")
class MineUp(Message):
    state: Dense = dense("state")

Mine = Algorithm("mine", MineConfig, FedAvgServer, FedAvgClient)
NotOne = 3
"""


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    """Leave no message and no module of these tests behind."""
    before, modules = dict(KINDS), set(sys.modules)
    yield
    KINDS.clear()
    KINDS.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith(("fedmpi_user_", "plugin_of_test")):
            del sys.modules[name]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_names(name: str) -> None:
    algorithm, config = resolve(NamedSection(name=name))
    assert isinstance(algorithm, Algorithm)
    assert algorithm.name == config.name == name
    assert type(config) is algorithm.config


def test_an_unknown_name() -> None:
    known = ", ".join(sorted(BUILT_IN))
    with pytest.raises(
        ConfigError, match=rf"one of {known}, or path/to/file\.py:NAME or package\.module:NAME, got 'zzz'$"
    ):
        find("zzz")
    with pytest.raises(ConfigError, match=r"got 'fedporx'; did you mean fedprox\?$"):
        find("fedporx")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (NamedSection(name="fedavg", mu=3), r"algorithm\.mu: unknown key \(value 3\)"),
        (NamedSection(name="fedprox", mu=-1), r"algorithm\.mu must be at least 0, got -1"),
    ],
)
def test_wrong_settings(section: NamedSection, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(section)


def test_a_file_of_the_users(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, config = resolve(NamedSection(name=f"{own}:Mine", strength=2))
    assert algorithm.name == "mine"
    assert config.model_dump() == {"name": f"{own}:Mine", "strength": 2.0}
    with pytest.raises(ConfigError, match=r"algorithm\.strength must be above 0, got 0"):
        resolve(NamedSection(name=f"{own}:Mine", strength=0))
    monkeypatch.chdir(own.parent)
    assert find("own.py:Mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "attribute", "words"),
    [
        (OWN, "NotOne", "must name an Algorithm, got int"),
        (OWN, "MineConfig", "must name an Algorithm, got ModelMetaclass"),
        (OWN, "Absent", r"has no 'Absent'; of names with a capital it has: .*Mine, NotOne"),
        ("import a_module_that_is_not_there\n", "Mine", r"importing .*own\.py failed: ModuleNotFoundError: .*a_module"),
        ("def broken(:\n", "Mine", r"importing .*own\.py failed: SyntaxError"),
        ("1 / 0\n", "Mine", r"importing .*own\.py failed: ZeroDivisionError"),
    ],
)
def test_files_that_hold_no_algorithm(tmp_path: Path, text: str, attribute: str, words: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        find(f"{path}:{attribute}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.py"):
        find(f"{tmp_path}/absent.py:Mine")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match=r"there is no file .*folder\.py"):
        find(f"{tmp_path}/folder.py:Mine")


def test_a_path_without_a_name_in_it_is_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"path/to/file\.py:NAME or package\.module:NAME, got 'own\.py'"):
        find("own.py")


@pytest.mark.parametrize("name", ["absent_module_of_test:Mine", "own.txt:Mine", ":Mine"])
def test_modules_that_are_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.name: importing {re.escape(name.partition(':')[0])} failed: "):
        find(name)


def test_a_name_in_an_importable_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_test").mkdir()
    (tmp_path / "plugin_of_test" / "__init__.py").write_text("")
    (tmp_path / "plugin_of_test" / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    algorithm, config = resolve(NamedSection(name="plugin_of_test.own:Mine", strength=2))
    assert (algorithm.name, config.model_dump()["strength"]) == ("mine", 2.0)
    with pytest.raises(ConfigError, match=r"has no 'Other'; of names with a capital it has: .*Mine"):
        find("plugin_of_test.own:Other")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """Put an installed package with entry points on the path, as pip would leave it."""
    (folder / "plugin_of_test.py").write_text("from fedmpi.algorithms.fedavg import ALGORITHM\nother = 3\n")
    info = folder / "plugin_of_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fedmpi.algorithms]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "plugged = plugin_of_test:ALGORITHM\nother = plugin_of_test:other")
    assert find("plugged") is FEDAVG
    with pytest.raises(ConfigError, match="name=other must name an Algorithm, got int"):
        find("other")
    with pytest.raises(ConfigError, match=f"one of {', '.join(sorted([*BUILT_IN, 'other', 'plugged']))}, or"):
        find("fedsgd")


@pytest.mark.parametrize("target", ["plugin_of_test:absent", "absent_module_of_test:ALGORITHM"])
def test_an_entry_point_that_cannot_be_loaded(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, f"plugged = {target}")
    with pytest.raises(ConfigError, match="plugged"):
        find("plugged")


def test_a_file_is_executed_once_a_process(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find(f"{own}:Mine")
    own.write_text(OWN + "\n1 / 0\n")
    assert find(f"{own}:Mine") is found
    monkeypatch.chdir(own.parent)
    assert find("own.py:Mine") is found
    (tmp_path / "sub").mkdir()
    assert find("sub/../own.py:Mine") is found


def test_files_of_one_name_are_two(tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(OWN.replace("t-mine", f"t-mine-{folder}"))
        found.append(find(f"{tmp_path / folder / 'own.py'}:Mine"))
    assert found[0] is not found[1]
    assert len({algorithm.config for algorithm in found}) == 2


def test_a_file_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="ZeroDivisionError"):
            find(f"{path}:Mine")
    path.write_text(OWN + "\n# whole now\n")
    assert find(f"{path}:Mine").name == "mine"
