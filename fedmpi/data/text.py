"""Text by role as samples for learning the next character."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import TextConfig
from fedmpi.data.arrays import Arrays
from fedmpi.data.leaf import LeafUser, leaf_files, read_users, split_files
from fedmpi.data.plays import play_files, read_play
from fedmpi.errors import DataError

ALPHABET = "".join(sorted("dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159"))
"""The characters with a class of their own, class 0 first: TensorFlow Federated's, without the carriage return."""

NUM_CHARACTERS = len(ALPHABET) + 1
"""Classes: the alphabet, and one for every other character."""

LEAF_WINDOW = 80

_CLASS_OF = np.full(129, len(ALPHABET), np.uint8)
_CLASS_OF[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))
_PADDING = re.compile("  +")

Segments = Mapping[str, Sequence[str]]
"""Each role's text, in one or more pieces that do not continue one another."""


def encode(text: str) -> NDArray[np.uint8]:
    """Return the class of each character, (len,) uint8; line ends of any kind are one newline."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _CLASS_OF[np.minimum(codes, 128)]


def decode(classes: NDArray[np.integer]) -> str:
    """Return the text of `classes`; U+FFFD stands for every character outside the alphabet."""
    return "".join((ALPHABET + "\ufffd")[value] for value in classes)


def text_files(folder: Path) -> list[Path]:
    """Return LEAF's json files of `folder`, or the plays in it; `DataError` if there are neither."""
    try:
        return leaf_files(folder)
    except DataError as no_leaf:
        try:
            return play_files(folder)
        except DataError as no_play:
            raise DataError(f"{no_leaf}; {no_play}") from no_leaf


def read_text(files: Sequence[Path], cfg: TextConfig) -> Arrays:
    """Read the files that `text_files` or `play_files` returns, and cut each role's text into windows.

    Raises
    ------
    DataError
        If a file is damaged or no play, or no window is left for training or for testing.
    """
    if files[0].suffix != ".json":
        return cut_text(str(files[0].parent), _plays_by_role(files), None, cfg)
    train_files, test_files = split_files(files)
    train = _leaf_by_role(train_files)
    return cut_text(str(files[0].parent), train, _leaf_by_role(test_files) if test_files is not None else None, cfg)


def cut_text(where: str, train: Segments, test: Segments | None, cfg: TextConfig) -> Arrays:
    """Cut text into windows of ``sequence_length`` characters, one behind the other.

    The label at each place is the next character, so that a window takes one character more than it has places; what
    is left at the end of a piece is dropped. Roles are in sorted order.

    Parameters
    ----------
    where : str
        The words to blame.
    train : mapping of str to sequence of str
        Each role's pieces of text.
    test : mapping of str to sequence of str, or None
        Those for testing. None: the last ``test_fraction`` of each role's windows, rounded down, at least one window
        staying for training.
    cfg : TextConfig

    Returns
    -------
    Arrays
        Groups are the roles that have a window for training.

    Raises
    ------
    DataError
        If there is no window for training, or none for testing.
    """
    length = cfg.sequence_length
    windows = {role: _windows(train[role], length) for role in sorted(train)}
    if test is None:
        kept = {role: _num_train(len(values), cfg.test_fraction) for role, values in windows.items()}
        test_windows = [values[kept[role] :] for role, values in windows.items()]
        windows = {role: values[: kept[role]] for role, values in windows.items()}
    else:
        test_windows = [_windows(test[role], length) for role in sorted(test)]
    names = tuple(role for role, values in windows.items() if len(values))
    train_all, test_all = _stack(list(windows.values()), length), _stack(test_windows, length)
    if not len(train_all):
        longest = max((len(piece) for pieces in train.values() for piece in pieces), default=0)
        raise DataError(
            f"{where}: expected a role with {length + 1} characters, one more than data.text.sequence_length, got at "
            f"most {longest}"
        )
    if not len(test_all):
        raise DataError(
            f"{where}: expected at least one test window of {length + 1} characters, got none; take a smaller "
            f"data.text.sequence_length or a larger data.text.test_fraction"
        )
    groups = np.repeat(np.arange(len(names), dtype=np.int64), [len(windows[role]) for role in names])
    return Arrays(*_inputs_and_labels(train_all), *_inputs_and_labels(test_all), groups, names)


def _num_train(num_windows: int, test_fraction: float) -> int:
    return max(min(1, num_windows), num_windows - int(test_fraction * num_windows))


def _windows(pieces: Sequence[str], length: int) -> NDArray[np.uint8]:
    """Return (n, length + 1) uint8; a window's last character is the next one's first."""
    parts = []
    for piece in pieces:
        classes = encode(piece)
        count = max(0, len(classes) - 1) // length
        starts = np.arange(count)[:, np.newaxis] * length
        parts.append(classes[starts + np.arange(length + 1)])
    return _stack(parts, length)


def _stack(parts: Sequence[NDArray[np.uint8]], length: int) -> NDArray[np.uint8]:
    return np.concatenate([np.empty((0, length + 1), np.uint8), *parts])


def _inputs_and_labels(windows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.ascontiguousarray(windows[:, :-1]), windows[:, 1:].astype(np.int64)


def _plays_by_role(files: Sequence[Path]) -> Segments:
    """Return what each role says in each play as one text; roles of several plays are told apart by the file's name."""
    said: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        prefix = f"{path.name.split('.')[0]}/" if len(files) > 1 else ""
        for role, text in read_play(path):
            said[prefix + role].append(text)
    return {role: ["\n".join(texts)] for role, texts in said.items()}


def _leaf_by_role(files: Sequence[Path]) -> Segments:
    return {user.name: _running_text(user) for user in read_users(files)}


def _running_text(user: LeafUser) -> list[str]:
    """Put a user's text together from LEAF's windows of 80 characters and the character after each.

    A window that is not one character further than the one before begins a new piece. LEAF fills the windows at a
    line's beginning with spaces, which are not in the play (it leaves no two spaces there) and are dropped; such a line
    continues the text if the one before is complete.
    """
    pieces: list[list[str]] = []
    expected = ""
    for sample_idx, (window, following) in enumerate(zip(user.x, user.y, strict=True)):
        for key, value, size in (("x", window, LEAF_WINDOW), ("y", following, 1)):
            if not isinstance(value, str) or len(value) != size:
                got = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
                what = f"item {sample_idx} of '{key}' to be {size} characters"
                raise DataError(f"{user.where}: expected {what}, got {got}")
        if not pieces or window != expected:
            padding = _PADDING.match(window)
            if not (padding and pieces and pieces[-1][-1] == "\n"):
                pieces.append([])
            pieces[-1].append(window[padding.end() :] if padding else window)
        pieces[-1].append(following)
        expected = window[1:] + following
    return ["".join(piece) for piece in pieces]
