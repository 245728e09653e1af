"""LEAF's json files: FEMNIST read right in both layouts, and everything that contradicts itself refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import leaf
from fedmpi.errors import DataError

WHITE = [1.0] * 784


def image(value: float, at: int = 0) -> list[float]:
    """Return a white image with one other pixel."""
    return [*WHITE[:at], value, *WHITE[at + 1 :]]


def content(**users: list[int]) -> dict[str, Any]:
    """Return what a file holds whose users have images of these labels; an image's first pixel is its label / 100."""
    data = {user: {"x": [image(label / 100) for label in labels], "y": labels} for user, labels in users.items()}
    return {"users": list(users), "num_samples": [len(labels) for labels in users.values()], "user_data": data}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def read(folder: Path) -> Any:
    return leaf.read_femnist(leaf.leaf_files(folder), 62)


def test_train_and_test_folders(tmp_path: Path) -> None:
    write(tmp_path / "train" / "all_data_1_train_9.json", content(f0002=[5, 6]))
    write(tmp_path / "train" / "all_data_0_train_9.json", content(f0003=[61], f0001=[1, 0, 3]))
    write(tmp_path / "test" / "all_data_0_test_9.json", content(f0003=[2], f0001=[4], only_tested=[9]))
    arrays = read(tmp_path)
    assert arrays.group_names == ("f0001", "f0002", "f0003")
    assert arrays.train_groups.tolist() == [0, 0, 0, 1, 1, 2]
    assert arrays.train_groups.dtype == np.int64
    assert arrays.train_labels.tolist() == [1, 0, 3, 5, 6, 61]
    assert arrays.test_labels.tolist() == [4, 2, 9]
    assert arrays.train_inputs.shape == (6, 28, 28, 1)
    assert arrays.train_inputs.dtype == np.uint8
    assert arrays.train_inputs[:, 0, 0, 0].tolist() == [round(255 * label / 100) for label in (1, 0, 3, 5, 6, 61)]
    assert (arrays.train_inputs[:, 0, 1:] == 255).all()


def test_images_lie_row_by_row(tmp_path: Path) -> None:
    data = content(w=[0, 1, 2, 3, 4])
    data["user_data"]["w"]["x"][0] = image(0.5, at=2 * 28 + 5)
    write(tmp_path / "all_data_0.json", data)
    first = read(tmp_path).train_inputs[0, :, :, 0]
    assert first[2, 5] == 128  # rint(127.5) is the even neighbour
    assert (first != 255).sum() == 1


def test_one_folder_is_split_by_writer_in_the_files_order(tmp_path: Path) -> None:
    write(tmp_path / "all_data_0.json", content(b=list(range(10, 21)), a=[1, 2, 3, 4]))
    write(tmp_path / "all_data_1.json", content(c=[0, 1, 2, 3, 4]))
    (tmp_path / ".hidden.json").write_text("no json")
    arrays = read(tmp_path)
    assert arrays.group_names == ("a", "b", "c")
    assert arrays.train_labels.tolist() == [1, 2, 3, 4, *range(10, 19), 0, 1, 2, 3]
    assert arrays.test_labels.tolist() == [19, 20, 4]
    assert np.bincount(arrays.train_groups).tolist() == [4, 9, 4]


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_folder_that_is_named_as_a_part_is_one_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "x.json", content(a=[1, 2, 3, 4, 5]))
    assert read(tmp_path / name).test_labels.tolist() == [5]


def test_users_whom_leaf_dropped_may_stay_behind_without_samples(tmp_path: Path) -> None:
    data = content(a=[1, 2, 3, 4, 5])
    data["user_data"]["dropped"] = {"x": [], "y": []}
    write(tmp_path / "all_data.json", data)
    assert read(tmp_path).group_names == ("a",)


