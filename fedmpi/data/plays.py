"""Plays in plain text: who speaks, and what."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedmpi.data.arrays import read_bytes
from fedmpi.errors import DataError

PLAY_SUFFIXES = (".txt", ".txt.gz")
ROLE_LINES = (
    "`ROLE<tab>speech` with further lines that begin with a tab; or `Role Name:` alone on a line after an empty one, "
    "followed by the speech up to an empty line; or `ROLE.` in capitals in the same way"
)
_HEADING = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|INDUCTION|CHORUS ENDS|CONTENTS|FINIS|THE END|END)\b")
_DIRECTION = re.compile(r"\[[^\[\]]*\]")
_TABBED_ROLE = re.compile(r"([A-Z][^\t]{0,40}?):?\s*\t(.*)")
_NAMED_ROLE = re.compile(r"([A-Z][\w'\u2019. -]{0,40}):")
_CAPITAL_ROLE = re.compile(r"([A-Z][A-Z'\u2019, -]{0,40})\.")


class Speech(NamedTuple):
    """What a role says at one time, lines separated by newlines."""

    role: str
    text: str


def play_files(folder: Path) -> list[Path]:
    """Return the plays of `folder` by name, ``.txt`` or ``.txt.gz``; `DataError` if there is none."""
    files = sorted(
        path
        for path in folder.glob("*")
        if path.name.endswith(PLAY_SUFFIXES) and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder}: no *.txt or *.txt.gz")
    return files


def read_play(path: Path) -> list[Speech]:
    """Read a play, in whichever of the three forms of `ROLE_LINES` gives most speeches.

    Stage directions in [brackets] are dropped, and what stands outside speeches: titles, headings, lists of roles.

    Raises
    ------
    DataError
        If the file is no UTF-8 text, plain or gzipped, or no role speaks in it.
    """
    raw = read_bytes(path)
    try:
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip stream, got a damaged one ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error}") from error
    speeches = parse_play(text)
    if not speeches:
        raise DataError(f"{path}: expected a play with lines that name a role ({ROLE_LINES}), got none")
    return speeches


def parse_play(text: str) -> list[Speech]:
    """Return the speeches of a play in their order; none if no line names a role."""
    lines = _DIRECTION.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    candidates = [_tabbed(lines), _in_blocks(lines, _NAMED_ROLE), _in_blocks(lines, _CAPITAL_ROLE)]
    return max(candidates, key=len)


def _tabbed(lines: list[str]) -> list[Speech]:
    # What precedes the first act is the list of roles, which looks as if each said what he is.
    begin = next((number for number, line in enumerate(lines) if re.match(r"ACT\b", line)), 0)

    def turns() -> Iterator[tuple[str | None, str]]:
        after_empty = True
        for line in lines[begin:]:
            match = _TABBED_ROLE.fullmatch(line)
            if _HEADING.match(line):
                yield "", ""
            elif match:
                yield match[1].strip(), match[2]
            elif line.startswith("\t"):
                title = after_empty and line.upper() == line and sum(map(str.isalpha, line)) > 1
                yield ("", "") if title else (None, line)
            elif line.strip():
                yield "", ""
            after_empty = not line.strip()

    return _collect(turns)


def _in_blocks(lines: list[str], role_line: re.Pattern[str]) -> list[Speech]:
    def turns() -> Iterator[tuple[str | None, str]]:
        after_empty = True
        for line in lines:
            match = role_line.fullmatch(line.strip()) if after_empty else None
            after_empty = not line.strip()
            if after_empty:
                yield "", ""
            elif match:
                yield ("", "") if _HEADING.match(match[1]) else (match[1].strip(), "")
            else:
                yield None, line

    return _collect(turns)


def _collect(turns: Callable[[], Iterator[tuple[str | None, str]]]) -> list[Speech]:
    """Join lines to speeches: a role begins one, None goes on with it, and an empty role ends it."""
    speeches: list[tuple[str, list[str]]] = []
    role = ""
    for speaker, line in turns():
        if speaker is not None:
            role = speaker
            if role:
                speeches.append((role, []))
        words = " ".join(line.split())
        if role and words:
            speeches[-1][1].append(words)
    return [Speech(role, "\n".join(said)) for role, said in speeches if said]
