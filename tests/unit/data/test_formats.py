"""The file readers: hand-made files read right, and every way to be damaged refused with the file's name."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import formats
from fedmpi.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
IDX_BYTES = b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 4) + bytes(range(24))


def write_idx_set(folder: Path, **changed: np.ndarray) -> list[Path]:
    """Write four small IDX files, some of them changed, and return their paths."""
    arrays = {
        "train_images": np.zeros((3, 4, 5), np.uint8),
        "train_labels": np.array([0, 9, 4], np.uint8),
        "test_images": np.full((2, 4, 5), 7, np.uint8),
        "test_labels": np.array([1, 2], np.uint8),
    } | changed
    for name, values in zip(formats.IDX_NAMES, arrays.values(), strict=True):
        formats.write_idx_gz(folder / f"{name}.gz", values)
    return formats.idx_files(folder)


@pytest.mark.parametrize("content", [IDX_BYTES, gzip.compress(IDX_BYTES)], ids=["plain", "gzip"])
def test_read_idx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    images = formats.read_idx(path, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, IMAGES)
    assert images.flags.writeable


def test_write_idx_gz_is_idx_and_has_no_time_stamp(tmp_path: Path) -> None:
    formats.write_idx_gz(tmp_path / "images.gz", IMAGES)
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
        (gzip.compress(IDX_BYTES)[:-3], "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES)[:14], "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES)[:-8] + bytes(8), "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES)[:10] + b"\xff" * 20, "expected a whole gzip stream"),
        (gzip.compress(IDX_BYTES[:-1]), r"expected 24 bytes for shape \(2, 3, 4\), got 23"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images"
    # Values after a huge header are left out: nothing may be allocated for what the header claims.
    path.write_bytes(content[:16] if content[4:16] == b"\xff" * 12 else content)
    with pytest.raises(DataError, match=words) as caught:
        formats.read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        formats.read_idx(tmp_path, 3)


def test_read_idx_set(tmp_path: Path) -> None:
    arrays = formats.read_idx_set(write_idx_set(tmp_path), 10)
    assert arrays.train_images.shape == (3, 4, 5, 1)
    assert arrays.test_images.shape == (2, 4, 5, 1)
    assert (arrays.test_images == 7).all()
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
        ({"test_images": np.zeros((2, 5, 4), np.uint8)}, 2, r"shape \(4, 5, 1\) as in .*, got \(5, 4, 1\)"),
        (
            {"train_images": np.zeros((0, 4, 5), np.uint8), "train_labels": np.zeros(0, np.uint8)},
            0,
            "at least one image",
        ),
        ({"train_images": np.zeros(3, np.uint8)}, 0, "magic 00000803, got 00000801"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], file_idx: int, words: str) -> None:
    files = write_idx_set(tmp_path, **changed)
    with pytest.raises(DataError, match=words) as caught:
        formats.read_idx_set(files, 10)
    assert str(caught.value).startswith(str(files[file_idx]))


def test_idx_files_names_what_is_missing(tmp_path: Path) -> None:
    files = write_idx_set(tmp_path)
    files[1].unlink()
    with pytest.raises(DataError, match=r"no train-labels-idx1-ubyte\[.gz\]$"):
        formats.idx_files(tmp_path)


ROWS = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)


def python2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """Pickle a batch byte for byte as the official files are: Python 2 strings, numpy's old module names."""
    raw = rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + bytes([len(rows)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )
    label_list = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x06labels" + label_list + b"U\x04data" + array + b"U\x09filenames](U\x05a.pngeu."


GOOD_BATCH = python2_batch(ROWS, [3, 9])


def write_cifar10(folder: Path, batch: bytes = GOOD_BATCH) -> list[Path]:
    """Write five good batches and, as the third, `batch`; return the paths."""
    (folder / formats.CIFAR10_FOLDER).mkdir()
    for name in formats.CIFAR10_NAMES:
        content = batch if name == "data_batch_3" else GOOD_BATCH
        (folder / formats.CIFAR10_FOLDER / name).write_bytes(content)
    return formats.cifar10_files(folder)


def write_archive(folder: Path, names: tuple[str, ...] = formats.CIFAR10_NAMES) -> Path:
    """Write the archive with batches of `names` and, as in the official one, other members."""
    path = folder / formats.CIFAR10_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name in ("readme.html", *names):
            member = tarfile.TarInfo(f"{formats.CIFAR10_FOLDER}/{name}")
            member.size = len(GOOD_BATCH)
            archive.addfile(member, io.BytesIO(GOOD_BATCH))
    return path


@pytest.mark.parametrize("layout", ["folder", "the folder itself", "archive"])
def test_read_cifar10(tmp_path: Path, layout: str) -> None:
    if layout == "archive":
        files = [write_archive(tmp_path)]
        assert formats.cifar10_files(tmp_path) == files
    else:
        files = write_cifar10(tmp_path)
        if layout == "the folder itself":
            assert formats.cifar10_files(tmp_path / formats.CIFAR10_FOLDER) == files
    arrays = formats.read_cifar10(files, 10)
    assert arrays.train_images.shape == (10, 32, 32, 3)
    assert arrays.test_images.shape == (2, 32, 32, 3)
    # A row holds 1024 red, then 1024 green, then 1024 blue values, each row by row.
    for image_idx, y, x, channel in [(0, 0, 1, 0), (1, 5, 0, 1), (1, 31, 30, 2)]:
        assert arrays.test_images[image_idx, y, x, channel] == ROWS[image_idx, 1024 * channel + 32 * y + x]
        assert arrays.train_images[8 + image_idx, y, x, channel] == ROWS[image_idx, 1024 * channel + 32 * y + x]
    assert arrays.train_labels.tolist() == [3, 9] * 5
    assert arrays.test_labels.dtype == np.int64


@pytest.mark.parametrize("rows", [ROWS, np.asfortranarray(ROWS)], ids=["C", "Fortran"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_cifar10_pickled_anew_by_this_numpy(tmp_path: Path, rows: np.ndarray, protocol: int) -> None:
    files = write_cifar10(tmp_path, pickle.dumps({"data": rows, "labels": [1, 2]}, protocol=protocol))
    arrays = formats.read_cifar10(files, 10)
    assert np.array_equal(arrays.train_images[4:6].transpose(0, 3, 1, 2).reshape(2, 3072), ROWS)
    assert arrays.train_labels[4:6].tolist() == [1, 2]


class Evil:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.args


def evil_pickles(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Return pickles that would run code, with the class that the refusal must name."""
    import os

    touch = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    return {
        "system": (pickle.dumps(Evil(os.system, f"touch '{marker}'")), "posix.system"),
        "exec": (pickle.dumps({"data": Evil(exec, touch)}), "builtins.exec"),
        "python2": (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        "attribute": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", r"numpy.dtype.__init__"),
        "numpy": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        "copyreg": (pickle.dumps(Path("x")), "pathlib"),
        "protocol 2": (pickle.dumps(ROWS, protocol=2), "_codecs.encode"),
        "protocol 5": (pickle.dumps(ROWS, protocol=5), "numpy._core.numeric._frombuffer"),
    }


@pytest.mark.parametrize("kind", list(evil_pickles(Path())))
def test_a_pickle_that_asks_for_code_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "was-here"
    content, refused = evil_pickles(marker)[kind]
    files = write_cifar10(tmp_path, content)
    with pytest.raises(DataError, match=f"asks for {refused}.*refused") as caught:
        formats.read_cifar10(files, 10)
    assert not marker.exists()
    assert str(files[2]) in str(caught.value)


def test_a_pickle_cannot_change_the_stand_ins(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever has no __setstate__; aimed at the class it must fail."""
    build_on_class = b"cnumpy\ndtype\nN}S'marked'\nI1\ns\x86b."
    with pytest.raises(DataError, match="data_batch_3"):
        formats.read_cifar10(write_cifar10(tmp_path, build_on_class), 10)
    assert not hasattr(formats._PickledDtype, "marked")


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (b"", "fails"),
        (GOOD_BATCH[:-1], "fails"),
        (GOOD_BATCH[:3000], "fails"),
        (b"not a pickle", "fails"),
        (pickle.dumps([1]), "expected a dictionary, got list"),
        (pickle.dumps({"labels": [1]}), "'data' .* got NoneType"),
        (pickle.dumps({"data": [0] * 3072, "labels": [1]}), "'data' .* got list"),
        (pickle.dumps({"data": ROWS}, 4), "'labels' to be a list, got NoneType"),
        (pickle.dumps({"data": ROWS.reshape(4, 1536), "labels": [1, 2]}, 4), r"\(images, 3072\) bytes, got shape"),
        (pickle.dumps({"data": ROWS[0], "labels": [1, 2]}, 4), r"\(images, 3072\) bytes, got shape \(3072,\)"),
        (pickle.dumps({"data": ROWS.astype(np.float32), "labels": [1, 2]}, 4), "dtype 'f4'"),
        (pickle.dumps({"data": np.array([None]), "labels": [1, 2]}, 4), "dtype 'O8'"),
        (GOOD_BATCH.replace(b"M\x00\x0c", b"M\x01\x0c"), "fails"),
        (python2_batch(ROWS, [1, 10]), "labels from 0 to 9, got 10"),
        (pickle.dumps({"data": ROWS, "labels": [1, -1]}, 4), "labels from 0 to 9, got -1"),
        (pickle.dumps({"data": ROWS, "labels": [1, 10**30]}, 4), "labels from 0 to 9, got 10000"),
        (pickle.dumps({"data": ROWS, "labels": [1, "cat"]}, 4), "labels from 0 to 9, got 'cat'"),
        (pickle.dumps({"data": ROWS, "labels": [1, True]}, 4), "labels from 0 to 9, got True"),
        (python2_batch(ROWS, [1, 2, 3]), "expected 2 labels .*, got 3"),
        (python2_batch(ROWS[:0], []), "at least one image"),
    ],
)
def test_damaged_cifar10_batch(tmp_path: Path, batch: bytes, words: str) -> None:
    files = write_cifar10(tmp_path, batch)
    with pytest.raises(DataError, match=words) as caught:
        formats.read_cifar10(files, 10)
    assert str(files[2]) in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9])
def test_truncated_archive(tmp_path: Path, keep: float) -> None:
    path = write_archive(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="expected a whole gzipped tar archive") as caught:
        formats.read_cifar10([path], 10)
    assert str(path) in str(caught.value)


def test_archive_without_a_batch(tmp_path: Path) -> None:
    path = write_archive(tmp_path, formats.CIFAR10_NAMES[:-1])
    with pytest.raises(DataError, match="expected 6 batches, got none named test_batch"):
        formats.read_cifar10([path], 10)


def test_archive_with_a_link_for_a_batch(tmp_path: Path) -> None:
    path = tmp_path / formats.CIFAR10_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name in formats.CIFAR10_NAMES:
            member = tarfile.TarInfo(f"{formats.CIFAR10_FOLDER}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(DataError, match="got none named data_batch_1"):
        formats.read_cifar10([path], 10)


def test_cifar10_files_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cifar-10-batches-py/ .* no cifar-10-python.tar.gz") as caught:
        formats.cifar10_files(tmp_path)
    assert str(tmp_path) in str(caught.value)
