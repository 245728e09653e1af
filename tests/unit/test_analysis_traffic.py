"""Bytes by phase, on small ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_analysis import beside_each_other, load  # noqa: F401

from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def script(beside_each_other: None) -> Any:  # noqa: F811
    return load("split_traffic")


def write(path: Path, algorithm: str, sizes: dict[str, tuple[str, int]], num_rounds: int = 2, more: str = "") -> Path:
    """Write a run of two clients a round, each of whom has a message of each kind a round."""
    path.parent.mkdir(exist_ok=True)
    writer = LedgerWriter(path, attrs={}, config_yaml=f"algorithm: {{name: {algorithm}{more}}}\n", flush_s=1.0)
    for round_idx in range(num_rounds + 1):  # the last one is cut off
        for client in range(2):
            for step, (kind, (direction, nbytes)) in enumerate(sizes.items()):
                if kind == "init" and round_idx:
                    continue
                key = (round_idx, step, client, 1, direction, kind, "raw")
                row = (*key, 28, nbytes - 28, nbytes, 0, 0, nbytes, 8.0, 16.0 * nbytes, 1, 1, 0.0, 0.0, 0.0, 0.0)
                writer.add_message(MessageRow(*row))
        if round_idx < num_rounds:
            sums = dict.fromkeys(("down_nbytes", "up_nbytes", "cum_down_nbytes", "cum_up_nbytes"), 0)
            writer.add_round({"round_idx": round_idx, "num_clients": 2, **sums})
    writer.finish("done", {})
    return path


SPLIT = {"weights-seed": ("down", 1000), "activation-float": ("up", 4000), "gradient": ("down", 4000)}
ECO = {"init": ("down", 500), "control": ("down", 100), "activation": ("up", 800), "labels": ("up", 100)}


def test_phases_by_hand(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split, eco = write(tmp_path / "a.h5", "splitfed", SPLIT), write(tmp_path / "b.h5", "ecofed", ECO)
    one = script.read_traffic(split, "wire")
    assert one.nbytes == {"weights": 1000, "activation": 4000, "gradient": 4000} and one.sum_nbytes == 9000
    two = script.read_traffic(eco, "payload")
    assert two.nbytes == {"control": 72, "activation": 772, "labels": 72} and two.once_nbytes == 472
    assert script.read_traffic(eco, "paper").nbytes["activation"] == 1600
    assert script.main([str(split), str(eco), "-o", str(tmp_path / "picture.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = "bytes a client and round weights activation gradient labels control sum times once"
    assert " ".join(lines[0].split()) == words
    assert lines[2].split() == ["splitfed", "1,000", "4,000", "4,000", "-", "-", "9,000", "9.00", "0"]
    assert lines[3].split() == ["ecofed", "-", "800", "-", "100", "100", "1,000", "1.00", "500"]
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert script.main([str(split), str(eco), "--to", str(split), "--markdown"]) == 0
    assert "| ecofed | - | 800 | - | 100 | 100 | 1,000 | 0.11 | 500 |" in capsys.readouterr().out


def test_runs_of_one_algorithm_are_told_apart(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / f"{bits}.h5", "ecofed", ECO, more=f", bits: {bits}") for bits in (8, 4)]
    assert script.main(list(map(str, runs))) == 0
    assert "ecofed: algorithm.bits=4" in capsys.readouterr().out


@pytest.mark.parametrize(("period", "num_rounds", "warned"), [("2", 3, True), ("2", 4, False), ("adaptive", 3, False)])
def test_rounds_that_end_within_a_period_are_warned_of(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], period: str, num_rounds: int, warned: bool
) -> None:
    path = write(tmp_path / "a.h5", "ecofed", ECO, num_rounds, f", period: {period}")
    assert script.main([str(path)]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: ecofed has 3 rounds, no multiple of algorithm.period=2: ") is warned
    assert (said == "") is not warned


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.h5", "none.h5"),
        (lambda folder: write(folder / "a.h5", "ecofed", ECO, num_rounds=0), "no round is complete"),
        (lambda folder: write(folder / "a.h5", "ecofed", {}), "no round is complete"),
    ],
)
def test_what_cannot_be_told(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, words: str
) -> None:
    assert script.main([str(make(tmp_path))]) == 6
    assert words in capsys.readouterr().err
