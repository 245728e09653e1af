"""The console: the same lines to the terminal and to the log, and tables whose columns align."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.report.console import BAR_COLUMNS, Console, megabytes, on_terminal, table


def test_what_is_printed_is_in_the_log_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.log_to(tmp_path / "log.txt")
    console.print("one\ntwo")
    console.print()
    console.print("three é")
    console.close()
    assert capsys.readouterr().out == "one\ntwo\n\nthree é\n"
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\n\nthree é\n"


def test_a_flush_lets_all_be_seen(tmp_path: Path) -> None:
    console = Console()
    console.log_to(tmp_path / "log.txt")
    for i in range(5):
        console.print(str(i))
    console.flush()
    assert (tmp_path / "log.txt").read_text() == "0\n1\n2\n3\n4\n"
    console.close()


def test_the_first_line_is_seen_at_once(tmp_path: Path) -> None:
    console = Console()
    console.log_to(tmp_path / "log.txt")
    console.print("here")
    assert (tmp_path / "log.txt").read_text() == "here\n"
    console.close()


def test_what_was_printed_before_the_log_is_in_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.print("one\ntwo")
    console.print()
    assert list(tmp_path.iterdir()) == []
    console.log_to(tmp_path / "log.txt")
    console.print("three")
    console.close()
    assert (tmp_path / "log.txt").read_text() == capsys.readouterr().out == "one\ntwo\n\nthree\n"


def test_a_terminal_is_its_own_or_the_launchers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(BAR_COLUMNS, raising=False)
    assert not on_terminal()
    monkeypatch.setenv(BAR_COLUMNS, "80")
    assert on_terminal()
    Console().print("a line")
    assert "a line\n" in capsys.readouterr().out


def test_without_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.print("only here")
    console.close()
    console.close()
    assert capsys.readouterr().out == "only here\n"


def test_a_table_by_hand() -> None:
    assert table(("name", "n", "MB"), [("a", 1, "10.500"), ("longer name", 12345, "0.001")]).split("\n") == [
        "  name             n      MB",
        "  -----------  -----  ------",
        "  a                1  10.500",
        "  longer name  12345   0.001",
    ]


def test_the_first_columns_flush_left() -> None:
    assert table(("direction", "kind", "x"), [("up", "model", 1), ("down", "m", 22)], left=2).split("\n") == [
        "  direction  kind    x",
        "  ---------  -----  --",
        "  up         model   1",
        "  down       m      22",
    ]


def test_a_table_without_rows() -> None:
    assert table(("a", "long"), []).split("\n") == ["  a  long", "  -  ----"]


def test_a_row_too_short_is_a_mistake() -> None:
    with pytest.raises((IndexError, ValueError)):
        table(("a", "b"), [("1",)])


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0.000"), (1_000_000, "1.000"), (1_048_576, "1.049"), (499, "0.000"), (1.5e12, "1500000.000")],
)
def test_a_megabyte_is_a_million_bytes(nbytes: float, text: str) -> None:
    assert megabytes(nbytes) == text
