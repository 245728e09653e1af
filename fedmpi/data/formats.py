"""Readers of the data sets' own files: MNIST's IDX and CIFAR-10's pickles. Nothing in a file is believed unchecked."""

from __future__ import annotations

import gzip
import math
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import DataError

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class Arrays(NamedTuple):
    """A decoded data set: images (N, H, W, C) uint8, labels (N,) int64."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def idx_files(folder: Path) -> list[Path]:
    """Return the four IDX files of `folder` in the order of `IDX_NAMES`; `DataError` names those it lacks."""
    found, missing = [], []
    for name in IDX_NAMES:
        # os.path.isfile also answers, with no, for a folder that may not be entered.
        path = next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)
        if path is None:
            missing.append(f"{name}[.gz]")
        else:
            found.append(path)
    if missing:
        raise DataError(f"{folder}: no {', '.join(missing)}")
    return found


def cifar10_files(folder: Path) -> list[Path]:
    """Return the six batch files of `folder`, or the archive alone; `DataError` if it holds neither."""
    for base in (folder / CIFAR10_FOLDER, folder):
        files = [base / name for name in CIFAR10_NAMES]
        if all(os.path.isfile(path) for path in files):
            return files
    if os.path.isfile(folder / CIFAR10_ARCHIVE):
        return [folder / CIFAR10_ARCHIVE]
    raise DataError(f"{folder}: no {CIFAR10_FOLDER}/ with data_batch_1 to 5 and test_batch, no {CIFAR10_ARCHIVE}")


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or plain.

    Parameters
    ----------
    path : Path
        The file; gzip is told by its first bytes, not by the name.
    ndim : int
        Dimensions that it must have.

    Returns
    -------
    numpy.ndarray
        uint8 of the shape that the header states, writable.

    Raises
    ------
    DataError
        If the file cannot be read, is no such IDX file, or is shorter or longer than its header says.
    """
    raw = _read_bytes(path)
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: expected a whole gzip stream, got a damaged one ({error})") from error
    magic, header_nbytes = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    if raw[:4] != magic:
        raise DataError(f"{path}: expected an IDX file with magic {magic.hex()}, got {raw[:4].hex() or 'no bytes'}")
    if len(raw) < header_nbytes:
        raise DataError(f"{path}: expected a header of {header_nbytes} bytes, got {len(raw)} bytes in all")
    shape = struct.unpack_from(f">{ndim}I", raw, 4)
    content_nbytes = len(raw) - header_nbytes
    if content_nbytes != math.prod(shape):
        raise DataError(f"{path}: expected {math.prod(shape)} bytes for shape {shape}, got {content_nbytes}")
    # A copy, because views of bytes are read-only and torch warns about those.
    return np.frombuffer(raw, np.uint8, offset=header_nbytes).reshape(shape).copy()


def write_idx_gz(path: Path, values: NDArray[np.uint8]) -> None:
    """Write `values` as a gzipped IDX file; equal values give equal bytes (no time stamp, no file name)."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8, casting="safe").tobytes(), 9, mtime=0))


def read_idx_set(files: Sequence[Path], num_classes: int) -> Arrays:
    """Read the four files that `idx_files` returns.

    Raises
    ------
    DataError
        If a file is damaged, images and labels differ in number, a label is out of range, or the test images have
        another shape than the training images.
    """
    train_images, test_images = (read_idx(files[i], 3)[..., np.newaxis] for i in (0, 2))
    train_labels, test_labels = (read_idx(files[i], 1).astype(np.int64) for i in (1, 3))
    _check_split(files[0], files[1], train_images, train_labels, num_classes)
    _check_split(files[2], files[3], test_images, test_labels, num_classes)
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = f"expected images of shape {train_images.shape[1:]} as in {files[0]}, got {test_images.shape[1:]}"
        raise DataError(f"{files[2]}: {shapes}")
    return Arrays(train_images, train_labels, test_images, test_labels)


def read_cifar10(files: Sequence[Path], num_classes: int) -> Arrays:
    """Read the files that `cifar10_files` returns, without running anything that their pickles ask for.

    Raises
    ------
    DataError
        If a file is damaged, a batch is missing from the archive, a pickle names anything but a uint8 array, images
        and labels differ in number, or a label is out of range.
    """
    batches = {}
    for name, where, raw in _cifar10_blobs(files):
        images, labels = _cifar10_batch(where, raw, num_classes)
        _check_split(where, where, images, labels, num_classes)
        batches[name] = images, labels
    missing = [name for name in CIFAR10_NAMES if name not in batches]
    if missing:
        raise DataError(f"{files[0]}: expected {len(CIFAR10_NAMES)} batches, got none named {', '.join(missing)}")
    *train, test = (batches[name] for name in CIFAR10_NAMES)
    return Arrays(np.concatenate([b[0] for b in train]), np.concatenate([b[1] for b in train]), *test)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _check_split(
    images_path: object, labels_path: object, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int
) -> None:
    if images.size == 0:
        raise DataError(f"{images_path}: expected at least one image, got shape {images.shape}")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: expected {len(images)} labels as {images_path} has images, got {len(labels)}")
    if labels.max() >= num_classes:
        raise DataError(f"{labels_path}: expected labels from 0 to {num_classes - 1}, got {labels.max()}")


def _cifar10_blobs(files: Sequence[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Yield each batch's name, the words to blame it with, and its bytes."""
    if len(files) > 1:
        for path in files:
            yield path.name, str(path), _read_bytes(path)
        return
    wanted = {f"{CIFAR10_FOLDER}/{name}": name for name in CIFAR10_NAMES}
    try:
        # Read as a stream: going back to a member would unpack the whole archive again.
        with tarfile.open(files[0], "r|gz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted and member.isfile() else None
                if content is not None:
                    yield wanted[member.name], f"{files[0]} ({member.name})", content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{files[0]}: expected a whole gzipped tar archive, got a damaged one ({error})") from error


def _cifar10_batch(where: str, raw: bytes, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArrayUnpickler(BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise DataError(f"{where}: expected a pickle of a CIFAR-10 batch, got one that fails: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a dictionary, got {type(batch).__name__}")
    # Python 2 wrote the keys as byte strings, Python 3 writes text.
    pixels, labels = (batch.get(key, batch.get(key.encode())) for key in ("data", "labels"))
    rows = pixels.values if isinstance(pixels, _PickledArray) else None
    if rows is None or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        got = type(pixels).__name__ if rows is None else f"shape {rows.shape}"
        raise DataError(f"{where}: expected 'data' to be an array of (images, 3072) bytes, got {got}")
    if not isinstance(labels, list):
        raise DataError(f"{where}: expected 'labels' to be a list, got {type(labels).__name__}")
    bad = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if bad:
        raise DataError(f"{where}: expected labels from 0 to {num_classes - 1}, got {bad[0]!r}")
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, np.array(labels, np.int64)


class _PickledDtype:
    """Stands in for numpy.dtype while unpickling; bytes are all that CIFAR-10 needs."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: a byte has none."""


class _PickledArray:
    """Stands in for a numpy array while unpickling, so that no pickle reaches numpy's own, trusting, __setstate__."""

    values: NDArray[np.uint8] | None = None

    def __init__(self, *_: object) -> None:
        """Take what `numpy._reconstruct` takes; the content comes with the state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array whose content is not bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of lists, dictionaries, numbers, strings and byte arrays that refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        # Both stand-ins define __setstate__: without it a pickle could set attributes of the classes themselves.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _PickledArray
        if (module, name) == ("numpy", "dtype"):
            return _PickledDtype
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"  # only ever an argument of _reconstruct
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
