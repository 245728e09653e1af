"""IDX files: hand-made ones read right, and every way to be damaged refused with the file's name."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import idx
from fedmpi.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
IDX_BYTES = b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 4) + bytes(range(24))


def write_idx_set(folder: Path, **changed: np.ndarray) -> list[Path]:
    """Write four small IDX files, some of them changed, and return their paths."""
    arrays = {
        "train_inputs": np.zeros((3, 4, 5), np.uint8),
        "train_labels": np.array([0, 9, 4], np.uint8),
        "test_inputs": np.full((2, 4, 5), 7, np.uint8),
        "test_labels": np.array([1, 2], np.uint8),
    } | changed
    for name, values in zip(idx.IDX_NAMES, arrays.values(), strict=True):
        idx.write_idx_gz(folder / f"{name}.gz", values)
    return idx.idx_files(folder)


@pytest.mark.parametrize("content", [IDX_BYTES, gzip.compress(IDX_BYTES, mtime=0)], ids=["plain", "gzip"])
def test_read_idx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    images = idx.read_idx(path, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, IMAGES)
    assert images.flags.writeable


def test_write_idx_gz_is_idx_and_has_no_time_stamp(tmp_path: Path) -> None:
    idx.write_idx_gz(tmp_path / "images.gz", IMAGES)
    content = (tmp_path / "images.gz").read_bytes()
    assert gzip.decompress(content) == IDX_BYTES
    assert content[3:8] == bytes(5)  # no flags, so no file name, and time 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"magic 00000803, got no bytes"),
        (IDX_BYTES[:3], r"magic 00000803, got 000008"),
        (b"\0\0\x08\x01" + IDX_BYTES[4:], r"magic 00000803, got 00000801"),
        (b"\0\0\x0d\x03" + IDX_BYTES[4:], r"magic 00000803, got 00000d03"),
        (IDX_BYTES[:15], r"a header of 16 bytes, got 15 bytes"),
        (IDX_BYTES[:-1], r"expected 24 bytes for shape \(2, 3, 4\), got 23"),
        (IDX_BYTES + b"x", r"expected 24 bytes for shape \(2, 3, 4\), got 25"),
        (IDX_BYTES[:4] + b"\xff" * 12, r"expected \d+ bytes for shape .*, got 0"),
        (gzip.compress(IDX_BYTES, mtime=0)[:-3], "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES, mtime=0)[:14], "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES, mtime=0)[:-8] + bytes(8), "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES, mtime=0)[:10] + b"\xff" * 20, "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES[:-1], mtime=0), r"expected 24 bytes for shape \(2, 3, 4\), got 23"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images"
    # Values after a huge header are left out: nothing may be allocated for what the header claims.
    path.write_bytes(content[:16] if content[4:16] == b"\xff" * 12 else content)
    with pytest.raises(DataError, match=words) as caught:
        idx.read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_idx(tmp_path, 3)


def test_read_idx_set(tmp_path: Path) -> None:
    arrays = idx.read_idx_set(write_idx_set(tmp_path), 10)
    assert arrays.train_inputs.shape == (3, 4, 5, 1)
    assert arrays.test_inputs.shape == (2, 4, 5, 1)
    assert (arrays.test_inputs == 7).all()
    assert arrays.train_labels.tolist() == [0, 9, 4]
    assert arrays.test_labels.tolist() == [1, 2]
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changed", "file_idx", "words"),
    [
        ({"train_labels": np.zeros(4, np.uint8)}, 1, "expected 3 labels .*, got 4"),
        ({"test_labels": np.zeros(1, np.uint8)}, 3, "expected 2 labels .*, got 1"),
        ({"train_labels": np.array([0, 10, 1], np.uint8)}, 1, "expected labels from 0 to 9, got 10"),
        ({"test_labels": np.array([255, 0], np.uint8)}, 3, "expected labels from 0 to 9, got 255"),
        ({"test_inputs": np.zeros((2, 5, 4), np.uint8)}, 2, r"shape \(4, 5, 1\) as in .*, got \(5, 4, 1\)"),
        (
            {"train_inputs": np.zeros((0, 4, 5), np.uint8), "train_labels": np.zeros(0, np.uint8)},
            0,
            "at least one image",
        ),
        ({"train_inputs": np.zeros(3, np.uint8)}, 0, "magic 00000803, got 00000801"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], file_idx: int, words: str) -> None:
    files = write_idx_set(tmp_path, **changed)
    with pytest.raises(DataError, match=words) as caught:
        idx.read_idx_set(files, 10)
    assert str(caught.value).startswith(str(files[file_idx]))


def test_idx_files_names_what_is_missing(tmp_path: Path) -> None:
    files = write_idx_set(tmp_path)
    files[1].unlink()
    with pytest.raises(DataError, match=r"no train-labels-idx1-ubyte\[.gz\]$"):
        idx.idx_files(tmp_path)


UPRIGHT = np.random.default_rng(1).integers(0, 256, (3, 28, 28), np.uint8)


def write_emnist(folder: Path, suffix: str = ".gz") -> Path:
    """Write a small EMNIST of three training and two test images, which lie in the files transposed."""
    folder.mkdir(exist_ok=True)
    labels = np.array([0, 46, 7], np.uint8)
    values = (UPRIGHT.transpose(0, 2, 1), labels, UPRIGHT[1:].transpose(0, 2, 1), labels[1:])
    for name, array in zip(idx.emnist_names("balanced"), values, strict=True):
        path = folder / f"{name}.gz"
        idx.write_idx_gz(path, array)
        if not suffix:
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    return folder


def write_emnist_archive(folder: Path, *, without: str = "nothing") -> Path:
    """Write NIST's archive with one more split's files beside the wanted ones."""
    source = write_emnist(folder / "source")
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for path in sorted(source.iterdir()):
            if without not in path.name:
                archive.write(path, f"gzip/{path.name}")
        archive.writestr("gzip/emnist-letters-mapping.txt", "1 65 97")
    return folder / "gzip.zip"


@pytest.mark.parametrize("layout", ["plain", "gz", "folder of the archive", "archive"])
def test_emnist_is_upright_in_each_layout(tmp_path: Path, layout: str) -> None:
    if layout == "archive":
        write_emnist_archive(tmp_path)
    else:
        write_emnist(tmp_path / "gzip" if layout.startswith("folder") else tmp_path, "" if layout == "plain" else ".gz")
    files = idx.emnist_files("balanced", tmp_path)
    assert len(files) == (1 if layout == "archive" else 4)
    arrays = idx.read_emnist("balanced", files, 47)
    assert np.array_equal(arrays.train_inputs[..., 0], UPRIGHT)
    assert np.array_equal(arrays.test_inputs[..., 0], UPRIGHT[1:])
    assert arrays.train_inputs.flags.c_contiguous
    assert arrays.train_labels.tolist() == [0, 46, 7]
    assert arrays.test_labels.tolist() == [46, 7]


def test_emnist_names_are_nists() -> None:
    assert idx.emnist_names("byclass") == (
        "emnist-byclass-train-images-idx3-ubyte",
        "emnist-byclass-train-labels-idx1-ubyte",
        "emnist-byclass-test-images-idx3-ubyte",
        "emnist-byclass-test-labels-idx1-ubyte",
    )


def test_emnist_files_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no emnist-byclass-train-images.*, nor in gzip/, and no gzip.zip") as caught:
        idx.emnist_files("byclass", write_emnist(tmp_path / "set"))
    assert str(tmp_path / "set") in str(caught.value)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_a_member(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_in_half, damage_a_member])
def test_damaged_emnist_archive(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_emnist_archive(tmp_path)
    damage(path)
    with pytest.raises(DataError, match="expected a whole zip archive") as caught:
        idx.read_emnist("balanced", [path], 47)
    assert str(path) in str(caught.value)


def test_emnist_archive_without_a_file(tmp_path: Path) -> None:
    path = write_emnist_archive(tmp_path, without="test-labels")
    with pytest.raises(DataError, match=r"without gzip/emnist-balanced-test-labels-idx1-ubyte\.gz$"):
        idx.read_emnist("balanced", [path], 47)


def test_an_error_in_an_archive_names_the_member(tmp_path: Path) -> None:
    path = write_emnist_archive(tmp_path)
    with pytest.raises(DataError, match=r"labels from 0 to 45, got 46") as caught:
        idx.read_emnist("balanced", [path], 46)
    assert f"{path} (gzip/emnist-balanced-train-labels-idx1-ubyte.gz)" in str(caught.value)
