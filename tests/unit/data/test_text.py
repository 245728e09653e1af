"""Text as samples: the alphabet, windows by role, and LEAF's windows put together again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.config import TextConfig
from fedmpi.data import text
from fedmpi.data.arrays import Arrays
from fedmpi.errors import DataError


def cut(train: dict[str, list[str]], test: dict[str, list[str]] | None = None, **settings: float) -> Arrays:
    return text.cut_text("here", train, test, TextConfig.model_validate(settings))


def test_the_alphabet_is_fixed() -> None:
    assert text.NUM_CHARACTERS == 86
    assert len(set(text.ALPHABET)) == 85
    assert list(text.ALPHABET) == sorted(text.ALPHABET)
    assert text.ALPHABET.startswith("\n !\"#$%&'()*,-./0123456789:;?@ABC")
    assert text.ALPHABET.endswith("XYZ[]_abcdefghijklmnopqrstuvwxyz")


def test_encode() -> None:
    codes = text.encode(text.ALPHABET)
    assert codes.dtype == np.uint8
    assert codes.tolist() == list(range(85))
    assert text.encode("+<\t\x7f\x80\u00e9\u20ac\U0001f600\ud800").tolist() == [85] * 9
    assert text.encode("a\r\nb\rc\nd").tolist() == text.encode("a\nb\nc\nd").tolist()
    assert text.encode("").tolist() == []


@given(st.text(alphabet=text.ALPHABET))
def test_decode_is_the_way_back(value: str) -> None:
    assert text.decode(text.encode(value)) == value


def test_decode_marks_what_is_lost() -> None:
    assert text.decode(text.encode("a+b")) == "a\ufffdb"


def test_windows_overlap_by_the_character_that_is_learnt() -> None:
    arrays = cut({"B": ["abcdefghijklmn"], "A": ["ABCDEFG", "12", "HIJKL"]}, sequence_length=3, test_fraction=0.25)
    # B: 4 windows, the last for testing. A: 2, 0 and 1 window, and a quarter of 3 is rounded down to none.
    assert [text.decode(row) for row in arrays.train_inputs] == ["ABC", "DEF", "HIJ", "abc", "def", "ghi"]
    assert [text.decode(row) for row in arrays.train_labels] == ["BCD", "EFG", "IJK", "bcd", "efg", "hij"]
    assert [text.decode(row) for row in arrays.test_inputs] == ["jkl"]
    assert [text.decode(row) for row in arrays.test_labels] == ["klm"]
    assert arrays.group_names == ("A", "B")
    assert arrays.train_groups is not None
    assert arrays.train_groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.train_inputs.dtype == arrays.test_inputs.dtype == np.uint8
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == arrays.train_groups.dtype == np.int64


@given(st.integers(1, 40), st.floats(0.001, 1 - 2**-53), st.integers(2, 5))
def test_a_role_keeps_a_window_for_training(num_windows: int, fraction: float, length: int) -> None:
    pieces = {"long": ["a" * 1001], "role": ["b" * (num_windows * length + 1)]}
    if int(fraction * (1000 // length)) == 0:
        return
    arrays = cut(pieces, sequence_length=length, test_fraction=fraction)
    num_test = int((arrays.test_inputs[:, 0] == text.encode("b")[0]).sum())
    assert arrays.train_groups is not None
    assert int((arrays.train_groups == 1).sum()) == num_windows - num_test >= 1
    assert num_test == min(num_windows - 1, int(fraction * num_windows))


def test_the_files_own_test_set() -> None:
    train = {"A": ["abcdef"], "short": ["ab"]}
    arrays = cut(train, {"C": ["uvwxyz"], "A": ["ABCD"]}, sequence_length=3, test_fraction=0.9)
    assert arrays.group_names == ("A",)
    assert [text.decode(row) for row in arrays.train_inputs] == ["abc"]
    assert [text.decode(row) for row in arrays.test_inputs] == ["ABC", "uvw"]


def test_sets_without_a_window() -> None:
    with pytest.raises(DataError, match=r"^here: expected a role with 6 characters.*sequence_length, got at most 5$"):
        cut({"A": ["abcde", "fgh"]}, sequence_length=5)
    with pytest.raises(DataError, match=r"^here: expected at least one test window of 4 characters.*test_fraction"):
        cut({"A": ["abcdefghi"]}, sequence_length=3, test_fraction=0.2)
    with pytest.raises(DataError, match="expected at least one test window"):
        cut({"A": ["abcdefghi"]}, {"A": ["abc"]}, sequence_length=3)
    with pytest.raises(DataError, match="got at most 0"):
        cut({}, sequence_length=3)


def leaf_windows(line: str, first: int = 0, last: int | None = None) -> tuple[list[str], list[str]]:
    """Return LEAF's windows of 80 characters and what follows each, of a line that 80 spaces come before."""
    padded = " " * 80 + line
    starts = range(len(line))[first:last]
    return [padded[start : start + 80] for start in starts], [padded[start + 80] for start in starts]


