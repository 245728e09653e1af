"""The command line: quick help, overrides anywhere, refusals in words."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import small_config, write_config

from fedmpi import __version__, cli


def fedmpi(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpi", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_help_takes_less_than_0_4_s_of_cpu() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "run a configuration" in fedmpi("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.4


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_neither_torch_nor_mpi(words: list[str]) -> None:
    code = (
        "import sys; from fedmpi.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, {'torch', 'mpi4py'} & set(sys.modules), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stderr.split() == ["0", "set()"]
    assert "fedmpi" in ended.stdout


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedmpi {__version__}\n"


@pytest.fixture(autouse=True)
def _nobody_launched_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PMI_", "OMPI_", "SLURM_"))]:
        monkeypatch.delenv(name)


def test_overrides_stand_before_options_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(write_config(tmp_path)), tmp_path / "out"
    words = ["run", file, "train.lr=-1", "-o", str(out), "train.batch_size=0", "--overwrite", "rounds=0", "seed=-4"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedmpi: error: {file}: ")
    for key, value in (("train.lr", -1), ("train.batch_size", 0), ("rounds", 0), ("seed", -4)):
        assert any(line.split(f"{file}: ")[-1].startswith(f"{key} must be ") for line in said.splitlines())
        assert f"got {value}" in said
    assert not out.exists()


def test_of_two_overrides_of_a_key_the_last_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(tmp_path))
    assert cli.main(["run", file, "rounds=-7", "-o", str(tmp_path / "out"), "rounds=-8"]) == 2
    said = capsys.readouterr().err
    assert "got -8" in said
    assert "got -7" not in said
    assert small_config(tmp_path, "rounds=7", "rounds=8").rounds == 8


@pytest.mark.parametrize(
    "words",
    [
        ["run", "FILE", "--what"], ["run", "FILE", "a.b=1", "-x", "3"], ["run", "FILE", "rounds=1", "--overwrit3"],
        ["launch", "-n", "2", "FILE", "--what=3"], ["--what", "run", "FILE"], ["info", "FILE", "--what"],
    ],
)  # fmt: skip
def test_an_unknown_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    file = str(write_config(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main([file if word == "FILE" else word for word in words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: " in said
    assert next(word for word in words if word.startswith("-") and word != "-n") in said


@pytest.mark.parametrize("words", [[], ["walk"], ["run"], ["launch", "x.yaml"], ["launch", "-n", "two", "x.yaml"]])
def test_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fedmpi")


def test_a_missing_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nothing.yaml"
    assert cli.main(["run", str(path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedmpi: error: cannot read the configuration {path}: ")
    assert "No such file" in said
    assert not (tmp_path / "out").exists()


def test_a_word_that_is_no_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(write_config(tmp_path)), "-o", str(tmp_path / "out"), "rounds"]) == 2
    assert "override 'rounds' must look like section.key=value" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_of_launched_ranks_one_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, said: bool
) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", rank)
    assert cli.main(["run", str(tmp_path / "nothing.yaml")]) == 2
    assert bool(capsys.readouterr().err) is said


def test_info_of_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "ledger.h5")]) == 6
    assert str(tmp_path / "ledger.h5") in capsys.readouterr().err
