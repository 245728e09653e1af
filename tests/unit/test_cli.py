"""The command line: quick help, overrides anywhere, refusals in words."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import small_config, write_config

from fedmpi import __version__, cli
from fedmpi.errors import ConfigError
from fedmpi.ledger.writer import LedgerWriter


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
    assert said.startswith("fedmpi: error: on the command line: ")
    assert [line[:2] for line in said.splitlines()[1:]] == ["  "] * 3
    for key, value in (("train.lr", -1), ("train.batch_size", 0), ("rounds", 0), ("seed", -4)):
        assert any(line.split("on the command line: ")[-1].startswith(f"{key} must be ") for line in said.splitlines())
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
    command = next(word for word in words if word in ("run", "launch", "info"))
    assert said.startswith(f"usage: fedmpi {command} ")
    assert next(line for line in said.splitlines() if "error" in line).startswith("fedmpi: error: ")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["run", "--dryrun", "x.yaml"], "--dry-run"),
        (["check", "a", "--verbsoe"], "--verbose"),
        (["run", "x", "--q"], ""),
    ],
)
def test_the_option_that_was_meant(capsys: pytest.CaptureFixture[str], words: list[str], option: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"; did you mean {option}?" if option else "unrecognized arguments: --q")


@pytest.mark.parametrize("words", [[], ["walk"], ["run"], ["launch", "x.yaml"], ["launch", "-n", "two", "x.yaml"]])
def test_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: fedmpi")
    assert said.splitlines()[-1].startswith("fedmpi: error: ")


def test_only_the_file_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run"])
    assert capsys.readouterr().err.endswith("\nfedmpi: error: the following arguments are required: CONFIG.yaml\n")


@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5", ""])
def test_a_number_of_ranks_that_cannot_be(capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", f"-n{number}" if number else "-n=", "x.yaml"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "\nfedmpi: error: argument -n: must be a whole number of at least 1, got " in said


@pytest.mark.parametrize("words", [["run", "x.yaml"], ["export", "x.h5"], ["fetch", "mnist"]])
def test_an_output_folder_without_a_name(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "-o", ""])
    assert ended.value.code == 2
    assert "argument -o/--out: must be a folder, got an empty word" in capsys.readouterr().err


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
    def refuse(args: argparse.Namespace) -> int:
        raise ConfigError("not so")

    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", rank)
    monkeypatch.setattr(cli, "_run", refuse)
    assert cli.main(["run", str(tmp_path / "nothing.yaml")]) == 2
    assert bool(capsys.readouterr().err) is said


def test_info_of_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tmp_path / "ledger.h5")]) == 6
    assert str(tmp_path / "ledger.h5") in capsys.readouterr().err


def make_run(folder: Path, config_yaml: str = "rounds: 7\nseed: 3\nalgorithm: {name: fedprox, mu: 1}\n") -> Path:
    folder.mkdir()
    writer = LedgerWriter(folder / "ledger.h5", attrs={}, config_yaml=config_yaml, flush_s=1.0)
    writer.finish("done", {"wall_s": 1.23456})
    return folder


def test_info_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "run"))
    assert cli.main(["info", run]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (facts["algorithm"], facts["seed"], facts["rounds_planned"], facts["data"]) == ("fedprox", "3", "7", "-")
    assert (facts["wall_s"], facts["wire_nbytes"]) == ("1.23", "0 (0.000 MB)")
    assert cli.main(["info", run, "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert (raw["wall_s"], raw["rounds_planned"], raw["wire_nbytes"], raw["model"]) == (1.23456, 7, 0, None)


def test_check_prints_what_was_checked_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert cli.main(["check", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'ledger.h5'}: sound\n"
    assert cli.main(["check", "-v", str(run), str(tmp_path / "none")]) == 6
    said = capsys.readouterr().out
    assert "  checked: messages: recv_t >= 0 (0 rows)\n" in said
    assert f"{tmp_path / 'none'}: NOT sound\n" in said


def test_export_needs_no_format_and_twice_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert cli.main(["export", str(run)]) == 0
    assert cli.main(["export", str(run), "--csv"]) == 6
    first, *paths, last = capsys.readouterr().err.splitlines()
    assert "--overwrite" in first and "-o FOLDER" in first
    assert paths == [f"  {run / 'csv' / name}.csv" for name in ("messages", "rounds", "faults")]
    assert last == "  and 5 more"
    assert cli.main(["export", str(run), "--table", "mesages"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedmpi: error: --table: expected one of messages, ")
    assert said.endswith("got 'mesages'; did you mean messages?\n")


def test_a_list_of_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "model"]) == 2
    assert capsys.readouterr().err.endswith("got 'model'; did you mean models?\n")