def test_a_writer_without_training_images_has_no_group(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.json", content(a=[], b=[3]))
    write(tmp_path / "test" / "a.json", content(a=[1], b=[]))
    arrays = read(tmp_path)
    assert arrays.group_names == ("b",)
    assert arrays.train_groups.tolist() == [0]
    assert arrays.test_labels.tolist() == [1]


def test_leaf_files_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train/\*\.json and test/\*\.json, no \*\.json$") as caught:
        leaf.leaf_files(tmp_path)
    assert str(tmp_path) in str(caught.value)
    write(tmp_path / "train" / "a.json", content(a=[1]))
    with pytest.raises(DataError, match=r"no test/\*\.json beside train/"):
        leaf.leaf_files(tmp_path)


def changed(**changes: object) -> dict[str, Any]:
    return content(a=[1, 2], b=[3, 4]) | changes


def samples(x: object, y: object) -> dict[str, Any]:
    return {"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": x, "y": y}}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "expected a json object, got list"),
        ({}, "expected 'users' to be a list, got nothing"),
        (changed(users="ab"), "expected 'users' to be a list, got str"),
        (changed(user_data=[1]), "expected 'user_data' to be a json object, got list"),
        (changed(users=["a", 7]), "expected users to be names, got 7"),
        (changed(num_samples=[2]), "expected 2 num_samples as there are users, got 1"),
        (changed(num_samples=[2, 3]), r"\(user 'b'\): expected 3 items of 'x' as num_samples says, got 2"),
        (changed(num_samples=[2, -1]), "num_samples to be whole numbers from 0, got -1"),
        (changed(num_samples=[2, 2.0]), "num_samples to be whole numbers from 0, got 2.0"),
        (changed(users=["a", "b", "a"], num_samples=[2, 2, 2]), "expected each user once, got 'a' again"),
        (changed(users=["a", "c"]), "samples of the users it lists, got some of 'b' too"),
        (changed(users=["a", "b", "c"], num_samples=[2, 2, 1]), r"\(user 'c'\): expected an entry of 'user_data'"),
        (samples(WHITE, [1]), "expected 1 items of 'x' as num_samples says, got 784"),
        (samples("x", [1]), "expected 'x' to be a list, got str"),
        (samples([WHITE], [1, 2]), "expected 1 items of 'y' as num_samples says, got 2"),
        (samples([WHITE], None), "expected 'y' to be a list, got nothing"),
        (samples([WHITE[1:]], [1]), r"image 0: expected a list of 784 numbers, got a list of 783"),
        (samples(["x"], [1]), "image 0: expected a list of 784 numbers, got str"),
        (samples([image(1.001)], [1]), "expected numbers from 0 to 1, got 1.001"),
        (samples([image(-1e-9)], [1]), "expected numbers from 0 to 1, got -1e-09"),
        (samples([image(float("nan"))], [1]), "expected numbers from 0 to 1, got nan"),
        (samples([image(10**400)], [1]), "expected numbers from 0 to 1, got 1000"),
        (samples([[*WHITE[1:], True]], [1]), "expected numbers from 0 to 1, got True"),
        (samples([[*WHITE[1:], [1]]], [1]), r"expected numbers from 0 to 1, got \[1\]"),
        (samples([WHITE], [62]), "expected labels from 0 to 61, got 62"),
        (samples([WHITE], [-1]), "expected labels from 0 to 61, got -1"),
        (samples([WHITE], [1.0]), "expected labels from 0 to 61, got 1.0"),
        (samples([WHITE], [True]), "expected labels from 0 to 61, got True"),
    ],
)
def test_damaged_femnist(tmp_path: Path, value: object, words: str) -> None:
    path = write(tmp_path / "all_data_0.json", value)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DataError, match=r"a\.json: expected a json file of LEAF"):
        read(tmp_path)


def test_a_user_in_two_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", content(w=[1]))
    second = write(tmp_path / "b.json", content(w=[2]))
    with pytest.raises(DataError, match="got 'w' again") as caught:
        read(tmp_path)
    assert str(first) in str(caught.value)
    assert str(caught.value).startswith(str(second))


@pytest.mark.parametrize(("labels", "part"), [([], "training"), ([1, 2, 3, 4], "test")])
def test_a_set_without_images(tmp_path: Path, labels: list[int], part: str) -> None:
    write(tmp_path / "a.json", content(w=labels))
    with pytest.raises(DataError, match=f"expected at least one {part} image") as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)
