"""Plays in plain text: the three forms of a role's line, and what is no speech."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fedmpi.data.plays import Speech, parse_play, play_files, read_play
from fedmpi.errors import DataError

TABBED = """\tA PLAY

\tDRAMATIS PERSONAE

ANN\ta shepherdess.
DUKE BOB\this brother.

SCENE\tHere and there.

\tA PLAY

ACT I

SCENE I\tA wood.

\t[Enter ANN and DUKE BOB, with
\tothers]

ANN\tWho's  there?
\t[Aside] I ask.

DUKE BOB\tIt is I.

\t[Sings]

\tUnder the tree:
\tCome hither.

\tA PLAY

ACT II

SCENE I\tThe same.

A Lord\tMy lord [kneels] speaks.
Noise within.
\tNobody says this.

\t[Exeunt]
"""
NAMED = """A title

First Citizen:
Before we proceed any further,
hear me speak:

All:
Speak, speak.
Thus:
so.

Dr. O'Neil-Smith:
You are all resolved.

ACT II:
no speech

Not a role: he said
so.
"""
GUTENBERG = """The Project Gutenberg eBook of A Play

CONTENTS.
ACT I.

ACT I.

SCENE I. An Orchard.

 Enter Orlando and Adam.

ORLANDO.
As I remember, Adam,
it was [_aside_] so.

OLD ADAM.
Yonder comes my master.
NOW.

[_Exit._]

EPILOGUE.
none

THE END.
over
"""


def test_tabs() -> None:
    assert parse_play(TABBED) == [
        Speech("ANN", "Who's there?\nI ask."),
        Speech("DUKE BOB", "It is I.\nUnder the tree:\nCome hither."),
        Speech("A Lord", "My lord speaks."),
    ]


def test_tabs_without_acts() -> None:
    assert parse_play("ANN\tOne.\n\ttwo\n\nBOB:\tThree.\n") == [Speech("ANN", "One.\ntwo"), Speech("BOB", "Three.")]


def test_names_with_a_colon() -> None:
    assert parse_play(NAMED) == [
        Speech("First Citizen", "Before we proceed any further,\nhear me speak:"),
        Speech("All", "Speak, speak.\nThus:\nso."),
        Speech("Dr. O'Neil-Smith", "You are all resolved."),
    ]


def test_capitals_with_a_full_stop() -> None:
    assert parse_play(GUTENBERG) == [
        Speech("ORLANDO", "As I remember, Adam,\nit was so."),
        Speech("OLD ADAM", "Yonder comes my master.\nNOW."),
    ]


@pytest.mark.parametrize("text", [TABBED, NAMED, GUTENBERG])
@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_do_not_matter(text: str, line_end: str) -> None:
    assert parse_play(text.replace("\n", line_end)) == parse_play(text)


def test_a_bracket_that_is_not_closed_takes_no_speech_along() -> None:
    speeches = parse_play("Ann:\nOne [two\n\nBob:\nThree [four] five.\n")
    assert speeches == [Speech("Ann", "One [two"), Speech("Bob", "Three five.")]


@pytest.mark.parametrize("name", ["play.txt", "play.txt.gz"])
def test_read_play(tmp_path: Path, name: str) -> None:
    content = "\ufeff" + NAMED
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert play_files(tmp_path) == [path]
    assert read_play(path) == parse_play(NAMED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a play"),
        (b"Once upon a time.\n\nThere was no play.\n", r"`ROLE<tab>speech` .*`Role Name:` .*`ROLE\.` .*, got none"),
        (b"Ann:\n\nBob:\n\n", "got none"),
        (b"Ann:\nH\xe9las\n", "expected UTF-8 text"),
        (gzip.compress(NAMED.encode())[:-9], "expected a whole gzip stream"),
    ],
)
def test_files_that_are_no_play(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "play.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_play(path)
    assert str(caught.value).startswith(str(path))


def test_play_files_says_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    (tmp_path / ".hidden.txt").touch()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "README.md"):
        with pytest.raises(DataError, match=r"no \*\.txt or \*\.txt\.gz") as caught:
            play_files(folder)
        assert str(folder) in str(caught.value)
