"""A user's own code by name: found by path or by module, executed once, and its failures told with their line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpi.errors import ConfigError
from fedmpi.plugin import error_words, is_plugin, load_plugin


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the test runs in, also on the path; no module of it is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith(("fedmpi_user_", "own_of_test")):
            del sys.modules[name]


@pytest.mark.parametrize(("name", "own"), [("fedavg", False), ("a.py:B", True), ("a.b:C", True), ("a.py", False)])
def test_names_of_own_code(name: str, own: bool) -> None:
    assert is_plugin(name) == own


def test_a_file_by_any_path_is_executed_once(folder: Path) -> None:
    (folder / "sub").mkdir()
    path = folder / "sub" / "own_of_test.py"
    path.write_text("class Thing: pass\n")
    found = load_plugin(f"{path}:Thing", "some.key")
    path.write_text("1 / 0\n")
    assert load_plugin("sub/own_of_test.py:Thing", "some.key") is found
    assert load_plugin("sub/../sub/own_of_test.py:Thing", "some.key") is found
    assert sys.modules[found.__module__].Thing is found


def test_files_of_one_name_are_two(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "own.py").write_text(f"value = {name!r}\n")
    assert [load_plugin(f"{name}/own.py:value", "k") for name in ("a", "b")] == ["a", "b"]


def test_a_name_in_a_module(folder: Path) -> None:
    (folder / "own_of_test").mkdir()
    (folder / "own_of_test" / "inner.py").write_text("value = 5\n")
    assert load_plugin("own_of_test.inner:value", "k") == 5


def test_a_path_with_a_colon(folder: Path) -> None:
    (folder / "a:b").mkdir()
    (folder / "a:b" / "own.py").write_text("value = 6\n")
    assert load_plugin("a:b/own.py:value", "k") == 6


@pytest.mark.parametrize("path", ["absent.py", "sub.py", "no/such/own.py"])
def test_files_that_are_not_there(path: str, folder: Path) -> None:
    (folder / "sub.py").mkdir()
    with pytest.raises(ConfigError, match=rf"some\.key: there is no file {path} \(looked for from {folder}\)"):
        load_plugin(f"{path}:Thing", "some.key")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n\ny = 1 / 0\n", r"ZeroDivisionError: division by zero \(own_of_test\.py, line 3\)"),
        ("def f():\n    return {}['a']\nf()\n", r"KeyError: 'a' \(own_of_test\.py, line 2\)"),
        (
            "import absent_of_test\n",
            r"ModuleNotFoundError: No module named 'absent_of_test' \(own_of_test\.py, line 1\)",
        ),
        ("def broken(:\n", r"SyntaxError: .*line 1"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(own_of_test\.py, line 2\)"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .* \(own_of_test\.py, line 2\)"),
    ],
)
@pytest.mark.parametrize("name", ["own_of_test.py", "./own_of_test.py", "own_of_test"])
def test_code_that_fails_names_the_line(text: str, words: str, name: str, folder: Path) -> None:
    (folder / "own_of_test.py").write_text(text)
    for _ in range(2):  # it is tried again, not taken for loaded
        with pytest.raises(ConfigError, match=rf"some\.key: importing {Path(name)} failed: {words}"):
            load_plugin(f"{name}:Thing", "some.key")
    if name.endswith(".py"):
        (folder / "own_of_test.py").write_text(
            "Thing = 'whole now, and longer than before, so that it is read again'\n"
        )
        assert load_plugin(f"{name}:Thing", "some.key").startswith("whole")


@pytest.mark.parametrize("name", ["absent_of_test:A", "absent_of_test.inner:A", ":A", "own.txt:A", "..:A", "json.no:A"])
def test_modules_that_are_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"some\.key: importing .* failed: \w+: \w+"):
        load_plugin(name, "some.key")


@pytest.mark.parametrize(
    ("text", "attribute", "words"),
    [
        (
            "class One: pass\nTwo = 2\nthree = 3\n_Four = 4\n",
            "Zero",
            "has no 'Zero'; of names with a capital .*: One, Two$",
        ),
        ("one = 1\n", "Zero", "has no 'Zero'; .*: none$"),
        ("One = 1\n", "", "has no ''; .*: One$"),
    ],
)
def test_a_name_that_is_not_in_the_file(text: str, attribute: str, words: str, folder: Path) -> None:
    (folder / "own_of_test.py").write_text(text)
    with pytest.raises(ConfigError, match=rf"some\.key=own_of_test\.py:{attribute}: own_of_test\.py {words}"):
        load_plugin(f"own_of_test.py:{attribute}", "some.key")


def test_words_of_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    error = caught.value
    assert error_words(error, "") == error_words(error, "/elsewhere.py") == f"ValueError: {error}"
    assert error_words(error, __file__) == f"ValueError: {error} (test_plugin.py, line {error.__traceback__.tb_lineno})"


@pytest.mark.parametrize(
    ("name", "path"), [("hint_of_test:A", "hint_of_test.py"), ("sub.hint_of_test:A", "sub/hint_of_test.py")]
)
def test_a_file_named_like_a_module(name: str, path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text("A = 1\n")
    with pytest.raises(ConfigError, match=rf"importing .* failed: .*; did you mean the file\? write {path}:A$"):
        load_plugin(name, "model.name")


def test_a_file_imports_its_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under the installed command, which unlike ``python -m fedmpi`` does not have that folder on its path."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(folder))])
    (folder / "own_of_test_beside.py").write_text("VALUE = 3\n")
    (folder / "own_of_test_user.py").write_text("from own_of_test_beside import VALUE as Thing\n")
    assert load_plugin("own_of_test_user.py:Thing", "some.key") == 3
    assert sys.path.count(str(folder)) == 1
