"""One line a round, and on a terminal a live bar beneath it."""

from __future__ import annotations

import io
import math
import sys

import pytest

from fedmpi.report.console import BAR_COLUMNS, Console
from fedmpi.report.progress import Progress


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BAR_COLUMNS, raising=False)


ROUND = {
    "round_idx": 4, "num_clients": 10, "num_faults": 0, "train_loss": 0.123456, "test_loss": 0.5,
    "test_accuracy": 0.87654, "down_nbytes": 1_500_000, "up_nbytes": 4_000, "wall_s": 1.23456,
    "density": 1.0,
}  # fmt: skip


def test_a_rounds_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(), 100, 10)
    progress.client_done(4, 1, 10)
    progress.round_done(ROUND)
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == (
        "round   5/100  clients 10  train_loss 0.1235  test_loss 0.5000  test_acc 0.8765  "
        "down 1.500 MB  up 0.004 MB  1.235 s\n"
    )
    assert captured.err == ""


def test_a_round_of_a_sparse_model(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Console(), 100, 10).round_done({**ROUND, "density": 0.20214})
    assert "  test_acc 0.8765  density 0.2021  down 1.500 MB" in capsys.readouterr().out


def test_a_round_that_was_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Console(), 9, 10).round_done({**ROUND, "test_loss": math.nan, "test_accuracy": math.nan})
    assert capsys.readouterr().out == "round 5/9  clients 10  train_loss 0.1235  down 1.500 MB  up 0.004 MB  1.235 s\n"


def test_a_round_with_replies_missing_and_a_loss_beyond_all_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Console(), 9, 10).round_done({**ROUND, "num_faults": 3, "train_loss": 1.25e30, "test_loss": math.inf})
    said = capsys.readouterr().out
    assert said.startswith("round 5/9  clients 7 of 10  train_loss 1.25e+30  test_loss inf  ")


def test_lines_align_from_round_to_round(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(), 1000, 10)
    for round_idx in (0, 8, 9, 99, 999):
        progress.round_done({**ROUND, "round_idx": round_idx})
    assert len({line.index("clients") for line in capsys.readouterr().out.splitlines()}) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_moves_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress(Console(), 3, 10)
    progress.client_done(1, 5, 10)
    progress.round_done({**ROUND, "round_idx": 1})
    progress._bar.refresh()  # type: ignore[union-attr]
    shown = terminal.getvalue()
    assert "round 2/3" in shown
    assert "15/30" in shown
    assert "round 2/3  clients 10  train_loss 0.1235" in shown
    progress.close()
    assert terminal.getvalue().split("\r")[-2].strip() == ""  # wiped with blanks


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(), 3, 10)
    for num_done in range(10):
        progress.client_done(0, num_done, 10)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_as_wide_as_the_launchers_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(BAR_COLUMNS, "61")
    progress = Progress(Console(), 3, 10)
    progress.client_done(1, 5, 10)
    progress.round_done({**ROUND, "round_idx": 1})
    progress._bar.refresh()  # type: ignore[union-attr]
    shown = capsys.readouterr().out
    assert "15/30" in shown
    assert "round 2/3  clients 10  train_loss 0.1235" in shown
    bars = [part for part in shown.replace("\n", "\r").split("\r") if "client/s" in part]
    assert {len(bar) for bar in bars} == {61}
    progress.close()