def write_leaf(path: Path, **users: list[tuple[list[str], list[str]]]) -> None:
    """Write a file in which each user has some runs of windows, one behind the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        name: {"x": [w for x, _ in runs for w in x], "y": [c for _, y in runs for c in y]}
        for name, runs in users.items()
    }
    num_samples = [len(entry["y"]) for entry in data.values()]
    path.write_text(json.dumps({"users": list(data), "num_samples": num_samples, "user_data": data}))


def running_text(folder: Path) -> dict[str, Any]:
    files = text.text_files(folder)
    return dict(text._leaf_by_role(files))


LINE = "".join(chr(ord("a") + (7 * idx + idx // 26) % 26) for idx in range(200)) + "\n"


def test_leafs_windows_become_the_text_again(tmp_path: Path) -> None:
    first, second = "Short.\n", LINE
    write_leaf(tmp_path / "all_data.json", A=[leaf_windows(first), leaf_windows(second)], B=[leaf_windows("Hi ho\n")])
    assert running_text(tmp_path) == {"A": [first + second], "B": ["Hi ho\n"]}


def test_windows_that_do_not_follow_begin_a_new_piece(tmp_path: Path) -> None:
    runs = [leaf_windows(LINE, 0, 100), leaf_windows(LINE, 179, 190), leaf_windows("Next\n")]
    write_leaf(tmp_path / "all_data.json", A=runs)
    # The gap hides the end of the line, so that the next line does not go on with it.
    assert running_text(tmp_path) == {"A": [LINE[:100], LINE[99:190], "Next\n"]}


def test_a_run_that_begins_within_the_padding_has_no_spaces(tmp_path: Path) -> None:
    write_leaf(tmp_path / "all_data.json", A=[leaf_windows(LINE, 30)])
    assert running_text(tmp_path) == {"A": [LINE]}


def test_leafs_shakespeare_with_its_own_split(tmp_path: Path) -> None:
    write_leaf(tmp_path / "train" / "a.json", A=[leaf_windows(LINE, 0, 100)], B=[leaf_windows(LINE, 0, 60)])
    write_leaf(tmp_path / "test" / "a.json", A=[leaf_windows(LINE, 180)])
    files = text.text_files(tmp_path)
    arrays = text.read_text(files, TextConfig(sequence_length=40))
    assert [text.decode(row) for row in arrays.train_inputs] == [LINE[:40], LINE[40:80], LINE[:40]]
    assert arrays.group_names == ("A", "B")
    assert [text.decode(row) for row in arrays.test_inputs] == [LINE[100:140], LINE[140:180]]


def test_leafs_shakespeare_without_a_split(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a.json", A=[leaf_windows(LINE)])
    arrays = text.read_text(text.text_files(tmp_path), TextConfig(sequence_length=40))
    assert (len(arrays.train_inputs), len(arrays.test_inputs)) == (4, 1)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (["a" * 79], ["b"], "item 0 of 'x' to be 80 characters, got 79 characters"),
        (["a" * 80], ["bc"], "item 0 of 'y' to be 1 characters, got 2 characters"),
        (["a" * 80, [1]], ["a", "b"], "item 1 of 'x' to be 80 characters, got list"),
        (["a" * 80], [5], "item 0 of 'y' to be 1 characters, got int"),
    ],
)
def test_damaged_leaf_shakespeare(tmp_path: Path, x: list[Any], y: list[Any], words: str) -> None:
    data = {"users": ["A"], "num_samples": [len(x)], "user_data": {"A": {"x": x, "y": y}}}
    (tmp_path / "all_data.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=words) as caught:
        text.read_text(text.text_files(tmp_path), TextConfig())
    assert f"{tmp_path / 'all_data.json'} (user 'A')" in str(caught.value)


def test_one_play_and_several(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Ann:\nabcdefgh\n\nBob:\nABCDEFGHIJ\n\nAnn:\nijklmnop\n")
    cfg = TextConfig(sequence_length=4, test_fraction=0.5)
    arrays = text.read_text(text.text_files(tmp_path), cfg)
    assert arrays.group_names == ("Ann", "Bob")
    assert [text.decode(row) for row in arrays.train_inputs] == ["abcd", "efgh", "ABCD"]
    assert [text.decode(row) for row in arrays.test_inputs] == ["\nijk", "lmno", "EFGH"]
    (tmp_path / "two.txt").write_text("ANN.\nqrstuvwxyz\n")
    arrays = text.read_text(text.text_files(tmp_path), cfg)
    assert arrays.group_names == ("one/Ann", "one/Bob", "two/ANN")


def test_text_files_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train/\*\.json .*; .*no \*\.txt or \*\.txt\.gz"):
        text.text_files(tmp_path)
    write_leaf(tmp_path / "train" / "a.json", A=[leaf_windows("Hi\n")])
    with pytest.raises(DataError, match=r"no test/\*\.json beside train/"):
        text.text_files(tmp_path)
