"""IDX files: MNIST and what came after it in the same format."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.arrays import Arrays, check_split, read_bytes
from fedmpi.errors import DataError

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
EMNIST_ARCHIVE = "gzip.zip"
EMNIST_FOLDER = "gzip"


def emnist_names(split: str) -> tuple[str, ...]:
    """Return the names of the four files of one of EMNIST's splits, in the order of `IDX_NAMES`."""
    return tuple(f"emnist-{split}-{name.replace('t10k', 'test')}" for name in IDX_NAMES)


def idx_files(folder: Path, names: Sequence[str] = IDX_NAMES) -> list[Path]:
    """Return the files `names` of `folder`, plain or with .gz, in their order; `DataError` names those it lacks."""
    found, missing = [], []
    for name in names:
        # os.path.isfile also answers, with no, for a folder that may not be entered.
        path = next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)
        if path is None:
            missing.append(f"{name}[.gz]")
        else:
            found.append(path)
    if missing:
        raise DataError(f"{folder}: no {', '.join(missing)}")
    return found


def emnist_files(split: str, folder: Path) -> list[Path]:
    """Return the four files of one of EMNIST's splits, or NIST's archive alone; `DataError` if there is neither."""
    try:
        return idx_files(folder, emnist_names(split))
    except DataError as error:
        missing = error
    try:
        return idx_files(folder / EMNIST_FOLDER, emnist_names(split))
    except DataError:
        if os.path.isfile(folder / EMNIST_ARCHIVE):
            return [folder / EMNIST_ARCHIVE]
    raise DataError(f"{missing}, nor in {EMNIST_FOLDER}/, and no {EMNIST_ARCHIVE}")


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
    return _parse_idx(path, read_bytes(path), ndim)


def _parse_idx(where: object, raw: bytes, ndim: int) -> NDArray[np.uint8]:
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{where}: expected a whole gzip stream, got a damaged one ({error})") from error
    magic, header_nbytes = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    if raw[:4] != magic:
        raise DataError(f"{where}: expected an IDX file with magic {magic.hex()}, got {raw[:4].hex() or 'no bytes'}")
    if len(raw) < header_nbytes:
        raise DataError(f"{where}: expected a header of {header_nbytes} bytes, got {len(raw)} bytes in all")
    shape = struct.unpack_from(f">{ndim}I", raw, 4)
    content_nbytes = len(raw) - header_nbytes
    if content_nbytes != math.prod(shape):
        raise DataError(f"{where}: expected {math.prod(shape)} bytes for shape {shape}, got {content_nbytes}")
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
    return _idx_set(files, [read_idx(path, ndim) for path, ndim in zip(files, (3, 1, 3, 1), strict=True)], num_classes)


def read_emnist(split: str, files: Sequence[Path], num_classes: int) -> Arrays:
    """Read the files that `emnist_files` returns, and turn the images upright: EMNIST stores them transposed.

    Raises
    ------
    DataError
        As `read_idx_set`; also if the archive is damaged or lacks a file.
    """
    if len(files) > 1:
        arrays = read_idx_set(files, num_classes)
    else:
        members = [f"{EMNIST_FOLDER}/{name}.gz" for name in emnist_names(split)]
        wheres = [f"{files[0]} ({member})" for member in members]
        contents = zip(wheres, _read_members(files[0], members), (3, 1, 3, 1), strict=True)
        arrays = _idx_set(wheres, [_parse_idx(where, raw, ndim) for where, raw, ndim in contents], num_classes)
    train, test = (np.ascontiguousarray(images.transpose(0, 2, 1, 3)) for images in (arrays[0], arrays[2]))
    return arrays._replace(train_inputs=train, test_inputs=test)


def _idx_set(wheres: Sequence[object], values: Sequence[NDArray[np.uint8]], num_classes: int) -> Arrays:
    """Make one set of training images and labels, test images and labels, blaming `wheres` in errors."""
    train_inputs, test_inputs = (values[i][..., np.newaxis] for i in (0, 2))
    train_labels, test_labels = (values[i].astype(np.int64) for i in (1, 3))
    check_split(wheres[0], wheres[1], train_inputs, train_labels, num_classes)
    check_split(wheres[2], wheres[3], test_inputs, test_labels, num_classes)
    if train_inputs.shape[1:] != test_inputs.shape[1:]:
        shapes = f"expected images of shape {train_inputs.shape[1:]} as in {wheres[0]}, got {test_inputs.shape[1:]}"
        raise DataError(f"{wheres[2]}: {shapes}")
    return Arrays(train_inputs, train_labels, test_inputs, test_labels)


def _read_members(path: Path, members: Sequence[str]) -> list[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            missing = sorted(set(members) - set(archive.namelist()))
            if missing:
                raise DataError(f"{path}: expected NIST's archive of EMNIST, got one without {', '.join(missing)}")
            return [archive.read(member) for member in members]
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: expected a whole zip archive, got a damaged one ({error})") from error
