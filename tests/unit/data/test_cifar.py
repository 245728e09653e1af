"""CIFAR's pickles: hand-made ones read right, every damage refused with the file's name, and no code run."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.data import cifar
from fedmpi.data.cifar import CIFAR10, CIFAR100
from fedmpi.errors import DataError

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
    (folder / CIFAR10.folder).mkdir()
    for name in CIFAR10.batches:
        content = batch if name == "data_batch_3" else GOOD_BATCH
        (folder / CIFAR10.folder / name).write_bytes(content)
    return cifar.cifar_files(CIFAR10, folder)


def write_archive(folder: Path, names: tuple[str, ...] = CIFAR10.batches) -> Path:
    """Write the archive with batches of `names` and, as in the official one, other members."""
    path = folder / CIFAR10.archive
    with tarfile.open(path, "w:gz") as archive:
        for name in ("readme.html", *names):
            member = tarfile.TarInfo(f"{CIFAR10.folder}/{name}")
            member.size = len(GOOD_BATCH)
            archive.addfile(member, io.BytesIO(GOOD_BATCH))
    return path


@pytest.mark.parametrize("layout", ["folder", "the folder itself", "archive"])
def test_read_cifar10(tmp_path: Path, layout: str) -> None:
    if layout == "archive":
        files = [write_archive(tmp_path)]
        assert cifar.cifar_files(CIFAR10, tmp_path) == files
    else:
        files = write_cifar10(tmp_path)
        if layout == "the folder itself":
            assert cifar.cifar_files(CIFAR10, tmp_path / CIFAR10.folder) == files
    arrays = cifar.read_cifar(CIFAR10, files, 10)
    assert arrays.train_inputs.shape == (10, 32, 32, 3)
    assert arrays.test_inputs.shape == (2, 32, 32, 3)
    # A row holds 1024 red, then 1024 green, then 1024 blue values, each row by row.
    for image_idx, y, x, channel in [(0, 0, 1, 0), (1, 5, 0, 1), (1, 31, 30, 2)]:
        assert arrays.test_inputs[image_idx, y, x, channel] == ROWS[image_idx, 1024 * channel + 32 * y + x]
        assert arrays.train_inputs[8 + image_idx, y, x, channel] == ROWS[image_idx, 1024 * channel + 32 * y + x]
    assert arrays.train_labels.tolist() == [3, 9] * 5
    assert arrays.test_labels.dtype == np.int64


@pytest.mark.parametrize("rows", [ROWS, np.asfortranarray(ROWS)], ids=["C", "Fortran"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_cifar10_pickled_anew_by_this_numpy(tmp_path: Path, rows: np.ndarray, protocol: int) -> None:
    files = write_cifar10(tmp_path, pickle.dumps({"data": rows, "labels": [1, 2]}, protocol=protocol))
    arrays = cifar.read_cifar(CIFAR10, files, 10)
    assert np.array_equal(arrays.train_inputs[4:6].transpose(0, 3, 1, 2).reshape(2, 3072), ROWS)
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
        cifar.read_cifar(CIFAR10, files, 10)
    assert not marker.exists()
    assert str(files[2]) in str(caught.value)


def test_a_pickle_cannot_change_the_stand_ins(tmp_path: Path) -> None:
    """BUILD sets attributes of whatever has no __setstate__; aimed at the class it must fail."""
    build_on_class = b"cnumpy\ndtype\nN}S'marked'\nI1\ns\x86b."
    with pytest.raises(DataError, match="data_batch_3"):
        cifar.read_cifar(CIFAR10, write_cifar10(tmp_path, build_on_class), 10)
    assert not hasattr(cifar._PickledDtype, "marked")


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
        cifar.read_cifar(CIFAR10, files, 10)
    assert str(files[2]) in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9])
def test_truncated_archive(tmp_path: Path, keep: float) -> None:
    path = write_archive(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="expected a whole gzipped tar archive") as caught:
        cifar.read_cifar(CIFAR10, [path], 10)
    assert str(path) in str(caught.value)


def test_archive_without_a_batch(tmp_path: Path) -> None:
    path = write_archive(tmp_path, CIFAR10.batches[:-1])
    with pytest.raises(DataError, match="expected 6 batches, got none named test_batch"):
        cifar.read_cifar(CIFAR10, [path], 10)


def test_archive_with_a_link_for_a_batch(tmp_path: Path) -> None:
    path = tmp_path / CIFAR10.archive
    with tarfile.open(path, "w:gz") as archive:
        for name in CIFAR10.batches:
            member = tarfile.TarInfo(f"{CIFAR10.folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(DataError, match="got none named data_batch_1"):
        cifar.read_cifar(CIFAR10, [path], 10)


def test_cifar10_files_says_what_it_looks_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cifar-10-batches-py/ .* no cifar-10-python.tar.gz") as caught:
        cifar.cifar_files(CIFAR10, tmp_path)
    assert str(tmp_path) in str(caught.value)


COARSE = [0, 19]


def write_cifar100(folder: Path, test: dict[str, Any] | None = None) -> Path:
    """Write the two batches, keyed as in the official files."""
    folder.mkdir(parents=True)
    common = {"filenames": ["a.png", "b.png"], "batch_label": "one", "coarse_labels": COARSE, "data": ROWS}
    for name, content in (("train", {"fine_labels": [19, 99]}), ("test", {"fine_labels": [0, 3]} | (test or {}))):
        (folder / name).write_bytes(pickle.dumps(common | content, 4))
    return folder


@pytest.mark.parametrize("layout", ["folder", "the folder itself", "archive"])
def test_read_cifar100(tmp_path: Path, layout: str) -> None:
    inner = write_cifar100(tmp_path / "cifar-100-python")
    if layout == "archive":
        with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
            archive.add(inner, "cifar-100-python")
        for path in inner.iterdir():
            path.unlink()
    files = cifar.cifar_files(CIFAR100, inner if layout == "the folder itself" else tmp_path)
    arrays = cifar.read_cifar(CIFAR100, files, 100)
    assert arrays.train_labels.tolist() == [19, 99]
    assert arrays.test_labels.tolist() == [0, 3]
    assert np.array_equal(arrays.train_inputs.transpose(0, 3, 1, 2).reshape(2, 3072), ROWS)


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"fine_labels": [1, 100]}, "expected labels from 0 to 99, got 100"),
        ({"fine_labels": None, "labels": [1, 2]}, "'fine_labels' to be a list, got NoneType"),
        ({"fine_labels": [1]}, "expected 2 labels .*, got 1"),
    ],
)
def test_damaged_cifar100(tmp_path: Path, test: dict[str, Any], words: str) -> None:
    folder = write_cifar100(tmp_path / "set", test)
    with pytest.raises(DataError, match=words) as caught:
        cifar.read_cifar(CIFAR100, cifar.cifar_files(CIFAR100, folder), 100)
    assert str(folder / "test") in str(caught.value)


def test_a_pickle_of_cifar100_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    folder = write_cifar100(tmp_path / "set")
    (folder / "test").write_bytes(evil_pickles(marker)["system"][0])
    with pytest.raises(DataError, match=r"CIFAR-100 batch.*asks for posix.system"):
        cifar.read_cifar(CIFAR100, cifar.cifar_files(CIFAR100, folder), 100)
    assert not marker.exists()
