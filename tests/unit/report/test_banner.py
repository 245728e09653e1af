"""The head of a run's output, and the commit that it names."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from fedmpi import __version__
from fedmpi.comm.placement import Place
from fedmpi.config import RunConfig
from fedmpi.configfile import describe
from fedmpi.report import banner

git_only = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which banner.py seems to lie, where it lies in the package."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "fedmpi" / "report" / "banner.py"
    file.parent.mkdir(parents=True)
    file.write_text("one\n")
    monkeypatch.setattr(banner, "__file__", str(file))
    return tmp_path


@git_only
def test_the_commit_of_a_checkout_and_a_mark_if_it_was_changed(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "one")
    head = git(checkout, "rev-parse", "HEAD")
    assert banner.commit() == head[:12]
    git(checkout, "tag", "-a", "v1", "-m", "v1")  # a tag does not take the hash's place
    assert banner.commit() == head[:12]
    (checkout / "fedmpi" / "report" / "banner.py").write_text("two\n")
    assert banner.commit() == head[:12] + "-dirty"


@git_only
def test_a_repository_without_a_commit(checkout: Path) -> None:
    git(checkout, "init", "-q")
    assert banner.commit() == ""


@git_only
def test_an_installed_package_inside_somebody_elses_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit of the project whose virtual environment fedmpi sits in would be a wrong answer."""
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "one")
    (checkout / "venv" / "fedmpi" / "report").mkdir(parents=True)
    monkeypatch.setattr(banner, "__file__", str(checkout / "venv" / "fedmpi" / "report" / "banner.py"))
    assert banner.commit() == ""


def test_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / ".git").mkdir()
    monkeypatch.setenv("PATH", str(checkout / "nothing"))
    assert banner.commit() == ""


@git_only
def test_the_commit_of_this_checkout() -> None:
    root = Path(banner.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("fedmpi is not run from a checkout")
    head = git(root, "rev-parse", "HEAD")
    assert re.fullmatch(head[:12] + "(-dirty)?", banner.commit())


def test_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr("sys.argv", ["fedmpi", "run", "a b.yaml"])
    facts = banner.provenance("MPICH 4.3")
    assert facts["program"] == f"fedmpi {__version__}"
    assert (facts["mpi"], facts["job"], facts["command"]) == ("MPICH 4.3", "4711", "fedmpi run 'a b.yaml'")
    assert (facts["python"], facts["folder"]) == (platform.python_version(), os.getcwd())
    assert abs(datetime.fromisoformat(facts["date"]).timestamp() - datetime.now().timestamp()) < 60
    assert all(type(value) is str for value in facts.values())  # they become attributes of the ledger


def test_the_banner_leaves_out_what_is_empty() -> None:
    facts = {"program": "fedmpi", "commit": "abc", "python": "3.11", "mpi": "none", "job": ""}
    assert banner.banner(facts).split("\n") == [f"fedmpi {__version__} (abc)", "  python  3.11", "  mpi     none"]
    assert banner.banner({**facts, "commit": ""}).startswith(f"fedmpi {__version__}\n")


def test_the_banners_values_align() -> None:
    lines = banner.banner(banner.provenance("none")).split("\n")[1:]
    assert {re.match(r"  \w+ +", line).end() for line in lines} == {10}  # type: ignore[union-attr]


def test_the_echo_is_the_configuration() -> None:
    config = RunConfig(rounds=7)
    title, *lines = banner.echo(config).split("\n")
    assert title == "configuration"
    assert [line.removeprefix("  ") for line in lines] == describe(config).splitlines()
    assert "  rounds: 7  # set" in lines


def test_the_placement_table() -> None:
    places = [
        Place(0, "server", "node1", 0, "cpu", "x86_64", "", "0-3", 1, 2, 8, 1000),
        Place(1, "worker", "node1", 1, "cuda:0", "NVIDIA H200", "GPU-1f", "4-7", 1, 2, 8, 1001),
        Place(10, "worker", "n2", 0, "cpu", "x86_64", "", "0", 16, 1, 1, 9),
    ]
    text = banner.placement(places, ["n2: slow", "node1: hot"])
    title, *lines, first, second = text.split("\n")
    assert title == "placement"
    assert lines[0].split() == ["rank", "role", "host", "local", "pid", "device", "name", "uuid", "cores", "threads"]
    assert lines[3].split() == ["1", "worker", "node1", "1", "1001", "cuda:0", "NVIDIA", "H200", "GPU-1f", "4-7", "1"]
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    assert (first, second) == ("  warning: n2: slow", "  warning: node1: hot")
