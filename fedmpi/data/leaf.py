"""LEAF's json files: samples by user. FEMNIST is here; the plays of Shakespeare are in `fedmpi.data.text`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.arrays import Arrays, read_bytes
from fedmpi.errors import DataError

_SIDE = 28
_FLAT_TEST_PARTS = 5  # of a writer's samples one in so many is for testing, where the files do not say


class LeafUser(NamedTuple):
    """One user's samples in one file; `where` are the words to blame."""

    where: str
    name: str
    x: list[Any]
    y: list[Any]


def leaf_files(folder: Path) -> list[Path]:
    """Return LEAF's files of `folder`, sorted by name: those of train/, then those of test/, or those it holds itself.

    Raises
    ------
    DataError
        If there is none, or only one of the two parts.
    """
    train, test = _json_files(folder / "train"), _json_files(folder / "test")
    if bool(train) != bool(test):
        there, lacking = ("train", "test") if train else ("test", "train")
        raise DataError(f"{folder}: no {lacking}/*.json beside {there}/*.json")
    files = train + test or _json_files(folder)
    if not files:
        raise DataError(f"{folder}: no train/*.json and test/*.json, no *.json")
    return files


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path] | None]:
    """Return those for training and those for testing of what `leaf_files` found; None if the files do not say."""
    test = [path for path in files if path.parent.name == "test"]
    train = [path for path in files if path.parent.name == "train"]
    return (train, test) if train and test else (list(files), None)


def read_users(files: Sequence[Path]) -> Iterator[LeafUser]:
    """Yield each user of each file, lists checked for being lists of the lengths that the file states.

    Raises
    ------
    DataError
        If a file is no such json, its parts contradict one another, or a user occurs twice.
    """
    seen: dict[str, Path] = {}
    for path in files:
        users, num_samples, user_data = _sections(path)
        for name, count in zip(users, num_samples, strict=True):
            if name in seen:
                raise DataError(f"{path}: expected each user once, got {name!r} again, who is in {seen[name]} already")
            seen[name] = path
            where, content = f"{path} (user {name!r})", user_data.get(name)
            if not isinstance(content, dict):
                raise DataError(f"{where}: expected an entry of 'user_data', got {_kind(content)}")
            for key in ("x", "y"):
                part = content.get(key)
                if not isinstance(part, list):
                    raise DataError(f"{where}: expected '{key}' to be a list, got {_kind(part)}")
                if len(part) != count:
                    raise DataError(f"{where}: expected {count} items of '{key}' as num_samples says, got {len(part)}")
            yield LeafUser(where, name, content["x"], content["y"])


def read_femnist(files: Sequence[Path], num_classes: int) -> Arrays:
    """Read LEAF's FEMNIST: images of 28 x 28 by writer, ink dark on a white ground.

    Where the files do not come as train/ and test/, the last fifth of each writer's images (rounded down) is the test
    set. Writers are in sorted order, each with the images in the files' order.

    Raises
    ------
    DataError
        If a file is damaged, an image has not 784 numbers from 0 to 1, a label is out of range, or a set is empty.
    """
    train_files, test_files = split_files(files)
    train = {user.name: _images(user, num_classes) for user in read_users(train_files)}
    if test_files is not None:
        test = {user.name: _images(user, num_classes) for user in read_users(test_files)}
    else:
        cuts = {name: len(labels) - len(labels) // _FLAT_TEST_PARTS for name, (_, labels) in train.items()}
        test = {name: (images[cuts[name] :], labels[cuts[name] :]) for name, (images, labels) in train.items()}
        train = {name: (images[: cuts[name]], labels[: cuts[name]]) for name, (images, labels) in train.items()}
    names = tuple(name for name in sorted(train) if len(train[name][1]))
    for part, content, found in (("training", train, train_files), ("test", test, test_files or train_files)):
        if not any(len(labels) for _, labels in content.values()):
            raise DataError(f"{found[0].parent}: expected at least one {part} image, got {len(found)} files without")
    sizes = [len(train[name][1]) for name in names]
    groups = np.repeat(np.arange(len(names), dtype=np.int64), sizes)
    return Arrays(*_join(train), *_join(test), groups, names)


def _join(parts: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> tuple[Any, Any]:
    """Return all writers' images and labels back to back, writers in sorted order."""
    ordered = [parts[name] for name in sorted(parts)]
    return np.concatenate([images for images, _ in ordered]), np.concatenate([labels for _, labels in ordered])


def _images(user: LeafUser, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    bad = [label for label in user.y if type(label) is not int or not 0 <= label < num_classes]
    if bad:
        raise DataError(f"{user.where}: expected labels from 0 to {num_classes - 1}, got {bad[0]!r}")
    images = np.empty((len(user.x), _SIDE, _SIDE, 1), np.uint8)
    for image_idx, numbers in enumerate(user.x):
        where = f"{user.where}, image {image_idx}"
        if not isinstance(numbers, list) or len(numbers) != _SIDE * _SIDE:
            got = f"a list of {len(numbers)}" if isinstance(numbers, list) else _kind(numbers)
            raise DataError(f"{where}: expected a list of {_SIDE * _SIDE} numbers, got {got}")
        if not set(map(type, numbers)) <= {int, float}:
            wrong = next(number for number in numbers if type(number) not in (int, float))
            raise DataError(f"{where}: expected numbers from 0 to 1, got {wrong!r}")
        values = np.array(numbers)
        if not ((values >= 0) & (values <= 1)).all():  # NaN, which json.loads reads, fails this too
            wrong = next(number for number in numbers if not 0 <= number <= 1)
            raise DataError(f"{where}: expected numbers from 0 to 1, got {wrong!r}")
        images[image_idx] = np.rint(255 * values).reshape(_SIDE, _SIDE, 1)
    return images, np.array(user.y, np.int64)


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith("."))


def _sections(path: Path) -> tuple[list[str], list[int], dict[str, Any]]:
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a json file of LEAF, got one that fails: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a json object, got {_kind(content)}")
    for key, kind in (("users", list), ("num_samples", list), ("user_data", dict)):
        if not isinstance(content.get(key), kind):
            raise DataError(f"{path}: expected '{key}' to be a {_WORDS[kind]}, got {_kind(content.get(key))}")
    users, num_samples, user_data = content["users"], content["num_samples"], content["user_data"]
    bad = [user for user in users if not isinstance(user, str)]
    if bad:
        raise DataError(f"{path}: expected users to be names, got {bad[0]!r}")
    if len(num_samples) != len(users):
        raise DataError(f"{path}: expected {len(users)} num_samples as there are users, got {len(num_samples)}")
    bad = [count for count in num_samples if type(count) is not int or count < 0]
    if bad:
        raise DataError(f"{path}: expected num_samples to be whole numbers from 0, got {bad[0]!r}")
    # LEAF's own split leaves entries without samples of users that it drops; samples of nobody are another matter.
    known = set(users)
    for name, entry in user_data.items():
        if name not in known and not (isinstance(entry, dict) and not entry.get("x") and not entry.get("y")):
            raise DataError(f"{path}: expected samples of the users it lists, got some of {name!r} too")
    return users, num_samples, user_data


_WORDS: dict[type, str] = {list: "list", dict: "json object"}


def _kind(value: object) -> str:
    return "nothing" if value is None else _WORDS.get(type(value), type(value).__name__)
