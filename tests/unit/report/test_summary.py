"""The end of a run's output: tables worked out by hand, and the last line's fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.report.summary import byte_table, info_table, info_text, last_line, timing_table


def cells(text: str) -> list[list[str]]:
    """Return a table's rows of words, the title and the ruler left out."""
    return [line.split() for line in text.split("\n")[1:] if not set(line) <= {" ", "-"}]


def columns_align(text: str) -> bool:
    """Return whether the columns that flush right end below the ruler's dashes."""
    lines = text.split("\n")[1:]
    ends = [match.end() for match in re.finditer("-+", lines[1])]
    return all(line[end : end + 1].strip() == "" for line in lines for end in ends)


def test_timing_by_hand() -> None:
    text = timing_table(
        [{"train": 0.0, "wait": 3.0, "log": 1.0}, {"train": 12.0, "wait": 3.5, "log": 0.5}], [1_500_000_000, 2_000_000]
    )
    *rows, memory = cells(text)
    assert rows == [
        ["phase", "min", "avg", "max", "%"],
        ["train", "0.000", "6.000", "12.000", "60.0"],
        ["wait", "3.000", "3.250", "3.500", "32.5"],
        ["log", "0.500", "0.750", "1.000", "7.5"],
    ]
    assert text.startswith("time (s, over ranks)\n")
    assert " ".join(memory) == "peak memory by rank (MB): 1500, 2"


def row(direction: str, kind: str, header: int, payload: int, dense: int, bound_nbits: float) -> MessageRow:
    wire = header + payload
    figures = ("dense", header, payload, wire, 0, 0, dense, bound_nbits, 0.0, 1, 1, 0.0, 0.0, 0.0, 0.0)
    return MessageRow(0, 0, 0, 1, direction, kind, *figures)


def test_bytes_by_hand(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "ledger.h5", attrs={}, config_yaml="", flush_s=1.0)
    for message in (
        row("down", "seed", 40, 16, 4_000_000, 128.0),
        row("up", "model", 500_000, 1_500_000, 1_000_000, 8_000_000.0),
        row("down", "nothing", 24, 0, 0, 0.0),
        row("up", "model", 500_000, 500_000, 1_000_000, 8_000_000.0),
        row("up", "seed", 1, 2, 4, 8.0),  # of the same name, but up
    ):
        writer.add_message(message)
    writer.finish("done", {})
    with Ledger(tmp_path / "ledger.h5") as ledger:
        text = byte_table(ledger)
    assert text.startswith("messages (measured; 1 MB = 10^6 bytes)\n")
    assert cells(text)[1:] == [
        ["down", "seed", "1", "0.000", "0.000", "0.000", "56", "0.0000", "3.5000"],
        ["down", "nothing", "1", "0.000", "0.000", "0.000", "24", "-", "-"],
        ["up", "model", "2", "1.000", "2.000", "3.000", "1500000", "1.5000", "1.5000"],
        ["up", "seed", "1", "0.000", "0.000", "0.000", "3", "0.7500", "3.0000"],
    ]
    assert columns_align(text)


def test_bytes_of_nothing(tmp_path: Path) -> None:
    LedgerWriter(tmp_path / "ledger.h5", attrs={}, config_yaml="", flush_s=1.0).finish("done", {})
    with Ledger(tmp_path / "ledger.h5") as ledger:
        assert len(byte_table(ledger).split("\n")) == 3


SUMMARY: dict[str, Any] = {
    "algorithm": "fedprox",
    "num_faults": 7,
    "status": "done",
    "rounds": 20,
    "accuracy": 0.87654,
    "down_nbytes": 1_234_567,
    "up_nbytes": 89,
    "simulation_nbytes": 4321,
    "wall_s": 12.3456,
    "model_digest": "0123456789abcdef" * 4,
    "ledger_digest": "fedcba9876543210" * 4,
}


def test_the_last_line() -> None:
    line = last_line(SUMMARY)
    head, *fields = line.split(" rounds=")
    assert head == "fedmpi: done"
    assert dict(field.split("=") for field in ("rounds=" + fields[0]).split()) == {
        "rounds": "20",
        "acc": "0.8765",
        "down_bytes": "1234567",
        "up_bytes": "89",
        "simulation_bytes": "4321",
        "wall": "12.35",
        "model": "0123456789abcdef",
        "ledger": "fedcba9876543210",
    }


def test_the_last_line_of_a_run_that_was_not_tested() -> None:
    line = last_line({**SUMMARY, "status": "stopped", "accuracy": None})
    assert line.startswith("fedmpi: stopped rounds=20 acc=- down_bytes=")
    assert "\n" not in line
    assert " acc=0.0000 " in last_line({**SUMMARY, "accuracy": 0.0})


def test_info_lines_up() -> None:
    assert info_text({"status": "done", "accuracy": None, "up_nbytes": 1_500_000, "wall_s": 2.345}).split("\n") == [
        "status     done", "accuracy   -", "up_nbytes  1500000 (1.500 MB)", "wall_s     2.35",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["model", "x" * 32])
def test_columns_align_whatever_the_kind(tmp_path: Path, kind: str) -> None:
    writer = LedgerWriter(tmp_path / "ledger.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.add_message(row("up", kind, 10**9, 10**12, 4, 8.0))
    writer.add_message(row("down", "seed", 1, 2, 4, 8.0))
    writer.finish("done", {})
    with Ledger(tmp_path / "ledger.h5") as ledger:
        lines = byte_table(ledger).split("\n")
    assert len({len(line) for line in lines[1:]}) == 1
    assert columns_align("\n".join(lines))


def test_several_ledgers_in_a_table() -> None:
    other = {**SUMMARY, "status": "failed: OutputError: a, b", "accuracy": None, "wall_s": None, "model_digest": None}
    other["algorithm"] = None
    lines = info_table([("runs/a/ledger.h5", SUMMARY), (Path("b.h5"), other)]).split("\n")
    assert [line.split() for line in lines if not set(line) <= {" ", "-"}] == [
        [
            "file", "algorithm", "status", "rounds", "faults", "accuracy", "MB", "up", "MB", "down", "wall_s",
            "ledger_digest", "model_digest",
        ],
        [
            "runs/a/ledger.h5", "fedprox", "done", "20", "7", "0.8765", "0.000", "1.235", "12.35", "fedcba9876543210",
            "0123456789abcdef",
        ],
        ["b.h5", "-", "failed", "20", "7", "-", "0.000", "1.235", "-", "fedcba9876543210", "-"],
    ]  # fmt: skip
    assert columns_align("\n" + "\n".join(lines))
