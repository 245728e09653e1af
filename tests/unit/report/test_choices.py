"""``fedmpi list``: names and lines that fit a page."""

from __future__ import annotations

import pytest

from fedmpi.report.choices import GROUPS, choices_text


def test_lines_fit_and_hang_below_their_own() -> None:
    text = choices_text(list(GROUPS))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "``" not in text
    first, second = next(
        pair for pair in zip(text.splitlines(), text.splitlines()[1:], strict=False) if pair[1][:4].isspace()
    )
    assert first[len(second) - len(second.lstrip()) - 1] == " "


@pytest.mark.parametrize(("group", "what"), [("algorithms", "an algorithm"), ("models", "a model")])
def test_ones_own_code_is_a_choice_too(group: str, what: str) -> None:
    last = choices_text([group]).splitlines()[-1]
    assert last == f"  or {what} of your own: path/to/file.py:NAME or package.module:NAME"


def test_every_name_stands_at_the_start_of_a_line() -> None:
    for group, (key, find) in GROUPS.items():
        title, *lines = choices_text([group]).splitlines()
        assert title == f"{group} ({key})"
        assert [line.split()[0] for line in lines if line[2:3].strip() and not line.startswith("  or ")] == [
            name for name, _ in find()
        ]
